"""What boards ship instead of an identity."""

from __future__ import annotations

import pytest

from fleetd.model.bmc import BmcSpec, Login, is_placeholder


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            " ",
            "None",
            "N/A",
            "Not Specified",
            "To be filled by O.E.M.",
            "To Be Filled By O.E.M. ",
            "Default string",
        ),
        *("System Serial Number", "0123456789", "0", "000000", "-", "........", "xxxxxxxx", "ffffffff"),
        *("00000000-0000-0000-0000-000000000000", "FFFFFFFF-FFFF-FFFF-FFFF-FFFFFFFFFFFF"),
        "03000200-0400-0500-0006-000700080009",
    ],
)
def test_a_placeholder_is_no_identity(text: str) -> None:
    assert is_placeholder(text)


@pytest.mark.parametrize(
    "text", ["7XK21B3", "S464105X4B12345", "4c4c4544-0058-4b10-8032-b7c04f314233", "0012", "1650124031592"]
)
def test_an_identity_is_no_placeholder(text: str) -> None:
    assert not is_placeholder(text)


def test_the_port_is_the_standard_one_unless_said() -> None:
    assert (BmcSpec("redfish", "10.1.1.1", "c").port, BmcSpec("ipmi", "10.1.1.1", "c").port) == (443, 623)
    spec = BmcSpec("redfish", "10.1.1.1:8443", "c")
    assert (spec.host, spec.port) == ("10.1.1.1", 8443)


def test_a_login_shows_no_password() -> None:
    assert "calvin" not in f"{Login('root', 'calvin')!r} {Login('root', 'calvin')}"
