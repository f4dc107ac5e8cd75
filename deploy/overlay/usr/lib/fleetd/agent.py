#!/usr/bin/python3 -IS
"""The deploy environment's one program: network, token, SSH with the key of this boot, and the call home.

What comes from the kernel's command line or from the network is checked against a pattern and is only ever an argument or
a file's content, never executed. Small on purpose: it starts on emulated machines too, so it imports little.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import socket
import sys
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple, TypeVar

T = TypeVar("T")
_NAME = r"[A-Za-z0-9.-]{1,253}|\[[0-9A-Fa-f:]{2,45}\]"
URL = re.compile(rf"(https?)://({_NAME})(?::([0-9]{{1,5}}))?((?:/[A-Za-z0-9._~-]+)*)/?")
TOKEN = re.compile(r"[A-Za-z0-9_-]{16,256}")
MAC = re.compile(r"[0-9a-f]{2}(?::[0-9a-f]{2}){5}")
KEY = re.compile(r"(ssh-ed25519|ssh-rsa|ecdsa-sha2-nistp(?:256|384|521)) [A-Za-z0-9+/]{40,2000}={0,2}( [ -~]{0,200})?")
MAX_ANSWER = 64 * 1024
REQUEST_SECONDS = 20.0
LINK_SECONDS = 30.0  # how long a network port may take to show a carrier
PATIENCE_SECONDS = 3600.0
SSH_PORT = 22
SSH_SECONDS = 60.0
RETRY = (408, 425, 429)


class Refused(Exception):
    """The answer is no, and asking again would not change it."""


class Unavailable(Exception):
    """Nobody answers, or the answer is `later`. `after`: seconds the server asked for."""

    def __init__(self, why: str, after: float = 0.0) -> None:
        super().__init__(why)
        self.after = after


class Cmdline(NamedTuple):
    """`mac` of the port that the firmware booted from, `token`: empty when not given (the ISO holds none)."""

    url: str
    token: str
    mac: str


class Nic(NamedTuple):
    name: str
    mac: str
    carrier: bool


class Host:
    """Files and programs of this machine, below `root` (tests give a folder)."""

    def __init__(self, root: str = "") -> None:
        self.root = root
        self.leased: set[str] = set()

    def read(self, path: str, limit: int = 4096) -> str:
        """Text of a file without surrounding space; empty if it cannot be read."""
        try:
            with open(self.root + path, "rb") as file:
                return file.read(limit).decode("utf-8", "replace").strip("\0 \t\r\n")
        except OSError:
            return ""

    def names(self, path: str) -> list[str]:
        try:
            return sorted(os.listdir(self.root + path))
        except OSError:
            return []

    def write(self, path: str, text: str) -> None:
        """A file that only root reads, there whole or not at all."""
        part = f"{self.root}{path}.part"
        file = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            os.write(file, text.encode())
        finally:
            os.close(file)
        os.rename(part, self.root + path)

    def remove(self, path: str) -> None:
        if os.path.lexists(self.root + path):
            os.unlink(self.root + path)

    def say(self, word: str, *rest: object) -> None:
        """One line with the uptime on every console, printable whatever is in it."""
        uptime = (self.read("/proc/uptime").split() or ["0"])[0]
        text = plain(" ".join(str(one) for one in ("fleetd-deploy", uptime, word, *rest)), 300) + "\r\n"
        for name in self.read("/sys/class/tty/console/active").split() or ["console"]:
            # A console that is not there: the others tell.
            with contextlib.suppress(OSError), open(f"{self.root}/dev/{name}", "ab", buffering=0) as file:
                file.write(text.encode())

    def start(self, *words: str) -> int:
        """Start a program without a terminal; returns its process id."""
        null = [(os.POSIX_SPAWN_OPEN, fd, os.devnull, os.O_RDWR, 0) for fd in (0, 1, 2)]
        path = {"PATH": "/usr/sbin:/usr/bin", "HOME": "/root", **openssl_limits(self)}
        return os.posix_spawn(self.root + words[0], words, path, file_actions=null)

    def run(self, *words: str) -> bool:
        return finished(self.start(*words))

    def nics(self) -> list[Nic]:
        """Real network ports, those with a carrier first."""
        found = []
        for name in self.names("/sys/class/net"):
            at = f"/sys/class/net/{name}"
            mac = self.read(f"{at}/address").lower()
            real = os.path.exists(f"{self.root}{at}/device")
            if real and re.fullmatch(r"[A-Za-z0-9_.-]{1,15}", name) and MAC.fullmatch(mac):
                found.append(Nic(name, mac, self.read(f"{at}/carrier") == "1"))
        return sorted(found, key=lambda nic: not nic.carrier)

    def addresses(self) -> str:
        """IPv4 addresses as `ip` tells them, for people."""
        with os.popen("/usr/bin/ip -4 -o addr show scope global 2>/dev/null") as pipe:
            return " ".join("=".join(line.split()[1:4:2]) for line in pipe)


def finished(process: int) -> bool:
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 0


def plain(text: str, limit: int) -> str:
    return re.sub(r"[^ -~]", "?", text[:limit])


def openssl_limits(host: Host) -> dict[str, str]:
    """QEMU's emulated processor offers AVX2 but runs it slowly: OpenSSL is three times as fast without."""
    return {"OPENSSL_ia32cap": ":~0x128"} if "QEMU TCG CPU" in host.read("/proc/cpuinfo") else {}


