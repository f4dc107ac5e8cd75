"""Starts a whole simulated site: machines from the inventory, their faults, and one listener a protocol for all.

Hosts are told apart by the local loopback address a client reached. In process (tests, `fleetd demo`)::

    async with SimSite(load_site(path)) as site:
        site.hosts["lou-a01-01"].power_state

As a program (`fleetd simulate -f site.yaml`): `simulate(path)`.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import resource
import signal
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, TextIO

import msgspec

from fleetd.kit.errors import Conflict, FleetError, Invalid, NotFound
from fleetd.model.host import HostSpec
from fleetd.sim.bmc_ipmi import IpmiServer
from fleetd.sim.bmc_redfish import RedfishServer
from fleetd.sim.boot import Booter
from fleetd.sim.control import Control
from fleetd.sim.demo_inventory import Ports
from fleetd.sim.faults import Fault
from fleetd.sim.host import SimHost
from fleetd.sim.nvl72 import cluster_uuid, foreign_uuid
from fleetd.sim.record import Record
from fleetd.sim.sitefile import FaultSpec, Site, check_fault, load_site, os_address, true_serial
from fleetd.sim.ssh import SshServer

WILDCARD_ABOVE = 64  # addresses; up to here each is bound by itself, so that nothing else of the machine is touched
FREE_PORT_TRIES = 8
SITE = "-"  # the record's host name for what concerns all


class Listener(Protocol):
    """What the wires have in common."""

    async def start(self, addresses: Sequence[str], port: int = 0) -> int: ...

    async def close(self) -> None: ...


class IpmiWire:
    """IPMI servers, one an address or one for all, with the face of the other wires."""

    def __init__(self, lookup: Callable[[str], SimHost | None]) -> None:
        self._lookup = lookup
        self._servers: list[IpmiServer] = []

    async def start(self, addresses: Sequence[str], port: int = 0) -> int:
        """Listen on each address at one port; 0 takes a free one. Returns the port. Raises OSError."""
        for address in addresses:
            self._servers.append(IpmiServer(self._lookup, bind=address, port=port))
            port = self._servers[-1].port
        return port

    async def close(self) -> None:
        servers, self._servers = self._servers, []
        for server in servers:
            server.close()


class SimSite:
    """A running site. Use as an async context manager, or `start` and `stop`.

    Args:
        site: what to simulate (`load_site`).
        record: where to log; None: a new one, in a file if the site file names one.
        ports: in place of the site file's; 0 takes a free one, which `self.ports` then tells.
        boot_url: in place of the site file's.
    """

    def __init__(
        self, site: Site, *, record: Record | None = None, ports: Ports | None = None, boot_url: str | None = None
    ) -> None:
        self.site = site
        self.ports = ports or site.file.ports
        self.boot_url = boot_url or site.file.boot_url
        self.hosts: dict[str, SimHost] = {}
        self._strangers: dict[str, str] = {}  # host -> the account that `account-added` made
        self._record = record
        self._by_bmc: dict[str, SimHost] = {}
        self._by_os: dict[str, SimHost] = {}
        self._wires: list[Listener] = []
        self._control: Control | None = None
        self._scratch: tempfile.TemporaryDirectory[str] | None = None

    @property
    def record(self) -> Record:
        """The simulator's log. Only after `start`."""
        assert self._record is not None, "the site was not started"
        return self._record

    async def __aenter__(self) -> SimSite:
        await self.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.stop()

    # --- life ----------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Listen, then make the hosts. On an error nothing is left listening, and no record was touched.

        Raises:
            Conflict: a port is taken, or another simulator uses the control socket.
        """
        try:
            await self._listen()
            if self._record is None:
                self._record = Record(_fresh(self.site.record_path))
        except BaseException:
            await self.stop()
            raise
        file, count = self.site.file, len(self.site.inventory.hosts)
        now = asyncio.get_running_loop().time()
        self.record.add(now, SITE, "site.start", seed=file.seed, depth=file.depth, hosts=count)
        booter = Booter(self.boot_url, self.ports.ssh)
        for spec in self.site.inventory.hosts.values():
            self._make(spec, booter)

    async def _listen(self) -> None:
        """Who connects before the hosts are made is dropped, as by a machine without power."""
        specs = self.site.inventory.hosts.values()
        bmcs = {p: [s.bmc.host for s in specs if s.bmc.protocol == p] for p in ("redfish", "ipmi")}
        ssh = SshServer(self.at_os, depth=self.site.file.depth, folder=self._folder())
        wires: tuple[tuple[str, Listener, list[str]], ...] = (
            ("redfish", RedfishServer(self.at_bmc), bmcs["redfish"]),
            ("ipmi", IpmiWire(self.at_bmc), bmcs["ipmi"]),
            ("ssh", ssh, [os_address(spec) for spec in specs]),
        )
        ports = msgspec.structs.asdict(self.ports)
        for name, wire, addresses in wires:
            if addresses:
                self._wires.append(wire)
                ports[name] = await _start(wire, name, addresses, ports[name])
        self.ports = Ports(**ports)
        if self.site.control_path is not None:
            self._control = Control(self.site.control_path, self)
            await self._control.start()

    async def stop(self) -> None:
        """Stop machines and listeners; safe to call twice."""
        if self._control is not None:
            await self._control.stop()
            self._control = None
        for host in self.hosts.values():
            host.close()
        wires, self._wires = self._wires, []
        for wire in wires:
            await wire.close()
        if self._scratch is not None:
            self._scratch.cleanup()
            self._scratch = None
        if self._record is not None:
            self._record.close()

    def _folder(self) -> Path | None:
        """Where the full depth lays out its hosts' files; gone with the site."""
        if self.site.file.depth == "fast":
            return None
        self._scratch = tempfile.TemporaryDirectory(prefix="fleetd-sim-", ignore_cleanup_errors=True)
        return Path(self._scratch.name)

    # --- machines ------------------------------------------------------------------------------------------------

    def at_bmc(self, address: str) -> SimHost | None:
        """The host whose BMC has this local address."""
        return self._by_bmc.get(address)

    def at_os(self, address: str) -> SimHost | None:
        """The host that has this local address itself."""
        return self._by_os.get(address)

    def _make(self, spec: HostSpec, booter: Booter) -> None:
        file = self.site.file
        login = file.credentials[spec.bmc.credentials]
        host = SimHost(
            name=spec.name,
            site=spec.site,
            serial=spec.serial,
            mac=spec.boot_mac,
            sku=self.site.inventory.skus[spec.sku],
            behaviour=self.site.behaviour(spec),
            bmc_address=spec.bmc.host,
            os_address=os_address(spec),
            username=login.username,
            password=login.password,
            record=self.record,
            timings=file.timings,
            faults=[],
            cluster_uuid=cluster_uuid(spec.site, spec.nvlink_domain),
        )
        host.boot = booter
        self.hosts[host.name] = self._by_bmc[host.bmc_address] = self._by_os[host.os_address] = host
        for fault in self.site.faults(host.name):
            self._break(host, fault)

    def _break(self, host: SimHost, fault: Fault) -> None:
        host.faults.append(fault)
        host.log(
            "fault.seeded",
            kind=fault.kind,
            **({"count": fault.count} if fault.count is not None else {}),
            **_renamed(fault),
        )
        self._show(host)

    def _show(self, host: SimHost) -> None:
        """Who the metal is follows from the faults that stand. The wires read it here or in the fault's parameter."""
        spec = self.site.inventory.hosts[host.name]
        host.serial = spec.serial
        if (fault := host.fault("wrong-serial", fire=False)) is not None:
            host.serial = str(fault.params.setdefault("serial", true_serial(self.site.file.seed, spec)))
        if (fault := host.fault("wrong-domain", fire=False)) is not None:
            fault.params.setdefault("cluster_uuid", foreign_uuid(spec.site, spec.nvlink_domain, spec.name))

        stranger = host.fault("account-added", fire=False)
        made = str(stranger.params.setdefault("username", "mallory")) if stranger is not None else None
        if (gone := self._strangers.pop(host.name, None)) is not None and gone != made:
            host.accounts.pop(gone, None)
        if made is not None:
            self._strangers[host.name] = made
            host.accounts.setdefault(made, "known-to-a-tenant")

    # --- the rehearsal's hand (control.py) -----------------------------------------------------------------------

    def _named(self, name: str) -> SimHost:
        host = self.hosts.get(name)
        if host is None:
            raise NotFound(f"host `{name}` is not simulated here")
        return host

    def describe(self) -> list[dict[str, Any]]:
        """Every host as it really is."""
        return [
            {
                "name": host.name,
                "power": str(host.power_state),
                "running": host.running.environment if host.running is not None else None,
                "serial": host.serial,
                "faults": [fault.kind for fault in host.faults if fault.live],
            }
            for host in self.hosts.values()
        ]

    def break_host(
        self, host: str, kind: str, params: dict[str, int | str | float] | None = None, count: int | None = None
    ) -> None:
        """Seed one more fault. Raises NotFound, Invalid."""
        machine = self._named(host)
        spec = FaultSpec(host=host, kind=kind, params=params or {}, count=count)
        check_fault(spec, self.site.inventory, lambda *path: ".".join(map(str, path)) or "fault")
        self._break(machine, spec.fault())

    def repair(self, host: str, kind: str | None = None) -> int:
        """Take faults away, all or of one kind; returns how many. Raises NotFound."""
        machine = self._named(host)
        gone = [fault for fault in machine.faults if kind in (None, fault.kind)]
        machine.faults[:] = [fault for fault in machine.faults if fault not in gone]
        for fault in gone:
            machine.log("fault.repaired", kind=fault.kind)
        self._show(machine)
        return len(gone)

    def mark(self, host: str, what: str, **data: Any) -> None:
        """Write into the record what the simulator cannot see itself, such as `tenant.begin` and `tenant.end`.

        While a tenant has the host, its data drives hold that tenant's data. Raises NotFound, Invalid.
        """
        machine = self._named(host)
        if not what.startswith(("tenant.", "note.")):
            raise Invalid(f"`{what}` cannot be marked", remedy="use tenant.begin, tenant.end or note.<word>")
        machine.log(what, **{key: value for key, value in data.items() if key not in ("at", "host", "what")})
        if what == "tenant.begin":
            for drive in machine.drives:
                if not drive.content.startswith("image:"):
                    drive.content = f"tenant:{data.get('lease', '')}"


