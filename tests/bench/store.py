"""What the ledger costs: CPU of a transition (guarded host write under a claim, and an event), and a claim of 1,000 hosts.

Run: `python -m tests.bench store`; prints only. PostgreSQL is measured when its server programs are here.
"""

from __future__ import annotations

import asyncio
import resource
import sqlite3
import tempfile
import time

import msgspec
import uvloop

from fleetd.model.boot import Claim
from fleetd.model.event import Event
from fleetd.model.host import Host, State
from fleetd.store import claims, events, hosts, leases
from fleetd.store.database import Database, open_database
from tests.store.postgres_server import PostgresServer, find_postgres
from tests.store.samples import a_host, a_lease

IN_FLIGHT = 1000
TARGET_US = 25.0


def cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def bare(path: str, seconds: float) -> None:
    """The floor on this machine at this hour: the same two writes by sqlite3 alone, without guards, futures or tasks."""
    ledger = sqlite3.connect(path, isolation_level=None)
    ledger.executescript(
        "PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; CREATE TABLE h (id TEXT PRIMARY KEY, v INTEGER, doc TEXT);"
        "CREATE TABLE e (seq INTEGER PRIMARY KEY AUTOINCREMENT, host TEXT, doc TEXT); CREATE INDEX eh ON e (host, seq)"
    )
    names = [f"host-{number:05d}" for number in range(IN_FLIGHT)]
    ledger.executemany("INSERT INTO h VALUES (?, 1, ?)", [(name, "x" * 900) for name in names])
    done, used, end = 0, cpu(), time.perf_counter() + seconds
    while time.perf_counter() < end:
        ledger.execute("BEGIN IMMEDIATE")
        for name in names:
            ledger.execute("UPDATE h SET v = v + 1, doc = ? WHERE id = ?", ("x" * 900, name))
            ledger.execute("INSERT INTO e (host, doc) VALUES (?, ?)", (name, '{"to": "available"}'))
        ledger.execute("COMMIT")
        done += IN_FLIGHT
    each = (cpu() - used) / done * 1e6
    print(f"sqlite3     bare writes, {IN_FLIGHT} a commit: {each:.1f} us CPU each")


async def transitions(db: Database, seconds: float) -> None:
    """1,000 workers, each saving its host and appending an event as fast as the ledger acknowledges."""
    fleet = [
        a_host(number, state=State.AVAILABLE, certificate="certificate-1", certificate_expires=2e9)
        for number in range(IN_FLIGHT)
    ]
    await db.commit([hosts.insert(host) for host in fleet])
    held = [await claims.take(db, host.id, "bench", now=0, ttl=1e9) for host in fleet]
    waits: list[float] = []
    end = time.perf_counter() + seconds

    async def work(host: Host, claim: Claim) -> Host:
        while (began := time.perf_counter()) < end:
            event = Event(kind="host.state", at=began, site=host.spec.site, host=host.id, data={"to": "available"})
            await db.commit([hosts.save(host, claim=claim), events.append(event)])
            host = msgspec.structs.replace(host, version=host.version + 1)
            waits.append(time.perf_counter() - began)
        return host

    used, began = cpu(), time.perf_counter()
    fleet = await asyncio.gather(*(work(host, claim) for host, claim in zip(fleet, held, strict=True) if claim))
    used, took = cpu() - used, time.perf_counter() - began
    waits.sort()
    each = used / len(waits) * 1e6
    print(
        f"{db.dialect:10}  transition: {each:5.1f} us CPU (target {TARGET_US:.0f}; ratio {each / TARGET_US:.2f}), "
        f"{len(waits) / took:7.0f}/s, p50 {waits[len(waits) // 2] * 1e3:.0f} ms, "
        f"p99 {waits[len(waits) * 99 // 100] * 1e3:.0f} ms at {IN_FLIGHT} in flight"
    )
    lease = a_lease("bench", fleet)
    began = time.perf_counter()
    await db.commit(leases.claim(lease, fleet, now=1.0))
    took = time.perf_counter() - began
    print(f"{db.dialect:10}  lease of {len(fleet)} hosts in one transaction: {took:.3f} s (target 1; ratio {took:.2f})")


async def measure(seconds: float) -> None:
    with tempfile.TemporaryDirectory() as folder:
        bare(f"{folder}/bare.db", seconds / 2)
        async with await open_database(f"sqlite:///{folder}/ledger.db") as db:
            await db.migrate()
            await transitions(db, seconds)
    if find_postgres() is None:
        print("postgresql  not measured: no server programs here")
        return
    with PostgresServer() as server:
        async with await open_database(server.database("bench")) as db:
            await db.migrate()
            await transitions(db, seconds)


def main() -> None:
    uvloop.run(measure(4.0))  # as the daemon runs


if __name__ == "__main__":
    main()
