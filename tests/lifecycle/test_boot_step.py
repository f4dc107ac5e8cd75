"""The boot step alone: which way it goes, how long it waits, and what it leaves in the virtual CD drive."""

from __future__ import annotations

import contextlib

import pytest

from fleetd.kit.errors import Invalid, Unreachable
from fleetd.lifecycle.outcome import Advance, Fail, Retry
from fleetd.lifecycle.playbook import decode_params
from fleetd.lifecycle.steps import registry
from fleetd.model.power import PowerVerb
from fleetd.store import boots as boot_rows
from tests.lifecycle.fleet import START
from tests.lifecycle.stepbench import FakeBoots, FakeShell, bench
from tests.store.samples import a_boot

ISO = "http://boot:8680/deploy/deploy.iso"


@pytest.mark.parametrize(
    ("sku", "params", "did"),
    [
        ({}, {"to": "deploy"}, ["off", "network", "on"]),
        ({"boot_mode": "bios"}, {"to": "deploy"}, ["off", "network by bios", "on"]),
        ({}, {"to": "disk"}, ["off", "disk", "on"]),
        ({}, {"to": "deploy", "via": "virtual-media"}, ["off", f"insert {ISO}", "cd", "on", "eject"]),
        ({"boot_via": "virtual-media"}, {"to": "deploy"}, ["off", f"insert {ISO}", "cd", "on", "eject"]),
        ({"boot_via": "virtual-media"}, {"to": "deploy", "via": "network"}, ["off", "network", "on"]),
        ({"boot_via": "virtual-media"}, {"to": "disk"}, ["off", "eject", "disk", "on"]),
    ],
)
async def test_boot_goes_the_way_that_step_and_sku_say(sku, params, did):
    async with bench(**sku) as b:
        outcome, _ = await b.do(registry.get("boot"), {}, params)
        assert isinstance(outcome, Advance)
        assert b.bmc.did == did


async def test_a_host_that_does_not_come_is_booted_twice_and_the_cd_is_taken_out():
    async with bench(boot_via="virtual-media") as b:
        b.boots = FakeBoots(comes=False)
        first, _ = await b.do(registry.get("boot"), {}, {"to": "deploy"})
        assert isinstance(first, Retry)
        assert b.bmc.did[-1] == "eject"
        second, _ = await b.do(registry.get("boot"), {}, {"to": "deploy"})
        assert isinstance(second, Fail)
        assert second.finding.code == "boot.no-show"
        assert "gets none" in second.finding.message
        assert "look at DHCP" in second.finding.remedy
        assert second.evidence["stage"] == "dhcp"
        assert b.bmc.did.count("eject") == 2


@pytest.mark.parametrize("broken", ["set_boot_once", "power_on", "insert_media"])
async def test_a_boot_whose_bmc_fails_is_not_left_armed(broken, monkeypatch):
    async with bench(boot_via="virtual-media") as b:
        done = b.bmc.power

        async def fails(*args, **_):
            if broken == "power_on" and args[0] is not PowerVerb.ON:
                return await done(*args, **_)
            raise Unreachable("the BMC is gone")

        monkeypatch.setattr(b.bmc, "power" if broken == "power_on" else broken, fails)
        with pytest.raises(Unreachable):
            await b.do(registry.get("boot"), {}, {"to": "deploy"})
        assert b.boots.forgotten == len(b.boots.armed_for) == 1


@pytest.mark.parametrize(
    ("sku", "params", "seconds"),
    [
        ({}, {}, 900.0),
        ({"boot_patience": "2m"}, {}, 120.0),
        ({"boot_patience": "2m"}, {"patience": 30.0}, 30.0),
    ],
)
async def test_a_host_has_the_time_of_its_sku_unless_the_playbook_says_otherwise(sku, params, seconds):
    async with bench(**sku) as b:
        b.boots = FakeBoots(comes=False)
        retry, _ = await b.do(registry.get("boot"), {}, {"to": "disk", **params})
        assert isinstance(retry, Retry)
        assert b.boots.waited == [seconds]
        assert f"within {seconds:.0f} s" in retry.error


@pytest.mark.parametrize("patience", [0, -1.0, 1201, 3600.0, float("nan"), float("inf")])
def test_a_patience_that_the_step_could_not_keep_is_refused(patience):
    with pytest.raises(Invalid, match="patience"):
        decode_params(registry.get("boot"), {"to": "disk", "patience": patience})


def test_the_longest_boot_fits_the_step_with_a_bmc_that_takes_all_its_time():
    longest = 120 + 180 + 60 + 120 + 1200 + 180  # off, medium in, device, on, patience, medium out
    assert registry.get("boot").seconds > longest


@pytest.mark.parametrize("to", ["deploy", "disk"])
async def test_a_boot_does_not_expire_before_its_patience_from_power_on(to):
    """Between arming and power-on a slow BMC may take all its time: medium out, medium in, boot device, power."""
    async with bench(boot_via="virtual-media") as b:
        await b.do(registry.get("boot"), {}, {"to": to, "patience": 100.0})
        assert b.boots.armed_for == [100.0 + 180.0 + 60.0 + 120.0]


@pytest.mark.parametrize("works", [True, False])
@pytest.mark.parametrize(("name", "params"), [("power-off", {}), ("boot", {"to": "disk"})])
async def test_a_step_that_switches_the_host_off_ends_the_boot_that_ran(name, params, works, monkeypatch):
    """Read back off, and before whatever follows: a boot from disk that finds no written image arms none in its place."""
    async with bench() as b:
        boot = a_boot("1", b.host, met=START)
        await b.fleet.db.commit(boot_rows.insert(boot))

        async def none(host):
            return None

        async def deaf(verb, *, timeout):
            raise Unreachable("the BMC is gone")

        ctx = b.context(registry.get(name), FakeShell({}), params)
        ctx.wires.credentials.seed = none
        if not works:
            monkeypatch.setattr(b.bmc, "power", deaf)
        with contextlib.nullcontext() if works else pytest.raises(Unreachable):
            await registry.get(name).do(ctx)
        found = await boot_rows.get(b.fleet.db, boot.id)
        assert (found.closed is not None, found.private_key == "") == (works, works)
