"""BMCs nobody here wrote, in front of machines of the lab: OpenIPMI's ipmi_sim and sushy-tools' emulator."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import socket
import ssl
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

from fleetd.wire import fru
from tests.e2e.lab import Lab, Process, tool
from tests.e2e.machine import VERSION, Machine

VENV = Path(os.environ.get("FLEETD_PEERS_VENV", Path(__file__).parents[2] / ".venv-peers"))
HERE = Path(__file__).parent

_LAN = """\
name "{name}"
set_working_mc 0x20
  startlan 1
    addr {address} 623
    priv_limit admin
    allowed_auths_callback none md2 md5 straight
    allowed_auths_user none md2 md5 straight
    allowed_auths_operator none md2 md5 straight
    allowed_auths_admin none md2 md5 straight
    guid {guid}
  endlan
  chassis_control "{chassis} 0x20"
  user 1 false "" "none" user 2 none md2 md5 straight
  user 2 true "{user}" "{password}" admin 10 none md2 md5 straight
"""
_EMULATION = """\
mc_setbmc 0x20
mc_add 0x20 0 no-device-sdrs 0x23 9 8 0x9f 0x1291 0xf02 persist_sdr
sel_enable 0x20 1000 0x0a
mc_add_fru_data 0x20 0 {size} data {data}
mc_enable 0x20
"""


async def ipmi(lab: Lab, machine: Machine, address: str, user: str, password: str) -> Process:
    """ipmi_sim at `address`, port 623, behind which the machine stands. Started again, it keeps its passwords."""
    folder = machine.folder / "ipmi"
    if not folder.exists():
        (folder / "state").mkdir(parents=True)
        lab.address(address)
    spec = machine.spec
    data = fru.build(
        fru.Board("Fleetd Lab", "Lab Board", f"B{spec.serial}", "LB1"),
        fru.Product("Fleetd Lab", spec.product, "LM1", "1", spec.serial),
    )
    (folder / "lan.conf").write_text(
        _LAN.format(
            name=spec.name,
            address=address,
            # The GUID of a system is its SMBIOS UUID, byte for byte: the first three fields lowest byte first.
            guid=uuid.UUID(spec.uuid).bytes_le.hex(),
            chassis=f"{sys.executable} -I -S {HERE / 'chassis.py'} {machine.socket}",
            user=user,
            password=password,
        )
    )
    (folder / "emu").write_text(_EMULATION.format(size=len(data), data=" ".join(f"{byte:#04x}" for byte in data)))
    return await lab.spawn(
        f"{spec.name}-ipmi",
        *(tool("ipmi_sim"), "-c", str(folder / "lan.conf"), "-f", str(folder / "emu")),
        *("-s", str(folder / "state"), "-n"),
    )


def certificate(folder: Path) -> tuple[Path, Path, str]:
    """A self-made certificate, as BMCs bring it: (certificate, key, sha256 of its DER)."""
    key, cert = folder / "key.pem", folder / "cert.pem"
    subprocess.run(
        [
            *(tool("openssl"), "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"),
            *("-keyout", str(key), "-out", str(cert), "-days", "2", "-subj", "/CN=bmc"),
        ],
        check=True,
        capture_output=True,
    )
    return cert, key, hashlib.sha256(ssl.PEM_cert_to_DER_cert(cert.read_text())).hexdigest()


async def redfish(lab: Lab, machine: Machine, address: str, user: str, password: str) -> tuple[Process, str]:
    """sushy-emulator at `address`, port 443, behind TLS; returns it and the pin of its certificate."""
    python = VENV / "bin/python"
    if not python.exists():
        pytest.fail(f"no {python}: make .venv-peers/.installed")
    folder = machine.folder / "redfish"
    folder.mkdir()
    lab.address(address)
    cert, key, pin = certificate(folder)
    spec = machine.spec
    settings = {
        "socket": str(machine.socket),
        "uuid": spec.uuid,
        "name": spec.name,
        "serial": spec.serial,
        "mode": "UEFI" if spec.firmware == "uefi" else "Legacy",
        "bios": VERSION,
        "mac": spec.mac,
        "user": user,
        "password": password,
        "passwords": str(folder / "passwords"),
    }
    (folder / "settings.json").write_text(json.dumps(settings))
    (folder / "emulator.conf").write_text(
        f"SUSHY_EMULATOR_STATE_DIR = {str(folder)!r}\n"
        f"SUSHY_EMULATOR_AUTH_FILE = {str(folder / 'passwords')!r}\n"
        "SUSHY_EMULATOR_FAKE_DRIVER = True\n"
    )
    process = await lab.spawn(
        f"{spec.name}-redfish",
        *(str(python), str(HERE / "sushy_machine.py"), str(folder / "settings.json")),
        *("--fake", "--config", str(folder / "emulator.conf"), "-i", address, "-p", "443"),
        *("--ssl-certificate", str(cert), "--ssl-key", str(key)),
        environment={"TMPDIR": str(folder)},
    )
    await _listens(lab, process, address, 443)
    return process, pin


async def _listens(lab: Lab, process: Process, address: str, port: int) -> None:
    async with asyncio.timeout(60):
        while True:
            assert process.code is None, f"{process.name} ended: {process.log.read_text()[-2000:]}"
            with lab.inside(), socket.socket() as probe:
                probe.settimeout(1)
                if probe.connect_ex((address, port)) == 0:
                    return
            await asyncio.sleep(0.1)
