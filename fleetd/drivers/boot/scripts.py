"""What iPXE executes, and the URL by which it asks. A pure module: text in, text out, every value checked."""

from __future__ import annotations

import re

from fleetd.drivers.boot.capabilities import BootScript
from fleetd.kit.errors import Invalid, NotFound

BIOS_LOADER = "undionly.kpxe"
UEFI_LOADER = "snponly.efi"
START = "/boot/start.ipxe"
LOCAL = "#!ipxe\nexit 1\n"
TOKEN = re.compile(r"[A-Za-z0-9_-]{16,256}")
MAC = re.compile(r"[0-9a-fA-F]{2}([:-])[0-9a-fA-F]{2}(?:\1[0-9a-fA-F]{2}){4}")
_URL = re.compile(r"https?://([A-Za-z0-9.-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\])(:[0-9]{1,5})?(/[A-Za-z0-9._~/-]*)?")
# netX is the NIC that boots; net0 may be another. uristring: a serial may have blanks.
_ASKS = "uuid=${uuid}&serial=${serial:uristring}&plat=${platform}&chip=${netX/chip:uristring}&ver=${version:uristring}"


def check_url(url: str, where: str = "") -> str:
    """A plain base URL without a trailing slash: it stands in scripts, DHCP answers and kernel command lines.

    Raises:
        Invalid: anything a shell, iPXE or dnsmasq could read otherwise.
    """
    plain = url.rstrip("/")
    if not _URL.fullmatch(plain) or len(plain) > 150:
        raise Invalid(f"`{url[:100]}` is not a plain http URL", remedy="http://10.77.0.1:8680", where=where)
    return plain


def read_mac(text: str) -> str:
    """Lower case with colons. Raises NotFound: what is no MAC is no host."""
    if not MAC.fullmatch(text):
        raise NotFound("not a MAC address")
    return text.lower().replace("-", ":")


def start_url(base_url: str) -> str:
    """What DHCP tells an iPXE. Short: the file name of a proxy's answer has 127 bytes, and dnsmasq cuts what is longer."""
    return f"{base_url}{START}"


def start_text(base_url: str) -> str:
    """Asks for the boot script of this machine; iPXE fills in the settings."""
    return f"#!ipxe\nchain --replace {base_url}/boot/${{netX/mac}}.ipxe?{_ASKS}\n"


def script_text(script: BootScript, mac: str, base_url: str) -> str:
    """What iPXE executes. Raises Invalid for a token that could be more than a word."""
    if script.token is None:
        return LOCAL
    if not TOKEN.fullmatch(script.token):
        raise Invalid("the boot token is not one plain word")
    return (
        "#!ipxe\n"
        f"kernel {base_url}/deploy/vmlinuz initrd=initrd console=tty0 console=ttyS0 BOOTIF=01-{mac.replace(':', '-')}"
        f" fleetd.url={base_url} fleetd.token={script.token}\n"
        f"initrd --name initrd {base_url}/deploy/initrd\n"
        "boot\n"
    )


def is_rom(platform: str, chip: str) -> bool:
    """Whether this iPXE is that of a BIOS NIC's ROM: ours speaks through the NIC's UNDI and says so."""
    return platform == "pcbios" and chip != "undionly"


def replace_text(tftp: str) -> str:
    """Loads our iPXE over the one in the ROM. When that fails the firmware goes on to the disk."""
    return f"#!ipxe\nchain --replace --autofree {tftp}/{BIOS_LOADER} || exit 1\n"
