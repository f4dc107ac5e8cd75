"""SIGKILL at every step boundary of a bring-up, a lease and a reclaim: nothing leased unproven, leased twice, or wiped twice."""

from __future__ import annotations

import random
from collections import Counter
from datetime import UTC, datetime, timedelta

import pytest

from fleetd.sim.judge import destruction
from fleetd.sim.site import SimSite
from fleetd.sim.sitefile import load_site
from tests.chaos.harness import Daemons
from tests.lifecycle.fleet import PLAYBOOKS
from tests.world import H100, KEY, Plan, write_world

pytestmark = pytest.mark.slow


def lease(count: int = 1) -> dict[str, object]:
    ends = (datetime.now(UTC) + timedelta(hours=2)).isoformat().replace("+00:00", "Z")
    return {"tenant": "acme", "sku": H100, "count": count, "ends_at": ends, "ssh_keys": [KEY]}


def over(items):
    return bool(items["items"]) and all(run["state"] != "running" for run in items["items"])


async def whole_life(daemons: Daemons, sim: SimSite, boundary: int, hosts: int) -> None:
    """Bring up, lease, hand over, release, reclaim; the daemon dies at every `boundary` step commits."""
    await daemons.start(0)
    await daemons.apply()
    await daemons.stop()
    await daemons.start(boundary)
    await daemons.once("/v1/runs", {"playbook": "rack-bringup", "hosts": "all"}, lambda a: a["items"], "/v1/runs")
    await daemons.until("/v1/runs", over)
    await daemons.until("/v1/hosts", all_are("available"))
    await daemons.once("/v1/leases", lease(hosts), lambda a: a["items"], "/v1/leases")
    held = await daemons.until("/v1/leases", active)
    lease_id = held["items"][0]["id"]
    for host in sim.hosts.values():
        sim.mark(host.name, "tenant.begin", lease=lease_id)
    for host in sim.hosts.values():
        sim.mark(host.name, "tenant.end")
    await daemons.once(f"/v1/leases/{lease_id}/release", {}, lambda a: a["state"] != "active", f"/v1/leases/{lease_id}")
    await daemons.until(f"/v1/leases/{lease_id}", lambda a: a["state"] == "ended")
    await daemons.until("/v1/hosts", all_are("available"))


def active(answer):
    found = answer["items"][0]
    assert found["state"] in ("delivering", "active"), found
    return found["state"] == "active"


def all_are(state: str):
    def good(answer):
        out = {h["name"]: h["reasons"] for h in answer["items"] if h["state"] == "quarantined"}
        assert not out, out
        return all(h["state"] == state and h["leaseable"] for h in answer["items"])

    return good


def judge(sim: SimSite) -> list[str]:
    """What the simulator's own log says went wrong."""
    problems = []
    for name in sim.hosts:
        entries = list(sim.record.of(name))
        problems += destruction(name, entries)
        images = [e for e in entries if e.what == "image.write"]
        wipes = [e for e in entries if e.what == "wipe.done"]
        if len(wipes) < 2:
            problems.append(f"{name} was wiped {len(wipes)} times; bring-up and reclaim wipe once each")
        if len(images) < 3:
            problems.append(f"{name} saw {len(images)} images; bring-up, hand-over and reclaim write one each")
        twice = {i: n for i, n in Counter(e.data["intent"] for e in images).items() if n > 1}
        if twice:
            problems.append(f"{name}: images written twice on one intent: {twice}")
    return problems


async def test_killed_at_every_step_boundary(tmp_path):
    write_world(tmp_path, [Plan()])
    async with SimSite(load_site(tmp_path / "site.yaml")) as sim:
        daemons = Daemons(tmp_path)
        try:
            await whole_life(daemons, sim, 1, 1)
        finally:
            await daemons.kill()
        # every step of the shipped playbooks has a beginning and an end
        steps = sum(len(PLAYBOOKS[name].steps) for name in ("rack-bringup", "handover", "reclaim"))
        assert daemons.deaths >= 2 * steps - 2
        assert judge(sim) == []


@pytest.mark.parametrize("seed", [1, 2])
async def test_killed_now_and_then_with_several_hosts(tmp_path, seed):
    boundary = random.Random(seed).randrange(5, 14)
    write_world(tmp_path, [Plan(count=4)])
    async with SimSite(load_site(tmp_path / "site.yaml")) as sim:
        daemons = Daemons(tmp_path)
        try:
            await whole_life(daemons, sim, boundary, 4)
        finally:
            await daemons.kill()
        assert daemons.deaths >= 3
        assert judge(sim) == []
