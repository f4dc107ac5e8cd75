"""Runs over HTTP: 202 and where to look, dry runs, journals, cancel and retry."""

from __future__ import annotations

import msgspec

from fleetd.model.run import RunHostState, RunState
from fleetd.store import runs as run_rows
from tests.house import House


def finish(daemon: House, run_id: str, state: RunState) -> None:
    """What the engine does at the end of a run."""

    async def end() -> None:
        db = daemon.fleet.db
        for place in await run_rows.hosts(db, run_id):
            if place.state in (RunHostState.PENDING, RunHostState.ACTIVE):
                failed = msgspec.structs.replace(place, state=RunHostState.FAILED)
                await db.commit([run_rows.save_host(failed)])
        run = await run_rows.get(db, run_id)
        if run.state is RunState.RUNNING:
            await db.commit([run_rows.save(msgspec.structs.replace(run, state=state, finished=2.0e9))])

    daemon.run(end())


def test_dry_run_changes_nothing(daemon: House) -> None:
    before = daemon.get("/v1/runs").json()["items"]
    answer = daemon.post("/v1/runs", {"playbook": "rack-bringup", "hosts": "all", "dry_run": True})
    assert answer.status_code == 200
    plan = answer.json()
    assert [host["name"] for host in plan["hosts"]] == ["lou-a02-01", "lou-a02-02"]
    assert all(host["steps"] for host in plan["hosts"])
    assert {skipped["name"] for skipped in plan["skipped"]} == {f"lou-a01-0{n}" for n in range(1, 5)}
    assert all(skipped["why"] for skipped in plan["skipped"])
    assert daemon.get("/v1/runs").json()["items"] == before


def test_start_is_202_with_location(daemon: House) -> None:
    answer = daemon.post("/v1/runs", {"playbook": "rack-bringup", "hosts": "rack=lou-a02"})
    assert answer.status_code == 202
    run = answer.json()
    assert answer.headers["location"] == f"/v1/runs/{run['id']}"
    assert run["state"] == "running"
    assert sum(run["counts"].values()) == 2
    assert daemon.get(answer.headers["location"]).json() == run
    hosts = daemon.get(f"/v1/runs/{run['id']}/hosts").json()["items"]
    assert [host["name"] for host in hosts] == ["lou-a02-01", "lou-a02-02"]
    assert hosts[0]["step"] == run["steps"][0]["name"]
    assert daemon.get(f"/v1/runs/{run['id']}/hosts/lou-a02-01/steps").json() == {"items": [], "next": None}
    assert daemon.get(f"/v1/runs/{run['id']}/hosts/lou-a01-01/steps").status_code == 404
    again = daemon.post("/v1/runs", {"playbook": "rack-bringup", "hosts": "rack=lou-a02"})
    assert (again.status_code, again.json()["code"]) == (409, "FLT-3001")
    assert daemon.get("/v1/hosts/lou-a02-01").json()["run"] == run["id"]
    refused = daemon.post("/v1/hosts/lou-a02-01/power", {"verb": "off"})
    assert (refused.status_code, refused.json()["code"]) == (409, "FLT-2007")
    stale = daemon.post(f"/v1/runs/{run['id']}/cancel", headers={"If-Match": '"77"'})
    assert stale.status_code == 412
    cancelled = daemon.post(f"/v1/runs/{run['id']}/cancel")
    assert cancelled.json()["state"] == "cancelled"
    finish(daemon, run["id"], RunState.CANCELLED)
    retried = daemon.post(f"/v1/runs/{run['id']}/retry")
    assert retried.status_code == 202
    assert retried.json()["id"] != run["id"]
    finish(daemon, retried.json()["id"], RunState.FAILED)


def test_list_is_newest_first_and_pages(daemon: House) -> None:
    items = daemon.get("/v1/runs").json()["items"]
    ids = [run["id"] for run in items]
    assert ids == sorted(ids, reverse=True)
    first = daemon.get("/v1/runs", params={"limit": 1}).json()
    assert [run["id"] for run in first["items"]] == ids[:1]
    second = daemon.get("/v1/runs", params={"limit": 1, "cursor": first["next"]}).json()
    assert [run["id"] for run in second["items"]] == ids[1:2]
    failed = daemon.get("/v1/runs", params={"state": "failed"}).json()["items"]
    assert {run["state"] for run in failed} == {"failed"}
    assert daemon.get("/v1/runs", params={"state": "asleep"}).status_code == 422


def test_unknown_playbook_range_and_run_are_404(daemon: House) -> None:
    assert daemon.post("/v1/runs", {"playbook": "nothing", "hosts": "all"}).status_code == 404
    assert daemon.post("/v1/runs", {"playbook": "validate", "hosts": "nobody"}).status_code == 404
    assert daemon.get("/v1/runs/run-nothing").status_code == 404


def test_playbooks(daemon: House) -> None:
    books = {book["name"]: book for book in daemon.get("/v1/playbooks").json()["items"]}
    assert {"rack-bringup", "validate", "reclaim", "handover"} <= set(books)
    assert daemon.get("/v1/playbooks/validate").json() == books["validate"]
    assert daemon.get("/v1/playbooks/nothing").status_code == 404
