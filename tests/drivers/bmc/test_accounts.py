"""The accounts of a BMC that is empty, strange or hostile in what it lists."""

from __future__ import annotations

from typing import Any

import pytest

from fleetd.kit.errors import Garbled, Unsupported
from fleetd.model.bmc import BmcAccount, told
from fleetd.wire import ipmi
from tests.redfish_rig import recorded, served, tree

V1 = "/redfish/v1"
ACCOUNTS = f"{V1}/AccountService/Accounts"


async def listed(members: dict[str, Any]) -> tuple[BmcAccount, ...]:
    documents: dict[str, Any] = {
        V1: {"SessionService": {"@odata.id": f"{V1}/SessionService"}},
        f"{V1}/AccountService": {"Accounts": {"@odata.id": ACCOUNTS}},
        ACCOUNTS: {"Members": [{"@odata.id": f"{ACCOUNTS}/{name}"} for name in members]},
        **{f"{ACCOUNTS}/{name}": body for name, body in members.items() if body is not None},
    }
    async with served(tree(documents)) as (driver, target):
        bmc = await driver.open(target, timeout=2)
        return await bmc.accounts(timeout=2)


async def test_empty_slots_are_left_out_and_a_broken_one_is_not():
    found = await listed(
        {
            "1": {"UserName": "", "Enabled": False},
            "2": {"UserName": "root", "RoleId": "Administrator"},
            "3": {"UserName": "", "RoleId": "None", "Enabled": True},
            "4": None,
            "5": {"UserName": "a\x1b[2J", "Links": {"Role": {"@odata.id": f"{V1}/Roles/Guest"}}, "Enabled": False},
        }
    )
    assert [(a.id, a.name, a.role, a.enabled) for a in found] == [
        ("2", "root", "administrator", True),
        ("3", "", "none", True),
        ("4", "", "not readable", True),
        ("5", "a\\x1b[2J", "guest", False),
    ]


async def test_no_account_and_too_many_are_no_list():
    with pytest.raises(Unsupported):
        await listed({"1": {"UserName": "", "Enabled": False}})
    with pytest.raises(Garbled, match="65 accounts"):
        await listed({str(n): {"UserName": "a"} for n in range(65)})


async def test_a_bmc_without_an_account_service_says_so():
    async with served(tree({V1: {}})) as (driver, target):
        bmc = await driver.open(target, timeout=2)
        with pytest.raises(Unsupported):
            await bmc.accounts(timeout=2)


@pytest.mark.parametrize(
    ("name", "names"),
    [("Dell_R750_iDRAC9", {"root", "tests_admin", "fwupd"}), ("NVIDIA_DGX-H100", {"admin", "S6AmJsX9uejbhS2r", "tests_admin"})],
)  # fmt: skip
async def test_recorded_accounts(name, names):
    async with served(tree(recorded(name))) as (driver, target):
        bmc = await driver.open(target, timeout=5)
        assert {account.name for account in await bmc.accounts(timeout=5)} == names


@pytest.mark.parametrize(
    ("data", "role", "enabled"),
    [
        (b"\x0a\x42\x01\x14", "administrator", True),
        (b"\x0a\x02\x01\x13", "operator", True),  # "not told" is no "disabled"
        (b"\x0a\x82\x01\x14", "administrator", False),
        (b"\x0a\x42\x01\x04", "administrator", False),  # no messaging: it cannot log in on this channel
        (b"\x0a\x42\x01\x0f", "no access", False),
        (b"\x0a\x42\x01\x19", "level 9", True),
    ],
)
def test_user_access_is_read(data, role, enabled):
    access = ipmi.read_user_access(data)
    assert (access.users, access.role, access.enabled) == (10, role, enabled)


def test_a_short_user_access_is_garbled():
    with pytest.raises(Garbled):
        ipmi.read_user_access(b"\x0a\x42\x01")


def test_two_unprintable_names_stay_two():
    assert told("a\x01") != told("a\x02")
    assert len(told("\x01" * 10_000)) == 64
