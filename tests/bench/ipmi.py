"""CPU of a cold IPMI power sweep and of a kept poll: our driver on uvloop against FreeIPMI's ipmipower, in one run.

The simulator runs in a process of its own; what is counted is user and system time of the client alone, which a loaded
machine changes less than wall time. Run: `python -m tests.bench.ipmi [BMCs]`.
"""

from __future__ import annotations

import asyncio
import gc
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable

import uvloop

from fleetd.drivers.bmc.ipmi import IpmiBmc, IpmiDriver
from fleetd.kit.tasks import gather_bounded
from fleetd.model.power import PowerState
from fleetd.sim.bmc_ipmi import IpmiServer
from fleetd.sim.host import SimHost
from tests.ipmi_hosts import PASSWORD, USERNAME, make_hosts, target

BMCS = 1000
ROUNDS = 3
POLLS = 5
WIDTH = 256
WITHIN = 30.0  # seconds a call may take


def serve(count: int, suites: tuple[int, ...]) -> None:
    """The simulator's process: prints its port, ends with its stdin."""

    async def run() -> None:
        hosts = make_hosts(count)
        server = IpmiServer(hosts.get, bind="0.0.0.0", slots=16, suites=suites)
        print(server.port, flush=True)
        done = asyncio.Event()
        loop = asyncio.get_running_loop()
        loop.add_reader(sys.stdin.fileno(), done.set)
        await done.wait()
        server.close()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run())


class Simulator:
    """`serve` as a child."""

    def __init__(self, count: int, suites: tuple[int, ...] = (3, 17)) -> None:
        words = [sys.executable, "-m", "tests.bench.ipmi", "serve", str(count), ",".join(map(str, suites))]
        self._process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._process.stdout is not None
        self.port = int(self._process.stdout.readline())

    def close(self) -> None:
        self._process.communicate()


def cpu(who: int = resource.RUSAGE_SELF) -> float:
    """Seconds of user and system time so far."""
    usage = resource.getrusage(who)
    return usage.ru_utime + usage.ru_stime


async def sweep(driver: IpmiDriver, hosts: list[SimHost], port: int) -> None:
    """Log in, read the power state, log out: each BMC once."""

    async def one(host: SimHost) -> PowerState:
        bmc = await driver.open(target(host, port=port), timeout=WITHIN)
        state = await bmc.power_state(timeout=WITHIN)
        await bmc.close()
        return state

    await expect_off([lambda host=host: one(host) for host in hosts])  # type: ignore[misc]


async def expect_off(calls: list[Callable[[], Awaitable[PowerState]]]) -> None:
    found = await gather_bounded(calls, width=WIDTH)
    wrong = [answer for answer in found if answer is not PowerState.OFF]
    if wrong:
        raise SystemExit(f"{len(wrong)} of {len(found)} calls failed, the first with {wrong[0]!r}")


async def ours(hosts: list[SimHost], port: int) -> tuple[float, float, float, float]:
    """(ms CPU a cold BMC, wall s of that sweep, ms CPU a kept poll, KB a session): the best round of each."""
    driver = IpmiDriver()
    cold = wall = kept = float("inf")
    await sweep(driver, hosts[:50], port)  # imports and caches

    async def log_in(host: SimHost) -> IpmiBmc:
        return await driver.open(target(host, port=port), timeout=WITHIN)

    gc.collect()
    before = resident()
    opened = await gather_bounded([lambda host=host: log_in(host) for host in hosts], width=WIDTH)  # type: ignore[misc]
    bmcs = [bmc for bmc in opened if isinstance(bmc, IpmiBmc)]
    gc.collect()
    held = (resident() - before) / len(hosts)
    for _ in range(ROUNDS):
        begin = cpu()
        for _ in range(POLLS):
            await expect_off([lambda bmc=bmc: bmc.power_state(timeout=WITHIN) for bmc in bmcs])  # type: ignore[misc]
        kept = min(kept, (cpu() - begin) / POLLS)
    await gather_bounded([bmc.close for bmc in bmcs], width=WIDTH)
    for _ in range(ROUNDS):
        begin, begin_wall = cpu(), time.perf_counter()
        await sweep(driver, hosts, port)
        cold, wall = min(cold, cpu() - begin), min(wall, time.perf_counter() - begin_wall)
    await driver.close()
    each = 1000 / len(hosts)
    return cold * each, wall, kept * each, held


def resident() -> float:
    """KB of this process in memory."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1024


def ipmipower(hosts: list[SimHost], port: int, suite: int) -> tuple[float, float] | None:
    """(ms CPU a BMC, wall s) of FreeIPMI doing the same; None where it is not installed."""
    program = shutil.which("ipmipower", path=os.environ.get("PATH", "") + ":/usr/sbin")
    if program is None:
        return None
    where = ",".join(f"{host.bmc_address}:{port}" for host in hosts)
    words = [program, "-D", "LAN_2_0", "-I", str(suite), "-u", USERNAME, "-p", PASSWORD, "--stat", "-h", where]
    best = wall = float("inf")
    for _ in range(ROUNDS):
        begin, begin_wall = cpu(resource.RUSAGE_CHILDREN), time.perf_counter()
        output = subprocess.run(words, capture_output=True, text=True, check=False, timeout=60).stdout
        if (answered := output.count(": off")) < len(hosts):
            print(f"  (ipmipower got an answer from {answered} of {len(hosts)})")
        best = min(best, cpu(resource.RUSAGE_CHILDREN) - begin)
        wall = min(wall, time.perf_counter() - begin_wall)
    return best * 1000 / len(hosts), wall


def main(count: int = BMCS) -> None:
    """Print the table. Takes about 15 s for 1,000 BMCs on two cores."""
    hosts = list(make_hosts(count).values())
    print(f"IPMI power sweep, {count} BMCs, best of {ROUNDS}; CPU of the client")
    print(f"{'':28}{'cold ms/BMC':>13}{'wall s':>9}{'kept ms/poll':>14}{'KB/session':>12}")
    for suite in (3, 17):
        simulator = Simulator(count, (suite,) if suite == 3 else (3, 17))
        try:
            theirs = ipmipower(hosts, simulator.port, suite)
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                cold, wall, kept, held = runner.run(ours(hosts, simulator.port))
        finally:
            simulator.close()
        memory = f"{held:.1f}" if suite == 3 else "-"  # the second round lives in what the first one freed
        print(f"{f'fleetd + uvloop, suite {suite}':28}{cold:13.3f}{wall:9.2f}{kept:14.3f}{memory:>12}")
        if theirs is None:
            print("  (no ipmipower here: apt install freeipmi-tools)")
        else:
            print(f"{f'ipmipower, suite {suite}':28}{theirs[0]:13.3f}{theirs[1]:9.2f}{'-':>14}{'-':>12}")
            print(f"{'ratio':28}{cold / theirs[0]:13.0%}   (must be at most 60 %)")


if __name__ == "__main__":
    if sys.argv[1:2] == ["serve"]:
        serve(int(sys.argv[2]), tuple(int(part) for part in sys.argv[3].split(",")))
    else:
        main(*(int(word) for word in sys.argv[1:2]))
