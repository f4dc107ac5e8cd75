"""The bench a check writes on: it notes what is wrong, what is unread, what was compared, and words the verdict.

The rule lives here once: anything wrong is `fail`; else anything unread, put off, or nothing compared at all is
`not_run`; only the rest is `pass`. Texts come from a host that may be hostile: they are stripped of control
characters and cut before they reach a terminal, a log or a certificate.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any, TypeVar

import msgspec

from fleetd.model.check import Action, Outcome, Verdict
from fleetd.model.report import Gpu, Reading, Report
from fleetd.model.sku import Sku

T = TypeVar("T")
LONGEST = 120  # characters of one reading that people still read
MOST = 200  # evidence entries of one verdict: a report may be megabytes
_STRENGTH = {action: i for i, action in enumerate(Action)}  # Action is declared weakest first
_REREAD = (
    "see what the probe could not read (`fleetctl host why HOST`), then retest; fleetd takes an unread fact for no "
    "proof"
)


def clean(value: object, longest: int = LONGEST) -> str:
    """One printable line of at most `longest` characters, whatever the host sent."""
    try:
        text = _words(value)[: longest + 1]
    except RecursionError:  # lists in lists in lists: the decoder takes more of them than this
        text = "nested too deep"
    if not text.isprintable():
        text = "".join(c if c.isprintable() else "?" for c in text)
    return text if len(text) <= longest else text[: longest - 1] + "…"


def _words(value: object) -> str:
    if isinstance(value, msgspec.Struct):
        return ", ".join(f"{name} {_words(getattr(value, name))}" for name in value.__struct_fields__)
    if isinstance(value, list):
        return ", ".join(_words(item) for item in value[:MOST]) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return value if isinstance(value, str) else str(value)


def stronger(first: Action, second: Action) -> Action:
    """The one further up the ladder."""
    return first if _STRENGTH[first] >= _STRENGTH[second] else second


class Judge:
    """Collects for one check on one subject; `verdict()` words the result."""

    def __init__(self, check: str, subject: str, action: Action, remedy: str) -> None:
        self.check, self.subject = check, subject
        self._action, self._remedy = action, remedy
        self._wrong: list[str] = []
        self._unread: list[str] = []
        self._later: list[str] = []
        self._later_remedy = ""
        self._parts: dict[str, None] = {}
        self._unread_parts: dict[str, None] = {}
        self._asked: tuple[Action, str] | None = None
        self._compared = 0
        self._values: dict[str, Counter[str]] = {}
        self._evidence: dict[str, str] = {}
        self.expected = ""
        self.measured = ""

    def note(self, name: str, value: object) -> None:
        """Keep a raw reading as evidence."""
        if len(self._evidence) < MOST:
            self._evidence[clean(name)] = clean(value)

    def read(self, part: str, what: str, reading: Reading[T]) -> T | None:
        """The value, noted as evidence; None when it is absent, noted as unread."""
        if reading.v is None:
            self.unread(part, f"{what} not read", reading.reason)
            return None
        self.note(f"{part} {what}".strip(), reading.v)
        self._values.setdefault(what, Counter())[clean(reading.v)] += 1
        return reading.v

    def unread(self, part: str, what: str, why: str = "") -> None:
        """Something this check needs is not known: it can no longer pass."""
        text = f"{part}: {what}" if part else what
        self._unread.append(clean(f"{text} ({why})" if why else text))
        if part:
            self._unread_parts[clean(part)] = None

    def later(self, part: str, what: str, remedy: str) -> None:
        """Not finished on the host's side: neither good nor bad yet."""
        self._later.append(clean(f"{part}: {what}" if part else what))
        self._later_remedy = remedy
        if part:
            self._unread_parts[clean(part)] = None

    def must(self, good: bool, part: str, what: str, action: Action | None = None, remedy: str = "") -> bool:
        """One comparison. `what` words the deviation, for when it is not good."""
        self._compared += 1
        if not good:
            self._wrong.append(clean(f"{part}: {what}" if part else what))
            if part:
                self._parts[clean(part)] = None
            asked = (action or self._action, remedy or self._remedy)
            if self._asked is None or stronger(asked[0], self._asked[0]) is not self._asked[0]:
                self._asked = asked
        return good

    def equal(self, part: str, what: str, reading: Reading[T], wanted: T, action: Action | None = None) -> None:
        """Read and compare."""
        value = self.read(part, what, reading)
        if value is not None:
            self.must(value == wanted, part, f"{what} {clean(value)}, must be {clean(wanted)}", action)

    def gpus(self, facts: Report, profile: Sku) -> Iterator[tuple[str, Gpu]]:
        """("GPU 3", facts) of every GPU that opened; a lost or missing one is unread: nothing passes without it.

        None of a host whose SKU has no GPUs: what shows up there is the finding of `gpu.absent`.
        """
        nvml = facts.nvml
        if profile.gpu is None:
            return
        if not nvml.gpus and self.read("", "NVML", nvml.init) is None:
            return
        wanted = profile.gpu.count
        if len(nvml.gpus) != wanted:
            self.unread("", f"{len(nvml.gpus)} of {wanted} GPUs in the report")
        seen: set[int] = set()
        for gpu in nvml.gpus[: 4 * wanted]:
            part = f"GPU {gpu.index}"
            if gpu.index in seen:
                self.unread(part, "stands in the report twice")
            elif gpu.handle.v is not True:
                self.unread(part, "does not answer", gpu.handle.reason)
            else:
                yield part, gpu
            seen.add(gpu.index)

    def verdict(self) -> Verdict:
        """What the notes amount to."""
        if self._wrong:
            action, remedy = self._asked or (self._action, self._remedy)
            return self._say(Outcome.FAIL, self._wrong + self._unread + self._later, self._parts, action, remedy)
        if self._unread:
            return self._say(Outcome.NOT_RUN, self._unread + self._later, self._unread_parts, Action.RETEST, _REREAD)
        if self._later:
            return self._say(Outcome.NOT_RUN, self._later, self._unread_parts, Action.RETEST, self._later_remedy)
        if not self._compared:
            return self._say(Outcome.NOT_RUN, ["nothing was compared"], {}, Action.RETEST, _REREAD)
        return self._say(Outcome.PASS, [self.measured] if self.measured else self._summary(), {}, None, "")

    def _summary(self) -> list[str]:
        """What was read, by kind: `memory MiB 81559 (8x)`."""
        lines = []
        for what, values in self._values.items():
            times = f" ({values.total()}x)" if values.total() > 1 else ""
            shown = next(iter(values)) if len(values) == 1 else f"{len(values)} different"
            lines.append(f"{what} {clean(shown, 60)}{times}")
        return lines or [self.expected or "as expected"]

    def _say(
        self, outcome: Outcome, lines: list[str], parts: dict[str, Any], action: Action | None, remedy: str
    ) -> Verdict:
        shown = lines[:6] + ([f"and {len(lines) - 6} more"] if len(lines) > 6 else [])
        names = list(parts)[:64]
        return Verdict(
            check=self.check,
            subject=self.subject,
            outcome=outcome,
            measured=clean("; ".join(shown), 600),
            expected=clean(self.expected, 300),
            parts=tuple(names),
            action=action,
            remedy=remedy.replace("PARTS", ", ".join(names[:8]) or "the part named above"),
            evidence=dict(self._evidence),
        )
