"""Images by name: one of a name at a time, and a removed one stays readable, because evidence names it."""

from __future__ import annotations

from typing import Final

import msgspec
from sqlalchemy import bindparam, literal_column, select, text, update

from fleetd.kit.errors import Conflict, NotFound
from fleetd.model.image import Image
from fleetd.store.database import Database, Op, Row, Statement
from fleetd.store.dialects import insert_into
from fleetd.store.rows import pack, unpack
from fleetd.store.tables import KEPT, images

_INSERT: Final = Statement(insert_into(images))
_REMOVE: Final = Statement(
    update(images)
    .where(images.c.id == bindparam("of_id"), images.c.version == bindparam("read"), text(KEPT))
    .values(removed=bindparam("at"), doc=bindparam("doc"), version=images.c.version + literal_column("1"))
)
_SELECT: Final = select(images.c.id, images.c.doc, images.c.removed, images.c.version)
_GET: Final = Statement(_SELECT.where(images.c.id == bindparam("of_id")))
_BY_NAME: Final = Statement(_SELECT.where(images.c.name == bindparam("of_name"), text(KEPT)))
_BY_DIGEST: Final = Statement(_SELECT.where(images.c.sha256 == bindparam("digest"), text(KEPT)))
_KEPT: Final = Statement(_SELECT.where(text(KEPT)))
_ALL: Final = Statement(_SELECT, wide=True)


def _image(row: Row) -> Image:
    key, doc, removed, version = row
    return msgspec.structs.replace(unpack(Image, doc, "images", key), removed=removed, version=version)


def insert(image: Image) -> Op:
    """Add it. Raises Conflict at commit when an image that is not removed has its name."""
    name = image.manifest.name
    return Op(
        _INSERT,
        {
            "id": image.id,
            "name": name,
            "sha256": image.manifest.sha256,
            "added": image.added,
            "removed": image.removed,
            "doc": pack(image),
            "version": image.version,
        },
        conflict=lambda: Conflict(f"there is an image {name} already", remedy=f"fleetctl image show {name}"),
    )


def remove(image: Image, at: float) -> Op:
    """Its name is free again; wall second `at`. Raises Conflict at commit when it changed since it was read."""
    gone = msgspec.structs.replace(image, removed=at, version=image.version + 1)
    return Op(
        _REMOVE,
        {"of_id": image.id, "read": image.version, "at": at, "doc": pack(gone)},
        1,
        lambda: Conflict(f"image {image.manifest.name} changed since it was read", remedy="read it again and repeat"),
    )


async def get(db: Database, image_id: str) -> Image:
    """Also a removed one. Raises NotFound."""
    for row in await db.fetch(_GET, {"of_id": image_id}):
        return _image(row)
    raise NotFound(f"there is no image {image_id[:80]}", remedy="list them: `fleetctl image list`")


async def by_name(db: Database, name: str) -> Image | None:
    """The image of that name that is not removed."""
    for row in await db.fetch(_BY_NAME, {"of_name": name}):
        return _image(row)
    return None


async def by_digest(db: Database, sha256: str) -> list[Image]:
    """Images, not removed, that are served from the file of this sha256 (hex)."""
    return _sorted([_image(row) for row in await db.fetch(_BY_DIGEST, {"digest": sha256})])


async def every(db: Database, *, removed: bool = False) -> list[Image]:
    """By name, then age; with `removed` those too that are gone."""
    return _sorted([_image(row) for row in await db.fetch(_ALL if removed else _KEPT, {})])


def _sorted(found: list[Image]) -> list[Image]:
    # Here and not in SQL: the two databases sort texts by different rules.
    return sorted(found, key=lambda image: (image.manifest.name, image.added, image.id))
