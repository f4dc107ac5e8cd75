"""How a simulated machine boots: from the network if it is told to, from its disk if there is one, else not at all."""

from __future__ import annotations

import msgspec

from fleetd.drivers.ssh.keys import new_key_pair
from fleetd.model.power import BootDevice, PowerState
from fleetd.sim import boot
from fleetd.sim.host import Installed
from tests.host_rig import fault, rig, sim_host


async def settle(host):
    """Until the host has booted, or has found nothing to boot."""
    await host.record.until("boot.deploy", "boot.disk", "boot.nothing")


def installed(url):
    private, public = new_key_pair("host")
    return Installed(
        image="i",
        hostname="h",
        authorized_keys=("ssh-ed25519 AAAA", "ssh-ed25519 BBBB"),
        host_key_private=private,
        host_key_public=public,
        phone_home_url=url,
        phone_home_token="t" * 40,
    )


async def test_nothing_boots_from_a_blank_disk():
    async with rig() as r:
        host = r.add(sim_host())
        host.power_on()
        await settle(host)
        assert host.running is None
        assert list(host.record.of(host.name, "boot.nothing"))


async def test_an_unarmed_host_goes_on_to_its_disk():
    async with rig() as r:
        host = r.add(sim_host())
        host.installed = installed(r.listener.base_url)
        r.desk.tokens["t" * 40] = ""
        host.set_boot_once(BootDevice.NETWORK)
        host.power_on()
        await settle(host)
        assert host.running.environment == "disk"
        assert r.desk.asked == [(host.mac, host.uuid, host.serial, "127.0.0.1")]
        _, hello, _ = r.desk.hellos.get_nowait()
        assert (hello.environment, hello.host_key) == ("disk", host.installed.host_key_public)


async def test_an_installed_system_runs_though_its_hello_is_refused():
    async with rig() as r:
        host = r.add(sim_host())
        host.installed = installed(r.listener.base_url)
        host.power_on()
        await settle(host)
        assert host.running.environment == "disk"
        assert host.running.authorized_key.count("ssh-ed25519") == 2
        assert list(host.record.of(host.name, "boot.unheard"))


async def test_a_host_whose_network_boot_is_dead_never_phones_home():
    async with rig() as r:
        host = r.add(sim_host(fault("no-boot")))
        r.desk.arm(host.mac, "k")
        host.set_boot_once(BootDevice.NETWORK)
        host.power_on()
        await settle(host)
        assert host.running is None
        assert r.desk.asked == []
        assert r.desk.hellos.empty()


async def test_a_host_whose_token_is_refused_stays_down():
    async with rig() as r:
        host = r.add(sim_host())
        token = r.desk.arm(host.mac, "k")
        del r.desk.tokens[token]
        host.set_boot_once(BootDevice.NETWORK)
        host.power_on()
        await settle(host)
        assert host.running is None
        assert host.power_state is PowerState.ON


async def test_the_hello_tells_what_the_machine_really_is():
    async with rig() as r:
        host = r.add(sim_host(fault("wrong-serial", serial="OTHER1")))
        await r.deploy(host)
        assert r.desk.asked[0][2] == "OTHER1"


async def test_a_listener_that_is_gone_is_asked_a_bounded_number_of_times(monkeypatch):
    monkeypatch.setattr(boot, "FIRST_PAUSE", 0.001)
    async with rig() as r:
        host = r.add(sim_host())
        await r.listener.stop()
        host.set_boot_once(BootDevice.NETWORK)
        host.power_on()
        await settle(host)
        assert host.running is None


async def test_power_off_ends_the_system_and_each_boot_has_its_own_key():
    async with rig() as r:
        host = r.add(sim_host())
        first = await r.deploy(host)
        old = host.running.boot_id
        host.power_off()
        await host.record.until("system.down")
        second = await r.deploy(host)
        assert second.host_key != first.host_key
        assert host.running.boot_id != old
        assert msgspec.structs.asdict(host.running)["environment"] == "deploy"
