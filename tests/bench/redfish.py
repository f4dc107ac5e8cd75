"""CPU of one kept poll (power_state) through our session layer, over N simulated BMCs in another process.

    python tests/bench/redfish.py [BMCs] [rounds]

Prints milliseconds of this process's CPU a poll, and ratios to a plain aiohttp GET of the same resource over one kept
connection a BMC and, where the peers' venv holds it, to sushy. It judges nothing.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from multiprocessing.connection import Connection
from pathlib import Path

import aiohttp
import uvloop

sys.path.insert(0, str(Path(__file__).parents[2]))

from fleetd.drivers.bmc.capabilities import BmcTarget
from fleetd.drivers.bmc.redfish import RedfishDriver
from fleetd.kit.tasks import gather_bounded
from fleetd.model.bmc import Login
from fleetd.sim.bmc_redfish import RedfishServer
from fleetd.sim.record import Record
from tests.redfish_rig import PASSWORD, USER, sim_host

WIDTH = 32  # polls in flight
VENV = Path(os.environ.get("FLEETD_PEERS_VENV", Path(__file__).parents[2] / ".venv-peers"))

SUSHY = """
import sys, time, urllib3, sushy
urllib3.disable_warnings()
count, url, path, user, password = int(sys.argv[1]), *sys.argv[2:]
system = sushy.Sushy(url, username=user, password=password, verify=False).get_system(path)
begin = time.process_time()
for _ in range(count):
    system.refresh(force=True)
    system.power_state
print((time.process_time() - begin) / count * 1000)
"""


def serve(count: int, pipe: Connection) -> None:
    """The other process: `count` hosts behind one wildcard listener."""

    async def main() -> None:
        hosts = {h.bmc_address: h for h in (sim_host(n, "dell", Record()) for n in range(1, count + 1))}
        server = RedfishServer(hosts.get)
        port = await server.start(["0.0.0.0"])
        pipe.send((port, [(address, server.pin(host)) for address, host in hosts.items()]))
        await asyncio.get_running_loop().run_in_executor(None, pipe.recv)
        await server.close()

    uvloop.run(main())


async def measured(polls: list[Callable[[], Awaitable[object]]], rounds: int) -> tuple[float, float]:
    """(ms CPU, ms wall) a poll, after one round to warm up."""
    await gather_bounded(polls, width=WIDTH)
    cpu, wall = time.process_time(), time.perf_counter()
    for _ in range(rounds):
        for result in await gather_bounded(polls, width=WIDTH):
            if isinstance(result, Exception):
                raise result
    count = rounds * len(polls)
    return (time.process_time() - cpu) / count * 1000, (time.perf_counter() - wall) / count * 1000


async def ours(port: int, bmcs: list[tuple[str, str]], rounds: int) -> tuple[float, float]:
    driver = RedfishDriver()
    login = Login(USER, PASSWORD)
    targets = [BmcTarget(protocol="redfish", host=a, port=port, login=login, tls_pin=pin) for a, pin in bmcs]
    opened = await gather_bounded([lambda t=t: driver.open(t, timeout=20) for t in targets], width=WIDTH)
    sessions = [bmc for bmc in opened if not isinstance(bmc, Exception)]
    assert len(sessions) == len(bmcs), next(e for e in opened if isinstance(e, Exception))
    result = await measured([lambda b=b: b.power_state(timeout=20) for b in sessions], rounds)
    await gather_bounded([bmc.close for bmc in sessions], width=WIDTH)
    await driver.close()
    return result


async def plain(port: int, bmcs: list[tuple[str, str]], rounds: int) -> tuple[float, float]:
    connector = aiohttp.TCPConnector(limit=0, limit_per_host=1, ssl=False)
    headers = {"Authorization": aiohttp.encode_basic_auth(USER, PASSWORD)}
    async with aiohttp.ClientSession(connector=connector, headers=headers) as http:

        async def poll(address: str) -> object:
            async with http.get(f"https://{address}:{port}/redfish/v1/Systems/System.Embedded.1") as answer:
                return (await answer.json())["PowerState"]

        return await measured([lambda a=a: poll(a) for a, _ in bmcs], rounds)


def sushy(port: int, address: str) -> float | None:
    """ms CPU a poll of one BMC; None where sushy is not installed."""
    python = VENV / "bin" / "python"
    if not python.exists() or subprocess.run([python, "-c", "import sushy"], capture_output=True).returncode:
        return None
    arguments = ("40", f"https://{address}:{port}", "/redfish/v1/Systems/System.Embedded.1", USER, PASSWORD)
    done = subprocess.run([python, "-c", SUSHY, *arguments], capture_output=True, text=True, timeout=15)
    return float(done.stdout) if done.returncode == 0 else None


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    rounds = int(sys.argv[2]) if len(sys.argv) > 2 else 10
    here, there = multiprocessing.get_context("spawn").Pipe()
    server = multiprocessing.get_context("spawn").Process(target=serve, args=(count, there), daemon=True)
    server.start()
    port, bmcs = here.recv()
    try:
        base, base_wall = uvloop.run(plain(port, bmcs, rounds))
        own, own_wall = uvloop.run(ours(port, bmcs, rounds))
        peer = sushy(port, bmcs[0][0])
    finally:
        here.send("stop")
        server.join(5)
    print(f"{count} BMCs, {rounds} rounds, {WIDTH} in flight, uvloop, TLS kept")
    print(f"  plain aiohttp GET      {base:6.3f} ms CPU a poll  1.00   ({base_wall:.3f} ms wall)")
    print(f"  fleetd power_state     {own:6.3f} ms CPU a poll  {own / base:4.2f}   ({own_wall:.3f} ms wall)")
    if peer is None:
        print("  sushy                  not installed in the peers' venv")
    else:
        print(f"  sushy refresh          {peer:6.3f} ms CPU a poll  {peer / base:4.2f}   (one BMC, verify off)")


if __name__ == "__main__":
    main()
