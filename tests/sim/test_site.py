"""A site file becomes machines on real wires; the wires end with it."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import io
import os
import signal
import socket
import ssl
from pathlib import Path
from typing import Any

import aiohttp
import asyncssh
import pytest
from aiohttp import web

from fleetd.kit.errors import Conflict, Invalid, NotFound
from fleetd.model.power import BootDevice
from fleetd.sim import site as site_module
from fleetd.sim.demo import DemoPlan, build_demo
from fleetd.sim.demo_inventory import H100, Ports
from fleetd.sim.record import read_record
from fleetd.sim.site import SimSite, free_ports, simulate
from fleetd.sim.sitefile import load_site

# Get Channel Authentication Capabilities outside a session (IPMI 2.0, 22.13), channel 0Eh, operator
CAPABILITIES = bytes.fromhex("0600ff07 00 00000000 00000000 09 2018c8 8100 388e03 b6".replace(" ", ""))


@pytest.fixture
def plan(tmp_path: Path) -> DemoPlan:
    return build_demo(tmp_path, 11, size="small", ports=free_ports())


async def system(site: SimSite, host: str) -> dict[str, Any]:
    """The ComputerSystem of one host, read as any Redfish client would."""
    machine = site.hosts[host]
    spec = site.site.inventory.hosts[host]
    login = site.site.file.credentials[spec.bmc.credentials]
    trusting = ssl.create_default_context()
    trusting.check_hostname, trusting.verify_mode = False, ssl.CERT_NONE
    url = f"https://{machine.bmc_address}:{site.ports.redfish}"
    auth = {"Authorization": "Basic " + base64.b64encode(f"{login.username}:{login.password}".encode()).decode()}
    async with (
        aiohttp.ClientSession(
            headers=auth, connector=aiohttp.TCPConnector(ssl=trusting), timeout=aiohttp.ClientTimeout(5)
        ) as client,
        client.get(f"{url}/redfish/v1/Systems") as listed,
    ):
        for member in (await listed.json())["Members"]:
            async with client.get(url + member["@odata.id"]) as answer:
                found: dict[str, Any] = await answer.json()
                if found.get("SystemType", "Physical") == "Physical" and "HGX" not in found.get("Id", ""):
                    return found
    raise AssertionError("no system")


def serials(document: dict[str, Any]) -> set[Any]:
    return {document.get("SerialNumber"), document.get("SKU")}


async def test_each_bmc_tells_its_own_hosts_serial(plan: DemoPlan, tmp_path: Path) -> None:
    async with SimSite(load_site(tmp_path / "site.yaml")) as site:
        assert set(site.hosts) == set(plan.hosts)
        for name in ("lou-a01-02", "lou-b01-02", "lou-n01-02"):
            if name not in plan.faults:
                assert site.site.inventory.hosts[name].serial in serials(await system(site, name))


async def test_the_wildcard_listener_serves_many_and_drops_strangers(
    plan: DemoPlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(site_module, "WILDCARD_ABOVE", 0)
    async with SimSite(load_site(tmp_path / "site.yaml")) as site:
        good = [name for name in plan.hosts if name not in plan.faults and site.hosts[name].behaviour != "ipmi"]
        for name in good[:3]:
            assert site.site.inventory.hosts[name].serial in serials(await system(site, name))
        reader, writer = await asyncio.open_connection("127.99.99.99", site.ports.redfish)
        with contextlib.suppress(ConnectionResetError):
            assert await asyncio.wait_for(reader.read(1), 5) == b""
        writer.close()
        with contextlib.suppress(ConnectionResetError):
            await writer.wait_closed()


async def test_an_ipmi_bmc_answers_from_its_own_address(plan: DemoPlan, tmp_path: Path) -> None:
    async with SimSite(load_site(tmp_path / "site.yaml")) as site:
        name = next(n for n in plan.hosts if site.hosts[n].behaviour == "ipmi" and n not in plan.faults)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as console:
            console.setblocking(False)
            console.connect((site.hosts[name].bmc_address, site.ports.ipmi))
            loop = asyncio.get_running_loop()
            await loop.sock_sendall(console, CAPABILITIES)
            answer = await asyncio.wait_for(loop.sock_recv(console, 512), 5)
        assert answer[:4] == bytes.fromhex("0600ff07")


async def test_wrong_serial_and_wrong_domain_are_facts_of_the_metal(tmp_path: Path) -> None:
    build_demo(tmp_path, 11, size="small")
    text = (tmp_path / "site.yaml").read_text().partition("faults:\n")[0]
    (tmp_path / "site.yaml").write_text(
        text + "faults:\n  - {host: lou-a01-01, kind: wrong-serial}\n  - {host: lou-n01-02, kind: wrong-domain}\n"
    )
    async with SimSite(load_site(tmp_path / "site.yaml"), ports=Ports(redfish=0, ipmi=0, ssh=0)) as site:
        host, spec = site.hosts["lou-a01-01"], site.site.inventory.hosts["lou-a01-01"]
        assert host.serial != spec.serial
        assert spec.serial not in serials(await system(site, "lou-a01-01"))
        assert host.serial in serials(await system(site, "lou-a01-01"))
        trays = [site.hosts[f"lou-n01-0{i}"] for i in (1, 2, 3, 4)]
        assert len({tray.cluster_uuid for tray in trays}) == 1
        shown = trays[1].faults[0].params["cluster_uuid"]
        assert shown != trays[1].cluster_uuid
        assert set(trays[0].cluster_uuid) != {"0"}
        assert set(host.cluster_uuid) == {"0"}
        assert site.repair("lou-a01-01") == 1
        assert host.serial == spec.serial


async def test_free_ports_are_told_and_freed(plan: DemoPlan, tmp_path: Path) -> None:
    loaded = load_site(tmp_path / "site.yaml")
    async with SimSite(loaded, ports=Ports(redfish=0, ipmi=0, ssh=0)) as site:
        assert all((site.ports.redfish, site.ports.ipmi, site.ports.ssh))
        again = SimSite(loaded, ports=site.ports)
        with pytest.raises(Conflict, match="cannot listen on redfish port"):
            await again.start()
        assert not again.hosts
        assert list(site.record.of("-"))  # the record of the site that runs stays where it is
        assert len(read_record(tmp_path / "record.jsonl")) == len(site.record.entries)
        port = site.ports.redfish
    async with SimSite(loaded, ports=Ports(redfish=port, ipmi=0, ssh=0)):
        pass
    await site.stop()


async def test_a_taken_port_leaves_nothing_listening(plan: DemoPlan, tmp_path: Path) -> None:
    loaded = load_site(tmp_path / "site.yaml")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as holder:
        holder.bind(("0.0.0.0", 0))
        taken = holder.getsockname()[1]
        site = SimSite(loaded, ports=Ports(redfish=plan.ports.redfish, ipmi=taken, ssh=0))
        with pytest.raises(Conflict, match=f"ipmi port {taken}"):
            await site.start()
    async with SimSite(loaded):
        pass


async def test_the_record_names_the_seeded_faults_and_starts_anew(plan: DemoPlan, tmp_path: Path) -> None:
    loaded = load_site(tmp_path / "site.yaml")
    for _ in range(2):
        async with SimSite(loaded):
            pass
    entries = read_record(tmp_path / "record.jsonl")
    seeded = {(e.host, e.data["kind"]) for e in entries if e.what == "fault.seeded"}
    assert seeded == {(spec.host, spec.kind) for spec in plan.faults.values()}
    assert sum(e.what == "site.start" for e in entries) == 1
    assert len(read_record(tmp_path / "record.jsonl.old")) == len(entries)


async def test_breaking_repairing_and_marking(plan: DemoPlan, tmp_path: Path) -> None:
    async with SimSite(load_site(tmp_path / "site.yaml")) as site:
        name = next(n for n in plan.good if n.startswith("lou-a"))
        site.break_host(name, "gpu-off-bus", {"gpu": 1})
        site.break_host(name, "wrong-serial")
        assert site.hosts[name].fault("gpu-off-bus", fire=False) is not None
        assert site.repair(name, "gpu-off-bus") == 1
        assert [fault.kind for fault in site.hosts[name].faults] == ["wrong-serial"]
        assert site.repair(name) == 1
        assert site.hosts[name].serial == site.site.inventory.hosts[name].serial
        with pytest.raises(Invalid):
            site.break_host(name, "gpu-off-bus", {"gpu": 8})
        with pytest.raises(NotFound):
            site.break_host("nobody", "xid")
        site.mark(name, "tenant.begin", lease="lease-1")
        assert {drive.content for drive in site.hosts[name].drives} == {"tenant:lease-1"}
        with pytest.raises(Invalid):
            site.mark(name, "wipe.done")
        whats = [entry.what for entry in site.record.of(name)]
        assert whats == ["fault.seeded", "fault.seeded", "fault.repaired", "fault.repaired", "tenant.begin"]


async def test_simulate_is_ready_then_stops_on_sigterm(plan: DemoPlan, tmp_path: Path) -> None:
    out, ready = io.StringIO(), asyncio.Event()
    async with asyncio.TaskGroup() as group:
        running = group.create_task(simulate(tmp_path / "site.yaml", out=out, ready=ready))
        await asyncio.wait_for(ready.wait(), 10)
        assert f"ready: {len(plan.hosts)} hosts, {len(plan.faults)} faults" in out.getvalue()
        os.kill(os.getpid(), signal.SIGTERM)
    assert running.result() == 0
    assert out.getvalue().endswith("stopped\n")


async def test_simulate_says_what_is_wrong_and_how_to_go_on(plan: DemoPlan, tmp_path: Path) -> None:
    out = io.StringIO()
    path = tmp_path / "site.yaml"
    path.write_text(path.read_text().replace("seed:", "sed:"))
    assert await simulate(path, out=out) == 2
    assert "site.yaml:2: unknown key `sed`" in out.getvalue()
    assert "try: " in out.getvalue()
    assert await simulate(tmp_path / "none.yaml", out=io.StringIO()) == 5


@pytest.mark.slow
async def test_a_thousand_hosts_start_at_once(tmp_path: Path) -> None:
    build_demo(tmp_path, 1, size="small")
    for old in (tmp_path / "inventory/racks").rglob("*.yaml"):
        old.unlink()
    for rack in range(100):
        hosts = "\n".join(
            f"  - {{name: r{rack}-{i}, position: {1 + 6 * i}, sku: {H100}, serial: S{rack}X{i}, boot_mac: 04:3f:72:aa:{rack:02x}:{i:02x},"
            f" bmc: {{protocol: redfish, address: 127.1.{rack}.{i + 1}:17443, credentials: factory-dell}}}}"
            for i in range(10)
        )
        (tmp_path / f"inventory/racks/ohio/r{rack}.yaml").parent.mkdir(exist_ok=True)
        (tmp_path / f"inventory/racks/ohio/r{rack}.yaml").write_text(f"rack: r{rack}\nsite: ohio\nhosts:\n{hosts}\n")
    text = (tmp_path / "site.yaml").read_text().partition("faults:\n")[0]
    (tmp_path / "site.yaml").write_text(text)
    loaded = load_site(tmp_path / "site.yaml")
    loop = asyncio.get_running_loop()
    began = loop.time()
    async with SimSite(loaded, ports=Ports(redfish=0, ipmi=0, ssh=0)) as site:
        assert loop.time() - began < 2.0
        assert len(site.hosts) == 1000
        assert "S99X9" in serials(await system(site, "r99-9"))


@pytest.mark.slow
async def test_a_host_boots_from_its_own_address_and_lets_its_key_in(plan: DemoPlan, tmp_path: Path) -> None:
    client_key = asyncssh.generate_private_key("ssh-ed25519")
    met: asyncio.Queue[tuple[str, dict[str, Any]]] = asyncio.Queue()

    async def script(request: web.Request) -> web.Response:
        base = f"http://{request.host}"
        return web.Response(text=f"#!ipxe\nkernel vmlinuz fleetd.url={base} fleetd.token=t0ken\nboot\n")

    async def keys(request: web.Request) -> web.Response:
        assert request.headers["Authorization"] == "Bearer t0ken"
        return web.Response(text=client_key.export_public_key("openssh").decode())

    async def hello(request: web.Request) -> web.Response:
        met.put_nowait((request.remote or "", await request.json()))
        return web.Response(status=204)

    app = web.Application()
    app.router.add_get("/boot/{mac}.ipxe", script)
    app.router.add_get("/deploy/authorized_keys", keys)
    app.router.add_post("/deploy/hello", hello)
    runner = web.AppRunner(app)
    await runner.setup()
    listener = web.TCPSite(runner, "127.0.0.1", 0)
    await listener.start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        async with SimSite(load_site(tmp_path / "site.yaml"), boot_url=url) as site:
            host = site.hosts[plan.good[0]]
            host.set_boot_once(BootDevice.NETWORK)
            host.power_on()
            source, said = await asyncio.wait_for(met.get(), 5)
            assert source == host.os_address
            assert (said["serial"], said["mac"], said["ssh_port"]) == (host.serial, host.mac, site.ports.ssh)
            known = asyncssh.import_known_hosts(f"[{host.os_address}]:{said['ssh_port']} {said['host_key']}\n")
            async with asyncssh.connect(
                host.os_address,
                said["ssh_port"],
                username="root",
                client_keys=[client_key],
                known_hosts=known,
                agent_path=None,
                config=None,
            ) as connection:
                refused = await connection.run("rm -rf /", timeout=5)
                assert refused.exit_status == 126
            other = site.hosts[plan.good[1]]
            with pytest.raises(OSError):  # nothing runs there, though the listener is the same
                await asyncssh.connect(other.os_address, site.ports.ssh, known_hosts=None, agent_path=None, config=None)
    finally:
        await runner.cleanup()


async def test_the_full_depth_has_a_folder_that_goes_with_it(plan: DemoPlan, tmp_path: Path) -> None:
    path = tmp_path / "site.yaml"
    path.write_text(path.read_text().replace("depth: fast", "depth: full"))
    async with SimSite(load_site(path)) as site:
        assert site._scratch is not None
        folder = site._scratch.name
        assert os.path.isdir(folder)
    assert not os.path.exists(folder)
