"""What the deploy environment is made of, and how its packages are fetched: by this machine's apt, with its own sources.

Only what a flavour names is unpacked. Of every other package in the dependency closure only the shared libraries are
taken that something needs. No maintainer script runs, nothing is installed on this machine, and apt sees an empty system.
"""

from __future__ import annotations

import fnmatch
import hashlib
import os
import re
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

EVERYTHING = ("*",)
# Never wanted, whichever package brings it.
PRUNED = (
    "usr/share/doc/*",
    "usr/share/man/*",
    "usr/share/locale/*",
    "usr/share/info/*",
    "usr/share/lintian/*",
    "usr/share/bash-completion/*",
    "usr/share/zsh/*",
    "usr/share/bug/*",
    "usr/share/apport/*",
    "usr/share/perl5/*",
    "usr/share/misc/enterprise-numbers.txt",
    "usr/lib/systemd/*",
    "usr/lib/tmpfiles.d/*",
    "usr/lib/sysusers.d/*",
    "usr/lib/python3/*",
    "etc/apparmor.d/*",
    "etc/init.d/*",
    "etc/default/*",
    "etc/logrotate.d/*",
    "etc/cron*",
    "etc/network/*",
    "etc/dbus-1/*",
)


@dataclass(frozen=True)
class Part:
    """Files of one package. `package` may be a pattern, for names that hold a version; `files` are patterns too."""

    package: str
    files: tuple[str, ...] = EVERYTHING
    without: tuple[str, ...] = ()


@dataclass(frozen=True)
class Flavour:
    """`ask` is what apt resolves, `parts` what is unpacked, `modules` names or folders of kernel modules.

    `optional` are packages that many archives do not carry: those that exist are taken, the manifest names the others.
    """

    name: str
    kernel: str
    ask: tuple[str, ...]
    parts: tuple[Part, ...]
    modules: tuple[str, ...]
    optional: tuple[str, ...] = ()
    level: int = 10  # of zstd: 19 is 12 % smaller and takes fifteen times as long


# Of the standard library: no tests, no editors, no other systems, nothing that draws.
_PYTHON_WITHOUT = tuple(
    f"usr/lib/python3.*/{name}"
    for name in (
        "test/*",
        "idlelib/*",
        "lib2to3/*",
        "tkinter/*",
        "turtledemo/*",
        "turtle.py",
        "ensurepip/*",
        "pydoc_data/*",
        "unittest/*",
        "distutils/*",
        "curses/*",
        "dbm/*",
        "sqlite3/*",
        "xmlrpc/*",
        "wsgiref/*",
        "venv/*",
        "msilib/*",
        "sitecustomize.py",
        "asyncio/windows_*",
        "lib-dynload/_sqlite3.*",
        "lib-dynload/_curses*",
        "lib-dynload/_codecs_*",
        "lib-dynload/_multibytecodec.*",
        "lib-dynload/_test*",
        "lib-dynload/_xx*",
        "lib-dynload/xx*",
        "lib-dynload/_dbm.*",
        "lib-dynload/readline.*",
        "lib-dynload/ossaudiodev.*",
        "lib-dynload/audioop.*",
        "lib-dynload/_crypt.*",
        "lib-dynload/nis.*",
        "*.rst",
        "*.txt",
    )
)

