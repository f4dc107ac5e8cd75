"""`python -m fleetd.sim.nvml_runner SCENARIO.json ZIPAPP ARGS…`: the real zipapp as a process, on a simulated NVML.

Only the loading of libnvidia-ml.so.1 is replaced. Imports are few, because a rehearsal starts hundreds of these; for
the same reason the compiled form of the zipapp's own pynvml is kept beside it, named by the digest of its source.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib.abc
import importlib.machinery
import importlib.util
import json
import marshal
import os
import runpy
import sys
import types
import zipfile
from typing import Any

from fleetd.sim.nvml import FakeNvml


class _Compiled(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds `pynvml` in the zipapp; what it executes is compiled from the source that stands there."""

    def __init__(self, zipapp: str) -> None:
        self._zipapp = zipapp

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        return importlib.util.spec_from_loader(name, self) if name == "pynvml" else None

    def exec_module(self, module: types.ModuleType) -> None:
        with zipfile.ZipFile(self._zipapp) as archive:
            source = archive.read("pynvml.py")
        tag = f"{hashlib.sha256(source).hexdigest()[:32]}-{sys.implementation.cache_tag}"
        kept = os.path.join(os.path.dirname(self._zipapp), f"pynvml-{tag}.marshal")
        try:
            with open(kept, "rb") as file:
                code = marshal.load(file)
        except (OSError, ValueError, EOFError, TypeError):
            code = compile(source, "pynvml.py", "exec", dont_inherit=True)
            part = f"{kept}.{os.getpid()}"
            with open(part, "wb") as file:
                marshal.dump(code, file)
            os.replace(part, kept)
        exec(code, module.__dict__)


def main() -> None:
    scenario, zipapp, *arguments = sys.argv[1:]
    with open(scenario, "rb") as file:
        fake = FakeNvml(json.load(file))
    real = ctypes.CDLL

    def load(name: Any, *args: Any, **kwargs: Any) -> Any:
        return fake if name == "libnvidia-ml.so.1" else real(name, *args, **kwargs)

    vars(ctypes)["CDLL"] = load
    sys.meta_path.insert(0, _Compiled(zipapp))
    sys.argv = [zipapp, *arguments]
    runpy.run_path(zipapp, run_name="__main__")


if __name__ == "__main__":
    main()
