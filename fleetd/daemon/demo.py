"""`fleetd demo`: simulator and daemon as two processes, then the technician's own commands, then a judge that fleetd cannot bribe.

Everything goes over the real wires; this file only starts processes, prints what a person would type, and asks the judge.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import click

from fleetd.kit.errors import FleetError, Permanent
from fleetd.model import proof
from fleetd.sim.control import ask
from fleetd.sim.demo import DemoPlan, build_demo
from fleetd.sim.image import tiny_image
from fleetd.sim.judge import judge
from fleetd.sim.record import read_record
from fleetd.sim.site import free_ports

ROOT = Path(__file__).resolve().parents[2]
START_SECONDS = 30.0
TENANT_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGZsZWV0ZCBkZW1vIHRlbmFudCwgbm8gcHJpdmF0ZSBr tenant@example"
RUN_SECONDS = 600.0
IMAGE_KEY = "image-key.pem"


class Demo:
    """One folder, two processes, and the socket between them and us."""

    def __init__(self, folder: Path, plan: DemoPlan, out: Any = sys.stdout) -> None:
        self.folder, self.plan, self.out = folder, plan, out
        self.socket = folder / "fleetd.sock"
        self.problems: list[str] = []
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    # --- processes -----------------------------------------------------------------------------------------------------

    def start(self, name: str, *arguments: str, ready: str) -> None:
        """Start a `fleetd` process and wait until its log says `ready`."""
        log = self.folder / f"{name}.log"
        start = log.stat().st_size if log.exists() else 0
        with log.open("ab") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "fleetd", *arguments],
                stdout=output,
                stderr=output,
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
            )
        self.processes[name] = process
        end = time.monotonic() + START_SECONDS
        while ready not in log.read_text(errors="replace")[start:]:
            if process.poll() is not None or time.monotonic() > end:
                tail = log.read_text(errors="replace")[-2000:]
                raise Permanent(f"{name} did not start", why=tail, remedy=f"read {log}")
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.05)

    def stop(self) -> None:
        """Stop both, the daemon first; it parks its work."""
        for name in reversed(list(self.processes)):
            process = self.processes.pop(name)
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    # --- the technician's hand -----------------------------------------------------------------------------------------

    def say(self, text: str = "") -> None:
        print(text, file=self.out, flush=True)

    def chapter(self, text: str) -> None:
        self.say()
        self.say(click.style(f"== {text}", bold=True))

    def ctl(self, *arguments: str, expect: Sequence[int] = (0,), show: bool = True, limit: int = 60) -> str:
        """Run fleetctl; print command and output; a wrong exit code is a problem of the demo."""
        if show:
            self.say(click.style("$ fleetctl " + " ".join(_quoted(a) for a in arguments), fg="cyan"))
        environment = {**os.environ, "FLEETD_SOCKET": str(self.socket)}
        done = subprocess.run(
            [sys.executable, "-m", "fleetd.cli.main", *arguments],
            capture_output=True,
            text=True,
            env=environment,
            cwd=self.folder,
            timeout=RUN_SECONDS,
            check=False,
            stdin=subprocess.DEVNULL,
        )
        if show:
            for line in [*done.stdout.splitlines()[:limit], *done.stderr.splitlines()[:limit]]:
                self.say("  " + line)
        if done.returncode not in expect:
            self.problems.append(
                f"`fleetctl {' '.join(arguments)}` exited {done.returncode}: {done.stderr.strip()[:500]}"
            )
        return done.stdout

    def live(self, *arguments: str, expect: Sequence[int]) -> None:
        """Run fleetctl with its own live output."""
        self.say(click.style("$ fleetctl " + " ".join(_quoted(a) for a in arguments), fg="cyan"))
        environment = {**os.environ, "FLEETD_SOCKET": str(self.socket)}
        with subprocess.Popen(
            [sys.executable, "-m", "fleetd.cli.main", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment,
            cwd=self.folder,
            text=True,
            stdin=subprocess.DEVNULL,
        ) as process:
            killer = threading.Timer(RUN_SECONDS, process.kill)
            killer.start()
            try:
                assert process.stdout is not None
                for line in process.stdout:
                    self.say("  " + line.rstrip("\n"))
                code = process.wait()
            finally:
                killer.cancel()
        if code not in expect:
            self.problems.append(f"`fleetctl {' '.join(arguments)}` exited {code}")

    def mark(self, host: str, what: str, **data: str) -> None:
        """Tell the simulator's log what the tenant does: the judge knows then when a wipe would have been a crime."""
        asyncio.run(ask(self.folder / "control.sock", {"do": "mark", "host": host, "what": what, "data": data}))

    def items(self, *arguments: str) -> list[dict[str, Any]]:
        """The items of a JSON list."""
        found: list[dict[str, Any]] = json.loads(self.ctl("-o", "json", *arguments, show=False) or '{"items": []}')[
            "items"
        ]
        return found

    def one(self, *arguments: str, expect: Sequence[int] = (0,)) -> dict[str, Any]:
        """One JSON object, with the command shown."""
        text = self.ctl("-o", "json", *arguments, show=False, expect=expect)
        found: dict[str, Any] = json.loads(text or "{}")
        return found


