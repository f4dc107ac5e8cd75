#!/usr/bin/python3 -IS
"""What cloud-init does of it on a real system: read the NoCloud seed, then keys, files, SSH, network and per-boot scripts.

The seed is read as JSON, which fleetd writes on purpose and which is YAML too.
"""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

SEED = Path("/mnt")
CLOUD = Path("/var/lib/cloud")
MARK = Path("/var/lib/fleetd-e2e/boots")
Json = dict[str, Any]


def say(*words: object) -> None:
    uptime = Path("/proc/uptime").read_text().split()[0]
    print("fleetd-os", uptime, *words, flush=True)  # noqa: T201 -- the console


def run(*words: str) -> str:
    done = subprocess.run(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, check=False)
    return done.stdout.decode() if done.returncode == 0 else ""


def write(path: str, data: bytes, mode: int = 0o600) -> None:
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(data)
    target.chmod(mode)


def seed_device() -> str:
    """The partition labelled CIDATA on the very drive that `/` lives on; another drive may belong to somebody else."""
    number = os.stat("/").st_dev
    root = Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}").resolve()
    for part in sorted(root.parent.glob("*/partition")):
        device = f"/dev/{part.parent.name}"
        with open(device, "rb") as file:
            start = file.read(512)
        # The label of FAT12 and FAT16, or of FAT32, in its first sector.
        if b"CIDATA     " in (start[43:54].upper(), start[71:82].upper()):
            return device
    return ""


def read_seed(name: str) -> Json:
    """One document of the seed; of an archive the parts in one, its per-boot scripts as files to write."""
    try:
        text = (SEED / name).read_text()
    except OSError:
        return {}
    if text.startswith("#cloud-config-archive\n"):
        found: Json = {"write_files": []}
        for part in read_json(name, text):
            if part.get("type") == "text/cloud-config":
                more = read_json(name, part["content"])
                found.update({**more, "write_files": [*found["write_files"], *more.get("write_files", [])]})
            elif part.get("type") == "text/x-shellscript-per-boot":
                path = CLOUD / "scripts/per-boot" / Path(part["filename"]).name
                found["write_files"].append({"path": str(path), "permissions": "0700", "content": part["content"]})
        return found
    whole = read_json(name, text)
    return whole if isinstance(whole, dict) else {}


def read_json(name: str, text: str) -> Any:
    """What stands after the first line `#cloud-config…`; empty for what is no JSON."""
    if text.startswith("#cloud-config"):
        text = text.partition("\n")[2]
    try:
        return json.loads(text) if text.strip() else {}
    except ValueError as error:
        say("seed", name, "is not JSON:", error)
        return {}


def keys_of(*documents: Json) -> list[str]:
    found: list[str] = []
    for document in documents:
        for name in ("public-keys", "ssh_authorized_keys"):
            value = document.get(name, [])
            found += [str(key).strip() for key in (value.values() if isinstance(value, dict) else value)]
    return list(dict.fromkeys(found))


def apply(meta: Json, vendor: Json, user: Json) -> None:
    """Once for each instance-id, which is remembered last."""
    for document in (vendor, user):
        keys = document.get("ssh_keys", {})
        if "ed25519_private" in keys:
            write("/etc/ssh/ssh_host_ed25519_key", str(keys["ed25519_private"]).strip().encode() + b"\n")
            write("/etc/ssh/ssh_host_ed25519_key.pub", str(keys.get("ed25519_public", "")).encode() + b"\n", 0o644)
    Path("/root/.ssh").mkdir(mode=0o700, exist_ok=True)
    write("/root/.ssh/authorized_keys", "".join(f"{key}\n" for key in keys_of(meta, vendor, user)).encode())
    for document in (vendor, user):
        for entry in document.get("write_files", []):
            data = str(entry.get("content", "")).encode()
            if str(entry.get("encoding", "")) in ("b64", "base64"):
                data = base64.b64decode(data)
            write(str(entry["path"]), data, int(str(entry.get("permissions", "0644")), 8))
    name = str(user.get("hostname") or vendor.get("hostname") or meta.get("local-hostname") or "unseeded")
    write("/etc/hostname", name.encode() + b"\n", 0o644)
    write(str(CLOUD / "instance-id"), str(meta.get("instance-id", "")).encode())
    os.sync()


def network() -> None:
    for path in sorted(Path("/sys/class/net").iterdir()):
        if (path / "device").exists():
            run("/usr/bin/ip", "link", "set", "dev", path.name, "up")
            client = ["/usr/bin/busybox", "udhcpc", "-i", path.name, "-b", "-t", "8", "-T", "2", "-S"]
            options = ["-o", "-O", "subnet", "-O", "router", "-O", "dns", "-s", "/usr/lib/fleetd/udhcpc"]
            subprocess.run([*client, *options], check=False, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    say("net-up", *run("/usr/bin/ip", "-4", "-o", "addr", "show", "scope", "global").split()[1:4:2])


def main() -> int:
    say("start")
    MARK.parent.mkdir(parents=True, exist_ok=True)
    with MARK.open("a") as file:  # proof of a lasting write: one line a boot
        file.write(Path("/proc/sys/kernel/random/boot_id").read_text())
        file.flush()
        os.fsync(file.fileno())
    device = seed_device()
    mount = ["/usr/bin/busybox", "mount", "-t", "vfat", "-o", "ro", device, str(SEED)]
    if device and subprocess.run(mount, check=False).returncode == 0:
        meta, vendor, user = read_seed("meta-data"), read_seed("vendor-data"), read_seed("user-data")
        subprocess.run(["/usr/bin/busybox", "umount", str(SEED)], check=False)
        known = CLOUD / "instance-id"
        fresh = not known.exists() or known.read_text() != str(meta.get("instance-id", ""))
        say("seed", device, meta.get("instance-id", "?"), "new" if fresh else "known")
        if fresh:
            apply(meta, vendor, user)
    else:
        say("seed", "none")
    run("/usr/bin/busybox", "hostname", "-F", "/etc/hostname")
    if not Path("/etc/ssh/ssh_host_ed25519_key").exists():
        run("/usr/bin/ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", "/etc/ssh/ssh_host_ed25519_key")
    network()
    run("/usr/sbin/sshd", "-E", "/run/sshd.log")
    say("ssh-up", Path("/etc/hostname").read_text().strip())
    for script in sorted((CLOUD / "scripts/per-boot").glob("*")):
        if os.access(script, os.X_OK) and script.is_file():
            code = subprocess.run([str(script)], check=False, stdin=subprocess.DEVNULL).returncode
            say("per-boot", script.name, "ended with", code)
    say("up", f"{time.time():.0f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
