"""The main job on something real: two machines from registered to leased and back, and what may go wrong on the way."""

from __future__ import annotations

import asyncio
import itertools
import os
import re
import secrets
import shutil
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.e2e.builds import BUILD
from tests.e2e.lab import lab, tool
from tests.e2e.machine import Device, Drive, Machine
from tests.e2e.progress import STAGES
from tests.e2e.site import IMAGE, LOGINS, Site, allocated, holds, sha256

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]

MIB = 1 << 20


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def site(request: pytest.FixtureRequest) -> AsyncIterator[Site]:
    folder = BUILD / f"e2e-run-{secrets.token_hex(3)}"
    folder.mkdir(parents=True)
    before = request.session.testsfailed
    made = None
    try:
        async with lab(folder) as network:
            made = Site(network)
            try:
                await made.start()
                yield made
            finally:
                await made.stop()
    finally:
        if request.session.testsfailed > before or made is None or not made.done or os.environ.get("KEEP"):
            print(f"\nlogs are kept: {folder}")  # noqa: T201
        else:
            shutil.rmtree(folder)


def after(site: Site, *stages: str) -> None:
    missing = set(stages) - site.done
    if missing:
        pytest.fail(f"the stage before failed: {', '.join(sorted(missing))}")


# --- registered to available -----------------------------------------------------------------------------------------


async def test_registered_to_available(site: Site) -> None:
    """UEFI by PXE and TFTP behind IPMI, BIOS by PXE and TFTP behind Redfish; the power of one fails while it is written."""

    async def cut_b() -> None:
        image = 8 * MIB  # of some 80 that are written
        await site.progress.until(lambda: allocated(site.b.drives[0]) > image, "the image flows to machine B")
        assert site.b.power
        await site.b.cut()

    with STAGES.stage("registered to available (B: power cut in the write)"):
        await asyncio.gather(
            site.long("rack", "bringup", "lab-a"),
            site.long("rack", "bringup", "lab-b"),
            site.progress.watch(cut_b(), "the power cut"),
        )
    for machine in (site.a, site.b):
        assert await site.state(machine) == "available"
    assert re.search(rb"NBP filename is snponly.efi.*NBP file downloaded", site.a.console.read_bytes(), re.DOTALL)
    assert re.search(rb"tftp://\S+/undionly.kpxe\.+ ok", site.b.console.read_bytes())
    for machine in (site.a, site.b):
        assert way(machine.starts) == ["network", "disk"]
    assert site.b.starts.count("network") >= 2, "after the cut it was booted and written anew"
    await factory_logins_are_void(site)
    site.done.add("available")


def way(starts: list[Device]) -> list[Device]:
    """Without what was tried again."""
    return [device for device, _ in itertools.groupby(starts)]


async def factory_logins_are_void(site: Site) -> None:
    """Asked by other people's tools."""
    user, word = LOGINS["lab-ipmi"]
    ipmitool = (
        tool("ipmitool"),
        "-I",
        "lanplus",
        "-C",
        "3",
        "-H",
        "10.77.0.11",
        "-U",
        user,
        "-P",
        word,
        "power",
        "status",
    )
    code, said = await site.lab.run(*ipmitool, timeout=60)
    assert code != 0, said
    user, word = LOGINS["lab-redfish"]
    curl = (tool("curl"), "-sk", "-u", f"{user}:{word}", "-o", "/dev/null", "-w", "%{http_code}")
    code, said = await site.lab.run(*curl, "https://10.77.0.12/redfish/v1/Systems", timeout=60)
    assert (code, said) == (0, "401")


# --- leased ----------------------------------------------------------------------------------------------------------


class Tenant:
    """A tenant's key, and bytes that nobody else would ever write."""

    def __init__(self, folder: Path) -> None:
        self.key = folder / "tenant"
        subprocess.run(
            [tool("ssh-keygen"), "-q", "-t", "ed25519", "-N", "", "-f", str(self.key), "-C", "tenant@example"],
            check=True,
        )
        self.marker = b"tenant-secret-" + secrets.token_hex(24).encode()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def tenant(site: Site) -> Tenant:
    return Tenant(site.folder)


