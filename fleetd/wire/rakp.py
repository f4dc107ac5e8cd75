"""RMCP+ key exchange and sealed session packets: cipher suites 3 (SHA-1) and 17 (SHA-256), AES-CBC-128, integrity on.

One-key logins only (K_G is null, so the user's password keys everything, IPMI 13.31); every comparison of a code is
in constant time. Suites without encryption or integrity are not offered: there is nothing here to be talked down to.
"""

from __future__ import annotations

import os
from hmac import compare_digest, digest
from typing import Final, NamedTuple

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from fleetd.kit.errors import Garbled, Unsupported

MAX_NAME: Final = 16  # bytes (IPMI 13.20)
MAX_PASSWORD: Final = 20  # bytes (IPMI 22.30)
NAME_ONLY: Final = 0x10  # in the role byte: look the user up by name alone (IPMI 13.20)

_HEADER: Final = b"\x06\x00\xff\x07"
_CONSTANTS: Final = (
    b"\x01" * 20,
    b"\x02" * 20,
)  # 20 bytes whatever the hash: IPMI 13.32 and what ipmitool, FreeIPMI do
_CONFIDENTIALITY_PAD: Final = tuple(bytes(range(1, n + 1)) + bytes((n,)) for n in range(16))  # IPMI 13.29
_INTEGRITY_PAD: Final = tuple(b"\xff" * n + bytes((n, 7)) for n in range(4))  # IPMI 13.28.4, next header 07h


class Suite(NamedTuple):
    """One row of IPMI table 22-20. `check` and `key_exchange` are lengths in bytes of the truncated codes."""

    id: int
    authentication: int
    integrity: int
    confidentiality: int
    hash: str
    key_exchange: int  # RAKP 2 and 3: the whole hash
    check: int  # RAKP 4 and every packet after


SUITES: Final = {
    3: Suite(3, 1, 1, 1, "sha1", 20, 12),  # RAKP-HMAC-SHA1, HMAC-SHA1-96, AES-CBC-128
    17: Suite(17, 3, 4, 1, "sha256", 32, 16),  # RAKP-HMAC-SHA256, HMAC-SHA256-128, AES-CBC-128
}


def suite_of(authentication: int, integrity: int, confidentiality: int) -> Suite | None:
    """The suite that has exactly these algorithms, if we speak it."""
    for suite in SUITES.values():
        if (suite.authentication, suite.integrity, suite.confidentiality) == (
            authentication,
            integrity,
            confidentiality,
        ):
            return suite
    return None


def name_bytes(username: str) -> bytes:
    """Raises Unsupported: longer than IPMI can carry."""
    name = username.encode()
    if len(name) > MAX_NAME or b"\0" in name:
        raise Unsupported(
            f"the user name {username!r} does not fit IPMI",
            why=f"at most {MAX_NAME} bytes, none of them zero",
            remedy="give the BMC an account with a shorter name",
        )
    return name


def password_bytes(password: str) -> bytes:
    """The key K_UID. The text of the password never stands in the error. Raises Unsupported."""
    key = password.encode()
    if len(key) > MAX_PASSWORD or b"\0" in key:
        raise Unsupported(
            "the password does not fit IPMI",
            why=f"at most {MAX_PASSWORD} bytes, none of them zero",
            remedy="use a password of at most 20 ASCII characters for IPMI hosts",
        )
    return key


# --- the codes of the four messages ---------------------------------------------------------------------------------


class Exchange(NamedTuple):
    """All that both sides know when the keys are made. `console` and `bmc` are session ids as sent."""

    suite: Suite
    console: bytes
    bmc: bytes
    console_random: bytes
    bmc_random: bytes
    guid: bytes
    role: int
    name: bytes

    def _who(self) -> bytes:
        return bytes((self.role, len(self.name))) + self.name

    def rakp2_code(self, key: bytes) -> bytes:
        """HMAC_KUID(SIDM, SIDC, RM, RC, GUIDC, RoleM, ULengthM, UNameM): IPMI 13.21."""
        text = b"".join((self.console, self.bmc, self.console_random, self.bmc_random, self.guid, self._who()))
        return digest(key, text, self.suite.hash)

    def rakp3_code(self, key: bytes) -> bytes:
        """HMAC_KUID(RC, SIDM, RoleM, ULengthM, UNameM): IPMI 13.22."""
        return digest(key, b"".join((self.bmc_random, self.console, self._who())), self.suite.hash)

    def session_key(self, key: bytes) -> bytes:
        """SIK = HMAC_KG(RM, RC, RoleM, ULengthM, UNameM), with K_UID in place of a null K_G: IPMI 13.31."""
        return digest(key, b"".join((self.console_random, self.bmc_random, self._who())), self.suite.hash)

    def rakp4_code(self, session_key: bytes) -> bytes:
        """HMAC_SIK(RM, SIDC, GUIDC), truncated: IPMI 13.23, 13.28."""
        text = b"".join((self.console_random, self.bmc, self.guid))
        return digest(session_key, text, self.suite.hash)[: self.suite.check]


