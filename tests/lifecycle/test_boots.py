"""The desk that the boot service asks: image tickets, mirrors, the trail, and refusals that cannot fill the ledger."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from fleetd.drivers.boot.capabilities import Hello, Sighting
from fleetd.kit.errors import DeadlineExceeded, Denied, IdentityUnproven
from fleetd.kit.rate import Meter
from fleetd.lifecycle.boots import DENIALS, DENIALS_SECONDS, TICKET_SECONDS, Boots
from fleetd.lifecycle.tickets import Tickets
from fleetd.model.boot import Boot
from fleetd.model.host import Host, State
from fleetd.sim.image import tiny_image
from fleetd.store import boots as rows
from fleetd.store.database import Database, open_database
from fleetd.store.secrets import Sealer
from tests.images import manifest_of
from tests.lifecycle.fleet import START, Fleet, inventory, ledger

MANIFEST = manifest_of("ubuntu", *tiny_image("ubuntu"))
DIGEST = MANIFEST.sha256
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIEGiVZgcR4SJLvhhQnFfvHbpNK5YyRc9L9hFVNqK0Dxd"
UUID = "4c4c4544-0042-3010-8051-b7c04f4e3233"
URL = "http://10.77.0.1:8680"
WHERE = "10.77.0.50"


class Rig:
    def __init__(self, fleet: Fleet, boots: Boots, host: Host) -> None:
        self.fleet, self.boots, self.host = fleet, boots, host
        self.token = ""

    async def arm(self, **changed: Any) -> Boot:
        boot = await self.boots.arm(self.host, "deploy", intent="i", seconds=600, **changed)
        self.token = self.boots._tokens[boot.id]
        return boot

    def hello(self, **changed: Any) -> Hello:
        fields: dict[str, Any] = {
            "environment": "deploy", "mac": self.host.spec.boot_mac, "serial": self.host.spec.serial, "uuid": UUID,
            "boot_id": "b-1", "host_key": KEY, "sees": {"memory": "2 TiB"},
        }  # fmt: skip
        return Hello(**fields | changed)

    async def up(self) -> Boot:
        boot = await self.arm()
        await self.boots.hello(self.token, self.hello(), source=WHERE)
        return await rows.get(self.fleet.db, boot.id)

    def ticket(self, boot: Boot) -> str:
        return self.boots.image_urls(boot, self.host, MANIFEST)[-1].partition("?ticket=")[2]

    async def denials(self) -> list[dict[str, Any]]:
        return [e.data | {"host": e.host} for e in await self.fleet.said("boot.denied")]


@contextlib.asynccontextmanager
async def on_disk(folder: Path) -> AsyncIterator[Database]:
    """A ledger whose writes take their time on a thread, as in a daemon: calls come between reading and writing."""
    async with await open_database(f"sqlite:///{folder / 'ledger.db'}") as db:
        await db.migrate()
        yield db


@contextlib.asynccontextmanager
async def rig(mirrors: Any = None, folder: Path | None = None) -> AsyncIterator[Rig]:
    async with ledger() if folder is None else on_disk(folder) as db:
        fleet = Fleet(db)
        host, *_ = await fleet.fill(inventory({"lou-a01": 2}))
        observed = msgspec.structs.replace(host.status.observed, serial=host.spec.serial, uuid=UUID)
        host = await fleet.put(host, observed=observed)
        yield Rig(fleet, Boots(db, fleet.clock, Sealer(bytes(32)), URL + "/", mirrors), host)


async def test_mirrors_of_the_rack_come_first_and_the_ticket_only_goes_to_us() -> None:
    mirrors = {"lou-a01": ["http://m1/x/", "http://m2"], "*": ["http://m2", "https://m3"], "lou-a02": ["http://m9"]}
    async with rig(mirrors) as r:
        urls = r.boots.image_urls(await r.up(), r.host, MANIFEST)
        assert urls[:3] == [f"http://m1/x/{DIGEST}", f"http://m2/{DIGEST}", f"https://m3/{DIGEST}"]
        assert urls[3].startswith(f"{URL}/images/{DIGEST}?ticket=")
        assert len(urls) == 4
        assert not any("ticket" in url for url in urls[:3])


async def test_a_ticket_opens_this_image_in_this_boot() -> None:
    async with rig() as r:
        ticket = r.ticket(await r.up())
        grant = await r.boots.grant(DIGEST, ticket, source=WHERE)
        assert (grant.host, grant.rack) == (r.host.id, "lou-a01")
        assert await r.boots.grant(DIGEST, ticket, source="10.77.0.51") == grant  # another NIC, a resumed transfer
        assert await r.denials() == []


async def test_a_ticket_opens_nothing_else() -> None:
    async with rig() as r:
        boot = await r.up()
        ticket = r.ticket(boot)
        other = Tickets(Sealer(b"x" * 32).derive("image-tickets"))
        forged = other.issue(boot.id, DIGEST, START + 10**6)
        unknown = r.boots._tickets.issue("boot-unknown", DIGEST, START + 10**6)
        for digest, bad in (
            ("0" * 64, ticket), (DIGEST, ticket[:-1]), (DIGEST, ticket + "A"), (DIGEST, ""), (DIGEST, "ä" * 40),
            (DIGEST, "A" * 100_000), (DIGEST, "A" * 100), (DIGEST, forged), (DIGEST, unknown),
        ):  # fmt: skip
            with pytest.raises(Denied) as caught:
                await r.boots.grant(digest, bad, source=WHERE)
            assert caught.value.why == ""  # the reason is for the audit
        assert len(await r.denials()) == 9
        assert all(event["why"] and event["source"] == WHERE for event in await r.denials())


async def test_a_ticket_ends_with_its_time_and_with_its_boot() -> None:
    async with rig() as r:
        ticket = r.ticket(await r.up())
        r.fleet.clock.go(TICKET_SECONDS + 1)
        with pytest.raises(Denied):
            await r.boots.grant(DIGEST, ticket, source=WHERE)
        boot = await r.up()  # closes the one before
        old, fresh = r.ticket(boot), r.ticket(await r.up())
        with pytest.raises(Denied):
            await r.boots.grant(DIGEST, old, source=WHERE)
        await r.boots.grant(DIGEST, fresh, source=WHERE)
        assert "its boot is over" in (await r.denials())[-1]["why"]
        armed = await r.arm()
        with pytest.raises(Denied):  # nobody came up in it yet
            await r.boots.grant(DIGEST, r.ticket(armed), source=WHERE)


async def test_a_flood_of_refusals_leaves_few_events_and_their_number(monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []
    monkeypatch.setattr("fleetd.lifecycle.boots.log.warning", lambda event, **_: lines.append(event))
    async with rig() as r:
        for _ in range(DENIALS * 5):
            with pytest.raises(Denied):
                await r.boots.authorized_keys("an unknown token", source=WHERE)
        assert len(await r.denials()) == DENIALS
        await r.arm()
        for number in range(DENIALS * 3):
            with pytest.raises(Denied):
                await r.boots.hello(r.token, r.hello(serial=f"S{number}"), source=WHERE)
        found = await r.denials()
        assert len(found) == DENIALS * 2  # a host's are counted apart: strangers cannot hide them
        assert {event["host"] for event in found} == {None, r.host.id}
        r.fleet.clock.go(DENIALS_SECONDS)
        with pytest.raises(Denied):
            await r.boots.authorized_keys("an unknown token", source=WHERE)
        assert (await r.denials())[-1]["held_back"] == DENIALS * 4
    assert len(lines) == DENIALS * 2 + 1  # nor does it fill the log


async def test_a_strangers_get_does_not_make_a_missed_boot_an_unproven_one() -> None:
    """It was given no token: the host is booted once more, and the doctor tells who asked."""
    async with rig() as r:
        boot = await r.arm()
        await r.boots.script(r.host.spec.boot_mac, uuid=UUID, serial="stranger", source="10.9.9.9")
        with pytest.raises(DeadlineExceeded):
            await r.boots.wait_hello(boot, 0.01)
        found = (await r.boots.doctor(r.host))[2].what
        assert ("stranger" in found, "10.9.9.9" in found) == (True, True)


async def test_old_tokens_are_audited_by_host() -> None:
    async with rig() as r:
        await r.up()
        with pytest.raises(Denied):
            await r.boots.hello(r.token, r.hello(boot_id="b-2"), source="10.9.9.9")
        await r.boots.hello(r.token, r.hello(), source=WHERE)  # the same boot repeats itself
        stale = r.token
        await r.arm()
        with pytest.raises(Denied):
            await r.boots.authorized_keys(stale, source="10.9.9.9")
        r.fleet.clock.go(601)
        with pytest.raises(Denied):
            await r.boots.authorized_keys(r.token, source="10.9.9.9")
        found = await r.denials()
        assert [event["why"].split()[-1] for event in found] == ["already", "closed", "expired"]
        assert {event["host"] for event in found} == {r.host.id}


async def test_who_asks_for_anothers_script_is_audited_and_gets_no_token() -> None:
    async with rig() as r:
        await r.arm()
        script = await r.boots.script(r.host.spec.boot_mac, uuid=UUID, serial="stranger", source="10.9.9.9")
        assert script.token is None
        (event,) = await r.denials()
        assert (event["host"], "stranger" in event["why"]) == (r.host.id, True)
        good = await r.boots.script(r.host.spec.boot_mac, uuid=UUID.upper(), serial=r.host.spec.serial, source=WHERE)
        assert good.token == r.token


ELSEWHERE = "10.77.0.66"


async def test_the_host_itself_asks_after_a_stranger_came_first_and_the_boot_is_believed_no_more() -> None:
    async with rig() as r:
        await r.up()
        script = await r.boots.script(r.host.spec.boot_mac, uuid=UUID, serial=r.host.spec.serial, source=ELSEWHERE)
        assert script.token is None
        assert ELSEWHERE in await r.boots.contested(r.host)
        assert len(await r.fleet.said("boot.contested")) == 1
        await r.boots.script(r.host.spec.boot_mac, uuid=UUID, serial=r.host.spec.serial, source=ELSEWHERE)
        assert len(await r.fleet.said("boot.contested")) == 1  # once a boot
        await r.arm()
        assert await r.boots.contested(r.host) == ""  # a new boot is a new question


async def test_a_second_phone_home_with_another_key_contests_the_boot() -> None:
    async with rig() as r:
        await r.up()
        other = r.hello(boot_id="b-2", host_key=KEY.replace("AIE", "AIF"))
        with pytest.raises(Denied):
            await r.boots.hello(r.token, other, source=ELSEWHERE)
        assert "another key" in await r.boots.contested(r.host)


async def test_of_two_phone_homes_in_the_same_instant_one_is_met_and_the_other_contests_the_boot(
    tmp_path: Path,
) -> None:
    """Both read a boot that nobody came up in yet: the ledger takes one, and the other is judged against that."""
    async with rig(folder=tmp_path) as r:
        boot = await r.arm()
        other = r.hello(boot_id="b-2", host_key=KEY.replace("AIE", "AIF"))
        answers = await asyncio.gather(
            r.boots.hello(r.token, r.hello(), source=WHERE),
            r.boots.hello(r.token, other, source=ELSEWHERE),
            return_exceptions=True,
        )
        assert {type(answer) for answer in answers} == {type(None), Denied}, answers
        assert (await rows.get(r.fleet.db, boot.id)).met is not None
        assert "another key" in await r.boots.contested(r.host)
        assert len(await r.denials()) == 1


async def test_a_phone_home_that_is_repeated_while_the_first_is_written_is_no_refusal(tmp_path: Path) -> None:
    """The environment asks again when an answer is late; a refusal would make it take its SSH down."""
    async with rig(folder=tmp_path) as r:
        boot = await r.arm()
        await asyncio.gather(*(r.boots.hello(r.token, r.hello(), source=WHERE) for _ in range(3)))
        assert (await r.boots.wait_hello(boot, 5.0)).host_key == KEY
        assert (len(await r.fleet.said("boot.met")), await r.denials()) == (1, [])


async def test_a_phone_home_cut_off_behind_its_write_wakes_who_waits_when_it_is_repeated(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with rig() as r:
        boot = await r.arm()
        commit = type(r.fleet.db).commit

        async def cut_off(self: Any, ops: Any) -> int:
            await commit(self, ops)
            raise TimeoutError  # of the call, in the instant between the write and what follows it

        with monkeypatch.context() as patched:
            patched.setattr(type(r.fleet.db), "commit", cut_off)
            with pytest.raises(TimeoutError):
                await r.boots.hello(r.token, r.hello(), source=WHERE)
        await r.boots.hello(r.token, r.hello(), source=WHERE)
        assert (await r.boots.wait_hello(boot, 0.5)).met is not None


async def test_two_that_contest_a_boot_in_the_same_instant_are_both_refused(tmp_path: Path) -> None:
    async with rig(folder=tmp_path) as r:
        await r.up()
        strangers = [r.hello(boot_id=f"b-{n}", host_key=KEY.replace("AIE", f"AI{n}")) for n in (2, 3)]
        answers = await asyncio.gather(
            *(r.boots.hello(r.token, stranger, source=ELSEWHERE) for stranger in strangers), return_exceptions=True
        )
        assert [type(answer) for answer in answers] == [Denied, Denied], answers
        assert len(await r.fleet.said("boot.contested")) == 1


async def test_a_boot_whose_step_is_over_is_no_longer_expected() -> None:
    """A BMC that failed between arming and waiting: who asks now is sent to its disk, and nothing of it is kept."""
    async with rig() as r:
        boot = await r.arm()
        r.boots.forget(boot)
        script = await r.boots.script(r.host.spec.boot_mac, uuid=UUID, serial=r.host.spec.serial, source=WHERE)
        assert script.token is None
        assert "waits" in (await r.boots.doctor(r.host))[2].what
        with pytest.raises(Denied):
            await r.boots.hello(r.token, r.hello(serial="OTHER"), source=ELSEWHERE)
        assert (r.boots._tokens, r.boots._waiters, r.boots._foreign) == ({}, {}, {})
        r.boots.forget(boot)  # once more: nothing


async def test_a_system_on_disk_phones_home_after_every_start_and_nothing_is_made_of_it() -> None:
    """Its token stays on the disk; a tenant who restarts the host is no second machine, one with another key is."""
    async with rig() as r:
        boot = await r.boots.arm(r.host, "disk", intent="i", seconds=600, token="t" * 43, keys=("", ""), host_key=KEY)
        for boot_id in ("b-1", "b-2", "b-3"):
            await r.boots.hello("t" * 43, r.hello(environment="disk", boot_id=boot_id), source=WHERE)
        assert (await rows.get(r.fleet.db, boot.id)).boot_id == "b-1", "the first start is the one that was waited for"
        assert (await r.boots.contested(r.host), await r.denials()) == ("", [])
        stranger = r.hello(environment="disk", boot_id="b-4", host_key=KEY.replace("AIE", "AIF"))
        with pytest.raises(Denied):
            await r.boots.hello("t" * 43, stranger, source=ELSEWHERE)


async def test_a_boot_that_ended_with_the_power_opens_nothing_and_is_not_up() -> None:
    async with rig() as r:
        boot = await r.up()
        ticket = r.ticket(boot)
        assert (await r.boots.doctor(r.host))[2].stage == "up"
        await r.fleet.db.commit([rows.close(boot.id, r.fleet.clock.wall())])
        found = (await r.boots.doctor(r.host))[2]
        assert (found.stage, "is up" in found.what) == ("none", False)
        for call in (
            r.boots.grant(DIGEST, ticket, source=WHERE),
            r.boots.authorized_keys(r.token, source=WHERE),
            r.boots.hello(r.token, r.hello(), source=WHERE),
        ):
            with pytest.raises(Denied):
                await call
        with pytest.raises(IdentityUnproven):
            await r.boots.shell_target(r.host, "deploy")


async def test_a_system_on_disk_that_is_switched_off_and_on_again_is_no_stranger() -> None:
    """A tenant may do so every night: no refusal, no event, and nothing opens again. In a newer boot it is one."""
    async with rig() as r:
        token, key = "t" * 43, {"keys": ("private", "public"), "host_key": KEY}
        boot = await r.boots.arm(r.host, "disk", intent="i", seconds=600, token=token, **key)
        on_disk = r.hello(environment="disk")
        await r.boots.hello(token, on_disk, source=WHERE)
        await r.fleet.db.commit([rows.close(boot.id, r.fleet.clock.wall())])
        closed = await rows.get(r.fleet.db, boot.id)
        again = r.hello(environment="disk", boot_id="b-2")
        await r.boots.hello(token, again, source=WHERE)
        assert await r.denials() == []
        assert await rows.get(r.fleet.db, boot.id) == closed
        for other, source in (
            (r.hello(environment="disk", boot_id="b-3", host_key=KEY.replace("AIE", "AIF")), WHERE),
            (again, ELSEWHERE),
            (r.hello(environment="disk", serial="OTHER"), WHERE),
        ):
            with pytest.raises(Denied):
                await r.boots.hello(token, other, source=source)
        assert len(await r.denials()) == 3
        r.fleet.clock.go(1)
        newer = await r.arm()
        await r.fleet.db.commit([rows.close(newer.id, r.fleet.clock.wall())])
        with pytest.raises(Denied):
            await r.boots.hello(token, again, source=WHERE)


@pytest.mark.parametrize(
    "asked", [{"source": WHERE}, {"serial": "OTHER"}, {"uuid": "00000000-0000-0000-0000-000000000001"}]
)
async def test_a_restart_and_a_guess_contest_nothing(asked: dict[str, str]) -> None:
    """A host that restarted by itself asks from its own address; who does not know the board's identity proves nothing."""
    async with rig() as r:
        await r.up()
        asks = {"uuid": UUID, "serial": r.host.spec.serial, "source": ELSEWHERE} | asked
        await r.boots.script(r.host.spec.boot_mac, **asks)
        assert await r.boots.contested(r.host) == ""