BASE = (
    Part("libc6", ("usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2", "usr/lib64/*")),
    Part(
        "libc6", ("usr/lib/x86_64-linux-gnu/gconv/gconv-modules*", "usr/lib/x86_64-linux-gnu/gconv/IBM850.so")
    ),  # mcopy
    Part("busybox-static"),
    Part("dash", ("usr/bin/*",)),
    Part("openssh-server", ("usr/sbin/sshd",)),
    Part("openssh-client", ("usr/bin/ssh-keygen",)),
    Part("python3.*-minimal", ("usr/bin/python3.*",)),
    Part("libpython3.*-minimal", ("usr/lib/python3.*",), without=_PYTHON_WITHOUT),
    Part("libpython3.*-stdlib", ("usr/lib/python3.*",), without=_PYTHON_WITHOUT),
    Part("libgcc-s1", ("usr/lib/x86_64-linux-gnu/libgcc_s.so.1",)),  # opened by glibc when a thread ends
    Part("kmod", ("usr/bin/*", "usr/sbin/*", "usr/lib/modprobe.d/*")),
    Part("iproute2", ("usr/bin/ip",)),
)
_MINI = (
    *BASE,
    Part("zstd", ("usr/bin/zstd", "usr/bin/unzstd", "usr/bin/zstdcat")),
    Part("gdisk", ("usr/sbin/sgdisk",)),
    Part("dosfstools", ("usr/sbin/*",)),
    Part(
        "mtools",
        ("usr/bin/m*", "etc/mtools.conf"),
        without=("usr/bin/mkmanifest", "usr/bin/mcheck", "usr/bin/mcomp", "usr/bin/mxtar"),
    ),
    Part("efibootmgr"),
    Part("util-linux", ("usr/sbin/blkdiscard", "usr/sbin/blockdev", "usr/sbin/wipefs", "usr/bin/lsblk")),
)
_ASK = (
    "openssh-server",
    "python3-minimal",
    "libpython3-stdlib",
    "busybox-static",
    "dash",
    "kmod",
    "iproute2",
    "zstd",
    "gdisk",
    "dosfstools",
    "mtools",
    "efibootmgr",
    "util-linux",
)
_TOOLS = (
    "hdparm",
    "sg3-utils",
    "lldpd",
    "ipmitool",
    "smartmontools",
    "nvme-cli",
    "tpm2-tools",
    "pciutils",
    "ethtool",
    "dmidecode",
    "kexec-tools",
    "ca-certificates",
    "e2fsprogs",
)
_FIRMWARE = (
    "firmware-bnx2",
    "firmware-bnx2x",
    "firmware-cavium",
    "firmware-misc-nonfree",
    "firmware-netronome",
    "firmware-qlogic",
    "firmware-realtek",
    "firmware-myricom",
)
# What a virtual machine shows. NVMe, ext4, TPM and packet sockets are built into the kernel of the small flavour.
VIRTUAL = (
    "virtio_pci", "virtio_mmio", "virtio_net", "virtio_blk", "virtio_scsi", "virtio_console", "virtio_rng",
    "e1000", "e1000e", "igb", "ahci", "ata_piix", "nvme", "sd_mod", "sr_mod", "isofs", "vfat", "ext4", "efivarfs",
    "nls_ascii", "nls_cp437", "nls_utf8", "nls_iso8859-1", "tpm_tis", "tpm_crb", "af_packet", "crc32c_intel",
)  # fmt: skip
_METAL = (
    *VIRTUAL,
    "kernel/drivers/net/ethernet/", "kernel/drivers/net/phy/", "kernel/drivers/net/mdio/", "kernel/drivers/net/bonding/",
    "kernel/drivers/net/vmxnet3/", "kernel/drivers/net/hyperv/", "kernel/drivers/net/usb/cdc", "kernel/drivers/net/usb/usbnet",
    "kernel/drivers/net/usb/rndis_host", "kernel/drivers/nvme/host/", "kernel/drivers/ata/", "kernel/drivers/scsi/",
    "kernel/drivers/message/", "kernel/drivers/md/", "kernel/drivers/block/", "kernel/drivers/char/ipmi/",
    "kernel/drivers/char/tpm/", "kernel/drivers/char/hw_random/", "kernel/drivers/virtio/", "kernel/drivers/usb/host/",
    "kernel/drivers/usb/storage/", "kernel/drivers/usb/core/", "kernel/drivers/cdrom/", "usbhid",
    "hid_generic", "kernel/drivers/infiniband/core/", "kernel/drivers/infiniband/hw/mlx5/",
    "kernel/drivers/infiniband/hw/mlx4/", "kernel/drivers/infiniband/hw/bnxt_re/", "kernel/drivers/hwmon/coretemp",
    "kernel/drivers/hwmon/k10temp", "kernel/drivers/i2c/busses/i2c-i801", "kernel/drivers/pci/", "kernel/drivers/edac/",
    "kernel/drivers/hv/", "kernel/drivers/nvdimm/", "kernel/drivers/ptp/", "kernel/fs/fat/", "kernel/fs/nls/",
    "kernel/fs/isofs/", "kernel/fs/ext4/", "kernel/fs/xfs/", "kernel/fs/efivarfs/", "kernel/net/8021q/", "kernel/net/802/",
    "kernel/net/packet/", "kernel/net/llc/", "kernel/net/ipv6/ipv6", "kernel/crypto/", "kernel/arch/x86/crypto/",
)  # fmt: skip

