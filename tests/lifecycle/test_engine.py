"""The engine's promises on real wires: budgets, brakes, claims, cancelling, hand-over, and who may phone home."""

import asyncio
from types import SimpleNamespace

import aiohttp
import msgspec
import pytest

from fleetd.drivers.boot.capabilities import Hello
from fleetd.kit.errors import Conflict, Denied, IdentityUnproven, StaleClaim, Unreachable
from fleetd.lifecycle import drive
from fleetd.lifecycle.steps.base import Step, StepContext
from fleetd.model.host import State
from fleetd.model.lease import LeaseRequest, LeaseState
from fleetd.model.power import PowerVerb
from fleetd.model.run import Run, RunHostState, RunState
from fleetd.store import claims, events
from fleetd.store import hosts as host_rows
from fleetd.store import runs as run_rows
from fleetd.store.database import Database
from tests.world import ADMIN, H100, KEY, Plan, World, name_of, world

pytestmark = pytest.mark.slow


async def seen(w: World, kind: str, after: int = 0, seconds: float = 20.0, **data: object):
    """The first event of that kind and data after `after`; waits for it."""
    db = w.services.db
    async with asyncio.timeout(seconds):
        while True:
            for event in await events.after(db, after, limit=1000):
                after = event.seq
                if event.kind == kind and all(event.data.get(k) == v for k, v in data.items()):
                    return event
            await db.wait_events(after, 5.0)


def wiped(w: World, number: int = 1) -> int:
    return len(list(w.sim.record.of(name_of("lou-t01", number), "wipe.begin")))


async def start(w: World, playbook: str = "rack-bringup", hosts: str = "all") -> Run:
    run = await w.services.runs.start(playbook, hosts, who=ADMIN)
    assert isinstance(run, Run)
    return run


async def test_a_spent_budget_stops_the_run_and_holds_the_rest(tmp_path):
    faults = {n: [("gpu-off-bus", {"gpu": 1})] for n in (1, 2, 3)}
    async with world(tmp_path, Plan(count=10, faults=faults)) as w:
        await w.apply()
        run = await w.run("rack-bringup")
        places = await w.services.runs.hosts(run.id)
        held = [p for p in places if p.state is RunHostState.HELD]
        assert run.state is RunState.STOPPED
        assert "budget" in run.reason
        assert held
        for place in held:
            host = await host_rows.get(w.services.db, place.host)
            assert host.state is State.REGISTERED
            assert list(w.sim.record.of(host.name, "power.")) == []


@pytest.mark.parametrize("gone", [False, True])
async def test_a_step_that_failed_takes_back_what_it_can_and_its_finding_stands(tmp_path, monkeypatch, gone):
    undone: list[tuple[str, str]] = []

    async def undo(self: Step, ctx: StepContext) -> None:
        undone.append((self.name, ctx.host.name))
        if gone:
            raise Unreachable("the BMC is gone")

    monkeypatch.setattr(Step, "undo", undo)
    async with world(tmp_path, Plan(count=1, faults={1: [("gpu-off-bus", {"gpu": 1})]})) as w:
        await w.apply()
        await w.run("rack-bringup")
        host = await w.host()
        assert host.state is State.QUARANTINED
        (finding,) = host.status.findings
        assert finding.code.startswith("gpu.")
        assert undone == [(finding.step, host.name)]


async def test_a_freeze_holds_destruction_until_it_is_lifted_and_says_so(tmp_path):
    async with world(tmp_path, Plan()) as w:
        await w.apply()
        await w.services.brakes.freeze("rack:lou-t01", "flood in the hall", who=ADMIN)
        run = await start(w)
        await seen(w, "step.done", step="boot")
        async with asyncio.timeout(20):
            while (host := await w.host()).status.waiting_for is None or "freeze" not in host.status.waiting_for.what:
                await w.services.db.wait_events(await events.last(w.services.db), 0.05)
        assert "flood" in host.status.waiting_for.what
        assert host.status.waiting_for.remedy
        assert wiped(w) == 0
        await w.services.brakes.thaw("rack:lou-t01", who=ADMIN)
        assert (await w.ended(run.id)).state is RunState.PASSED
        assert wiped(w) == 1


async def test_a_stolen_claim_stops_the_wipe_before_the_wire(tmp_path, monkeypatch):
    """What a SIGSTOP between intent and call comes to: when the worker goes on, somebody else owns the host."""
    async with world(tmp_path, Plan()) as w:
        await w.apply()
        guard = drive.Drive._guard

        async def late(self: drive.Drive, seconds: float) -> None:
            other = await claims.take(self._db, self.host.id, "other", now=self._clock.wall() + 10**6, ttl=600.0)
            assert other is not None
            with pytest.raises(StaleClaim):
                await guard(self, seconds)
            raise StaleClaim("seen")

        monkeypatch.setattr(drive.Drive, "_guard", late)
        run = await start(w)
        await seen(w, "step.began", step="wipe")
        async with asyncio.timeout(10):
            while w.house.engine.working:
                await asyncio.sleep(0.01)
        assert wiped(w) == 0
        place = await run_rows.host(w.services.db, run.id, (await w.host()).id)
        assert place.state is RunHostState.ACTIVE  # the other owner's to finish