def _renamed(fault: Fault) -> dict[str, int | str | float]:
    """Parameters for the log, clear of its own field names."""
    return {("errors" if key == "count" else key): value for key, value in fault.told.items()}


def _fresh(path: Path | None) -> Path | None:
    """The record starts empty, since the machines do; the last one is kept beside it."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            path.replace(path.with_name(path.name + ".old"))
    return path


async def _start(wire: Listener, name: str, addresses: Sequence[str], port: int) -> int:
    """Each address by itself while they are few, else one wildcard listener (it drops whoever reached no host)."""
    where = sorted(addresses) if len(addresses) <= WILDCARD_ABOVE else ["0.0.0.0"]
    if port == 0:
        # The port the first address got may be taken on the next: then another one is as good.
        for _ in range(FREE_PORT_TRIES):
            try:
                return await wire.start(where, 0)
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
                await wire.close()
    try:
        return await wire.start(where, port)
    except OSError as error:
        if error.errno not in (errno.EADDRINUSE, errno.EACCES):
            raise
        taken = error.errno == errno.EADDRINUSE
        raise Conflict(
            f"the simulator cannot listen on {name} port {port}",
            why="it is in use" if taken else "ports below 1024 need privileges",
            remedy="stop who has it (`ss -lntup`), or change `ports` in the site file and the inventory's addresses",
        ) from error


def free_ports() -> Ports:
    """Three ports that are free now on all addresses, for tests that must write them into an inventory first."""
    found: list[int] = []
    sockets: list[socket.socket] = []
    try:
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_STREAM):
            sock = socket.socket(socket.AF_INET, kind)
            sockets.append(sock)
            sock.bind(("0.0.0.0", 0))
            found.append(sock.getsockname()[1])
    finally:
        for sock in sockets:
            sock.close()
    return Ports(redfish=found[0], ipmi=found[1], ssh=found[2])


async def simulate(path: Path, *, out: TextIO | None = None, ready: asyncio.Event | None = None) -> int:
    """Run a site until SIGTERM or SIGINT; returns the exit code (0, 130 for SIGINT, else that of the error).

    Args:
        out: where to talk; standard error when absent.
        ready: set once everything listens.
    """
    out = out or sys.stderr
    try:
        site = load_site(path)
        _more_descriptors()
        async with SimSite(site) as running:
            stopped: asyncio.Future[int] = asyncio.get_running_loop().create_future()
            with _signals(stopped):
                out.write(_ready_line(running) + "\n")
                out.flush()
                if ready is not None:
                    ready.set()
                code = await stopped
            out.write("fleetd simulate: stopped\n")
            return code
    except FleetError as error:
        out.write(f"fleetd simulate: {error}\ntry: {error.remedy}\n")
        return error.exit_code


def _ready_line(site: SimSite) -> str:
    ports, file = site.ports, site.site.file
    return (
        f"fleetd simulate: ready: {len(site.hosts)} hosts, {len(file.faults)} faults, depth {file.depth},"
        f" seed {file.seed}; redfish {ports.redfish}, ipmi {ports.ipmi}, ssh {ports.ssh}; boots from {site.boot_url}"
    )


@contextlib.contextmanager
def _signals(stopped: asyncio.Future[int]) -> Iterator[None]:
    """SIGTERM and SIGINT end the future instead of the process."""
    loop = asyncio.get_running_loop()

    def stop(code: int) -> None:
        if not stopped.done():
            stopped.set_result(code)

    for number, code in _STOPS.items():
        loop.add_signal_handler(number, stop, code)
    try:
        yield
    finally:
        for number in _STOPS:
            loop.remove_signal_handler(number)


_STOPS = {signal.SIGTERM: 0, signal.SIGINT: 130}


def _more_descriptors() -> None:
    """A thousand hosts keep a connection or two each."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
