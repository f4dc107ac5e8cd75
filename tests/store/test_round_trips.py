"""What goes in comes out: any host, run and lease that the model allows, hostile text included."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterator
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fleetd.kit.errors import Invalid
from fleetd.model.bmc import BmcSpec
from fleetd.model.host import (
    Alert,
    Classification,
    Host,
    HostSpec,
    HostStatus,
    LastOutcome,
    Maintenance,
    Observed,
    State,
)
from fleetd.model.lease import Lease, LeaseRequest, LeaseState, Placement
from fleetd.model.power import PowerState
from fleetd.model.run import Run, RunState, StepSnapshot, Strategy
from fleetd.store import hosts, leases, runs
from fleetd.store.database import Database, open_database
from fleetd.store.rows import pack

# Names come from validated YAML: no NUL, no half surrogates. What hosts say (findings, evidence) may hold anything.
NAMES = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)
ANY = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
TIMES = st.floats(0, 4e9, allow_nan=False)
MAYBE_TIME = st.none() | TIMES
LARGE = st.integers(1, 2**53)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | ANY,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(ANY, inner, max_size=3),
    max_leaves=5,
)
MAINTENANCE = st.builds(Maintenance, owner=ANY, reason=ANY, until=TIMES, requested_at=TIMES)
ALERTS = st.builds(
    Alert,
    id=ANY,
    target=ANY,
    since=TIMES,
    message=ANY,
    remedy=ANY,
    classifications=st.lists(st.sampled_from(Classification), max_size=3).map(tuple),
)
STATUS = st.builds(
    HostStatus,
    observed=st.builds(Observed, serial=ANY, uuid=ANY, met_at=MAYBE_TIME),
    power=st.sampled_from(PowerState),
    outcome=st.none()
    | st.builds(LastOutcome, kind=st.sampled_from(["wait", "fail"]), step=ANY, text=ANY, at=TIMES, source=ANY),
    alerts=st.lists(ALERTS, max_size=2).map(tuple),
    tenant_data_evidence=ANY,
    maintenance=st.none() | MAINTENANCE,
    pending_maintenance=st.none() | MAINTENANCE,
)
HOSTS = st.builds(
    Host,
    id=NAMES.filter(bool),
    spec=st.builds(
        HostSpec,
        name=NAMES,
        position=st.integers(1, 64),
        sku=NAMES,
        serial=NAMES,
        bmc=st.builds(BmcSpec, st.sampled_from(["redfish", "ipmi"]), st.from_regex(r"\A10(\.[0-9]{1,2}){3}\Z"), NAMES),
        boot_mac=NAMES,
        outlets=st.lists(NAMES, max_size=2).map(tuple),
        labels=st.dictionaries(NAMES, NAMES, max_size=3),
        site=NAMES,
        rack=NAMES,
        nvlink_domain=st.none() | NAMES,
    ),
    spec_version=LARGE,
    state=st.sampled_from(State),
    state_since=TIMES,
    deadline=MAYBE_TIME,
    resume_state=st.none() | st.sampled_from(State),
    tenant_data=st.sampled_from(["none", "possible", "erased"]),
    status=STATUS,
    certificate=st.none() | NAMES,
    certificate_expires=MAYBE_TIME,
    lease=st.none(),
    run=st.none(),
    version=LARGE,
)
RUNS = st.builds(
    Run,
    id=NAMES,
    playbook=NAMES,
    steps=st.lists(
        st.builds(StepSnapshot, name=NAMES, version=LARGE, params=st.dictionaries(ANY, JSON, max_size=2)), max_size=3
    ).map(tuple),
    strategy=st.builds(Strategy, max_failures=ANY, width=LARGE),
    selector=ANY,
    state=st.sampled_from(RunState),
    principal=ANY,
    lease=st.none() | NAMES,
    created=TIMES,
    finished=MAYBE_TIME,
    reason=ANY,
    version=LARGE,
)
LEASES = st.builds(
    Lease,
    id=NAMES,
    request=st.builds(
        LeaseRequest,
        tenant=NAMES,
        sku=NAMES,
        count=LARGE,
        placement=st.sampled_from(Placement),
        ends_at=ANY,
        ssh_keys=st.lists(ANY, max_size=2).map(tuple),
        user_data=st.none() | ANY,
    ),
    state=st.sampled_from(LeaseState),
    hosts=st.lists(NAMES, max_size=3).map(tuple),
    created=TIMES,
    starts=TIMES,
    ends=TIMES,
    activated=MAYBE_TIME,
    version=LARGE,
)


class Ledger:
    """A ledger with its own loop, so that hypothesis (not async) can drive it."""

    def __init__(self, url: str) -> None:
        self._runner = asyncio.Runner()
        self.db: Database = self.run(open_database(url))

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self._runner.run(work)

    def close(self) -> None:
        self.run(self.db.close())
        self._runner.close()


@pytest.fixture
def ledger(url: str) -> Iterator[Ledger]:
    found = Ledger(url)
    yield found
    found.close()


LIMITS = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


@pytest.mark.slow
@LIMITS
@given(host=HOSTS, later=STATUS)
def test_hosts(ledger: Ledger, host: Host, later: HostStatus) -> None:
    async def work() -> None:
        try:
            await ledger.db.commit([hosts.insert(host)])
        except hosts.Conflict:
            return  # an earlier example holds that name
        assert await hosts.get(ledger.db, host.id) == host
        await ledger.db.commit([hosts.save(msgspec.structs.replace(host, status=later))])
        saved = msgspec.structs.replace(host, status=later, version=host.version + 1)
        assert await hosts.get(ledger.db, host.id) == saved
        gone = msgspec.structs.replace(saved, state=State.RETIRED)
        await ledger.db.commit([hosts.save(gone)])
        assert (await hosts.get(ledger.db, host.id)).state is State.RETIRED

    ledger.run(work())


@pytest.mark.slow
@LIMITS
@given(run=RUNS, lease=LEASES)
def test_runs_and_leases(ledger: Ledger, run: Run, lease: Lease) -> None:
    async def work() -> None:
        try:
            await ledger.db.commit([runs.insert(run), leases.insert(lease)])
        except hosts.Conflict:
            return
        assert await runs.get(ledger.db, run.id) == run
        assert await leases.get(ledger.db, lease.id) == lease
        await ledger.db.commit([runs.save(run), leases.save(lease)])
        assert await runs.get(ledger.db, run.id) == msgspec.structs.replace(run, version=run.version + 1)
        assert await leases.get(ledger.db, lease.id) == msgspec.structs.replace(lease, version=lease.version + 1)

    ledger.run(work())


@given(st.text(st.characters(categories=["Cs", "L"]), min_size=1))
def test_what_json_cannot_say_is_invalid(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        with pytest.raises(Invalid):
            pack({"text": text})
    else:
        assert msgspec.json.decode(pack({"text": text})) == {"text": text}
