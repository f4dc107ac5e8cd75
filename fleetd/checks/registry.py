"""Which checks exist, and the closed, fail-closed way to run a suite of them.

Closed: every required id yields exactly one verdict. Fail-closed: an unknown id, an exception inside a check, a
missing reading and an empty suite are `not_run`, which is never a pass. A check is added by writing one decorated
function in any module of this package; nothing else has to change.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterable, Mapping
from enum import IntEnum
from functools import cache
from typing import Literal, NamedTuple

import msgspec

from fleetd.checks.context import Context, Past
from fleetd.checks.judge import Judge, clean
from fleetd.model.check import Action, CheckInfo, Finding, Outcome, Verdict
from fleetd.model.proof import NO_GPU
from fleetd.model.report import Report
from fleetd.model.sku import RepairProfile, Sku


class Cause(IntEnum):
    """How deep a check looks: a fault of a lower number explains those of higher ones: it makes the headline."""

    IDENTITY = 1  # it is not the host we mean: nothing else it says matters
    PRESENCE = 2  # a part is missing
    KIND = 3  # a part is there, and the wrong one
    CONFIGURATION = 4  # the wrong software or firmware
    FATAL = 5  # the part itself says that it is broken
    FABRIC = 6
    LINK = 7
    PATH = 8  # what the links together should give
    STATE = 9  # limits, throttling, leftovers


Needs = Literal["", "gpu", "no-gpu", "network", "gpu-or-network", "domain"]
HostBody = Callable[[Judge, Report, Sku, Context], None]
DomainBody = Callable[[Mapping[str, Judge], Mapping[str, Report], Sku, Context], None]
HostCheck = Callable[[str, Report, Sku, Context], Verdict]
DomainCheck = Callable[[str, Mapping[str, Report], Sku, Context], dict[str, Verdict]]


# What a check asks of the SKU before it makes sense there: the one list of it. A suite that names a check of another
# SKU is refused when the inventory is read; one that comes to it all the same gets `not_run`, which is never a pass.
NEEDS: dict[str, tuple[str, Callable[[Sku], bool]]] = {
    "": ("", lambda sku: True),
    "gpu": ("the SKU has no GPUs", lambda sku: sku.gpu is not None),
    "no-gpu": ("the SKU has GPUs", lambda sku: sku.gpu is None),
    "network": ("the SKU has no compute ports", lambda sku: sku.network.count > 0),
    "gpu-or-network": (
        "the SKU has neither GPUs nor compute ports",
        lambda sku: sku.gpu is not None or sku.network.count > 0,
    ),
    "domain": (
        "the SKU describes no NVLink domain of several hosts",
        lambda sku: sku.gpu is not None and sku.domain is not None,
    ),
}


class Check(NamedTuple):
    """A registered check. Exactly one of `host` and `domain` is there."""

    info: CheckInfo
    cause: Cause
    action: Action
    remedy: str
    host: HostCheck | None
    domain: DomainCheck | None


_CHECKS: dict[str, Check] = {}
_NO_CHECK = (
    "the SKU asks for a check that this fleetd does not have: correct the SKU file or upgrade; list them: "
    "`fleetctl check list`"
)
_BROKEN = (
    "a fault in fleetd, not in the host: report it with `fleetctl host validate HOST -o json`; the host stays out "
    "until then"
)


def check(
    *,
    id: str,  # noqa: A002
    title: str,
    needs: Needs = "",
    cause: Cause,
    source: str,
    why: str,
    action: Action,
    remedy: str,
) -> Callable[[HostBody], HostCheck]:
    """Register a host check. The body writes on a Judge; what comes back is the pure function of the design.

    Args:
        needs: what the SKU must describe (`NEEDS`); for another SKU it gives `not_run`.
        source: where the criterion comes from; why: what a fault of it does to a tenant.
        action, remedy: what is asked for unless the body asks for more; `PARTS` in a remedy names the parts.
    """

    def register(body: HostBody) -> HostCheck:
        def run(host: str, facts: Report, profile: Sku, context: Context) -> Verdict:
            judge = Judge(id, host, action, remedy)
            if lack := lacking(needs, profile):
                judge.unread("", lack)
            else:
                body(judge, facts, profile, context)
            return judge.verdict()

        _add(
            Check(
                CheckInfo(id=id, title=title, subject="host", source=source, why=why, needs=needs),
                cause,
                action,
                remedy,
                run,
                None,
            )
        )
        return run

    return register


def domain_check(
    *,
    id: str,  # noqa: A002
    title: str,
    needs: Needs = "",
    cause: Cause,
    source: str,
    why: str,
    action: Action,
    remedy: str,
) -> Callable[[DomainBody], DomainCheck]:
    """Register a check of an NVLink domain: it sees all reports at once and says a verdict for each host."""

    def register(body: DomainBody) -> DomainCheck:
        def run(domain: str, reports: Mapping[str, Report], profile: Sku, context: Context) -> dict[str, Verdict]:
            hosts = dict.fromkeys((*reports, *context.domain_members))
            judges = {host: Judge(id, domain, action, remedy) for host in hosts}
            if lack := lacking(needs, profile):
                for judge in judges.values():
                    judge.unread("", lack)
            else:
                body(judges, reports, profile, context)
            return {host: judge.verdict() for host, judge in judges.items()}

        _add(
            Check(
                CheckInfo(id=id, title=title, subject="domain", source=source, why=why, needs=needs),
                cause,
                action,
                remedy,
                None,
                run,
            )
        )
        return run

    return register


def _add(new: Check) -> None:
    if new.info.id in _CHECKS:
        raise ValueError(f"check {new.info.id} is registered twice")
    _CHECKS[new.info.id] = new


@cache
def _all() -> dict[str, Check]:
    """Import every module of this package once; each registers its checks."""
    import fleetd.checks as package

    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{package.__name__}.{module.name}")
    return _CHECKS


def every() -> list[CheckInfo]:
    """Metadata of all checks, by id: lists, docs, and the test that every SKU names only checks that exist."""
    return [_all()[id_].info for id_ in sorted(_all())]


def lacking(needs: str, sku: Sku) -> str:
    """Why a check with these needs makes no sense for this SKU; empty when it does."""
    why, fits = NEEDS[needs]
    return "" if fits(sku) else why


def misfit(sku: Sku) -> tuple[tuple[str | int, ...], str, str] | None:
    """(place in the SKU's file, what, why) of the first check that stands in a suite and does not fit the SKU."""
    for suite in ("acceptance", "quick"):
        for i, id_ in enumerate(sku.suite(suite)):
            found = find(id_)
            if found is not None and (why := lacking(found.info.needs, sku)):
                return (suite, i), f"check `{id_}` cannot stand in `{suite}`", why
    if sku.gpu is None and NO_GPU not in sku.acceptance:
        return ("acceptance",), f"`acceptance` lacks `{NO_GPU}`", "a host without GPUs proves that it has none"
    return None


def find(id_: str) -> Check | None:
    """The check of that id."""
    return _all().get(id_)


def run_suite(suite_ids: Iterable[str], subject: str, facts: Report, sku: Sku, context: Context) -> list[Verdict]:
    """One verdict for every id, in order. Never raises for what a host reported.

    A domain check is judged over `context.domain_reports` with the subject's own report among them; its verdict
    on the subject is taken. A failed verdict asks for more than the remedies in `context.history` that did not help.
    """
    ids = list(dict.fromkeys(suite_ids))
    if not ids:
        return [_not_run("suite.empty", subject, "the suite holds no check", "name the checks in the SKU file")]
    verdicts = []
    for id_ in ids:
        found = find(id_)
        if found is None:
            verdicts.append(_not_run(id_, subject, "there is no such check", _NO_CHECK))
        elif found.host is not None:
            verdicts.append(
                _escalate(_guarded(found, found.host, subject, facts, sku, context), context.history, sku.repair)
            )
        else:
            told = _domain(found, context.domain or subject, _with_own(subject, facts, context), sku, context)
            verdicts.append(_escalate(told[subject], context.history, sku.repair))
    return verdicts


def run_domain(
    ids: Iterable[str], domain_name: str, reports: Mapping[str, Report], sku: Sku, context: Context
) -> dict[str, list[Verdict]]:
    """One verdict for every id and every host that reported or is in `context.domain_members`."""
    wanted = list(dict.fromkeys(ids))
    hosts = list(dict.fromkeys((*reports, *context.domain_members)))
    if not wanted:
        empty = _not_run("suite.empty", domain_name, "the suite holds no check", "name the checks in the SKU file")
        return {host: [empty] for host in hosts}
    told: dict[str, list[Verdict]] = {host: [] for host in hosts}
    for id_ in wanted:
        found = find(id_)
        if found is None or found.domain is None:
            absent = _not_run(id_, domain_name, "there is no such check of a domain", _NO_CHECK)
            verdicts = dict.fromkeys(hosts, absent)
        else:
            verdicts = _domain(found, domain_name, reports, sku, context)
        for host in hosts:
            told[host].append(verdicts[host])
    return told


def _guarded(found: Check, judge: HostCheck, subject: str, facts: Report, sku: Sku, context: Context) -> Verdict:
    try:
        return judge(subject, facts, sku, context)
    except Exception as error:  # noqa: BLE001 -- a broken check must cost a verdict, not the suite; it is told, never a pass
        return _not_run(found.info.id, subject, f"the check broke: {type(error).__name__}: {error}", _BROKEN)


def _domain(found: Check, domain: str, reports: Mapping[str, Report], sku: Sku, context: Context) -> dict[str, Verdict]:
    hosts = dict.fromkeys((*reports, *context.domain_members))
    try:
        told = found.domain(domain, reports, sku, context) if found.domain is not None else {}
    except Exception as error:  # noqa: BLE001 -- as above
        broken = _not_run(found.info.id, domain, f"the check broke: {type(error).__name__}: {error}", _BROKEN)
        return dict.fromkeys(hosts, broken)
    return {host: told.get(host) or _not_run(found.info.id, domain, "no verdict was given", _BROKEN) for host in hosts}


def _with_own(subject: str, facts: Report, context: Context) -> dict[str, Report]:
    """The peers' reports and the subject's own, the latter once, whatever key the caller used for it."""
    peers = {k: r for k, r in context.domain_reports.items() if k != subject and not (r.host and r.host == facts.host)}
    return {**peers, subject: facts}


def _not_run(id_: str, subject: str, measured: str, remedy: str) -> Verdict:
    return Verdict(
        check=clean(id_),
        subject=subject,
        outcome=Outcome.NOT_RUN,
        measured=clean(measured, 300),
        expected="a verdict",
        action=Action.RETEST,
        remedy=remedy,
    )


# What to ask for when the weaker remedy was carried out as often as the SKU allows and the fault is back.
_NEXT = {
    Action.RETEST: Action.RESET,
    Action.RESET: Action.POWER_CYCLE,
    Action.REBOOT: Action.POWER_CYCLE,
    Action.POWER_CYCLE: Action.RESEAT,
    Action.RESEAT: Action.RMA,
}
_ASK = {
    Action.RESET: "reset {}",
    Action.POWER_CYCLE: "power-cycle the host at the outlet, so that {} comes up cold",
    Action.RESEAT: "take the host out of the rack, reseat {} and look for bent pins and dirt",
    Action.RMA: "replace {} and send it back",
}


def _escalate(verdict: Verdict, history: tuple[Past, ...], budget: RepairProfile) -> Verdict:
    if verdict.outcome is not Outcome.FAIL or verdict.action is None or not history:
        return verdict
    allowed = {
        Action.RETEST: budget.retest,
        Action.RESET: budget.reset,
        Action.REBOOT: budget.reboot,
        Action.POWER_CYCLE: budget.power_cycle,
        Action.RESEAT: budget.reseat,
    }
    same = [p for p in history if p.check == verdict.check and (not p.parts or set(p.parts) & set(verdict.parts))]
    action, spent = verdict.action, []
    while action in allowed and (tried := sum(p.action is action for p in same)) >= allowed[action]:
        spent.append(f"{action.value} {tried}x")
        action = _NEXT[action]
    if action is verdict.action:
        return verdict
    ask = _ASK[action].format(", ".join(verdict.parts[:8]) or "the part named above")
    return msgspec.structs.replace(verdict, action=action, remedy=f"{ask}: {', '.join(spent)} did not help")


def headline(verdicts: Iterable[Verdict], *, at: float = 0.0) -> Finding | None:
    """The root cause among many verdicts, as the one finding to act on; None when every verdict is a pass.

    A failed verdict goes before one that did not run (a GPU off the bus leaves ten checks without readings), and the
    deeper cause before its consequences. No verdict at all is a finding too.
    """
    told = list(verdicts)
    if not told:
        return Finding(code="suite.empty", message="no check ran", remedy="name the checks in the SKU file", at=at)
    bad = [v for v in told if not v.passed]
    if not bad:
        return None
    order = {id_: i for i, id_ in enumerate(_all())}

    def rank(verdict: Verdict) -> tuple[bool, int, int]:
        found = find(verdict.check)
        return verdict.outcome is Outcome.NOT_RUN, found.cause if found else 0, order.get(verdict.check, 0)

    root = min(bad, key=rank)
    rest = len(bad) - 1
    more = f" ({rest} more verdict{'s' if rest > 1 else ''} not a pass)" if rest else ""
    return Finding(
        code=root.check,
        message=f"{root.measured}; expected {root.expected}{more}" if root.expected else f"{root.measured}{more}",
        remedy=root.remedy,
        action=root.action or Action.RETEST,
        parts=root.parts,
        at=at,
    )
