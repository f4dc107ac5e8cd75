"""Which hosts a lease gets, and what to say when it cannot get them. Pure: the ledger guards the choice at commit.

The choice is a best fit, so that big leases still find whole racks tomorrow; the same fleet gives the same answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fleetd.kit.clock import rfc3339
from fleetd.kit.errors import Conflict
from fleetd.lifecycle.blockers import Blocker, tally
from fleetd.model.host import Host
from fleetd.model.lease import LeaseRequest, Placement


def _rack(host: Host) -> str:
    return f"{host.spec.site}/{host.spec.rack}"


def _domain(host: Host) -> str:
    """The NVLink domain's name; a host without one is a domain of its own (HGX)."""
    return host.spec.nvlink_domain or host.name


def _grouped(hosts: Sequence[Host], placement: Placement) -> dict[str, list[Host]]:
    key = _domain if placement is Placement.SAME_NVLINK_DOMAIN else _rack
    groups: dict[str, list[Host]] = {}
    for host in sorted(hosts, key=lambda h: (h.spec.site, h.spec.rack, h.spec.position, h.name)):
        groups.setdefault(key(host), []).append(host)
    return groups


def _tightest(groups: Mapping[str, list[Host]], count: int) -> str | None:
    """The group with the fewest free hosts that still holds `count`; by name among equals."""
    fitting = [(len(members), name) for name, members in groups.items() if len(members) >= count]
    return min(fitting)[1] if fitting else None


def choose(free: Sequence[Host], count: int, placement: Placement) -> list[Host] | None:
    """`count` of the leaseable hosts, or None when they cannot stand as asked.

    any: within one site where one can hold all (the tightest), in as few racks as possible, the rest in the tightest.
    """
    if placement is not Placement.ANY:
        groups = _grouped(free, placement)
        name = _tightest(groups, count)
        return None if name is None else groups[name][:count]
    if len(free) < count:
        return None
    sites: dict[str, list[Host]] = {}
    for host in free:
        sites.setdefault(host.spec.site, []).append(host)
    site = _tightest(sites, count)
    racks = _grouped(free if site is None else sites[site], placement)
    chosen: list[Host] = []
    while len(chosen) < count:
        missing = count - len(chosen)
        name = _tightest(racks, missing) or min(racks, key=lambda rack: (-len(racks[rack]), rack))
        chosen += racks.pop(name)[:missing]
    return chosen


def refusal(
    request: LeaseRequest,
    free: Sequence[Host],
    blocked: Sequence[tuple[Host, Blocker]],
    ends: Mapping[str, float],
    now: float,
) -> Conflict:
    """The Conflict that says how many are free, why the others are not, and what to do instead.

    Args:
        blocked: each host of the SKU that is not leaseable, with its weightiest blocker.
        ends: host id -> wall seconds at which its live lease ends.
    """
    where = f" in {request.site}" if request.site else ""
    what = f"{len(free)} of {request.sku} are leaseable{where}, {request.count} asked"
    why = []
    most = len(free)
    if request.placement is not Placement.ANY:
        kind = "NVLink domain" if request.placement is Placement.SAME_NVLINK_DOMAIN else "rack"
        groups = _grouped(free, request.placement)
        if groups:
            name = min(groups, key=lambda group: (-len(groups[group]), group))
            most = len(groups[name])
            why.append(f"the largest {kind} has {most} free ({name})")
        else:
            why.append(f"no {kind} has any free")
        what += f" {request.placement}"
    if blocked:
        why.append("not leaseable: " + tally(blocker for _, blocker in blocked))
    if not free and not blocked:
        why.append(f"there is no host of {request.sku}{where}")
    remedy = ["see `fleetctl capacity`"]
    if most:
        remedy.append(f"ask for {most} or fewer")
    if most < request.count <= len(free):
        remedy.append("or for placement any")
    coming = sorted(ends[host.id] for host, _ in blocked if ends.get(host.id, 0.0) > now)
    lacking = request.count - len(free)
    if 0 < lacking <= len(coming):
        remedy.append(
            f"or wait: by {rfc3339(coming[lacking - 1])} enough leases have ended, and then the wipe and proof"
        )
    return Conflict(what, why="; ".join(why), remedy=", ".join(remedy))
