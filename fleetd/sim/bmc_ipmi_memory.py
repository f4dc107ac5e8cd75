"""IPMI datagrams through memory, not a socket: virtual time needs it, and here a wire can be made to lose them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Any

from fleetd.sim.bmc_ipmi import SLOTS, IpmiResponder, Lookup

Address = tuple[Any, ...]
Mangle = Callable[[bool, bytes], Iterable[tuple[float, bytes]]]  # (to the BMC?, datagram) -> (seconds late, datagram) …


class MemoryWire:
    """Both ends in one loop. `open` fits the driver's `open_datagrams`.

    Args:
        latency: seconds each way. mangle: what becomes of a datagram: nothing, itself, copies, something else, later.
    """

    def __init__(
        self,
        lookup: Lookup,
        *,
        latency: float = 0.0,
        mangle: Mangle | None = None,
        slots: int = SLOTS,
        reset_seconds: float = 1.0,
        suites: tuple[int, ...] = (3, 17),
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._latency = latency
        self.mangle = mangle
        self.responder = IpmiResponder(
            lookup, self._to_console, slots=slots, reset_seconds=reset_seconds, suites=suites
        )

    def open(self, family: int, deliver: Callable[[bytes, Address], None]) -> MemoryEnd:
        """A console's end. The family is of no concern to memory."""
        return MemoryEnd(self, deliver)

    def carry(self, to_bmc: bool, data: bytes, arrive: Callable[[bytes], None]) -> None:
        """One datagram on its way."""
        for late, copy in [(0.0, data)] if self.mangle is None else self.mangle(to_bmc, data):
            if self._latency + late > 0:
                self._loop.call_later(self._latency + late, arrive, copy)
            else:
                self._loop.call_soon(arrive, copy)

    def _to_console(self, data: bytes, local: str, peer: tuple[Any, ...]) -> None:
        end, address = peer
        self.carry(False, data, lambda copy: end.deliver(copy, address))

    def close(self) -> None:
        self.responder.close()


class MemoryEnd:
    """The console's side of a MemoryWire."""

    def __init__(self, wire: MemoryWire, deliver: Callable[[bytes, Address], None]) -> None:
        self._wire, self._deliver, self._open = wire, deliver, True

    def send(self, data: bytes, address: Address) -> None:
        peer = (self, address)
        self._wire.carry(True, data, lambda copy: self._wire.responder.datagram(copy, address[0], peer))

    def deliver(self, data: bytes, address: Address) -> None:
        if self._open:
            self._deliver(data, address)

    def close(self) -> None:
        self._open = False
