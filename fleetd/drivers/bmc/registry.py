"""The factory that the composition root hands to lifecycle: one driver a wire, chosen by `target.protocol`."""

from __future__ import annotations

from fleetd.drivers.bmc.capabilities import Bmc, BmcTarget
from fleetd.drivers.bmc.ipmi import IpmiDriver
from fleetd.drivers.bmc.redfish import RedfishDriver
from fleetd.kit.clock import Clock


class Drivers:
    """Implements `capabilities.BmcDrivers`. Use it in one event loop."""

    def __init__(self, clock: Clock | None = None) -> None:
        self._redfish = RedfishDriver(clock)
        self._ipmi = IpmiDriver(clock)

    async def read_pin(self, target: BmcTarget, *, timeout: float) -> str:
        """The certificate's sha256; empty for IPMI, which has none."""
        if target.protocol == "redfish":
            return await self._redfish.read_pin(target, timeout=timeout)
        return ""

    async def open(self, target: BmcTarget, *, timeout: float) -> Bmc:
        """Log in by the wire the inventory names. Raises what the wire raises."""
        if target.protocol == "redfish":
            return await self._redfish.open(target, timeout=timeout)
        return await self._ipmi.open(target, timeout=timeout)

    async def close(self) -> None:
        """Close both wires."""
        try:
            await self._redfish.close()
        finally:
            await self._ipmi.close()