def read_cmdline(text: str) -> Cmdline:
    """The last of a word counts, as with the kernel. Raises Refused for a value that is not what it must be."""
    words = {}
    for word in text.split():
        name, _, value = word.partition("=")
        words[name] = value
    url, token = words.get("fleetd.url", ""), words.get("fleetd.token", "")
    if url.startswith("@"):
        raise Refused("this ISO was not prepared: it must come from `fleetd boot`, which writes its address into it")
    if not URL.fullmatch(url) or len(url) > 200:
        raise Refused("fleetd.url on the kernel's command line is absent or is no plain http(s) address")
    if token and not TOKEN.fullmatch(token):
        raise Refused("fleetd.token on the kernel's command line is not one plain word")
    mac = words.get("BOOTIF", "").lower().removeprefix("01-").replace("-", ":")
    if mac and not MAC.fullmatch(mac):
        raise Refused("BOOTIF on the kernel's command line is no MAC address")
    return Cmdline(url.rstrip("/"), token, mac)


def read_script(text: str) -> str:
    """The token in a boot script; empty for a script that boots the local disk. Raises Unavailable for anything else."""
    if not text.startswith("#!ipxe"):
        raise Unavailable("the server's boot script is not one")
    for line in text.splitlines():
        words = line.split()
        if words[:1] == ["kernel"]:
            for word in words:
                name, _, value = word.partition("=")
                if name == "fleetd.token" and TOKEN.fullmatch(value):
                    return value
    return ""


def _receive(wire: socket.socket, end: float) -> tuple[bytes, bytes]:
    """Head and content of the answer: as long as it says, else until the server closes.

    Raises Unavailable when it is cut off, too long or too slow.
    """
    data, wanted = b"", -1
    while time.monotonic() < end:
        wire.settimeout(max(0.1, end - time.monotonic()))
        more = wire.recv(16384)
        data += more
        head, found, content = data.partition(b"\r\n\r\n")
        if found and wanted < 0:
            length = re.search(rb"\r\ncontent-length: *([0-9]{1,9})", head, re.IGNORECASE)
            wanted = int(length[1]) if length is not None else 0 if b" 204" in head[:16] else MAX_ANSWER
        if len(data) > MAX_ANSWER or wanted > MAX_ANSWER:
            raise Unavailable("the answer is too long")
        if found and (len(content) >= wanted or (not more and wanted == MAX_ANSWER)):
            return head, content[:wanted]
        if not more:
            raise Unavailable("the answer was cut off")
    raise Unavailable("the answer takes too long")


def ask(base: str, method: str, path: str, token: str = "", body: bytes = b"") -> str:
    """One HTTP/1.0 request (so the answer is never chunked); redirects are not followed. Returns the answer's text.

    Raises Unavailable for a network error, 5xx and `later`; Refused for any other answer than success.
    """
    match = URL.fullmatch(base)
    if match is None:
        raise Refused("no usable address")
    scheme, host, port, prefix = match.groups()
    lines = [f"{method} {prefix}{path} HTTP/1.0", "User-Agent: fleetd-deploy"]
    lines.append(f"Host: {host}:{port}" if port else f"Host: {host}")
    if token:
        lines.append(f"Authorization: Bearer {token}")
    if method == "POST":
        lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
    request = "\r\n".join([*lines, "", ""]).encode("ascii") + body
    end = time.monotonic() + REQUEST_SECONDS
    try:
        number = int(port or (443 if scheme == "https" else 80))
        with socket.create_connection((host.strip("[]"), number), timeout=REQUEST_SECONDS / 2) as plain_wire:
            wire = plain_wire
            if scheme == "https":
                import ssl  # slow to load, and seldom needed

                wire = ssl.create_default_context().wrap_socket(plain_wire, server_hostname=host.strip("[]"))
            wire.sendall(request)
            head, content = _receive(wire, end)
    except (OSError, UnicodeError) as error:  # a name that is none is refused by Python's codec, before any resolver
        raise Unavailable(str(error)) from error
    status = re.match(rb"HTTP/1\.[01] ([0-9]{3})[ \r]", head + b"\r")
    if status is None:
        raise Unavailable("the answer is no HTTP")
    code = int(status[1])
    if code >= 500 or code in RETRY:
        after = re.search(rb"\r\nretry-after: *([0-9]{1,3})\r?", head, re.IGNORECASE)
        raise Unavailable(f"HTTP {code}", min(60.0, float(after[1])) if after else 0.0)
    if code not in (200, 204):
        raise Refused(f"HTTP {code}")
    return content.decode("utf-8", "replace")


