"""Simulated hosts with an IPMI BMC, for the tests of the wire, the driver and its peers."""

from __future__ import annotations

from pathlib import Path

from fleetd.drivers.bmc.capabilities import BmcTarget
from fleetd.kit.yamlfile import parse
from fleetd.model.bmc import Login
from fleetd.model.sku import Sku, read_sku
from fleetd.sim.faults import Fault
from fleetd.sim.host import SimHost, Timings
from fleetd.sim.record import Record

USERNAME, PASSWORD = "fleet", "first-password"
SKU_FILE = Path(__file__).parents[1] / "inventory" / "skus" / "dell.xe9680-h100-8.yaml"


def sku() -> Sku:
    return read_sku(parse(SKU_FILE.read_text(), SKU_FILE.name))


def make_hosts(
    count: int, *, timings: Timings | None = None, password: str = PASSWORD, record: Record | None = None
) -> dict[str, SimHost]:
    """By BMC address, 127.17.x.y: loopback answers on all of 127/8."""
    profile, log = sku(), record or Record()
    hosts = {}
    for n in range(1, count + 1):
        bmc = f"127.17.{n >> 8}.{n & 255}"
        hosts[bmc] = SimHost(
            name=f"h{n}",
            site="test",
            serial=f"SN{n:05d}",
            mac=f"04:3f:72:aa:{n >> 8:02x}:{n & 255:02x}",
            sku=profile,
            behaviour="ipmi",
            bmc_address=bmc,
            os_address=f"127.18.{n >> 8}.{n & 255}",
            username=USERNAME,
            password=password,
            record=log,
            timings=timings or Timings(power=0.01, post=0.01, boot=0.01),
            faults=[],
        )
    return hosts


def target(host: SimHost, *, port: int = 623, password: str = "", username: str = "") -> BmcTarget:
    """How the driver reaches this host's BMC. The account's password of this moment by default."""
    name = username or next(iter(host.accounts))
    login = Login(name, password or host.accounts.get(name, ""))
    return BmcTarget(protocol="ipmi", host=host.bmc_address, port=port, login=login)


def break_it(host: SimHost, kind: str, *, count: int | None = None, **params: int | str | float) -> Fault:
    fault = Fault(kind=kind, count=count, params=params)
    host.faults.append(fault)
    return fault
