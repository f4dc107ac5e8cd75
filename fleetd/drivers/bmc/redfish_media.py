"""Virtual media by Redfish: an ISO put into the host's virtual CD drive and taken out again; only the read-back counts.

Vendors keep the slots under the Manager, the System or both, and each wants the insert said another way; the ways are
tried from the fullest to the barest, over every slot that takes a CD. Sources stand beside each rule.
"""

from __future__ import annotations

from typing import NamedTuple

from fleetd.drivers.bmc import redfish_tree
from fleetd.drivers.bmc.redfish_answers import Document, link, text, words
from fleetd.drivers.bmc.redfish_http import Answer
from fleetd.drivers.bmc.session import Call, Session
from fleetd.kit.errors import Busy, Lied, Permanent, Unsupported

_OPTICAL = frozenset({"CD", "DVD"})
_MAX_SLOTS = 16
_SETTLE = 30.0  # seconds a BMC may take to open the image and show it
_FIRST_POLL, _LAST_POLL = 0.05, 2.0  # seconds
_TRIES, _TRY_PAUSE = 4, 1.0  # of a request that a slot answers with 5xx: it may still be ejecting (ironic boot.py:377)
_REMEDY = "boot this host by network: `boot_via: network` in its SKU"


class Slot(NamedTuple):
    """One virtual drive that takes a CD. An empty target: no such action."""

    path: str
    document: Document
    etag: str
    insert: str
    eject: str

    @property
    def loaded(self) -> bool:
        return self.document.get("Inserted") is True or bool(text(self.document, "Image"))


async def insert(session: Session, call: Call, system: Document, system_path: str, url: str) -> None:
    """Empty every CD slot, then put `url` into the first that takes and shows it.

    Raises:
        Unsupported: there is no slot for a CD, or none takes this URL.
        Lied: a slot confirmed it and does not show it.
    """
    slots = await _empty(session, call, await _slots(session, call, system, system_path))
    refusal: Answer | None = None
    lie: Lied | None = None
    # Cisco, OpenBMC: some slots refuse remote images (ironic boot.py:409,430): the next one may take it.
    for slot in slots:
        answer = await _insert(session, call, slot, url)
        if answer.ok:
            try:
                await _read_back(session, call, slot.path, url)
            except Lied as error:
                lie = error
                continue
            return
        if answer.status in (401, 403):
            raise session.error(answer, "inserting virtual media")
        refusal = answer
    if lie is not None:
        raise lie
    assert refusal is not None, "there was at least one slot, or _slots raised"
    raise session.error(refusal, "inserting virtual media")


async def eject(session: Session, call: Call, system: Document, system_path: str) -> None:
    """Empty every CD slot that holds something. Raises Unsupported, Lied (confirmed, and it is still in)."""
    await _empty(session, call, await _slots(session, call, system, system_path))


async def _slots(session: Session, call: Call, system: Document, system_path: str) -> list[Slot]:
    """Slots for a CD, those with an insert action first; each once, the Manager's before the System's (Dell shows both)."""
    collections = []
    try:
        _, manager = await redfish_tree.find_manager(session, call, system, system_path)
        collections.append(link(manager, "VirtualMedia"))
    except Unsupported:
        collections.append("")  # no Manager: the System may have them
    collections.append(link(system, "VirtualMedia"))
    found: list[Slot] = []
    for collection in dict.fromkeys(filter(None, collections)):
        for path in (await redfish_tree.members(session, call, collection))[:_MAX_SLOTS]:
            slot = await _slot(session, call, path)
            if slot is not None:
                found.append(slot)
        if found:
            break
    if not found:
        raise Unsupported("this BMC has no virtual CD drive", remedy=_REMEDY, where=session.peer.name)
    return sorted(found, key=lambda slot: not slot.insert)


async def _slot(session: Session, call: Call, path: str) -> Slot | None:
    """The slot, or None when it takes no CD or has no way in (Supermicro GB300 Slot_0: an eject action, no image)."""
    try:
        document, etag = await session.get_with_etag(call, path)
    except Permanent:
        return None  # a link into nothing
    if not _OPTICAL & {word.upper() for word in words(document, "MediaTypes") or ()}:
        return None
    put = text(document, "Actions", "#VirtualMedia.InsertMedia", "target")
    out = text(document, "Actions", "#VirtualMedia.EjectMedia", "target")
    if not put and (out or "Image" not in document):
        return None
    return Slot(path, document, etag, put, out)


