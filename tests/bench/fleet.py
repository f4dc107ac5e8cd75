"""Registered to available, whole fleet, real wires: hosts a minute, and the daemon's own CPU and memory per host.

Simulator and daemon are two processes on this machine; FLEET=n sets the number of hosts (default 200).
"""

import asyncio
import os
import sys
import tempfile
import time
from pathlib import Path

from tests.chaos.harness import Daemons
from tests.world import Plan, write_world

TICKS = os.sysconf("SC_CLK_TCK")


def cpu_seconds(pid: int) -> float:
    """User and system time of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def rss_kib(pid: int) -> int:
    """Resident memory of a process."""
    line = next(x for x in Path(f"/proc/{pid}/status").read_text().splitlines() if x.startswith("VmRSS"))
    return int(line.split()[1])


async def measure(hosts: int) -> None:
    """One fleet, once."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        per_rack = 10
        racks = [
            Plan(count=min(per_rack, hosts - i), rack=f"lou-t{i // per_rack:03}") for i in range(0, hosts, per_rack)
        ]
        write_world(folder, racks)
        books = folder / "playbooks"
        books.mkdir()
        for path in (Path(__file__).parents[2] / "playbooks").glob("*.yaml"):
            books.joinpath(path.name).write_text(path.read_text().replace("[1, 25%, 100%]", "['100%']"))
        config = folder / "fleetd.yaml"
        config.write_text(
            config.read_text().replace(f"playbooks: {Path(__file__).parents[2] / 'playbooks'}", "playbooks: playbooks")
        )
        sim_log = (folder / "sim.log").open("wb")
        sim = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "fleetd", "simulate", "-f", str(folder / "site.yaml"), stdout=sim_log, stderr=sim_log
        )
        daemons = Daemons(folder)
        try:
            await daemons.start(0)
            await daemons.apply()
            pid = daemons.pid
            idle_rss, idle_cpu, began = rss_kib(pid), cpu_seconds(pid), time.monotonic()
            sim_cpu = cpu_seconds(sim.pid)
            run = await daemons.call("POST", "/v1/runs", {"playbook": "rack-bringup", "hosts": "all"})
            peak = idle_rss
            while (await daemons.call("GET", f"/v1/runs/{run['id']}"))["state"] == "running":
                peak = max(peak, rss_kib(pid))
                await asyncio.sleep(0.5)
            took, cpu = time.monotonic() - began, cpu_seconds(pid) - idle_cpu
            found = await daemons.call("GET", f"/v1/runs/{run['id']}")
            print(f"  {hosts} hosts, run {found['state']}: {took:.1f} s, {hosts / took * 60:.0f} hosts/min")
            print(
                f"  daemon CPU {cpu / hosts * 1000:.1f} ms a host (target 60, aim 30); simulator {(cpu_seconds(sim.pid) - sim_cpu) / hosts * 1000:.1f}"
            )
            print(
                f"  daemon memory {idle_rss / 1024:.0f} MiB idle, {peak / 1024:.0f} MiB peak: {(peak - idle_rss) / hosts:.0f} KiB a host at work"
            )
            print(
                f"  ratio to Ironic's fake hardware (348 ms CPU a host, 164 hosts/min): {348 * hosts / cpu / 1000:.1f}x CPU, {hosts / took * 60 / 164:.1f}x rate"
            )
        finally:
            await daemons.kill()
            sim.terminate()
            await sim.wait()
            sim_log.close()


def main() -> None:
    """Print the table."""
    asyncio.run(measure(int(os.environ.get("FLEET", "200"))))