def same(mine: bytes, theirs: bytes) -> bool:
    """Constant-time equality of two codes."""
    return compare_digest(mine, theirs)


# --- session packets ------------------------------------------------------------------------------------------------


class Keys:
    """K1 and K2 of one session: seals what we send, opens what we get. About 250 bytes a session."""

    __slots__ = ("_aes", "_check", "_hash", "_k1")

    def __init__(self, suite: Suite, session_key: bytes) -> None:
        self._hash, self._check = suite.hash, suite.check
        self._k1 = digest(session_key, _CONSTANTS[0], suite.hash)
        self._aes = algorithms.AES(digest(session_key, _CONSTANTS[1], suite.hash)[:16])

    def seal(self, session: bytes, sequence: int, payload: bytes) -> bytes:
        """A whole datagram: encrypted and authenticated IPMI message (IPMI 13.6, 13.28, 13.29).

        Args:
            session: the id the receiver chose. sequence: 1 and up, never used twice.
        """
        iv = os.urandom(16)
        sealed = (
            Cipher(self._aes, modes.CBC(iv))
            .encryptor()
            .update(payload + _CONFIDENTIALITY_PAD[-(len(payload) + 1) & 15])
        )
        size = len(sealed) + 16
        body = b"".join(
            (
                b"\x06\xc0",
                session,
                sequence.to_bytes(4, "little"),
                size.to_bytes(2, "little"),
                iv,
                sealed,
                _INTEGRITY_PAD[-(14 + size) & 3],
            )
        )
        return b"".join((_HEADER, body, digest(self._k1, body, self._hash)[: self._check]))

    def unseal(self, data: bytes) -> tuple[int, bytes]:
        """(sequence, payload) of a datagram that was sealed with our keys.

        Raises:
            Garbled: wrong integrity code, or lengths that contradict each other.
        """
        check = self._check
        size = len(data)
        if size < 48 + check or data[5] != 0xC0:
            raise Garbled("a session packet too short, or not both encrypted and authenticated")
        if not compare_digest(digest(self._k1, data[4:-check], self._hash)[:check], data[-check:]):
            raise Garbled("a session packet fails its integrity check")
        length = data[14] | data[15] << 8
        # after the payload stand the pad, its length, the next header and the code
        if length < 32 or length & 15 or 16 + length + 2 + check > size:
            raise Garbled("a session packet with an impossible payload length")
        clear = Cipher(self._aes, modes.CBC(data[16:32])).decryptor().update(data[32 : 16 + length])
        pad = clear[-1]
        if pad > 15:
            raise Garbled("a session packet with an impossible pad")
        return int.from_bytes(data[10:14], "little"), clear[: len(clear) - 1 - pad]


class Window:
    """Which session sequence numbers were seen (IPMI 6.12.13): each at most once, none far behind the highest.

    Forward jumps of any width pass, because only the holder of the keys can make one; the specification's limit of 15
    would strand a session after a burst of lost replies.
    """

    __slots__ = ("_highest", "_seen")

    BEHIND: Final = 16

    def __init__(self) -> None:
        self._highest = 0
        self._seen = 1  # bit n: the number n below the highest was seen; number 0 counts as seen

    def accept(self, sequence: int) -> bool:
        """True exactly once for each number that is not too old."""
        ahead = sequence - self._highest
        if ahead > 0:
            self._seen = ((self._seen << ahead) | 1) & 0x1FFFF if ahead <= self.BEHIND else 1
            self._highest = sequence
            return True
        if -ahead > self.BEHIND or self._seen >> -ahead & 1:
            return False
        self._seen |= 1 << -ahead
        return True
