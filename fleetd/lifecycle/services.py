"""All desks of lifecycle in one place: what the API may ask, and nothing else."""

from __future__ import annotations

from fleetd.kit.clock import Clock
from fleetd.lifecycle.boots import Boots
from fleetd.lifecycle.brakes import BrakeDesk
from fleetd.lifecycle.certificates import ProofDesk
from fleetd.lifecycle.hosts import HostDesk
from fleetd.lifecycle.images import ImageDesk
from fleetd.lifecycle.leases import LeaseDesk
from fleetd.lifecycle.plan import InventoryDesk
from fleetd.lifecycle.runs import RunDesk
from fleetd.store.database import Database


class Services:
    """Put together by the composition root."""

    def __init__(
        self,
        *,
        db: Database,
        clock: Clock,
        inventory: InventoryDesk,
        hosts: HostDesk,
        runs: RunDesk,
        leases: LeaseDesk,
        proofs: ProofDesk,
        brakes: BrakeDesk,
        images: ImageDesk,
        boots: Boots,
    ) -> None:
        self.db, self.clock = db, clock
        self.inventory, self.hosts, self.runs = inventory, hosts, runs
        self.leases, self.proofs, self.brakes = leases, proofs, brakes
        self.images, self.boots = images, boots
