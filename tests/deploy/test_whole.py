"""The whole small deploy environment, built twice from the packages of this machine: not a byte differs."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from deploy import build
from deploy.media import PLACEHOLDER

pytestmark = [pytest.mark.e2e, pytest.mark.slow]


def test_two_builds_are_the_same_to_the_byte(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    code = build.main(["--flavour", "mini", "--out", str(out), "--cache", "build/packages", "--check"])
    assert code == 0, capsys.readouterr().err
    manifest = json.loads((out / "manifest.json").read_text())
    assert sorted(manifest["files"]) == sorted(build.OUTPUTS)
    for name, entry in manifest["files"].items():
        assert hashlib.sha256((out / name).read_bytes()).hexdigest() == entry["sha256"], name
    assert manifest["files"]["initrd"]["bytes"] < 40_000_000
    assert (out / "deploy.iso").read_bytes().count(b"fleetd.url=" + PLACEHOLDER.encode() + b"\n") == 1
    assert all(package["version"] for package in manifest["packages"].values())
