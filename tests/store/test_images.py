"""Images: one of a name at a time, several names on one file, and a removed one stays readable."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from fleetd.kit.errors import Conflict, NotFound
from fleetd.model.image import Image, ImageFormat, Manifest
from fleetd.store import images
from fleetd.store.database import Database
from tests.store.samples import NOW


def an_image(key: str, name: str = "ubuntu", **changed: Any) -> Image:
    fields: dict[str, Any] = {
        "name": name,
        "format": ImageFormat.RAW_ZST,
        "bytes": 1000,
        "sha256": "a" * 64,
        "raw_bytes": 4096,
        "raw_sha256": "b" * 64,
    }
    return Image(id=f"image-{key}", manifest=Manifest(**fields | changed), added=NOW, added_by="ada")


async def test_by_name_and_digest(db: Database) -> None:
    one, two = an_image("1", "ubuntu"), an_image("2", "debian")
    await db.commit([images.insert(one), images.insert(two)])
    assert await images.by_name(db, "ubuntu") == one
    assert await images.by_name(db, "Ubuntu") is None
    assert await images.by_digest(db, "a" * 64) == [two, one]
    assert await images.by_digest(db, "c" * 64) == []
    assert await images.get(db, "image-2") == two
    with pytest.raises(NotFound):
        await images.get(db, "image-3")


async def test_a_name_is_free_again_once_it_is_removed(db: Database) -> None:
    one = an_image("1")
    await db.commit([images.insert(one)])
    with pytest.raises(Conflict, match="already"):
        await db.commit([images.insert(an_image("2"))])
    await db.commit([images.remove(one, NOW + 5)])
    newer = an_image("2", sha256="c" * 64)
    await db.commit([images.insert(newer)])
    assert await images.by_name(db, "ubuntu") == newer
    assert await images.by_digest(db, "a" * 64) == []
    gone = await images.get(db, "image-1")
    assert (gone.removed, gone.version) == (NOW + 5, 2)
    assert await images.every(db) == [newer]
    assert [image.id for image in await images.every(db, removed=True)] == ["image-1", "image-2"]


async def test_removal_is_guarded_by_the_version_and_done_once(db: Database) -> None:
    one = an_image("1")
    await db.commit([images.insert(one)])
    with pytest.raises(Conflict, match="changed"):
        await db.commit([images.remove(msgspec.structs.replace(one, version=2), NOW)])
    await db.commit([images.remove(one, NOW)])
    with pytest.raises(Conflict, match="changed"):
        await db.commit([images.remove(await images.get(db, one.id), NOW)])