async def test_leased_with_a_key_that_works(site: Site, tenant: Tenant) -> None:
    """Both are leased; the daemon is killed while they are written, and started again."""
    after(site, "available")
    fleetd_key = {machine: await site.fleetd_key(machine) for machine in (site.a, site.b)}
    for machine in fleetd_key:
        code, said = await site.ssh(machine, fleetd_key[machine], "true")
        assert code == 0, said  # until now it is fleetd's own system

    async def kill_daemon() -> None:
        count = len(site.a.starts)
        await site.progress.until(lambda: len(site.a.starts) > count and site.a.starts[-1] == "network", "A boots")
        still = site.a.drives[0].path.stat().st_mtime_ns
        await site.progress.until(lambda: site.a.drives[0].path.stat().st_mtime_ns != still, "A is written")
        assert site.daemon is not None
        await site.daemon.kill()
        await asyncio.sleep(2)  # nobody restarts a daemon in no time
        await site.serve()

    lease = ("lease", "create", "--tenant", "acme", "--ends", "1d", "--ssh-key", f"{tenant.key}.pub")
    with STAGES.stage("leased (daemon killed in the write)"):
        await site.ctl(*lease, "--sku", "qemu.q35-uefi")
        await site.ctl(*lease, "--sku", "qemu.q35-bios")
        await site.progress.watch(kill_daemon(), "the daemon's death")
        await site.long("wait", "all", "--for", "state=leased", "--fail-fast")
    with STAGES.stage("the tenant at work"):
        for machine in (site.a, site.b):
            code, said = await site.ssh(machine, tenant.key, "cat /etc/hostname /root/.ssh/authorized_keys")
            assert code == 0, said
            assert said.splitlines()[0] == machine.spec.name
            assert [line.split()[2] for line in said.splitlines()[1:]] == ["tenant@example"], "no key but the tenant's"
            code, said = await site.ssh(machine, fleetd_key[machine], "true")
            assert code == 255, "fleetd's own key opens nothing of a tenant's"
            await write_marker(site, machine, tenant)
    with STAGES.stage("the tenant reboots, network first"):
        await asyncio.gather(*(reboot_by_network(site, machine, tenant) for machine in (site.a, site.b)))
    site.done.add("leased")


async def reboot_by_network(site: Site, machine: Machine, tenant: Tenant) -> None:
    """The boot service sends a host that nobody armed to its own disk, and never into the deploy environment."""
    before = machine.console.stat().st_size
    asked = machine.console.read_bytes().count(b"start.ipxe")
    machine.boot = "network"
    await machine.reset()

    def up() -> bool:
        return re.search(rb"fleetd-os \S+ up ", machine.console.read_bytes()[before:]) is not None

    await site.progress.until(up, f"{machine.spec.name} is up again", pause=0.5)
    said = machine.console.read_bytes()
    assert said.count(b"start.ipxe") > asked, "it did ask the network first"
    assert b"fleetd-deploy" not in said[before:]
    code, text = await site.ssh(machine, tenant.key, "head -c 100 /root/secret")
    assert (code, text[:20]) == (0, tenant.marker.decode()[:20])


async def write_marker(site: Site, machine: Machine, tenant: Tenant) -> None:
    """In a file, and raw at the drive's end, far from every partition."""
    text = tenant.marker.decode()
    end = machine.drives[0].size // MIB - 8
    fill = f"yes {text} | head -c 2097152"
    command = (
        f"{fill} > /root/secret && {fill} | dd of=/dev/nvme0n1 bs=1M seek={end} iflag=fullblock oflag=direct && sync"
    )
    code, said = await site.ssh(machine, tenant.key, command)
    assert code == 0, said
    assert await asyncio.to_thread(holds, machine.drives[0], tenant.marker), "the test itself would find nothing"


# --- reclaimed -------------------------------------------------------------------------------------------------------


async def test_reclaimed_with_an_erase_that_holds(site: Site, tenant: Tenant) -> None:
    """Released, wiped, proven again; A boots by UEFI HTTP, B once from virtual media, because its SKU says so now."""
    after(site, "leased")
    site.a.http = True
    said = len(site.a.console.read_bytes())
    sku = site.folder / "inventory/skus/qemu.q35-bios.yaml"
    sku.write_text(sku.read_text() + "boot_via: virtual-media\n")
    await site.ctl("inventory", "apply", "inventory", "--yes")
    (site.folder / "lie").touch()  # the rack's mirror changes a byte of what it sends to B
    with STAGES.stage("reclaimed (B: by virtual media)"):
        leases = [lease["id"] for lease in (await site.ask("lease", "list"))["items"]]
        for lease in leases:
            await site.ctl("lease", "release", lease, "--yes")
        await site.long("wait", "all", "--for", "state=available", "--fail-fast")
    with STAGES.stage("read the drives from outside"):
        for machine in (site.a, site.b):
            assert not await asyncio.to_thread(holds, machine.drives[0], tenant.marker), machine.spec.name
    (site.folder / "lie").unlink()
    assert "lied" in (site.folder / "mirror.log").read_text()  # and B took the image from the next server
    assert re.search(rb"HTTP Boot over IPv4.*/boot/snponly.efi", site.a.console.read_bytes()[said:], re.DOTALL)
    site.a.http = False
    assert "hello" in await site.ctl("boot", "doctor", site.a.spec.name)
    assert way(site.b.starts)[-2:] == ["cd", "disk"]
    assert site.b.media is None, "the disc was taken out again"
    for machine in (site.a, site.b):
        code, _ = await site.ssh(machine, tenant.key, "true")
        assert code == 255, "the tenant's key opens nothing any more"
    site.done.add("reclaimed")