async def test_a_run_cancelled_while_a_freeze_holds_it_never_wipes(tmp_path):
    async with world(tmp_path, Plan()) as w:
        await w.apply()
        await w.services.brakes.freeze("all", "drill", who=ADMIN)
        run = await start(w)
        async with asyncio.timeout(20):
            while (host := await w.host()).status.waiting_for is None or "freeze" not in host.status.waiting_for.what:
                await w.services.db.wait_events(await events.last(w.services.db), 0.05)
        await w.services.runs.cancel(run.id, who=ADMIN)
        async with asyncio.timeout(20):
            while (host := await w.host()).run is not None:
                await w.services.db.wait_events(await events.last(w.services.db), 0.05)
        await w.services.brakes.thaw("all", who=ADMIN)
        assert host.state is State.QUARANTINED
        assert wiped(w) == 0


async def test_a_host_comes_back_from_maintenance_with_another_board(tmp_path):
    async with world(tmp_path, Plan()) as w:
        await w.apply()
        await w.run("rack-bringup")
        name = name_of("lou-t01", 1)
        until = w.services.clock.wall() + 3600
        await w.services.hosts.maintenance(name, reason="new board", until=until, who=ADMIN)
        server = next(wire for wire in w.sim._wires if hasattr(wire, "rotate_certificate"))
        server.rotate_certificate(w.sim.hosts[name])
        run = await w.services.hosts.release(name, who=ADMIN)
        assert (await w.ended(run.id)).state is RunState.PASSED
        host = await w.host()
        assert (host.state, host.status.maintenance) == (State.AVAILABLE, None)
        assert w.leaseable(host) == []


async def test_a_person_who_powers_an_available_host_off_takes_it_out_until_it_is_proven_again(tmp_path):
    async with world(tmp_path, Plan()) as w:
        await w.apply()
        await w.run("rack-bringup")
        name = name_of("lou-t01", 1)
        await w.services.hosts.power(name, PowerVerb.OFF, who=ADMIN)
        assert "powered off" in " ".join(w.leaseable(await w.host()))
        with pytest.raises(Conflict):
            await w.services.leases.create(asked(), who=ADMIN)
        await w.run("validate", name)
        assert w.leaseable(await w.host()) == []


async def test_a_rotation_cut_short_twice_locks_nobody_out(tmp_path, monkeypatch):
    async with world(tmp_path, Plan()) as w:
        await w.apply()
        await w.run("rack-bringup")
        host = await w.host()
        credentials = w.house.engine.wires.credentials
        for applied in (True, False):
            bmc = await credentials.open(host, timeout=5)
            change = bmc.set_password

            async def cut(password: str, *, timeout: float, applied: bool = applied, change=change) -> None:
                if applied:
                    await change(password, timeout=timeout)
                raise Unreachable("the answer was lost")

            monkeypatch.setattr(bmc, "set_password", cut)
            with pytest.raises(Unreachable):
                await credentials.rotate(host, bmc, username="root", timeout=5)
            await bmc.close()
        bmc = await credentials.open(host, timeout=5)
        await bmc.close()


async def test_a_nonce_that_looks_like_an_option_is_still_a_nonce(tmp_path, monkeypatch):
    """One in 64 random texts begins with a dash: two of eighty hosts fell out of a bring-up by it."""
    from fleetd.lifecycle.steps import validate

    monkeypatch.setattr(validate, "secrets", SimpleNamespace(token_hex=lambda size: "-abc"))
    async with world(tmp_path, Plan()) as w:
        await w.apply()
        assert (await w.run("rack-bringup")).state is RunState.PASSED


async def test_a_worker_that_died_is_woken_again(tmp_path, monkeypatch):
    from fleetd.lifecycle import engine

    monkeypatch.setattr(engine, "LOOK_AGAIN", 0.2)
    async with world(tmp_path, Plan()) as w:
        await w.apply()
        begin, failed = drive.Drive._begin, []

        async def broken(self, step):
            if step.name == "wipe" and not failed:
                failed.append(step.name)
                raise RuntimeError("a bug")
            return await begin(self, step)

        monkeypatch.setattr(drive.Drive, "_begin", broken)
        assert (await w.run("rack-bringup")).state is RunState.PASSED
        assert failed == ["wipe"]


