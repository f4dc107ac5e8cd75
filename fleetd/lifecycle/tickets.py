"""Tickets to fetch one image in one boot: made without a ledger write, checked without trusting who shows one."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from typing import Final

from fleetd.kit.errors import Denied

MAX_TICKET: Final = 200  # characters
_MAC: Final = 32
_TIME: Final = 8


class Tickets:
    """HMAC-SHA256 over boot, digest and expiry. The word is opaque: letters, digits, `-` and `_`."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def __repr__(self) -> str:
        return "Tickets(***)"

    def issue(self, boot_id: str, digest: str, expires: float) -> str:
        """A ticket for the image with this sha256 (hex), good until wall second `expires` while the boot is open."""
        when = int(expires).to_bytes(_TIME, "big")
        boot = boot_id.encode()
        word = base64.urlsafe_b64encode(self._mac(when, boot, digest) + when + boot)
        return word.decode("ascii").rstrip("=")

    def read(self, ticket: str, digest: str, now: float) -> str:
        """The id of the boot it was made for; whether that is still open the caller judges.

        Raises:
            Denied: not one of ours, for another image, or expired at wall second `now`. The `why` is for the audit only.
        """
        try:
            if len(ticket) > MAX_TICKET:
                raise ValueError
            raw = base64.b64decode(ticket.encode("ascii") + b"=" * (-len(ticket) % 4), b"-_", validate=True)
        except (ValueError, binascii.Error):
            raise _denied("it is no ticket") from None
        mac, when, boot = raw[:_MAC], raw[_MAC : _MAC + _TIME], raw[_MAC + _TIME :]
        if not hmac.compare_digest(mac, self._mac(when, boot, digest)):
            raise _denied("it was not made here, or for another image")
        if int.from_bytes(when, "big") < now:
            raise _denied("it has expired")
        return boot.decode()

    @staticmethod
    def expires(ticket: str) -> float:
        """The wall second at which a ticket ends that `read` took."""
        raw = base64.urlsafe_b64decode(ticket + "=" * (-len(ticket) % 4))
        return float(int.from_bytes(raw[_MAC : _MAC + _TIME], "big"))

    def _mac(self, when: bytes, boot: bytes, digest: str) -> bytes:
        text = b"fleetd.image-ticket/1\n" + when + digest.encode("utf-8", "replace") + b"\n" + boot
        return hmac.new(self._key, text, hashlib.sha256).digest()


def _denied(why: str) -> Denied:
    return Denied("this image ticket is not valid", why=why, remedy="boot the host again through fleetd")