async def test_the_doctor_follows_a_boot_from_dhcp_to_hello() -> None:
    async with rig() as r:
        mac, serial = r.host.spec.boot_mac, r.host.spec.serial
        assert (await r.boots.doctor(r.host))[2].stage == "none"
        assert (await r.boots.script(mac, uuid=UUID, serial=serial, source=WHERE)).token is None
        assert "no boot is armed" in (await r.boots.doctor(r.host))[1][-1].detail

        async def stage() -> str:
            r.fleet.clock.go(20)
            return (await r.boots.doctor(r.host))[2].stage

        def saw(name: str, **changed: Any) -> Any:
            return r.boots.seen([Sighting(stage=name, at=r.fleet.clock.wall(), **{"source": WHERE, **changed})])

        r.fleet.clock.go(0.5)
        await r.arm()
        stages = [await stage()]
        await saw("dhcp", mac=mac)
        stages.append(await stage())
        await saw("http")
        stages.append(await stage())
        await r.boots.script(mac, uuid=UUID, serial=serial, source=WHERE)
        stages.append(await stage())
        await saw("kernel")
        stages.append(await stage())
        await saw("initrd")
        stages.append(await stage())
        await r.boots.authorized_keys(r.token, source=WHERE)
        stages.append(await stage())
        await r.boots.hello(r.token, r.hello(), source=WHERE)
        stages.append(await stage())
        assert stages == ["power", "address", "loader", "script", "kernel", "initrd", "keys", "up"]
        _, trail, found = await r.boots.doctor(r.host)
        assert found.ok
        assert trail[-1].detail == "deploy, memory 2 TiB"


