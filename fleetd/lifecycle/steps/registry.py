"""Which steps exist: every Step class in this package, by name. A new step is one new file and nothing else."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from functools import cache

import fleetd.lifecycle.steps as package
from fleetd.kit.errors import NotFound
from fleetd.lifecycle.steps.base import Step


@cache
def every() -> dict[str, Step]:
    """One instance of each step, by name."""
    found: dict[str, Step] = {}
    for module in pkgutil.iter_modules(package.__path__):
        loaded = importlib.import_module(f"{package.__name__}.{module.name}")
        for value in vars(loaded).values():
            concrete = isinstance(value, type) and issubclass(value, Step) and not inspect.isabstract(value)
            if concrete and value.__module__ == loaded.__name__:
                assert value.name not in found, f"two steps are named {value.name}"
                found[value.name] = value()
    return found


def get(name: str, version: int | None = None) -> Step:
    """The step, in the version a run froze. Raises NotFound."""
    step = every().get(name)
    if step is None or (version is not None and step.version != version):
        wanted = name if version is None else f"{name}@{version}"
        raise NotFound(
            f"there is no step `{wanted}`", why=f"known: {', '.join(sorted(every()))}", remedy="fleetctl playbook list"
        )
    return step
