"""The zipapps, built from this very package: same sources, same bytes; their sha256 is their name on the hosts."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import io
import zipfile
from pathlib import Path
from typing import Literal, NamedTuple

Name = Literal["report", "host"]
_EPOCH = (1980, 1, 1, 0, 0, 0)
_MAIN = "import sys\n\nfrom {name}.__main__ import main\n\nsys.exit(main())\n"


class Built(NamedTuple):
    """`digest` is the sha256 of `data` in hex."""

    name: str
    data: bytes
    digest: str


def _pynvml() -> bytes:
    """The installed nvidia-ml-py, unmodified. Raises FileNotFoundError when it is not installed."""
    spec = importlib.util.find_spec("pynvml")
    if spec is None or spec.origin is None:
        raise FileNotFoundError("nvidia-ml-py is not installed: the report probe cannot be built")
    return Path(spec.origin).read_bytes()


def licence_of(source: bytes) -> bytes:
    """The comment block at the head of pynvml.py, which is its licence; it also stays in the file itself."""
    kept = []
    for line in source.splitlines():
        if not line.startswith(b"#"):
            break
        kept.append(line.lstrip(b"# ").rstrip())
    return b"\n".join(kept).strip() + b"\n"


@functools.cache
def build(name: Name) -> Built:
    """Pack the program `name`. Raises ValueError for another name, OSError when a source cannot be read."""
    if name not in ("report", "host"):
        raise ValueError(f"there is no host-side program {name!r}")
    here = Path(__file__).parent / name
    members = {"__main__.py": _MAIN.format(name=name).encode()}
    for source in sorted(here.glob("*.py")):
        members[f"{name}/{source.name}"] = source.read_bytes()
    if name == "report":
        members["pynvml.py"] = _pynvml()
        members["LICENSE.nvidia-ml-py"] = licence_of(members["pynvml.py"])
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for path in sorted(members):
            entry = zipfile.ZipInfo(path, _EPOCH)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = 0o644 << 16
            entry.create_system = 3
            archive.writestr(entry, members[path], compresslevel=9)
    data = buffer.getvalue()
    return Built(name, data, hashlib.sha256(data).hexdigest())
