"""How a run spreads over its hosts: waves counted in NVLink domains, a failure budget, and who may start now."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from fleetd.model.host import Host
from fleetd.model.run import Run, RunHost, RunHostState, Strategy
from fleetd.model.units import share


def units(hosts: Sequence[Host]) -> list[list[Host]]:
    """What a wave counts: the hosts of one NVLink domain together, any other host alone; in rack and position order."""
    found: dict[str, list[Host]] = {}
    for host in sorted(hosts, key=lambda h: (h.spec.site, h.spec.rack, h.spec.position, h.name)):
        domain = host.spec.nvlink_domain
        found.setdefault(f"domain {domain}" if domain else f"host {host.id}", []).append(host)
    return list(found.values())


def waves(hosts: Sequence[Host], strategy: Strategy) -> list[list[Host]]:
    """Hosts by wave. Each entry of `strategy.waves` is a running total (count or share of all units); the last takes the rest."""
    groups = units(hosts)
    result: list[list[Host]] = []
    done = 0
    for i, entry in enumerate(strategy.waves):
        last = i == len(strategy.waves) - 1
        upto = len(groups) if last else min(len(groups), max(done, share(entry, len(groups))))
        if upto > done:
            result.append([host for group in groups[done:upto] for host in group])
            done = upto
    return result


def budget(strategy: Strategy, total: int) -> int:
    """How many hosts may fail; one more stops the run."""
    return max(1, share(strategy.max_failures, total))


def spent(run: Run, places: Sequence[RunHost]) -> bool:
    """True when more hosts failed than the budget allows."""
    return sum(p.state is RunHostState.FAILED for p in places) > budget(run.strategy, len(places))


def startable(run: Run, places: Sequence[RunHost], rack_of: dict[str, str]) -> list[RunHost]:
    """Pending hosts of the open wave that may start now, within the run's width and each rack's."""
    active = Counter(rack_of[p.host] for p in places if p.state is RunHostState.ACTIVE)
    room = run.strategy.width - active.total()
    chosen = []
    for place in places:
        if room <= 0:
            break
        if place.state is not RunHostState.PENDING or place.wave > run.wave:
            continue
        rack = rack_of[place.host]
        if active[rack] < run.strategy.per_rack:
            active[rack] += 1
            room -= 1
            chosen.append(place)
    return chosen


def wave_done(run: Run, places: Sequence[RunHost]) -> bool:
    """No host of the open wave is pending or active."""
    return not any(p.wave <= run.wave and p.state in (RunHostState.PENDING, RunHostState.ACTIVE) for p in places)
