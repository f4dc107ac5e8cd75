"""The report as a program: survives whatever is missing, hangs or breaks, and still prints one good report."""

from __future__ import annotations

import subprocess
import sys

import pytest

from fleetd.model.report import read_report
from fleetd.probe.build import build, licence_of
from fleetd.probe.report import __main__ as program
from fleetd.probe.report.files import Table
from fleetd.sim.hardware import describe
from fleetd.sim.nvml import loaded
from tests.host_rig import SKUS, sim_host


def test_an_empty_host_gives_a_report_of_absences():
    report = read_report(program.gather(Table({}, {}), _NoLibrary(), nonce="n", host="h"))
    assert report.boot_id.absent == "no such file or directory"
    assert report.nvml.init.absent == "LibraryNotFound"
    assert not any(
        r.known for r in (report.pci, report.nics, report.nvme, report.xids, report.system.cores, report.identity.uuid)
    )


class _NoLibrary:
    class NVMLError(Exception):
        pass

    class NVMLError_LibraryNotFound(NVMLError):  # noqa: N801 - as NVML names it
        pass

    def nvmlInit(self):  # noqa: N802
        raise self.NVMLError_LibraryNotFound


async def test_a_slip_in_one_section_does_not_cost_the_others(monkeypatch):
    def broken(_files):
        raise ZeroDivisionError("our own slip")

    monkeypatch.setattr(program, "system", broken)
    hardware = describe(sim_host())
    report = read_report(
        program.gather(Table(hardware.contents, hardware.links), loaded(hardware.nvml), nonce="n", host="h")
    )
    assert "our own slip" in report.system.kernel.absent
    assert len(report.nvml.gpus) == 8


@pytest.mark.slow
@pytest.mark.parametrize("name", SKUS)
async def test_any_one_file_may_be_missing_or_odd(name):
    hardware = describe(sim_host(profile=name))
    nvml = {**hardware.nvml, "init": 9}
    for n, path in enumerate(sorted(hardware.contents)):
        if n % 7:  # a seventh of them: each takes a whole report
            continue
        for data in (None, b"", b"\xff\xfe", b"-", b"nan"):
            contents = {k: v for k, v in hardware.contents.items() if k != path}
            if data is not None:
                contents[path] = data
            read_report(program.gather(Table(contents, hardware.links), loaded(nvml), nonce="n", host="h"))


@pytest.mark.slow
async def test_a_hung_driver_ends_at_the_time_limit_and_keeps_the_rest(tmp_path):
    from fleetd.sim.hardware import scenario_file

    hardware = describe(sim_host())
    hardware.write(tmp_path / "root")
    hung = hardware._replace(nvml={**hardware.nvml, "hang": {"nvmlDeviceGetPlatformInfo": 3600}})
    scenario_file(hung, tmp_path / "scenario.json")
    (tmp_path / "report.pyz").write_bytes(build("report").data)
    done = subprocess.run(  # noqa: ASYNC221 - nothing else runs in this test
        [
            *(sys.executable, "-m", "fleetd.sim.nvml_runner", tmp_path / "scenario.json", tmp_path / "report.pyz"),
            *("--nonce", "n", "--host", "h", "--root", tmp_path / "root", "--limit", "1"),
        ],
        capture_output=True,
        check=True,
        timeout=30,
    )
    report = read_report(done.stdout)
    assert report.nvml.driver.v == "590.48.01"
    assert report.nvme.absent == "not finished within the time limit"
    assert len(report.nics.v) == 8


@pytest.mark.slow
def test_the_zipapp_runs_on_this_machine_as_it_is(tmp_path):
    path = tmp_path / "report.pyz"
    path.write_bytes(build("report").data)
    done = subprocess.run(
        [sys.executable, "-I", "-S", path, "--nonce", "n-1", "--host", "h", "--suite", "quick"],
        capture_output=True,
        check=True,
        timeout=60,
        cwd=tmp_path,
    )
    report = read_report(done.stdout)
    assert report.nonce == "n-1"
    assert report.boot_id.known


def test_same_sources_same_bytes():
    first = build("report")
    build.cache_clear()
    assert build("report") == first
    assert build("host").digest != first.digest
    with pytest.raises(ValueError, match="no host-side program"):
        build("other")  # type: ignore[arg-type]


def test_the_licence_of_what_is_vendored_travels_with_it():
    import io
    import zipfile
    from pathlib import Path

    import pynvml

    with zipfile.ZipFile(io.BytesIO(build("report").data)) as archive:
        assert archive.read("pynvml.py") == Path(pynvml.__file__).read_bytes()
        assert b"Redistributions of source code must retain" in archive.read("LICENSE.nvidia-ml-py")
        assert not [n for n in archive.namelist() if n.startswith("fleetd")]
    assert licence_of(b"# a\n# b\nimport x\n") == b"a\nb\n"
