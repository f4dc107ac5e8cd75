"""The seed: files that cloud-init takes as they are meant, a volume it finds, and a program that phones home."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleetd.probe.host import seed as seeds
from fleetd.probe.host.order import Refusal, Seed, read
from fleetd.sim.drives import _seeded
from tests.probe.imaging import KEY, SEED, serving

GOOD = Seed(**SEED | {"authorized_keys": (KEY,)})
ARCHIVES = [
    "#cloud-config\nwrite_files: [{path: /a, content: b}]\n",
    "#include http://x/",
    "Content-Type: multipart/mixed\n",
    "## template: jinja\n#cloud-config\n",
    "#cloud-config-archive\n[]",
]


def config_of(vendor: bytes) -> tuple[dict, str]:
    """(the cloud-config, the per-boot script) in vendor-data of either kind."""
    head, _, rest = vendor.decode().partition("\n")
    said = json.loads(rest)
    if head == "#cloud-config":
        return said, said["write_files"][0]["content"]
    assert head == "#cloud-config-archive"
    assert [part["type"] for part in said] == ["text/cloud-config", "text/x-shellscript-per-boot"]
    return json.loads(said[0]["content"].removeprefix("#cloud-config\n")), said[1]["content"]


def test_the_files_say_what_the_order_says():
    files = seeds.render(GOOD)
    assert set(files) == {"meta-data", "vendor-data", "user-data", "network-config"}
    assert json.loads(files["meta-data"]) == {
        "instance-id": "i-1",
        "local-hostname": "lou-a01-01",
        "public-keys": [KEY],
    }
    config, script = config_of(files["vendor-data"])
    assert config["ssh_keys"]["ed25519_private"] == SEED["host_key_private"]
    assert config["ssh_deletekeys"] is True
    assert config["ssh_authorized_keys"] == [KEY]
    assert config["write_files"][0]["permissions"] == "0700"
    assert script.startswith("#!/usr/bin/python3\n")
    assert files["user-data"].startswith(b"#cloud-config\n")
    assert json.loads(files["network-config"])["ethernets"]["all"]["dhcp4"] is True


@pytest.mark.parametrize("text", ["#cloud-config\npackages: [htop]\n", "#!/bin/sh\necho hi\n", *ARCHIVES])
def test_a_tenants_text_is_theirs_verbatim_and_cannot_displace_the_phone_home(text):
    files = seeds.render(GOOD._replace(user_data=text, network="version: 2\n"))
    assert files["user-data"] == text.encode()
    assert files["network-config"] == b"version: 2\n"
    assert files["vendor-data"].startswith(b"#cloud-config-archive\n") == (text in ARCHIVES)
    config, script = config_of(files["vendor-data"])
    assert ("write_files" in config) == (text not in ARCHIVES)
    assert script == seeds.hello_script(GOOD)


@given(st.text(max_size=30), st.text(max_size=30), st.text(max_size=30))
def test_nothing_in_a_field_escapes_it(hostname, key, token):
    changed = SEED | {"hostname": hostname, "authorized_keys": [key], "phone_home_token": token}
    image = {"name": "x", "format": "raw", "bytes": 1, "sha256": "0" * 64, "raw_bytes": 512, "raw_sha256": "0" * 64}
    order = {"intent": "i", "nonce": "n", "host_serial": "H", "drives": [{"serial": "D"}], "seed": changed}
    try:
        good = read("write-image", json.dumps({**order, "image": image | {"urls": ["http://x/"]}}).encode()).seed
    except Refusal:
        return
    installed = _seeded(seeds.render(good), "x")
    assert (installed.hostname, installed.authorized_keys, installed.phone_home_token) == (hostname, (key,), token)
    assert json.loads(seeds.render(good)["meta-data"])["local-hostname"] == hostname


def run_hello(tmp_path, script, *, wait=True):
    path = tmp_path / "hello"
    path.write_text(script)
    done = subprocess.run([sys.executable, "-I", "-S", path], capture_output=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr


def test_the_hello_is_posted_with_the_token_and_what_the_machine_is(tmp_path):
    got = []

    def script(request):
        got.append(
            (request.path, dict(request.headers.items()), request.rfile.read(int(request.headers["Content-Length"])))
        )
        request.say(204, {})

    with serving(script) as server:
        server.RequestHandlerClass.do_POST = server.RequestHandlerClass.do_GET
        root = server.url.removesuffix("/image")
        run_hello(tmp_path, seeds.hello_script(GOOD._replace(phone_home_url=root)))
        run_hello(tmp_path, seeds.hello_script(GOOD._replace(phone_home_url=f"{root}/deploy/hello")))
    assert [path for path, _, _ in got] == ["/deploy/hello"] * 2
    _, headers, body = got[0]
    assert headers["Authorization"] == "Bearer SECRET-TOKEN"
    hello = json.loads(body)
    assert set(hello) == {"environment", "mac", "serial", "uuid", "boot_id", "host_key", "ssh_port"}
    with open("/proc/sys/kernel/random/boot_id") as file:
        assert hello["boot_id"] == file.read().strip()
    assert (hello["environment"], hello["ssh_port"]) == ("disk", 22)


def test_the_mac_of_the_inventory_is_told_only_where_the_machine_has_it(tmp_path):
    names = {"__name__": "hello"}
    exec(seeds.hello_script(GOOD._replace(boot_mac="04:3f:72:aa:00:01")), names)
    names["macs"] = lambda: {"eth0": "04:3f:72:aa:00:02", "eth1": "04:3f:72:aa:00:01"}
    assert names["boot_mac"]() == "04:3f:72:aa:00:01"
    names["macs"] = lambda: {"eth0": "04:3f:72:aa:00:02", "eth1": "04:3f:72:aa:00:03"}
    routes = "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\n" + "".join(
        f"{name}\t{to}\t0\t3\t0\t0\t{metric}\t0\n"
        for name, to, metric in [("eth0", "00000000", 200), ("eth1", "00000000", 100), ("eth0", "0A000000", 1)]
    )
    names["line"] = lambda path: routes.strip() if path == "/proc/net/route" else ""
    assert names["boot_mac"]() == "04:3f:72:aa:00:03"
    names["line"] = lambda path: "1" if path.endswith("eth0/carrier") else ""
    assert names["boot_mac"]() == "04:3f:72:aa:00:02"


@pytest.mark.parametrize(
    ("answers", "asked"), [([0, 503, 204], 3), ([403] * 9, 3), ([0] * 99, 15), ([307, 204], 2), ([204], 1)]
)
def test_the_hello_is_repeated_with_patience_and_an_end(answers, asked, monkeypatch):
    names = {"__name__": "hello"}
    exec(seeds.hello_script(GOOD), names)
    left, waits = iter(answers), []
    names["post"] = lambda: (waits.append("post"), next(left))[1]
    now = [0.0]

    class Time:
        monotonic = staticmethod(lambda: now[0])

        @staticmethod
        def sleep(seconds):
            now[0] += seconds

    class Os:
        O_RDWR, devnull = os.O_RDWR, os.devnull
        fork, setsid = staticmethod(lambda: 0), staticmethod(lambda: None)
        open, dup2 = staticmethod(lambda *a: 3), staticmethod(lambda *a: None)

    names["time"], names["os"] = Time, Os
    names["main"]()
    assert len(waits) == asked
    assert now[0] <= 600


@pytest.mark.peers
@pytest.mark.skipif(not shutil.which("cloud-init"), reason="cloud-init is not installed")
@pytest.mark.parametrize("user_data", ["", "#cloud-config\nwrite_files: [{path: /a, content: b}]\n"])
def test_cloud_init_takes_the_files(user_data, tmp_path):
    files = seeds.render(GOOD._replace(user_data=user_data))
    config, _ = config_of(files["vendor-data"])
    (tmp_path / "vendor").write_text("#cloud-config\n" + json.dumps(config))
    (tmp_path / "user").write_bytes(files["user-data"])
    (tmp_path / "whole").write_bytes(files["vendor-data"])
    names = ["vendor", "user"] if user_data else ["vendor", "user", "whole"]
    for name in names:
        done = subprocess.run(
            ["cloud-init", "schema", "--config-file", str(tmp_path / name)], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.peers
@pytest.mark.skipif(not shutil.which("cloud-init"), reason="cloud-init is not installed")
def test_cloud_inits_own_parts_are_found_in_the_archive(tmp_path):
    """Its user-data processor, in its own python: the script is a part of the kind that runs at each boot."""
    (tmp_path / "vendor").write_bytes(seeds.render(GOOD._replace(user_data=ARCHIVES[0]))["vendor-data"])
    program = (
        "import sys\n"
        "from cloudinit import handlers, user_data\n"
        "from cloudinit.helpers import Paths\n"
        "message = user_data.UserDataProcessor(Paths({})).process(open(sys.argv[1], 'rb').read())\n"
        "print([(p.get_content_type(), p.get_filename()) for p in message.walk() if not p.is_multipart()])\n"
    )
    done = subprocess.run(
        ["/usr/bin/python3", "-c", program, str(tmp_path / "vendor")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "('text/x-shellscript-per-boot', '00-fleetd-hello')" in done.stdout
    assert "text/cloud-config" in done.stdout


@pytest.mark.peers
@pytest.mark.skipif(
    not (os.path.exists(seeds.MKFS) and os.path.exists(seeds.MCOPY)), reason="dosfstools and mtools are not installed"
)
@pytest.mark.parametrize("sector", [512, 4096])
def test_the_volume_is_a_fat_with_the_files_in_it(sector, tmp_path):
    files = seeds.render(GOOD)
    volume = seeds.fat_volume(files, 16 << 20, sector)
    assert len(volume) == 16 << 20
    path = tmp_path / "volume"
    path.write_bytes(volume)
    environment = {"MTOOLS_SKIP_CHECK": "1", "PATH": "/usr/sbin:/usr/bin"}
    label = subprocess.run(
        ["blkid", "-p", "-o", "export", str(path)], capture_output=True, text=True, check=True
    ).stdout
    assert "LABEL=CIDATA" in label
    for name, data in files.items():
        back = subprocess.run(
            ["mcopy", "-n", "-i", str(path), f"::{name}", "-"], capture_output=True, env=environment, check=True
        )
        assert back.stdout == data
    with pytest.raises(OSError, match=r"mkfs\.vfat"):
        seeds.fat_volume(files, 1024, 512)