# --- refused ---------------------------------------------------------------------------------------------------------


async def test_refused(site: Site, tenant: Tenant) -> None:
    """A: a second drive that the ledger knows as another host's. B: an image that was damaged after it was added."""
    after(site, "reclaimed")
    with STAGES.stage("refused: foreign drive, damaged image"):
        await asyncio.gather(foreign_drive(site, tenant), damaged_image(site, tenant))
    site.done.add("refused")


async def foreign_drive(site: Site, tenant: Tenant) -> None:
    """Not one byte of it changes, and A goes no further."""
    foreign = Drive(serial=site.b.drives[0].serial, path=site.folder / "foreign.raw", size=256 * MIB)
    with foreign.path.open("wb") as file:
        for _ in range(foreign.size // MIB):
            file.write(secrets.token_bytes(MIB))
    before = await asyncio.to_thread(sha256, foreign.path)
    stamp = foreign.path.stat().st_mtime_ns
    site.a.drives.append(foreign)
    own = await asyncio.to_thread(sha256, site.a.drives[0].path)
    await site.ctl(
        *("lease", "create", "--tenant", "acme", "--ends", "1d", "--sku", "qemu.q35-uefi"),
        *("--ssh-key", f"{tenant.key}.pub"),
    )
    await site.long("wait", site.a.spec.name, "--for", "state=quarantined")
    why = await site.ctl("host", "why", site.a.spec.name)
    assert "storage.foreign" in why, why
    assert foreign.serial in why
    refused = re.findall(r'"code": "storage.foreign"', (site.folder / "events.log").read_text())
    assert len(refused) >= 2, "by the write and by the wipe"
    await site.a.off()
    assert await asyncio.to_thread(sha256, foreign.path) == before
    assert foreign.path.stat().st_mtime_ns == stamp
    assert await asyncio.to_thread(sha256, site.a.drives[0].path) == own, "its own drive was not touched either"
    site.a.drives.pop()
    await site.ctl("host", "release", site.a.spec.name)  # the remedy: the drive was taken out
    await site.long("wait", site.a.spec.name, "--for", "state=available", "--fail-fast")


async def damaged_image(site: Site, tenant: Tenant) -> None:
    """Refused by the host, which is left with a drive that boots nothing; then it is reclaimed with the good image."""
    shutil.copyfile(site.folder / f"{IMAGE}.raw.zst", site.folder / "damaged.raw.zst")
    with (site.folder / "damaged.raw.zst").open("ab") as copy:
        copy.write(b"\x50\x2a\x4d\x18\x04\0\0\0\0\0\0\0")  # a skippable frame: the same disk in another file
    await site.add_image("damaged.raw.zst", "damaged")
    file = site.image_file("damaged")
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.chmod(0o600)
    file.write_bytes(data)
    count = len(site.b.starts)
    await site.ctl(
        *("lease", "create", "--tenant", "acme", "--ends", "1d", "--sku", "qemu.q35-bios", "--image", "damaged"),
        *("--ssh-key", f"{tenant.key}.pub"),
    )
    await site.progress.until(lambda: len(site.b.starts) >= count + 2, "B is started to be reclaimed")
    drive = site.b.drives[0]
    for at in (0, drive.size - MIB):
        assert not any(read(drive, at, MIB)), "a drive with half an image must boot nothing"
    assert allocated(drive) > MIB, "the image was on its way"
    await site.long("wait", site.b.spec.name, "--for", "state=available", "--fail-fast")
    history = await site.ctl("host", "history", site.b.spec.name, "--limit", "200")
    assert "image." in history, history
    assert len(site.b.starts) >= count + 3, "deploy for the damaged image, deploy and disk for the good one"
    code, _ = await site.ssh(site.b, tenant.key, "true")
    assert code == 255


def read(drive: Drive, at: int, length: int) -> bytes:
    with drive.path.open("rb") as file:
        file.seek(at)
        return file.read(length)