def quoted(text: str) -> str:
    """For a query: all but letters, digits and - _ . ~ as %XX."""
    return "".join(c if re.fullmatch(r"[A-Za-z0-9._~-]", c) else "".join(f"%{b:02X}" for b in c.encode()) for c in text)


class Agent:
    """One boot. `sleep` is for the pauses between tries."""

    def __init__(self, host: Host, sleep: Callable[[float], None] = time.sleep) -> None:
        self.host, self._sleep, self._patience = host, sleep, PATIENCE_SECONDS
        self.serial = plain(host.read("/sys/class/dmi/id/product_serial"), 128)
        self.uuid = plain(host.read("/sys/class/dmi/id/product_uuid"), 128)

    def persist(self, what: str, act: Callable[[], T]) -> T:
        """Try until it works. Pauses of 1 s doubling to 30 s, and a bounded patience. Raises Refused."""
        pause, end = 1.0, time.monotonic() + self._patience
        while True:
            try:
                return act()
            except Unavailable as error:
                wait = max(error.after, pause * (0.75 + os.urandom(1)[0] / 512))
                if time.monotonic() + wait > end:
                    raise Refused(f"{what}: {error}, and the patience of {self._patience:.0f} s is over") from error
                self.host.say(f"{what}-again", f"in {wait:.0f} s:", error)
                self._sleep(wait)
                pause = min(pause * 2, 30.0)

    def leases(self, wanted: str) -> Iterator[Nic]:
        """Ports that have an address, one after the other: only that with the MAC `wanted`, else each with a carrier."""
        end = time.monotonic() + LINK_SECONDS

        def candidates() -> list[Nic]:
            nics = self.host.nics()
            return [nic for nic in nics if nic.mac == wanted] or nics

        for nic in candidates():
            self.host.run("/usr/bin/ip", "link", "set", "dev", nic.name, "up")
        while not any(nic.carrier for nic in candidates()) and time.monotonic() < end:
            self._sleep(0.1)
        had = False
        for nic in candidates():
            if nic.carrier and self._lease(nic):
                had = True
                yield nic
        if not had:
            raise Unavailable("no network port with a carrier got an address by DHCP")

    def _lease(self, nic: Nic) -> bool:
        if nic.name in self.host.leased:
            return True
        self.host.say("dhcp", nic.name, nic.mac)
        client = ("/usr/bin/busybox", "udhcpc", "-i", nic.name, "-n", "-t", "5", "-T", "2", "-A", "1")
        options = ("-o", "-O", "subnet", "-O", "router", "-O", "dns", "-O", "mtu", "-s", "/usr/lib/fleetd/udhcpc")
        if not self.host.run(*client, *options, "-p", f"/run/fleetd/udhcpc.{nic.name}"):
            return False
        self.host.leased.add(nic.name)
        self.host.say("net-up", nic.name, self.host.addresses())
        return True

    def find_token(self, order: Cmdline) -> tuple[str, str]:
        """(token, MAC). Without a token on the command line the boot service is asked by MAC, UUID and serial."""
        why: Unavailable | None = None
        for nic in self.leases(order.mac):
            if order.token:
                return order.token, nic.mac
            try:
                for mac in [nic.mac, *(other.mac for other in self.host.nics() if other.mac != nic.mac)]:
                    query = f"uuid={quoted(self.uuid)}&serial={quoted(self.serial)}"
                    if token := read_script(ask(order.url, "GET", f"/boot/{mac}.ipxe?{query}")):
                        return token, mac
            except Unavailable as error:
                why = error  # perhaps another port leads there
                continue
            raise Refused("this host is not expected: no boot is armed for any of its ports")
        raise why or Unavailable("no network")

    def fetch_key(self, url: str, token: str) -> str:
        line = ask(url, "GET", "/deploy/authorized_keys", token).strip()
        if not KEY.fullmatch(line):
            raise Unavailable("the server's answer is no public key")
        return line + "\n"

    def sees(self) -> dict[str, str]:
        """For people: what kind of machine this is."""
        read = self.host.read
        memory = re.search(r"MemTotal: +([0-9]+) kB", read("/proc/meminfo"))
        ports = [f"{nic.name} {nic.mac} {'up' if nic.carrier else 'down'}" for nic in self.host.nics()[:64]]
        drives = []
        for name in self.host.names("/sys/block"):
            at = f"/sys/block/{name}"
            if os.path.exists(f"{self.host.root}{at}/device") and not name.startswith(("sr", "fd")):
                size = read(f"{at}/size")
                serial = read(f"{at}/device/serial") or read(f"{at}/serial")
                drives.append(f"{name} {serial or '?'} {int(size) * 512 if size.isdigit() else 0}")
        found = {
            "memory_kib": memory[1] if memory else "",
            "cpus": str(os.cpu_count() or 0),
            "firmware": "uefi" if os.path.isdir(f"{self.host.root}/sys/firmware/efi") else "bios",
            "product": read("/sys/class/dmi/id/product_name"),
            "kernel": read("/proc/sys/kernel/osrelease"),
            "uptime": (read("/proc/uptime").split() or [""])[0],
            "drives": ", ".join(drives[:64]),
            "nics": ", ".join(ports),
            "tpm": "yes" if self.host.names("/sys/class/tpm") else "no",
        }
        return {name: plain(value, 4000) for name, value in found.items()}

    def _await_sshd(self, process: int) -> None:
        """Until it accepts connections. Raises Refused when it ends or stays silent."""
        end = time.monotonic() + SSH_SECONDS
        while time.monotonic() < end:
            if os.waitpid(process, os.WNOHANG)[0]:
                break
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", SSH_PORT), timeout=1.0):
                return
            self._sleep(0.05)
        raise Refused("sshd does not come up: see /run/fleetd/sshd.log")

    def hello(self, mac: str) -> bytes:
        public = " ".join(self.host.read("/run/fleetd/ssh_host_ed25519_key.pub").split()[:2])
        message = {
            "environment": "deploy",
            "mac": mac,
            "serial": self.serial,
            "uuid": self.uuid,
            "boot_id": self.host.read("/proc/sys/kernel/random/boot_id"),
            "host_key": public,
            "ssh_port": SSH_PORT,
            "sees": self.sees(),
        }
        return json.dumps(message).encode()

    def boot(self) -> None:
        """From the command line to the call home. Raises Refused; then nothing of SSH is left running."""
        host = self.host
        order = read_cmdline(host.read("/proc/cmdline"))
        host.say("start", order.url, order.mac or "any port", host.read("/proc/sys/kernel/osrelease"))
        make_key = ("/usr/bin/ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "")
        keygen = host.start(*make_key, "-f", "/run/fleetd/ssh_host_ed25519_key")
        token, mac = self.persist("net", lambda: self.find_token(order))
        key = self.persist("key", lambda: self.fetch_key(order.url, token))
        host.write("/run/fleetd/authorized_keys", key)
        host.write("/run/fleetd/deploy", hashlib.sha256(token.encode()).hexdigest() + "\n")
        if not finished(keygen):
            raise Refused("ssh-keygen failed: no host key")
        limits = [word for name, value in openssl_limits(host).items() for word in ("-o", f"SetEnv={name}={value}")]
        daemon = host.start("/usr/sbin/sshd", "-D", "-E", "/run/fleetd/sshd.log", *limits)
        self._await_sshd(daemon)
        host.say("ssh-up", " ".join(host.read("/run/fleetd/ssh_host_ed25519_key.pub").split()[:2]))
        try:
            self.persist("hello", lambda: ask(order.url, "POST", "/deploy/hello", token, self.hello(mac)))
        except Exception:
            os.kill(daemon, 15)
            finished(daemon)
            for path in ("/run/fleetd/authorized_keys", "/run/fleetd/deploy"):
                host.remove(path)
            raise
        host.say("ready", "the daemon has been told; it takes over by SSH")


def main(arguments: list[str]) -> int:
    host = Host(arguments[0] if arguments else "")
    try:
        Agent(host).boot()
    except Refused as why:
        host.say("refused", f"{why}.", "This machine does nothing more; boot it again through fleetd.")
        return 3
    except Exception as error:  # noqa: BLE001 - no memory, no program: else it would end without a word
        host.say("failed", f"{type(error).__name__}: {error}.", "This machine does nothing more; boot it again.")
        return 4
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
