"""Reads playbooks and proves them legal against the transition table before any host is touched."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import msgspec

from fleetd.kit.errors import FleetError, Invalid
from fleetd.kit.yamlfile import Document, decode, parse
from fleetd.lifecycle import transitions
from fleetd.lifecycle.steps import registry
from fleetd.lifecycle.steps.base import Step
from fleetd.model.host import State
from fleetd.model.playbook import Playbook
from fleetd.model.run import StepSnapshot, Strategy
from fleetd.model.units import share

_TEMPLATE = re.compile(r"\{\{(.*?)\}\}")
_KNOWN_TEMPLATES = frozenset({" sku.image ", " lease.image ", " host.name "})

# What is true of a host that rests in a state: the evidence a playbook may stand on without giving it itself.
STANDING: dict[State, frozenset[str]] = {
    State.REGISTERED: frozenset(),
    State.MANAGEABLE: frozenset({"managed"}),
    State.AVAILABLE: frozenset({"managed", "image", "disk", "suite"}),
    State.DELIVERING: frozenset({"managed", "image", "disk", "suite"}),
    State.LEASED: frozenset({"managed"}),
    State.RECLAIMING: frozenset({"managed"}),
    State.MAINTENANCE: frozenset(),
}


class _Head(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    playbook: str
    description: str = ""
    scope: str = "host"
    state: State = State.PREPARING
    starts: tuple[State, ...] = (State.REGISTERED, State.MANAGEABLE, State.MAINTENANCE)
    strategy: Strategy = Strategy()


def load(text: str, name: str) -> Playbook:
    """Parse and prove. Raises Invalid with file:line."""
    document = parse(text, name)
    if not isinstance(document.value, dict):
        raise Invalid("a playbook is a mapping", where=document.where())
    raw_steps = document.value.get("steps")
    if not isinstance(raw_steps, list) or not raw_steps:
        raise Invalid("`steps` is a list with at least one step", where=document.where(("steps",)))
    head = decode(document._replace(value={k: v for k, v in document.value.items() if k != "steps"}), _Head)
    if head.scope != "host":
        raise Invalid(f"scope `{head.scope}` is not known", remedy="use host", where=document.where(("scope",)))
    for entry in (*head.strategy.waves, head.strategy.max_failures):
        try:
            share(entry, 100)
        except Invalid as error:
            raise Invalid(error.what, where=document.where(("strategy",))) from error
    steps = tuple(_step(raw, document, i) for i, raw in enumerate(raw_steps))
    ends = State.AVAILABLE
    for start in head.starts:
        ends = prove(steps[_skip(steps, head.state, start) :], head.state, start, document)
    return Playbook(
        name=head.playbook,
        description=head.description,
        state=head.state,
        starts=head.starts,
        ends=ends,
        steps=steps,
        strategy=head.strategy,
    )


def _step(raw: Any, document: Document, i: int) -> StepSnapshot:
    where = document.where(("steps", i))
    if isinstance(raw, str):
        name, params = raw, dict[str, Any]()
    elif isinstance(raw, dict) and len(raw) == 1:
        ((name, params),) = raw.items()
        params = params or {}
    else:
        raise Invalid("a step is a name, or one name with its parameters", where=where)
    try:
        step = registry.get(name)
        decode_params(step, params)
    except FleetError as error:
        raise Invalid(f"step `{name}`: {error.what}", why=error.why, where=where) from error
    for value in params.values():
        for template in _TEMPLATE.findall(str(value)):
            if template not in _KNOWN_TEMPLATES:
                known = ", ".join("{{" + t + "}}" for t in sorted(_KNOWN_TEMPLATES))
                raise Invalid(f"step `{name}`: there is no `{{{{{template}}}}}`", why=f"known: {known}", where=where)
    return StepSnapshot(name=step.name, version=step.version, params=dict(params))


def decode_params(step: Step, params: Mapping[str, Any]) -> Any:
    """Typed parameters. Raises Invalid."""
    try:
        return msgspec.convert(dict(params), step.Params, strict=False)
    except msgspec.ValidationError as error:
        raise Invalid(str(error)) from error


def entry_state(step: Step, params: Any, playbook_state: State, current: State) -> State:
    """The state in which this step runs, for a host that is in `current` when it comes to it."""
    wanted = step.state_for(params)
    if wanted is not None:
        return wanted
    return current if current in step.stays_in else playbook_state


def prove(
    steps: tuple[StepSnapshot, ...], playbook_state: State, start: State, document: Document | None = None
) -> State:
    """Walk the steps from `start`: each move must be in the table, each need given before. Returns the end state.

    Raises:
        Invalid: with the step that breaks it.
    """
    current, have = start, set(STANDING.get(start, frozenset()))
    for i, snapshot in enumerate(steps):
        where = document.where(("steps", i)) if document is not None else ""
        step = registry.get(snapshot.name, snapshot.version)
        needs, gives, spoils = step.evidence_of(decode_params(step, snapshot.params))
        if missing := needs - have:
            raise Invalid(
                f"step `{step.name}` needs {', '.join(sorted(missing))}",
                why=f"starting from {start}, no step before it gives that",
                where=where,
            )
        have -= spoils
        have |= gives
        target = entry_state(step, decode_params(step, snapshot.params), playbook_state, current)
        if current is not target and not transitions.legal(current, target):
            raise Invalid(
                f"step `{step.name}` runs in {target}", why=f"a host cannot go there from {current}", where=where
            )
        current = target
        if step.leaves is not None:
            if not transitions.legal(current, step.leaves):
                raise Invalid(f"step `{step.name}` leaves to {step.leaves}", why=f"not from {current}", where=where)
            current = step.leaves
    if not transitions.TABLE[current].resting:
        where = document.where(("steps", len(steps) - 1)) if document is not None else ""
        raise Invalid(f"the playbook ends in {current}", why="a run takes a host to a resting state", where=where)
    return current


def _skip(steps: tuple[StepSnapshot, ...], playbook_state: State, start: State) -> int:
    """Index of the step a host in `start` begins with: a managed host is not enrolled again. 0 when none fits better."""
    for i in range(len(steps)):
        try:
            prove(steps[i:], playbook_state, start)
        except Invalid:
            continue
        return i
    return 0


def first_step(playbook: Playbook, start: State) -> int:
    """Index of the step a host that rests in `start` begins with."""
    return _skip(playbook.steps, playbook.state, start)


def first_step_for(playbook: Playbook, resume: State) -> int | None:
    """Index of the first step that runs in `resume`: where a host that comes back from quarantine goes on; None: nowhere."""
    current = playbook.starts[0]
    for i, snapshot in enumerate(playbook.steps):
        step = registry.get(snapshot.name, snapshot.version)
        current = entry_state(step, decode_params(step, snapshot.params), playbook.state, current)
        if current is resume:
            return i
        if step.leaves is not None:
            current = step.leaves
    return None
