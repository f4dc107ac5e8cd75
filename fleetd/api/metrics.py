"""What Prometheus reads: gauges counted from the ledger at each scrape, and the counters that other rooms keep.

Labels are site, SKU, state and the like; a host is never a label (thousands of hosts times states would drown the series).
"""

from __future__ import annotations

from collections import Counter

from prometheus_client import CollectorRegistry, Gauge, generate_latest
from prometheus_client import Counter as CounterMetric

from fleetd import __version__
from fleetd.api.state import Desks
from fleetd.model.run import RunState
from fleetd.store import hosts, leases

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def requests_counter(registry: CollectorRegistry) -> CounterMetric:
    """Counted by the app after each answer; `route` is the template, so that ids do not become labels."""
    return CounterMetric("fleetd_api_requests", "Answers of the API.", ["method", "route", "status"], registry=registry)


async def render(desks: Desks) -> bytes:
    """The text of one scrape."""
    services, now = desks.services, desks.services.clock.wall()
    registry = CollectorRegistry()

    def gauge(name: str, text: str, labels: tuple[str, ...] = ()) -> Gauge:
        return Gauge(name, text, labels, registry=registry)

    await services.brakes.frozen()
    everything = await hosts.every(services.db)
    gauge("fleetd_build_info", "Version of this daemon.", ("version",)).labels(__version__).set(1)
    counted = Counter((str(h.state), h.spec.sku, h.spec.site) for h in everything)
    by_state = gauge("fleetd_hosts", "Hosts by state.", ("state", "sku", "site"))
    for key, count in counted.items():
        by_state.labels(*key).set(count)
    leaseable = gauge("fleetd_hosts_leaseable", "Hosts that can be leased now.", ("sku", "site"))
    late = gauge("fleetd_hosts_past_deadline", "Hosts that should have left their state.", ("state", "sku"))
    alerts = gauge("fleetd_alerts", "Standing alerts.", ("alert", "site"))
    for (sku, site), count in Counter(
        (h.spec.sku, h.spec.site) for h in everything if not services.hosts.reasons(h, now)
    ).items():
        leaseable.labels(sku, site).set(count)
    for (state, sku), count in Counter(
        (str(h.state), h.spec.sku) for h in everything if h.deadline is not None and h.deadline < now
    ).items():
        late.labels(state, sku).set(count)
    for (alert, site), count in Counter((a.id, h.spec.site) for h in everything for a in h.status.alerts).items():
        alerts.labels(alert, site).set(count)
    held = gauge("fleetd_leases", "Live leases by state.", ("state",))
    for name, count in Counter(str(lease.state) for lease in await leases.every(services.db, live=True)).items():
        held.labels(name).set(count)
    running = await services.runs.every(limit=1000, state=RunState.RUNNING)
    gauge("fleetd_runs_active", "Runs that work now.").set(len(running))
    gauge("fleetd_event_subscribers", "Watchers of the event stream.").set(desks.watchers)
    gauge("fleetd_holds", "Brakes that fleetd put on itself.").set(len(await services.brakes.holds()))
    age = desks.engine_age()
    gauge("fleetd_engine_heartbeat_age_seconds", "Since the engine's last sign of life; -1 before the first.").set(
        -1 if age is None else age
    )
    return b"".join(generate_latest(r) for r in (registry, *desks.registries))