async def _empty(session: Session, call: Call, slots: list[Slot]) -> list[Slot]:
    """Eject what is in. A second ISO beside ours could be the one that boots."""
    for slot in slots:
        if not slot.loaded:
            continue
        if slot.eject:
            # HPE refuses an eject without a body (sushy virtual_media.py:288).
            answer = await _patiently(session, call, slot, "POST", slot.eject, {})
        else:
            answer = await _patiently(session, call, slot, "PATCH", slot.path, {"Image": None, "Inserted": False})
        if not answer.ok:
            raise session.error(answer, "ejecting virtual media")
        await _read_back(session, call, slot.path, "")
    return slots


async def _insert(session: Session, call: Call, slot: Slot, url: str) -> Answer:
    """The first body that the slot takes, or its last refusal."""
    if not slot.insert:  # Lenovo SD530, XCC: the image is a property (sushy virtual_media.py:192)
        bodies: list[Document] = [{"Image": url, "Inserted": True, "WriteProtected": True}, {"Image": url}]
        method, target = "PATCH", slot.path
    else:
        method, target = "POST", slot.insert
        protocol = url.partition(":")[0].upper()  # HTTP or HTTPS
        bodies = [
            {"Image": url, "Inserted": True, "WriteProtected": True},
            {"Image": url, "Inserted": True},
            {"Image": url},  # Supermicro X11, X12 (sushy virtual_media.py:195,227)
            {"Image": url, "TransferProtocolType": protocol},  # Nokia (sushy: retry-if-transferprototype-missing)
            {"Image": url, "Inserted": True, "TransferProtocolType": protocol, "TransferMethod": "Stream"},
        ]
    answer = await _patiently(session, call, slot, method, target, bodies[0])
    for body in bodies[1:]:
        if answer.status not in (400, 415, 422):
            break
        answer = await _patiently(session, call, slot, method, target, body)
    return answer


async def _patiently(session: Session, call: Call, slot: Slot, method: str, path: str, body: Document) -> Answer:
    """A write that is asked again while the slot answers 5xx: Dell does so while it still ejects."""
    tries = 1
    while True:
        if method == "PATCH":
            _, etag = await session.get_with_etag(call, slot.path)
            answer = await session.patch(call, path, body, etag)
        else:
            answer = await session.send(call, method, path, body)
        busy = 500 <= answer.status < 600 and answer.status != 501
        if not busy or tries == _TRIES or call.left() <= _TRY_PAUSE:
            return answer
        tries += 1
        await call.clock.sleep(_TRY_PAUSE)


async def _read_back(session: Session, call: Call, path: str, url: str) -> None:
    """Poll until the slot shows `url` (empty: nothing). Dell reads Inserted for a while after an eject."""
    end = min(call.clock.steady() + _SETTLE, call.end - min(0.5, call.timeout * 0.05))
    pause, shown = _FIRST_POLL, ""
    while True:
        try:
            document = await session.get(call, path)
        except Busy:
            document = {}
        shown = text(document, "Image")
        inserted = document.get("Inserted")
        if (url and inserted is True and _same(shown, url)) or (not url and document and inserted is not True):
            return
        left = end - call.clock.steady()
        if left <= 0:
            break
        await call.clock.sleep(min(pause, left))
        pause = min(pause * 2, _LAST_POLL)
    what = "did not keep the virtual CD" if url else "did not let go of the virtual CD"
    raise Lied(
        f"the BMC confirmed and {what}",
        why=f"it reads {shown or 'no image'}, inserted: {inserted}"[:300],
        remedy="look whether the BMC reaches the boot service over HTTP; restart the BMC from its own page, then try again",
        where=session.peer.name,
    )


def _same(shown: str, url: str) -> bool:
    """BMCs show the URL, parts of it, or nothing at all of it; what they must not show is another file."""
    return not shown or shown == url[:256] or shown.rpartition("/")[2] == url.rpartition("/")[2]