async def test_sightings_of_answered_stages_and_too_many_are_left_out() -> None:
    async with rig() as r:
        mac = r.host.spec.boot_mac
        await r.boots.seen([Sighting(stage="hello", mac=mac, at=1.0), Sighting(stage="keys", mac=mac, at=1.0)])
        assert (await r.boots.doctor(r.host))[1] == []
        await r.boots.seen([Sighting(stage="dhcp", mac=mac, at=1.0)] * 100_000)
        assert len((await r.boots.doctor(r.host))[1]) == 64


async def test_hosts_are_those_that_may_boot() -> None:
    async with rig() as r:
        assert next((h.name, h.mac, h.rack) for h in await r.boots.hosts()) == (
            r.host.name, r.host.spec.boot_mac.lower(), "lou-a01",
        )  # fmt: skip
        await r.fleet.put(r.host, state=State.RETIRED)
        assert [h.name for h in await r.boots.hosts()] == ["lou-a01-02"]


def test_a_meter_fills_again_and_forgets_the_oldest_key() -> None:
    meter = Meter(2, 10.0, keys=2)
    assert [meter.take("a", 0.0) for _ in range(4)] == [0, 0, None, None]
    assert meter.take("a", 5.0) == 2
    assert meter.take("a", 5.0) is None
    assert meter.take("b", 5.0) == 0
    assert meter.take("c", 5.0) == 0
    assert meter.take("a", 5.0) == 0  # it was forgotten: better to say too much than to keep all


def test_one_purpose_one_key() -> None:
    sealer = Sealer(bytes(32))
    assert len({sealer.derive("a"), sealer.derive("b"), bytes(32)}) == 3
    assert sealer.derive("a") == Sealer(bytes(32)).derive("a")
