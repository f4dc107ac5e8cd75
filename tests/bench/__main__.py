"""`make bench`: every measurement in this folder, one after the other. Prints; asserts nothing."""

import importlib
import pkgutil
import sys
from pathlib import Path


def main() -> None:
    """Run `main()` of each module here; a peer that is not installed is said, not hidden."""
    names = sys.argv[1:] or sorted(
        m.name for m in pkgutil.iter_modules([str(Path(__file__).parent)]) if m.name != "__main__"
    )
    for name in names:
        print(f"\n== {name}", flush=True)
        importlib.import_module(f"tests.bench.{name}").main()


main()