def free_port() -> int:
    """A TCP port of loopback that nobody has now."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def _quoted(text: str) -> str:
    return f"'{text}'" if any(c in text for c in " []*=?") else text


def write_config(folder: Path, plan: DemoPlan) -> Path:
    """fleetd.yaml of the demo, 0600 because it holds factory passwords of a simulated site."""
    from fleetd.sim.demo_inventory import FACTORY

    host_port = plan.boot_url.removeprefix("http://")
    lines = [
        "state: state",
        "name: demo",
        f"listen: {{socket: {folder / 'fleetd.sock'}, http: ''}}",
        f"boot: {{listen: '{host_port}', url: '{plan.boot_url}'}}",
        f"playbooks: {ROOT / 'playbooks'}",
        f"firmware: {ROOT / 'firmware'}",
        f"images: {{trust: [{IMAGE_KEY}.pub]}}",
        "domain_patience: 60",
        f"bmc_patience: {6 if plan.size == 'demo' else 4}",
        "credentials:",
    ]
    lines += [
        f"  {name}: {{username: {login.username}, password: '{login.password}'}}"
        for name, login in sorted(FACTORY.items())
    ]
    _make_key(folder / IMAGE_KEY)
    path = folder / "fleetd.yaml"
    path.touch(mode=0o600)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def _make_key(path: Path) -> None:
    """The key that signs this demo's images, and its public half for the daemon."""
    if not path.exists():
        key = proof.new_key()
        path.touch(mode=0o600)
        path.write_bytes(proof.private_pem(key))
        Path(f"{path}.pub").write_bytes(proof.public_pem(key.public_key()))


def _add_images(demo: Demo) -> None:
    """The images that the SKUs name: made on the spot, signed, and brought to the daemon as a technician would."""
    for name in sorted({sku["image"] for sku in demo.items("sku", "list")}):
        file = f"{name}.raw.gz"
        (demo.folder / file).write_bytes(tiny_image(name)[0])
        demo.ctl("image", "sign", file, "--name", name, "--key", IMAGE_KEY)
        demo.ctl("image", "add", file)


@contextlib.contextmanager
def _folder(folder: Path | None, keep: bool) -> Iterator[Path]:
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        yield folder.resolve()
    elif keep:
        yield Path(tempfile.mkdtemp(prefix="fleetd-demo-"))
    else:
        with tempfile.TemporaryDirectory(prefix="fleetd-demo-") as made:
            yield Path(made)


def run(
    *,
    seed: int,
    size: Literal["demo", "small"] | str,
    folder: Path | None = None,
    keep: bool = False,
    out: Any = sys.stdout,
) -> int:
    """The whole demo. Returns 0 only when exactly the seeded faults were caught and every good host is available."""
    began = time.monotonic()
    with _folder(folder, keep) as place:
        plan = build_demo(
            place,
            seed,
            size="small" if size == "small" else "demo",
            ports=free_ports(),
            boot_url=f"http://127.0.0.1:{free_port()}",
        )
        demo = Demo(place, plan, out)
        try:
            _play(demo)
        except (FleetError, subprocess.SubprocessError) as error:
            demo.problems.append(str(error))
        finally:
            problems = demo.problems
            if keep and not problems:
                demo.say(f"\nStill running. Try:  export FLEETD_SOCKET={demo.socket}")
                demo.say("  fleetctl host list state=quarantined\n  fleetctl host why HOST\n  fleetctl events -f")
                demo.say(f"Stop it:  kill {' '.join(str(p.pid) for p in demo.processes.values())}")
            else:
                demo.stop()
        took = time.monotonic() - began
        if problems:
            demo.say(click.style(f"\nFAILED after {took:.0f} s (seed {seed}):", fg="red", bold=True))
            for problem in problems:
                demo.say(f"  - {problem}")
            for name in ("daemon", "simulator"):
                log = place / f"{name}.log"
                if log.exists():
                    demo.say(f"\nlast lines of the {name}:\n" + log.read_text(errors="replace")[-3000:])
            return 1
        demo.say(
            click.style(
                f"\nDone in {took:.0f} s: {len(plan.good)} good hosts available, all {len(plan.faulty)} broken ones caught, judged by the simulator's own records.",
                fg="green",
                bold=True,
            )
        )
        return 0


