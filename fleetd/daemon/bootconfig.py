"""`/etc/fleetd/boot.yaml`, typed: what `fleetd boot` needs, and nothing of the daemon's secrets."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import msgspec

from fleetd.daemon.config import split_address
from fleetd.drivers.boot.admission import Limits
from fleetd.drivers.boot.dnsmasq import Settings, check
from fleetd.drivers.boot.images import unreadable
from fleetd.drivers.boot.scripts import BIOS_LOADER, UEFI_LOADER, check_url
from fleetd.kit.errors import Invalid
from fleetd.kit.yamlfile import Document, decode, parse

_SBIN = "/usr/sbin:/sbin"  # where the unit finds it, and a person's shell may not


class BootConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The whole file. Relative paths are relative to it.

    Attributes:
        listen: host:port of the HTTP that hosts speak.
        url: the same, as the hosts see it.
        desk: the daemon's socket, `boot.desk` in fleetd.yaml.
        files: vmlinuz, initrd, deploy.iso, ipxe.efi, snponly.efi, undionly.kpxe.
        images: the daemon's images directory; empty: mirrors serve them.
        state: our own working directory.
        drain: seconds that a stop waits for transfers.
        admission: how many images at once.
        dnsmasq: null when the site's own DHCP boots the hosts.
        log: `text` or `json`.
        log_level: `debug`, `info`, `warning` or `error`.
    """

    listen: str
    url: str
    desk: str = "/run/fleetd/boot.sock"
    files: str = "/usr/share/fleetd/boot"
    images: str = ""
    state: str = "/var/lib/fleetd-boot"
    drain: float = 30.0
    admission: Limits = Limits()
    dnsmasq: Settings | None = None
    log: str = "text"
    log_level: str = "info"


class LoadedBoot(msgspec.Struct, frozen=True, kw_only=True):
    """The configuration and where it came from."""

    config: BootConfig
    folder: Path

    def path(self, text: str) -> Path:
        return (self.folder / text).resolve()


def load(path: Path) -> LoadedBoot:
    """Read and check. Raises Invalid with file:line."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise Invalid(f"cannot read {path}", why=str(error), remedy="fleetd boot --config FILE") from error
    document = parse(text, str(path))
    config = decode(document, BootConfig)
    split_address(config.listen, document.where(("listen",)))
    check_url(config.url, document.where(("url",)))
    limits = config.admission
    for name in ("server", "rack", "min_rate"):
        if getattr(limits, name) < 1:
            raise Invalid(f"admission.{name} must be at least 1", where=document.where(("admission", name)))
    if not 0 <= config.drain <= 3600:
        raise Invalid("drain: 0 to 3600 seconds", where=document.where(("drain",)))
    if config.log_level not in ("debug", "info", "warning", "error"):
        raise Invalid("log_level: debug, info, warning or error", where=document.where(("log_level",)))
    if config.log not in ("text", "json"):
        raise Invalid("log: text or json", where=document.where(("log",)))
    if config.dnsmasq is not None:
        _dnsmasq(config, document)
    return LoadedBoot(config=config, folder=path.resolve().parent)


def absent(loaded: LoadedBoot) -> list[str]:
    """What the configuration names and this machine does not have, each in a few words; empty when all is there."""
    config, found = loaded.config, []
    files = loaded.path(config.files)
    wanted = ["vmlinuz", "initrd", *((BIOS_LOADER, UEFI_LOADER) if config.dnsmasq is not None else ())]
    found += [f"files: no {name} in {files}" for name in wanted if not (files / name).is_file()]
    if config.images and (why := unreadable(loaded.path(config.images))):
        found.append(f"images: {loaded.path(config.images)}: {why}")
    program = config.dnsmasq.program if config.dnsmasq is not None else ""
    if program and shutil.which(program, path=f"{os.environ.get('PATH', '')}:{_SBIN}") is None:
        found.append(f"dnsmasq.program: no {program} (apt install dnsmasq-base)")
    return found


def _dnsmasq(config: BootConfig, document: Document) -> None:
    assert config.dnsmasq is not None
    try:
        check(config.dnsmasq, check_url(config.url))
    except Invalid as error:
        keys = (int(part) if part.isdigit() else part for part in error.where.split("."))  # relayed.3.router
        place: tuple[str | int, ...] = ("url",) if error.where == "url" else ("dnsmasq", *keys)
        raise Invalid(error.what, why=error.why, remedy=error.remedy, where=document.where(place)) from error
