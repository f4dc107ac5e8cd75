"""What the end-to-end tests boot and install, built once for the same sources: the deploy environment and a small system."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build"


def _inputs(folder: Path) -> str:
    """A name for what is built from these sources and from the packages this machine can get."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            digest.update(str(path.relative_to(ROOT)).encode() + b"\0" + path.read_bytes())
    for path in sorted(Path("/var/lib/apt/lists").glob("*Packages*")):
        digest.update(f"{path.name} {path.stat().st_size} {path.stat().st_mtime_ns}".encode())
    return digest.hexdigest()[:16]


def deploy_files() -> Path:
    """The folder of the deploy environment, flavour mini. FLEETD_E2E_DEPLOY names a ready one."""
    if ready := os.environ.get("FLEETD_E2E_DEPLOY"):
        return Path(ready).resolve()
    folder = BUILD / f"e2e-deploy-{_inputs(ROOT / 'deploy')}"
    if not (folder / "manifest.json").exists():
        for old in BUILD.glob("e2e-deploy-*"):
            shutil.rmtree(old)
        part = folder.with_name(folder.name + ".part")
        _build("deploy.build", "--flavour", "mini", "--out", str(part), "--cache", str(BUILD / "packages"))
        part.rename(folder)
    return folder


def system_image() -> Path:
    """The packed image of the small system that is installed. FLEETD_E2E_OS names another folder to keep it in."""
    folder = Path(os.environ.get("FLEETD_E2E_OS", BUILD / "e2e-os"))
    said = _build("tests.e2e.osimage", str(folder))
    return Path(said.split()[-1]).with_suffix(".raw.zst").resolve()


def _build(*module: str) -> str:
    """The output of `python -m MODULE …`."""
    done = subprocess.run([sys.executable, "-m", *module], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.fail(f"{' '.join(module)} failed:\n{done.stdout[-3000:]}{done.stderr[-3000:]}")
    return done.stdout