def _play(demo: Demo) -> None:
    plan = demo.plan
    demo.say(
        f"{len(plan.hosts)} hosts on {len(plan.racks)} racks; {len(plan.faulty)} of them are broken, and rack {plan.bad_rack} is a disaster."
    )
    demo.say("fleetd is not told which.")
    demo.start("simulator", "simulate", "-f", str(demo.folder / "site.yaml"), ready="ready")
    config = write_config(demo.folder, plan)
    demo.start("daemon", "serve", "--config", str(config), ready="ready")

    demo.chapter("Apply the inventory")
    demo.ctl("inventory", "plan", "inventory", expect=(10,), limit=12)
    demo.ctl("inventory", "apply", "inventory", "--yes", limit=6)

    demo.chapter("Add the images that the SKUs name, signed")
    _add_images(demo)

    demo.chapter("Bring up both sites")
    demo.live("run", "start", "rack-bringup", f"all,-rack={plan.bad_rack}", expect=(9,) if plan.faulty else (0,))

    demo.chapter(f"Bring up rack {plan.bad_rack}: its failure budget stops it")
    demo.live("rack", "bringup", plan.bad_rack, expect=(9,))

    demo.chapter("What is available, what is not, and what to do about it")
    demo.ctl("capacity")
    demo.ctl("host", "list", "state=quarantined", limit=40)
    hosts = demo.items("host", "list")
    quarantined = [h for h in hosts if h["state"] == "quarantined"]
    for rack in sorted(plan.racks):
        here = [h for h in hosts if h["rack"] == rack]
        good = sum(bool(h["leaseable"]) for h in here)
        demo.say(f"  {rack}: {good} of {len(here)} available")
        for host in here:
            for finding in host.get("findings", []):
                demo.say(f"    {host['name']}: {finding['code']}: {finding['message'][:110]}")
                demo.say(f"      do: {finding['remedy'][:130]}")
    if quarantined:
        demo.ctl("host", "why", quarantined[0]["name"])

    demo.problems += judge(plan, read_record(demo.folder / "record.jsonl"), hosts)
    _leases(demo)


def _leases(demo: Demo) -> None:
    plan = demo.plan
    demo.chapter("Lease: four trays inside one NVLink domain, two HGX hosts anywhere")
    key = demo.folder / "tenant.pub"
    key.write_text(TENANT_KEY + "\n", encoding="utf-8")
    hosts = demo.items("host", "list")
    skus = sorted({h["sku"] for h in hosts if h["leaseable"]})
    nvl = next((s for s in skus if "nvl72" in s), None)
    other = next((s for s in skus if "nvl72" not in s), None)
    if nvl is None or other is None:
        demo.problems.append(f"nothing to lease: leaseable are {skus or 'none'}")
        return
    width = min(4, sum(h["sku"] == nvl and h["leaseable"] for h in hosts))
    tenant = ["--tenant", "acme", "--ends", "2h", "--ssh-key", "tenant.pub"]
    for sku, count, placement in ((nvl, width, "same-nvlink-domain"), (other, 2, "any")):
        asked = ["--sku", sku, "--count", str(count), "--placement", placement]
        demo.live("lease", "create", *tenant, *asked, "--wait", "--timeout", "3m", expect=(0,))
    demo.chapter("A lease that cannot be met is refused, and says why")
    demo.ctl("lease", "create", *tenant, "--sku", other, "--count", "500", expect=(6,))

    demo.ctl("lease", "list")
    leased = demo.items("host", "list", "state=leased")
    for host in leased:
        demo.mark(host["name"], "tenant.begin", lease=str(host["lease"]))
    demo.chapter("Release: powered off, re-keyed, wiped, proven again, republished")
    for host in leased:
        demo.mark(host["name"], "tenant.end")
    for lease in demo.items("lease", "list"):
        if lease["state"] == "active":
            demo.ctl("lease", "release", lease["id"], "--yes")
    names = [h["name"] for h in leased]
    if names:
        demo.live("wait", *names, "--for", "leaseable", "--timeout", "3m", "--fail-fast", expect=(0,))
    if leased:
        demo.ctl("host", "history", leased[0]["name"], limit=24)
    demo.ctl("capacity")
    demo.problems += judge(plan, read_record(demo.folder / "record.jsonl"), demo.items("host", "list"))
