"""The contracts of the rooms fire: a forbidden import fails the lint, and so does a package nobody placed."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.slow


def lint(folder: Path) -> subprocess.CompletedProcess[str]:
    """`make lint`'s contract check over a copy of the tree."""
    return subprocess.run(
        [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    shutil.copytree(ROOT / "fleetd", tmp_path / "fleetd", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "setup.cfg", tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("module", "forbidden", "contract"),
    [
        ("checks/gpu.py", "fleetd.store.database", "Checks judge"),
        ("lifecycle/engine.py", "fleetd.drivers.bmc.redfish", "never on a wire"),
        ("cli/host.py", "fleetd.lifecycle.engine", "hand"),
        ("drivers/bmc/ipmi.py", "fleetd.sim.site", "simulator"),
        ("kit/clock.py", "fleetd.model.host", "room below"),
        ("wire/rmcp.py", "asyncio", "no I/O"),
    ],
)
def test_a_forbidden_import_fails_the_lint(copy: Path, module: str, forbidden: str, contract: str) -> None:
    path = copy / "fleetd" / module
    path.write_text(path.read_text() + f"\nimport {forbidden}\n")
    found = lint(copy)
    assert found.returncode != 0
    broken = [line for line in found.stdout.splitlines() if "BROKEN" in line]
    assert any(contract in line for line in broken), found.stdout[-2000:]


def test_a_new_package_must_be_placed(copy: Path) -> None:
    (copy / "fleetd" / "attic").mkdir()
    (copy / "fleetd" / "attic" / "__init__.py").write_text('"""Nobody knows."""\n')
    found = lint(copy)
    assert found.returncode != 0
    assert "attic" in found.stdout + found.stderr


def test_the_tree_as_it_is_keeps_every_contract(copy: Path) -> None:
    found = lint(copy)
    assert found.returncode == 0, found.stdout[-2000:]


def test_no_module_is_longer_than_600_lines_and_each_says_why_it_is_there() -> None:
    long, mute = [], []
    for path in (ROOT / "fleetd").rglob("*.py"):
        text = path.read_text()
        if text.count("\n") > 600:
            long.append(path.name)
        if text.strip() and not text.lstrip().startswith('"""'):
            mute.append(str(path.relative_to(ROOT)))
    assert long == []
    assert mute == []
