"""The grammar of remote commands: what is built is read back, and a real shell takes it as it was meant."""

from __future__ import annotations

import hashlib
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleetd.probe import remote

DIGEST = "ab" * 32


@given(st.lists(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=40), max_size=8))
def test_arguments_come_back_as_they_went(arguments):
    command = remote.run("/run/fleetd", "host", DIGEST, tuple(arguments))
    assert remote.parse(command) == remote.Command("run", "/run/fleetd", "host", DIGEST, tuple(arguments))


@given(st.text(max_size=200))
def test_other_commands_mean_nothing(command):
    found = remote.parse(command)
    assert found is None or found.verb in ("test", "push", "run")


@pytest.mark.parametrize(
    "command",
    [
        f"test -f /run/fleetd/host-{DIGEST}.pyz; id",
        f"test -f /run/fleetd/host-{DIGEST}.pyz\n",
        f"exec python3 -I /run/fleetd/host-{DIGEST}.pyz wipe; id",
        f"exec python3 -I /run/fleetd/../x-{DIGEST}.pyz",
        remote.push("/run/fleetd", "host", DIGEST, "0" * 16).replace("cat >", "cat >>"),
        remote.push("/run/fleetd", "host", DIGEST, "0" * 16) + " && id",
        remote.push("/run/fleetd", "host", DIGEST, "0" * 16).replace("mkdir -p /run/fleetd", "mkdir -p .fleetd"),
    ],
)
def test_what_looks_alike_is_not_taken(command):
    assert remote.parse(command) is None


@pytest.mark.parametrize(
    ("place", "name", "digest"),
    [
        ("/tmp", "host", DIGEST),
        ("/run/fleetd", "a b", DIGEST),
        ("/run/fleetd", "host", "AB" * 32),
        ("/run/fleetd", "../x", DIGEST),
    ],
)
def test_words_that_are_not_plain_are_refused(place, name, digest):
    for build in (remote.test, lambda *a: remote.push(*a, "0" * 16), lambda *a: remote.run(*a, ())):
        with pytest.raises(ValueError, match="zipapp"):
            build(place, name, digest)


@pytest.mark.slow
def test_a_real_shell_pushes_whole_files_only(tmp_path):
    data = b"print('hello')\n" * 10
    digest = hashlib.sha256(data).hexdigest()

    def sh(command, stdin=b""):
        return subprocess.run(["/bin/sh", "-c", command], input=stdin, cwd=tmp_path, capture_output=True, timeout=20)

    assert sh(remote.test(".fleetd", "host", digest)).returncode == 1
    assert sh(remote.push(".fleetd", "host", digest, "0" * 16), data[:-1]).returncode != 0
    assert sh(remote.test(".fleetd", "host", digest)).returncode == 1
    assert sh(remote.push(".fleetd", "host", digest, "1" * 16), data).returncode == 0
    assert sh(remote.test(".fleetd", "host", digest)).returncode == 0