async def test_a_cancelled_run_stops_at_a_safe_point_and_goes_on_from_there(tmp_path):
    async with world(tmp_path, Plan()) as w:
        await w.apply()
        run = await start(w)
        await seen(w, "step.done", step="power-off")
        await w.services.runs.cancel(run.id, who=ADMIN)
        async with asyncio.timeout(20):
            while (host := await w.host()).run is not None:
                await w.services.db.wait_events(await events.last(w.services.db), 0.05)
        assert host.state is State.QUARANTINED
        assert host.resume_state is State.PREPARING
        again = await w.services.runs.resume(host, who=ADMIN)
        assert (await w.ended(again.id)).state is RunState.PASSED
        assert (await w.host()).state is State.AVAILABLE


async def test_a_host_is_in_one_run_only(tmp_path):
    async with world(tmp_path, Plan()) as w:
        await w.apply()
        run = await start(w)
        with pytest.raises(Conflict) as caught:
            await start(w)
        assert run.id in caught.value.why
        assert (await w.ended(run.id)).state is RunState.PASSED


def asked(**more: object) -> LeaseRequest:
    fields = {"tenant": "acme", "sku": H100, "count": 1, "ends_at": "2036-01-01T00:00:00Z", "ssh_keys": [KEY], **more}
    return msgspec.convert(fields, LeaseRequest)


async def lease_is(w: World, lease: str, *states: LeaseState) -> None:
    async with asyncio.timeout(30):
        while (await w.services.leases.get(lease)).state not in states:
            await w.services.db.wait_events(await events.last(w.services.db), 0.1)


async def test_a_hand_over_that_finds_a_fault_goes_back_through_reclaim_and_never_to_the_tenant(tmp_path):
    async with world(tmp_path, Plan()) as w:
        await w.apply()
        await w.run("rack-bringup")
        w.sim.break_host(name_of("lou-t01", 1), "nvlink-down", {"gpu": 0, "link": 3})
        lease = await w.services.leases.create(asked(), who=ADMIN)
        await lease_is(w, lease.id, LeaseState.FAILED)
        async with asyncio.timeout(30):
            while (host := await w.host()).state not in (State.QUARANTINED, State.AVAILABLE):
                await w.services.db.wait_events(await events.last(w.services.db), 0.1)
        assert host.state is State.QUARANTINED
        states = [e.data["state"] for e in await events.of_host(w.services.db, host.id, 200) if e.kind == "host.state"]
        assert "leased" not in states
        assert "reclaiming" in states
        assert wiped(w) == 2


async def test_a_tenant_s_image_holds_the_tenant_s_keys_and_none_of_ours(tmp_path):
    async with world(tmp_path, Plan()) as w:
        await w.apply()
        await w.run("rack-bringup")
        lease = await w.services.leases.create(asked(user_data="#cloud-config\n"), who=ADMIN)
        await lease_is(w, lease.id, LeaseState.ACTIVE)
        installed = w.sim.hosts[name_of("lou-t01", 1)].installed
        assert installed is not None
        assert list(installed.authorized_keys) == [KEY]
        host = await w.host()
        assert host.state is State.LEASED
        assert host.tenant_data == "possible"
        assert "leased" in " ".join(w.leaseable(host))


async def test_a_changed_tls_certificate_stops_all_logins(tmp_path):
    async with world(tmp_path, Plan()) as w:
        await w.apply()
        await w.run("rack-bringup")
        name = name_of("lou-t01", 1)
        server = next(wire for wire in w.sim._wires if hasattr(wire, "rotate_certificate"))
        server.rotate_certificate(w.sim.hosts[name])
        before = len(list(w.sim.record.of(name, "bmc.login")))
        run = await w.run("validate", name)
        host = await w.host()
        assert run.state is RunState.FAILED
        assert [f.code for f in host.status.findings] == ["FLT-2002"]
        assert len(list(w.sim.record.of(name, "bmc.login"))) == before


async def test_a_restarted_engine_needs_no_help(tmp_path):
    """Parked in the middle and opened again: the run goes on and ends."""
    from fleetd.daemon.config import load
    from fleetd.daemon.wiring import build_house
    from fleetd.sim.site import SimSite
    from fleetd.sim.sitefile import load_site
    from tests.world import write_world

    config = write_world(tmp_path, [Plan()])
    run_id = ""
    async with SimSite(load_site(tmp_path / "site.yaml")) as sim:
        for stop_after in ("write-image", None):
            async with build_house(load(config)) as house:
                await house.boot.start()
                ready = asyncio.Event()
                async with asyncio.TaskGroup() as group:
                    group.create_task(house.engine.run(ready.set))
                    await ready.wait()
                    w = World(tmp_path, sim, house)
                    if stop_after:
                        await w.apply()
                        run_id = (await start(w)).id
                        await seen(w, "step.began", step=stop_after)
                    else:
                        assert (await w.ended(run_id)).state is RunState.PASSED
                    house.engine.park()
                await house.boot.stop()
        intents = [e.data["intent"] for e in sim.record.of(name_of("lou-t01", 1), "wipe.begin")]
        assert len(intents) == len(set(intents))


