"""Host ranges: how a technician names hosts. One grammar for the hand, the API's filter and playbook selectors.

::

    lou-a01-[01-18]            names, zero padding kept; several ranges in one word multiply
    rack=lou-a01               a field: name id site rack sku state serial domain position
    sku=hgx.*                  a glob on a field
    state=available,rack=a1    comma within one term: both must hold
    lou-a01-[01-04] oh-b02-01  terms side by side: either
    -lou-a01-03                a leading minus takes away
    all                        every host

`@file` and `-` (standard input) are the hand's business: it replaces them by words before it calls here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from fnmatch import fnmatchcase

from fleetd.kit.errors import Invalid

FIELDS = ("name", "id", "site", "rack", "sku", "state", "serial", "domain", "position")
MAX_TEXT = 65_536
MAX_NAMES = 100_000  # of one text
MAX_DIGITS = 12
MAX_NAME = 253
MAX_BRACKETS = 6
_BRACKET = re.compile(r"\[([^\[\]]*)\]")
_WORD = re.compile(r"^[A-Za-z0-9._\-*?]+$")

Fields = Mapping[str, str]
Predicate = Callable[[Fields], bool]


def expand(word: str) -> list[str]:
    """`a[01-03,7]` -> a01 a02 a03 a7. Raises Invalid for a bad, empty, backward or huge range."""
    return _expand(word, MAX_NAMES)


def _expand(word: str, most: int) -> list[str]:
    if len(_BRACKET.sub("", word)) > MAX_NAME or word.count("[") > MAX_BRACKETS:
        raise Invalid(f"host range {_short(word)} is no name: too long, or too many brackets")
    names = [""]
    rest = word
    while match := _BRACKET.search(rest):
        parts = _numbers(match.group(1), word, most)
        if len(names) * len(parts) > most:
            raise _too_many(word)
        names = [name + rest[: match.start()] + part for name in names for part in parts]
        rest = rest[match.end() :]
    names = [name + rest for name in names]
    if not all(_WORD.match(name) for name in names):
        raise Invalid(f"host range {_short(word)} cannot be read", remedy="write lou-a01-[01-18], rack=lou-a01 or all")
    return names


def _numbers(body: str, word: str, most: int) -> list[str]:
    found: list[str] = []
    for piece in body.split(","):
        low, dash, high = piece.partition("-")
        if not _is_number(low) or (dash and not _is_number(high)):
            raise Invalid(f"host range {_short(word)}: {_short(piece)} is not a number or a range of numbers")
        first, last = int(low), int(high or low)
        if last < first:
            raise Invalid(f"host range {_short(word)}: {_short(piece)} runs backwards")
        if len(found) + last - first >= most:
            raise _too_many(word)
        found.extend(str(number).zfill(len(low)) for number in range(first, last + 1))
    return found


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= MAX_DIGITS


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:60] + "…")


def _too_many(word: str) -> Invalid:
    return Invalid(
        f"host range {_short(word)} names more than {MAX_NAMES} hosts", remedy="write all, or name a rack: rack=…"
    )


class _Budget:
    """How many names a whole text may still write out: many terms must not do what one may not."""

    def __init__(self) -> None:
        self._left = MAX_NAMES

    def expand(self, word: str) -> list[str]:
        names = _expand(word, self._left)
        self._left -= len(names)
        return names


def compile_range(text: str) -> Predicate:
    """A predicate over the fields of one host. Raises Invalid; an empty text is invalid, `all` matches every host."""
    if len(text) > MAX_TEXT:
        raise Invalid(f"the host range is longer than {MAX_TEXT} characters")
    budget = _Budget()
    wanted: list[Predicate] = []
    unwanted: list[Predicate] = []
    for term in text.split():
        negative = term.startswith("-") and len(term) > 1
        (unwanted if negative else wanted).append(_term(term[1:] if negative else term, budget))
    if not wanted and not unwanted:
        raise Invalid("the host range is empty", remedy="name hosts, or write all")
    return lambda host: (not wanted or any(p(host) for p in wanted)) and not any(p(host) for p in unwanted)


def _split(term: str) -> list[str]:
    """Split at commas outside brackets."""
    parts, depth, start = [], 0, 0
    for i, char in enumerate(term):
        depth += (char == "[") - (char == "]")
        if char == "," and depth == 0:
            parts.append(term[start:i])
            start = i + 1
    return [*parts, term[start:]]


def _term(term: str, budget: _Budget) -> Predicate:
    parts = _split(term)
    if sum("=" not in part and part != "all" and not _is_glob(part) for part in parts) > 1:
        raise Invalid(
            f"host range {_short(term)}: no host has two names", remedy="put a blank between names, not a comma"
        )
    tests = [_atom(part, budget) for part in parts]
    return lambda host: all(test(host) for test in tests)


def _is_glob(word: str) -> bool:
    return "*" in word or "?" in word


def _atom(part: str, budget: _Budget) -> Predicate:
    key, equals, value = part.partition("=")
    if equals and key.startswith("-"):
        inner = _field(key[1:], value, budget)
        return lambda host: not inner(host)
    if part == "all":
        return lambda host: True
    if equals:
        return _field(key, value, budget)
    matches = _matcher(budget.expand(part))
    return lambda host: matches(host.get("name", "")) or matches(host.get("id", ""))


def _field(key: str, value: str, budget: _Budget) -> Predicate:
    if key not in FIELDS:
        raise Invalid(f"host range: there is no field {_short(key)}", remedy=f"use one of: {', '.join(FIELDS)}")
    matches = _matcher(budget.expand(value))
    return lambda host: matches(host.get(key, ""))


def _matcher(words: list[str]) -> Callable[[str], bool]:
    """Plain words by a set, so that a long range costs no more than a short one; globs one by one."""
    exact = frozenset(words)
    globs = [word for word in words if _is_glob(word)]
    return lambda text: text in exact or any(fnmatchcase(text, glob) for glob in globs)


def select(text: str, hosts: Iterable[Fields]) -> list[Fields]:
    """Those hosts that the range names, in the order given."""
    test = compile_range(text)
    return [host for host in hosts if test(host)]
