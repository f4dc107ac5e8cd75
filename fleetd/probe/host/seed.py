"""The NoCloud seed: what cloud-init finds on the volume CIDATA, so that the written system knows its name and its keys.

Four files, all rendered as JSON where we write them (JSON is YAML): no text from outside is ever pasted into YAML, but
for the tenant's own `user-data`, which is theirs verbatim. Our part is `vendor-data`, which the tenant's may override.
https://cloudinit.readthedocs.io/en/latest/reference/datasources/nocloud.html
"""

from __future__ import annotations

import errno
import json
import os
import subprocess
import tempfile
from typing import Any

from .order import Seed

MKFS, MCOPY = "/usr/sbin/mkfs.vfat", "/usr/bin/mcopy"
LABEL = "CIDATA"
HELLO_PATH = "/var/lib/cloud/scripts/per-boot/00-fleetd-hello"
_SECONDS = 120.0


def render(seed: Seed) -> dict[str, bytes]:
    """Names and contents of the files."""
    meta = {
        "instance-id": seed.instance_id,
        "local-hostname": seed.hostname,
        "public-keys": list(seed.authorized_keys),
    }
    network = {"version": 2, "ethernets": {"all": {"match": {"name": "e*"}, "dhcp4": True}}}
    files = {
        "meta-data": _json(meta),
        "vendor-data": _vendor_data(seed),
        "user-data": seed.user_data or "#cloud-config\n{}\n",
        "network-config": seed.network or _json(network),
    }
    return {name: text.encode() for name, text in files.items()}


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False) + "\n"


def _vendor_data(seed: Seed) -> str:
    config: dict[str, Any] = {
        "ssh_deletekeys": True,
        "ssh_keys": {"ed25519_private": seed.host_key_private, "ed25519_public": seed.host_key_public},
        "ssh_authorized_keys": list(seed.authorized_keys),
        "disable_root": False,
    }
    if not _may_bring_files(seed.user_data):
        # 0700: it holds a token, and only root runs it
        config["write_files"] = [
            {"path": HELLO_PATH, "permissions": "0700", "owner": "root:root", "content": hello_script(seed)}
        ]
        return f"#cloud-config\n{_json(config)}"
    # cloud-init lets a list in user-data replace the list of the same name here; a script as a part of its own stays
    return "#cloud-config-archive\n" + _json(
        [
            {"type": "text/cloud-config", "content": f"#cloud-config\n{_json(config)}"},
            {
                "type": "text/x-shellscript-per-boot",
                "filename": os.path.basename(HELLO_PATH),
                "content": hello_script(seed),
            },
        ]
    )


def _may_bring_files(user_data: str) -> bool:
    """Whether the tenant's text has a `write_files` of its own, or is of a kind that may bring one from elsewhere."""
    if not user_data or user_data.startswith("#!"):
        return False
    return not user_data.startswith("#cloud-config\n") or "write_files" in user_data


def hello_script(seed: Seed) -> str:
    """The program that runs at each boot of the written system."""
    said = {"url": seed.phone_home_url, "token": seed.phone_home_token, "mac": seed.boot_mac}
    return _HELLO.replace("@SAID@", repr(json.dumps(said)))


def fat_volume(files: dict[str, bytes], length: int, sector: int) -> bytes:
    """A FAT volume labelled CIDATA of `length` bytes with these files, by mkfs.vfat and mcopy. Raises OSError."""
    with tempfile.TemporaryDirectory(prefix="fleetd-seed-") as directory:
        volume = os.path.join(directory, "volume")
        with open(volume, "wb") as file:
            file.truncate(length)
        _run([MKFS, "-n", LABEL, "-S", str(sector), volume])
        names = []
        for name, data in files.items():
            names.append(os.path.join(directory, name))
            with open(names[-1], "wb") as file:
                file.write(data)
        _run([MCOPY, "-i", volume, *names, "::"])
        with open(volume, "rb") as file:
            return file.read()


def _run(command: list[str]) -> None:
    environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C", "MTOOLS_SKIP_CHECK": "1"}
    try:
        done = subprocess.run(command, capture_output=True, timeout=_SECONDS, env=environment, stdin=subprocess.DEVNULL)
    except subprocess.TimeoutExpired as error:
        raise OSError(errno.ETIMEDOUT, f"{command[0]} did not end") from error
    if done.returncode:
        said = (done.stderr or done.stdout)[-300:].decode("utf-8", "replace").replace("\n", " ").strip()
        raise OSError(errno.EIO, f"{command[0]}: {said or f'exit code {done.returncode}'}")


_HELLO = '''#!/usr/bin/python3
"""Tells fleetd that this system is up. Put here at its installation; runs at each boot."""

import http.client
import json
import os
import time
import urllib.parse

SAID = json.loads(@SAID@)
PATIENCE = 600.0
REFUSALS = 3


def line(path):
    try:
        with open(path) as file:
            return file.read(4096).strip()
    except (OSError, UnicodeError):
        return ""


def macs():
    found = {}
    for name in sorted(os.listdir("/sys/class/net")):
        mac = line("/sys/class/net/%s/address" % name)
        if os.path.exists("/sys/class/net/%s/device" % name) and mac.count(":") == 5:
            found[name] = mac
    return found


def boot_mac():
    found = macs()
    if SAID["mac"] in found.values():
        return SAID["mac"]
    routes = []
    for row in line("/proc/net/route").splitlines()[1:]:
        fields = row.split()
        if len(fields) > 7 and fields[1] == "00000000" and fields[0] in found:
            routes.append((int(fields[6]), fields[0]))
    if routes:
        return found[min(routes)[1]]
    for name, mac in found.items():
        if line("/sys/class/net/%s/carrier" % name) == "1":
            return mac
    return ""


def hello():
    return {
        "environment": "disk",
        "mac": boot_mac(),
        "serial": line("/sys/class/dmi/id/product_serial"),
        "uuid": line("/sys/class/dmi/id/product_uuid"),
        "boot_id": line("/proc/sys/kernel/random/boot_id"),
        "host_key": line("/etc/ssh/ssh_host_ed25519_key.pub"),
        "ssh_port": 22,
    }


def post():
    """The status of the answer; 0 when there was none. Redirects are not followed: the token is for one server."""
    url = SAID["url"].rstrip("/")
    url = url if url.endswith("/deploy/hello") else url + "/deploy/hello"
    parts = urllib.parse.urlsplit(url)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    try:
        connection = kind(parts.hostname, parts.port, timeout=20)
        try:
            head = {"Authorization": "Bearer " + SAID["token"], "Content-Type": "application/json"}
            connection.request("POST", parts.path, body=json.dumps(hello()), headers=head)
            return connection.getresponse().status
        finally:
            connection.close()
    except (OSError, http.client.HTTPException):
        return 0


def main():
    began, pause, refused = time.monotonic(), 1.0, 0
    while True:
        status = post()
        refused += 400 <= status < 500
        if 200 <= status < 300 or refused >= REFUSALS or time.monotonic() - began + pause > PATIENCE:
            return
        if pause == 1.0:  # the boot does not wait for us
            if os.fork():
                return
            os.setsid()
            null = os.open(os.devnull, os.O_RDWR)
            for fd in (0, 1, 2):
                os.dup2(null, fd)
        time.sleep(pause)
        pause = min(60.0, pause * 2)


if __name__ == "__main__":
    main()
'''
