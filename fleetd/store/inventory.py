"""What `inventory apply` wrote beside the hosts: sites, racks, SKUs and playbooks, each whole."""

from __future__ import annotations

from typing import Final, TypeVar

from sqlalchemy import bindparam, select

from fleetd.kit.errors import NotFound
from fleetd.model.inventory import RackSpec, SiteSpec
from fleetd.model.sku import Sku
from fleetd.store.database import Database, Op, Statement
from fleetd.store.dialects import upsert
from fleetd.store.rows import pack, unpack
from fleetd.store.tables import inventory

T = TypeVar("T")
_PUT: Final = Statement(upsert(inventory))
_EVERY: Final = Statement(
    select(inventory.c.name, inventory.c.doc).where(inventory.c.kind == bindparam("of_kind")).order_by(inventory.c.name)
)
_ONE: Final = Statement(
    select(inventory.c.doc).where(inventory.c.kind == bindparam("of_kind"), inventory.c.name == bindparam("of_name"))
)


def put_site(site: SiteSpec) -> Op:
    """Write or overwrite a site."""
    return Op(_PUT, {"kind": "site", "name": site.site, "doc": pack(site)})


def put_rack(rack: RackSpec) -> Op:
    """Write or overwrite a rack."""
    return Op(_PUT, {"kind": "rack", "name": rack.rack, "doc": pack(rack)})


def put_sku(sku: Sku) -> Op:
    """Write or overwrite a SKU."""
    return Op(_PUT, {"kind": "sku", "name": sku.sku, "doc": pack(sku)})


def put_playbook(name: str, text: str) -> Op:
    """Write or overwrite a playbook's YAML; a run in flight keeps its own snapshot."""
    return Op(_PUT, {"kind": "playbook", "name": name, "doc": pack(text)})


async def _every(db: Database, word: str, kind: type[T]) -> dict[str, T]:
    rows = await db.fetch(_EVERY, {"of_kind": word})
    return {name: unpack(kind, doc, f"inventory/{word}", name) for name, doc in rows}


async def sites(db: Database) -> dict[str, SiteSpec]:
    """Every site by name."""
    return await _every(db, "site", SiteSpec)


async def racks(db: Database) -> dict[str, RackSpec]:
    """Every rack by name."""
    return await _every(db, "rack", RackSpec)


async def skus(db: Database) -> dict[str, Sku]:
    """Every SKU by name."""
    return await _every(db, "sku", Sku)


async def sku(db: Database, name: str) -> Sku:
    """Raises NotFound."""
    for (doc,) in await db.fetch(_ONE, {"of_kind": "sku", "of_name": name}):
        return unpack(Sku, doc, "inventory/sku", name)
    raise NotFound(f"there is no SKU {name}", remedy="list them: `fleetctl sku list`")


async def playbooks(db: Database) -> dict[str, str]:
    """Every playbook's YAML by name."""
    return await _every(db, "playbook", str)