MINI = Flavour("mini", "linux-image-cloud-amd64", _ASK, _MINI, VIRTUAL, level=10)
PRODUCT = Flavour(
    "product",
    "linux-image-amd64",
    (*_ASK, *_TOOLS),
    (
        *_MINI,
        *(Part(name) for name in _TOOLS),
        Part("pci.ids"),
        Part("libtss2-tcti-device0", ("usr/lib/x86_64-linux-gnu/*",)),  # opened by name
    ),
    _METAL,
    _FIRMWARE,
)
FLAVOURS = {flavour.name: flavour for flavour in (MINI, PRODUCT)}
# Boot loaders: fetched alone, unpacked beside the tree.
LOADERS = ("ipxe", "grub-pc-bin", "grub-efi-amd64-bin")


@dataclass(frozen=True)
class Deb:
    """A fetched package file, verified by apt."""

    name: str
    version: str
    path: Path

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.path.read_bytes()).hexdigest()

    def fits(self, pattern: str) -> bool:
        return fnmatch.fnmatchcase(self.name, pattern)


class Failed(Exception):
    """The build cannot go on; the text says what to do."""


def run(arguments: Sequence[str | Path], *, cwd: Path | None = None, env: dict[str, str] | None = None) -> str:
    """Standard output of a program. Raises Failed with the end of its complaint."""
    words = [str(word) for word in arguments]
    try:
        done = subprocess.run(
            words,
            cwd=cwd,
            env={**os.environ, "LC_ALL": "C", "TZ": "UTC", **(env or {})},
            capture_output=True,
            text=True,
            check=False,
            timeout=1800,
        )
    except FileNotFoundError as error:
        raise Failed(f"{words[0]} is not installed; docs/how-to/deploy-image.md lists what is needed") from error
    if done.returncode:
        raise Failed(f"{' '.join(words[:4])} … failed: {(done.stderr or done.stdout).strip()[-800:]}")
    return done.stdout


class Apt:
    """apt with an empty system under it and archives of its own in `cache`; sources, keys and pins are the machine's."""

    def __init__(self, cache: Path) -> None:
        self._archives = cache / "archives"
        (self._archives / "partial").mkdir(parents=True, exist_ok=True)
        status = cache / "status"
        status.write_text("")
        self._options = [
            *("-o", f"Dir::State::status={status.resolve()}"),
            *("-o", f"Dir::Cache::archives={self._archives.resolve()}/"),
            *("-o", f"Dir::State::extended_states={cache.resolve() / 'extended'}"),
            *("-o", "APT::Install-Recommends=false"),
            *("-o", "APT::Install-Suggests=false"),
            *("-o", "APT::Architecture=amd64"),
            *("-o", "Debug::NoLocking=true"),
            *("-o", "APT::Sandbox::User=root"),
        ]

    def known(self, names: Iterable[str]) -> list[str]:
        """Those that the configured sources carry."""
        found = []
        for name in names:
            policy = run(["apt-cache", *self._options, "policy", name])
            if re.search(r"^ *Candidate: (?!\(none\))", policy, re.MULTILINE):
                found.append(name)
        return found

    def closure(self, names: Sequence[str]) -> list[Deb]:
        """`names` and all they depend on, fetched. Raises Failed."""
        if missing := sorted(set(names) - set(self.known(names))):
            raise Failed(f"apt does not know {', '.join(missing)}; run `apt-get update`, or see its sources")
        told = run(["apt-get", *self._options, "--simulate", "install", *names])
        wanted = re.findall(r"^Inst (\S+) \((\S+) .*\[(\w+)\]\)", told, re.MULTILINE)
        run(["apt-get", *self._options, "--yes", "--quiet", "--download-only", "install", *names])
        return sorted((self._deb(*one) for one in wanted), key=lambda deb: deb.name)

    def alone(self, names: Sequence[str]) -> list[Deb]:
        """These packages without what they depend on. Raises Failed."""
        found = []
        for name in names:
            told = run(["apt-cache", *self._options, "show", "--no-all-versions", name])
            version = re.search(r"^Version: (\S+)$", told, re.MULTILINE)
            machine = re.search(r"^Architecture: (\S+)$", told, re.MULTILINE)
            if version is None or machine is None:
                raise Failed(f"apt does not know {name}; run `apt-get update`")
            try:
                found.append(self._deb(name, version[1], machine[1]))
            except Failed:
                run(["apt-get", *self._options, "--quiet", "download", name], cwd=self._archives)
                found.append(self._deb(name, version[1], machine[1]))
        return found

    def _deb(self, name: str, version: str, machine: str) -> Deb:
        path = self._archives / f"{name}_{version.replace(':', '%3a')}_{machine}.deb"
        if not path.is_file():
            raise Failed(f"apt fetched no {path.name}")
        return Deb(name, version, path)
