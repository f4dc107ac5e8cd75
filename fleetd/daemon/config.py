"""`/etc/fleetd/fleetd.yaml`, typed: an unknown key is refused with file:line, and nothing starts on half a configuration."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from fleetd.drivers.boot.scripts import check_url
from fleetd.kit.errors import Invalid
from fleetd.kit.yamlfile import Document, decode, parse
from fleetd.model.bmc import Login

MAX_MIRRORS = 15  # for one rack; with the boot service itself the 16 URLs that an order may name


class _Part(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    pass


class CredentialSet(_Part, frozen=True, kw_only=True):
    """A factory login. The password stands here (then the file must be 0600) or in a file of its own."""

    username: str
    password: str = ""
    password_file: str = ""


class Listen(_Part, frozen=True, kw_only=True):
    """`socket`: the unix socket; `http`: host:port on loopback for tokens, empty for none; `group`: owns the socket."""

    socket: str = "/run/fleetd/fleetd.sock"
    group: str = ""
    http: str = "127.0.0.1:8600"


class BootListen(_Part, frozen=True, kw_only=True):
    """Where hosts fetch boot scripts and phone home. `url` as the hosts see it.

    With `fleetd boot` beside the daemon `listen` is "" and `desk` is the socket it asks, open to root, the daemon's user
    and `desk_group`. Else the daemon listens itself, and serves `files` (vmlinuz, initrd, deploy.iso, ipxe.efi) too.
    """

    listen: str = "127.0.0.1:8680"
    url: str = "http://127.0.0.1:8680"
    desk: str = ""
    desk_group: str = ""
    files: str = ""


class ImageConfig(_Part, frozen=True, kw_only=True):
    """`dir`: where image files stand, relative to `state`. `trust`: PEM files of keys whose manifests are believed.

    `mirrors`: by rack name, and "*" for all: URLs under which other servers offer `<sha256>`; hosts try them first.
    """

    dir: str = "images"
    trust: tuple[str, ...] = ()
    allow_unsigned: bool = False
    mirrors: dict[str, tuple[str, ...]] = {}


class LeaseConfig(_Part, frozen=True, kw_only=True):
    """`grace`: seconds between the expiry of a lease and the wipe; an explicit release wipes at once."""

    grace: float = 86_400.0


class Config(_Part, frozen=True, kw_only=True):
    """The whole file. Relative paths are relative to it."""

    state: str = "/var/lib/fleetd"
    database: str = ""  # "" is SQLite under `state`; else postgresql://…
    name: str = ""  # this daemon; "" is the host name
    site: str = "fleetd"  # signs certificates under this name
    listen: Listen = Listen()
    boot: BootListen = BootListen()
    images: ImageConfig = ImageConfig()
    playbooks: str = "playbooks"
    firmware: str = "firmware"
    credentials: dict[str, CredentialSet] = {}
    leases: LeaseConfig = LeaseConfig()
    domain_patience: float = 300.0  # seconds a tray waits for the reports of its NVLink domain
    bmc_patience: float = 30.0  # seconds a BMC has for a login or a question
    log: str = "text"
    log_level: str = "info"


class Loaded(msgspec.Struct, frozen=True, kw_only=True):
    """The configuration and where it came from."""

    config: Config
    folder: Path
    logins: dict[str, Login]

    def path(self, text: str) -> Path:
        return (self.folder / text).resolve()

    @property
    def state(self) -> Path:
        return self.path(self.config.state)

    @property
    def image_folder(self) -> Path:
        return (self.state / self.config.images.dir).resolve()

    @property
    def database_url(self) -> str:
        return self.config.database or f"sqlite:///{self.state / 'ledger.db'}"


def load(path: Path) -> Loaded:
    """Read and check. Raises Invalid with file:line."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise Invalid(f"cannot read {path}", why=str(error), remedy="fleetd serve --config FILE") from error
    document = parse(text, str(path))
    config = decode(document, Config) if document.value is not None else Config()
    logins = {name: _login(path, document, name, entry) for name, entry in config.credentials.items()}
    for place, value in ((("listen", "http"), config.listen.http), (("boot", "listen"), config.boot.listen)):
        if value:
            split_address(value, document.where(place))
    check_url(config.boot.url, document.where(("boot", "url")))
    mirrors = config.images.mirrors
    for rack, urls in mirrors.items():
        where = document.where(("images", "mirrors", rack))
        for url in urls:
            _mirror(url, where)
        if len({*urls, *mirrors.get("*", ())}) > MAX_MIRRORS:
            raise Invalid(
                f"hosts of rack {rack[:64]} would have more than {MAX_MIRRORS} mirrors",
                why="those of the rack and those of `*` together",
                where=where,
                remedy="name fewer: a host asks one after the other",
            )
    return Loaded(config=config, folder=path.resolve().parent, logins=logins)


def _mirror(url: str, where: str) -> None:
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        usable = False
    if not usable or not url.isascii() or not url.isprintable() or any(c in url for c in "?#@ \"'"):
        raise Invalid(
            f"`{url[:100]}` is no URL of a mirror",
            where=where,
            remedy="write http://10.0.0.5/images; hosts add the name",
        )


def _login(path: Path, document: Document, name: str, entry: CredentialSet) -> Login:
    where = document.where(("credentials", name))
    if bool(entry.password) == bool(entry.password_file):
        raise Invalid(f"credentials `{name}`: give either password or password_file", where=where)
    if entry.password:
        if stat.S_IMODE(path.stat().st_mode) & 0o077:
            raise Invalid(
                f"credentials `{name}` hold a password and others can read this file",
                remedy=f"chmod 600 {path}",
                where=where,
            )
        return Login(username=entry.username, password=entry.password)
    folder = Path(os.environ.get("CREDENTIALS_DIRECTORY", path.resolve().parent))
    try:
        secret = (folder / entry.password_file).read_text(encoding="utf-8").rstrip("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise Invalid(f"credentials `{name}`: cannot read the password file", why=str(error), where=where) from error
    return Login(username=entry.username, password=secret)


def split_address(text: str, where: str = "") -> tuple[str, int]:
    """`host:port`. Raises Invalid."""
    host, colon, port = text.rpartition(":")
    if not colon or not host or not port.isdigit() or not 0 <= int(port) < 65536:
        raise Invalid(f"`{text}` is not host:port", where=where)
    return host, int(port)