class TestPhoneHome:
    """Hostile callers of the boot listener: refused, audited, nothing leaked."""

    async def post(self, w: World, token: str, **body: object) -> int:
        url = w.house.boot_url + "/deploy/hello"
        async with (
            aiohttp.ClientSession() as session,
            session.post(url, json=body, headers={"Authorization": f"Bearer {token}"}) as answer,
        ):
            return answer.status

    async def test_unknown_used_and_foreign_tokens(self, tmp_path):
        async with world(tmp_path, Plan(count=2)) as w:
            await w.apply()
            await w.run("rack-bringup")
            one, two = await w.host(1), await w.host(2)
            machine = w.sim.hosts[two.name]
            assert machine.running is not None
            hello = {
                "environment": "disk",
                "mac": two.spec.boot_mac,
                "serial": two.spec.serial,
                "uuid": machine.uuid,
                "boot_id": "11111111-2222-3333-4444-555555555555",
                "host_key": machine.running.host_key_public,
            }
            assert await self.post(w, "no-such-token", **hello) == 403
            # the right token, a second time, from another boot
            assert await self.post(w, machine.running.token, **hello) == 403
            # another host's token
            first = w.sim.hosts[one.name].running
            assert first is not None
            assert await self.post(w, first.token, **hello) == 403
            denied = [e for e in await events.after(w.services.db, 0, limit=5000) if e.kind == "boot.denied"]
            assert len(denied) >= 2

    async def test_a_stranger_neither_gets_the_script_nor_ends_the_wait(self, tmp_path):
        async with world(tmp_path, Plan()) as w:
            await w.apply()
            boots, host = w.house.engine.wires.boots, await w.host()
            observed = msgspec.structs.replace(host.status.observed, serial=host.spec.serial, uuid="u-1")
            host = msgspec.structs.replace(host, status=msgspec.structs.replace(host.status, observed=observed))
            await w.services.db.commit([host_rows.save(host)])
            boot = await boots.arm(host, "deploy", intent="intent-1", seconds=60)
            mac, serial = host.spec.boot_mac, host.spec.serial
            for told in ({"uuid": "", "serial": ""}, {"uuid": "u-2", "serial": serial}, {"uuid": "u-1", "serial": "X"}):
                assert (await boots.script(mac, **told, source="127.0.0.1")).token is None
            script = await boots.script(mac, uuid="U-1", serial=serial, source="127.0.0.1")
            assert script.token
            hello = Hello(
                environment="deploy", mac=mac, serial="OTHER", uuid="u-1", boot_id="b", host_key="ssh-ed25519 AAAA"
            )
            with pytest.raises(Denied):
                await boots.hello(script.token, hello, source="127.0.0.1")
            right = msgspec.structs.replace(hello, serial=serial)
            await boots.hello(script.token, right, source="127.0.0.2")
            assert (await boots.wait_hello(boot, 5)).source == "127.0.0.2"

    async def test_a_boot_that_only_a_stranger_answers_is_not_proven(self, tmp_path):
        async with world(tmp_path, Plan()) as w:
            await w.apply()
            boots, host = w.house.engine.wires.boots, await w.host()
            boot = await boots.arm(host, "deploy", intent="intent-1", seconds=60, token="t" * 40)
            hello = Hello(
                environment="deploy",
                mac=host.spec.boot_mac,
                serial="X",
                uuid="u",
                boot_id="b",
                host_key="ssh-ed25519 A",
            )
            with pytest.raises(Denied):
                await boots.hello("t" * 40, hello, source="127.0.0.1")
            with pytest.raises(IdentityUnproven, match="not the host"):
                await boots.wait_hello(boot, 0.05)

    async def test_a_host_that_is_not_to_be_deployed_boots_its_disk(self, tmp_path):
        async with world(tmp_path, Plan()) as w:
            await w.apply()
            host = await w.host()
            async with (
                aiohttp.ClientSession() as session,
                session.get(f"{w.house.boot_url}/boot/{host.spec.boot_mac}.ipxe") as answer,
            ):
                text = await answer.text()
            assert answer.status == 200
            assert "fleetd.token" not in text
            assert "exit 1" in text


def test_database_is_the_one_that_was_imported():
    """The chaos daemon patches Database.commit; the engine must use that very class."""
    from fleetd.lifecycle import engine

    assert engine.Database is Database
