"""Finding the way in a BMC's tree: which ComputerSystem is the host, which Manager the BMC, what an action takes."""

from __future__ import annotations

from fleetd.drivers.bmc.quirks import Facts
from fleetd.drivers.bmc.redfish_answers import Document, at, link, text, words
from fleetd.drivers.bmc.session import Call, Session
from fleetd.kit.errors import Garbled, Unsupported

_MAX_PAGES, _MAX_MEMBERS = 16, 256
# DSP0268 SystemType: what can boot a tenant's operating system on its own metal. Absent counts as Physical.
_HOST_TYPES = ("Physical", "")


async def members(session: Session, call: Call, path: str) -> list[str]:
    """Paths of a collection, over all its pages (DGX and GB300 page by Members@odata.nextLink).

    Raises:
        Garbled: pages that repeat or do not end.
    """
    found: list[str] = []
    seen: set[str] = set()
    while path:
        if path in seen or len(seen) >= _MAX_PAGES or len(found) > _MAX_MEMBERS:
            raise Garbled("a collection of the BMC does not end", why=path[:120], where=session.peer.name)
        seen.add(path)
        page = await session.get(call, path)
        listed = page.get("Members")
        if not isinstance(listed, list):
            raise Garbled("a collection of the BMC has no members", why=path[:120], where=session.peer.name)
        found += [uri for uri in (text(item, "@odata.id") for item in listed[: _MAX_MEMBERS + 1]) if uri]
        path = text(page, "Members@odata.nextLink")
    return found


async def find_host_system(session: Session, call: Call) -> tuple[str, Document, str]:
    """(path, resource, ETag) of the host: never Members[0], an HGX board is a ComputerSystem of its own.

    Raises:
        Unsupported: no host behind this BMC, or several that cannot be told apart.
    """
    candidates = []
    for path in await members(session, call, link(session.root, "Systems") or "/redfish/v1/Systems"):
        document, etag = await session.get_with_etag(call, path)
        if text(document, "SystemType") in _HOST_TYPES:
            candidates.append((_likeness(document, session.root), path, document, etag))
    candidates.sort(key=lambda c: c[0], reverse=True)
    if not candidates:
        raise Unsupported("there is no host behind this BMC", why="no physical ComputerSystem", where=session.peer.name)
    if len(candidates) > 1 and candidates[0][0] == candidates[1][0]:
        raise Unsupported(
            "several hosts stand behind this BMC",
            why=", ".join(c[1] for c in candidates)[:200],
            remedy="name the BMC of each host by itself in the inventory",
            where=session.peer.name,
        )
    _, path, document, etag = candidates[0]
    return path, document, etag


def _likeness(system: Document, root: Document) -> tuple[bool, bool, bool]:
    """What tells a host from a GPU baseboard in the DGX H100, GH200 and GB300 trees, the surest sign first."""
    serves_us = link(root, "Links", "ManagerProvidingService")
    return (
        bool(text(system, "Actions", "#ComputerSystem.Reset", "target")),  # a baseboard cannot be powered by itself
        bool(serves_us) and link(system, "Links", "ManagedBy") == serves_us,
        not text(system, "Id").startswith("HGX_"),
    )


def facts_of(root: Document, system: Document) -> Facts:
    """What quirks decide by."""
    oem = root.get("Oem")
    return Facts(
        vendor=text(root, "Vendor").lower(),
        product=text(root, "Product").lower(),
        oem=frozenset(key.lower() for key in list(oem)[:16]) if isinstance(oem, dict) else frozenset(),
        manufacturer=text(system, "Manufacturer").lower(),
        model=text(system, "Model").lower(),
    )


async def find_manager(session: Session, call: Call, system: Document, system_path: str) -> tuple[str, Document]:
    """(path, resource) of the BMC that manages the host.

    Raises:
        Unsupported: the service shows none.
    """
    path = link(system, "Links", "ManagedBy")
    if path:
        return path, await session.get(call, path)
    # Huawei 1288H and the synthetic trees leave ManagedBy out; the Manager names its servers instead.
    for path in await members(session, call, link(session.root, "Managers") or "/redfish/v1/Managers"):
        manager = await session.get(call, path)
        servers = at(manager, "Links", "ManagerForServers")
        named = {text(item, "@odata.id") for item in servers[:16]} if isinstance(servers, list) else set()
        if system_path in named or (not named and text(manager, "ManagerType") == "BMC"):
            return path, manager
    raise Unsupported("this BMC shows no Manager of the host", where=session.peer.name)


async def action(session: Session, call: Call, resource: Document, name: str) -> tuple[str, tuple[str, ...] | None]:
    """(target, allowed ResetTypes) of an action; None where neither AllowableValues nor ActionInfo tells them.

    Raises:
        Unsupported: the resource has no such action.
    """
    entry = at(resource, "Actions", f"#{name}")
    target = text(entry, "target")
    if not target:
        raise Unsupported(f"this BMC offers no {name}", where=session.peer.name)
    allowed = words(entry, "ResetType@Redfish.AllowableValues")
    info = text(entry, "@Redfish.ActionInfo")
    if allowed is None and info:  # OpenBMC, NVIDIA and newer Supermicro tell them only there
        try:
            parameters = (await session.get(call, info)).get("Parameters")
        except Unsupported:
            return target, None  # a link into nothing: then the types are simply not told
        for parameter in parameters[:16] if isinstance(parameters, list) else []:
            if text(parameter, "Name") == "ResetType":
                allowed = words(parameter, "AllowableValues")
    return target, allowed
