"""Is the NVLink fabric whole: links, speed, the matrix of GPUs, the fabric's own state, and the domain of a rack?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from fleetd.checks.context import Context
from fleetd.checks.gpu import NVIDIA
from fleetd.checks.judge import Judge, clean
from fleetd.checks.registry import Cause, check, domain_check
from fleetd.model.check import Action
from fleetd.model.report import Fabric, Report
from fleetd.model.sku import Sku

# nvmlGpuFabricState
NOT_SUPPORTED, NOT_STARTED, IN_PROGRESS, COMPLETED = range(4)

# nvmlGpuFabricInfo_v3 healthMask: name, lowest bit, width, values that are well (0: not supported by this fabric)
HEALTH = (
    ("degraded bandwidth", 0, 2, (0, 2)),
    ("route recovery", 2, 2, (0, 2)),
    ("route unhealthy", 4, 2, (0, 2)),
    ("access timeout recovery", 6, 2, (0, 2)),
    ("incorrect configuration", 8, 4, (0, 1)),
    ("partition not assigned", 12, 2, (0, 1)),
    ("fabric manager not connected", 14, 2, (0, 1)),
)
NONE = "0" * 32  # the cluster UUID of a GPU that belongs to no multi-host domain
_WAIT = "wait: the fabric manager is still training links, up to five minutes after boot; then retest"


def cluster(fabric: Fabric) -> str:
    """The cluster UUID as 32 lower-case digits."""
    return fabric.cluster_uuid.replace("-", "").lower() or NONE


@check(
    id="nvlink.switches",
    title="All NVSwitches of the host are on the PCI bus",
    needs="gpu",
    cause=Cause.PRESENCE,
    source="PCI class 0680 vendor 10de; gpud: H100/H200 four 22a3, A100 six 1af1, none on B200 and on NVL72 trays",
    why="without a switch all GPUs lose the links that go through it",
    action=Action.POWER_CYCLE,
    remedy="power-cycle the host at the outlet; if the switch stays away, replace the GPU baseboard",
)
def switches(judge: Judge, facts: Report, profile: Sku, context: Context) -> None:
    wanted, device = profile.gpus.nvlink.switches, profile.gpus.nvlink.switch_pci_id.lower()
    judge.expected = f"{wanted} x {NVIDIA}:{device}" if device else "none to see"
    devices = facts.pci.v
    if devices is None:
        judge.unread("", "PCI devices not read", facts.pci.reason)
        return
    number = len({d.address for d in devices if device and (d.vendor.lower(), d.device.lower()) == (NVIDIA, device)})
    judge.note("NVSwitches", number)
    judge.must(number == wanted, "NVSwitch", f"{number} of {wanted} on the PCI bus")


@check(
    id="nvlink.links",
    title="Every NVLink of every GPU is up",
    needs="gpu",
    cause=Cause.LINK,
    source="nvmlDeviceGetNvLinkState; AzNHC, gpud nvlink, OCI count table",
    why="one link down takes its share of bandwidth from every collective",
    action=Action.RESET,
    remedy=(
        "reset all GPUs of the host together and restart the fabric manager; if PARTS stays down, power-cycle, "
        "then replace the baseboard"
    ),
)
def links(judge: Judge, facts: Report, profile: Sku, context: Context) -> None:
    wanted = profile.gpus.nvlink.links
    judge.expected = f"{wanted} links up on each GPU"
    for part, gpu in judge.gpus(facts, profile):
        told = gpu.links.v
        if told is None:
            judge.unread(part, "links not read", gpu.links.reason)
            continue
        by_number = {link.link: link for link in told}
        if len(by_number) != len(told):
            judge.unread(part, "a link stands in the report twice")
        for number in range(wanted):
            if number not in by_number:
                judge.unread(f"{part} link {number}", "not in the report")
            elif by_number[number].active.v is None:
                judge.unread(f"{part} link {number}", "state not read", by_number[number].active.reason)
        down = [n for n, link in sorted(by_number.items()) if link.active.v is False]
        up = sum(link.active.v is True for link in by_number.values())
        judge.note(f"{part} links", f"{up} up" + (f", down: {', '.join(map(str, down))}" if down else ""))
        judge.must(up <= wanted, part, f"{up} links up", Action.FIX_INVENTORY, "give the host the SKU it really is")
        if len(down) >= wanted:
            judge.must(False, part, "no link is up", Action.POWER_CYCLE)
        else:
            for number in down:
                judge.must(False, f"{part} link {number}", "is down")
        judge.must(True, "", "")


@check(
    id="nvlink.speed",
    title="Every NVLink runs at its full speed and version",
    needs="gpu",
    cause=Cause.LINK,
    source="NVML field NVLINK_SPEED_MBPS_COMMON: 26.562 GB/s one way on Hopper, 53.125 on Blackwell (captured)",
    why="a link that trained slow halves what goes over it and looks like a healthy one",
    action=Action.RESET,
    remedy="reset all GPUs of the host together, then retest; if PARTS trains slow again, replace the baseboard",
)
def speed(judge: Judge, facts: Report, profile: Sku, context: Context) -> None:
    nvlink = profile.gpus.nvlink
    judge.expected = f"{nvlink.mb_per_s} MB/s one way, NVLink {nvlink.version}, on {nvlink.links} links of each GPU"
    for part, gpu in judge.gpus(facts, profile):
        if gpu.links.v is None:
            judge.unread(part, "links not read", gpu.links.reason)
            continue
        slowest = None
        good: set[int] = set()
        for link in gpu.links.v[: 4 * nvlink.links]:
            name = f"{part} link {link.link}"
            if link.active.v is False:
                judge.unread(name, "is down")
                continue
            for what, reading in (("speed", link.mb_per_s), ("version", link.version)):
                if reading.v is None:
                    judge.unread(name, f"{what} not read", reading.reason)
            rate, version = link.mb_per_s.v, link.version.v
            if rate is not None:
                slowest = rate if slowest is None else min(slowest, rate)
                fast = judge.must(rate >= nvlink.mb_per_s, name, f"{rate} MB/s")
                if fast and version is not None:
                    good.add(link.link)
            if version is not None:
                judge.must(version == nvlink.version, name, f"NVLink {version}")
        judge.note(f"{part} slowest link MB/s", slowest)
        if len(good) < nvlink.links:
            judge.unread(part, f"{len(good)} of {nvlink.links} links at full speed")


@check(
    id="nvlink.topology",
    title="Every pair of GPUs talks over NVLink",
    needs="gpu",
    cause=Cause.PATH,
    source="topology matrix as `nvidia-smi topo -m`; AWS 3-topology-check, AzNHC hw_topology, vllm issue 16336",
    why="a pair at NODE or SYS goes over PCIe and CPU at a tenth of the speed while every link counts as up",
    action=Action.RESET,
    remedy=(
        "reset all GPUs of the host together and restart the fabric manager; if PARTS stays apart, power-cycle, "
        "then replace the baseboard"
    ),
)
def topology(judge: Judge, facts: Report, profile: Sku, context: Context) -> None:
    number, wanted = profile.gpus.count, profile.gpus.nvlink.topology
    judge.expected = f"{wanted} for all {number * (number - 1)} ordered pairs"
    matrix = facts.nvml.topology.v
    if matrix is None:
        judge.unread("", "matrix not read", facts.nvml.topology.reason)
        return
    if len(matrix) != number or any(len(row) != number for row in matrix):
        judge.unread("", f"the matrix has {len(matrix)} rows, must be {number} x {number}")
    names = [f"GPU {gpu.index}" for _, gpu in zip(matrix, facts.nvml.gpus, strict=False)]
    if len(names) != len(matrix) or len(names) != number:
        judge.unread("", "the matrix does not match the GPUs in the report")
        return
    gone = {i for i, gpu in enumerate(facts.nvml.gpus) if gpu.handle.v is not True}
    for i in sorted(gone):
        judge.unread(names[i], "does not answer", facts.nvml.gpus[i].handle.reason)
    apart: dict[tuple[int, int], str] = {}
    for i, row in enumerate(matrix):
        judge.note(names[i], " ".join(row))
        for j, cell in enumerate(row[:number]):
            if i in gone or j in gone:
                continue
            if i != j and cell != wanted:
                apart[(i, j)] = cell
            elif i != j:
                judge.must(True, "", "")
    # Blame the GPU that stands in most of the bad pairs: one GPU apart from seven makes fourteen of them.
    while apart:
        guilty, times = Counter(i for pair in apart for i in pair).most_common(1)[0]
        mine = {pair: cell for pair, cell in apart.items() if guilty in pair}
        words = ", ".join(sorted({clean(cell, 8) for cell in mine.values()}))
        others = sorted({i for pair in mine for i in pair} - {guilty})
        judge.must(
            False, names[guilty], f"{words} to {', '.join(names[i] for i in others)} ({times} of the ordered pairs)"
        )
        apart = {pair: cell for pair, cell in apart.items() if guilty not in pair}


@check(
    id="nvlink.fabric",
    title="Every GPU has joined the fabric",
    needs="gpu",
    cause=Cause.FABRIC,
    source="nvmlDeviceGetGpuFabricInfoV: state, status, cluster UUID, clique, health mask; gpud, k8s-test-infra",
    why="CUDA starts on no GPU of the host before its fabric is completed",
    action=Action.CHECK_FABRIC,
    remedy=(
        "check the fabric manager (`systemctl status nvidia-fabricmanager`, on NVL72 the NMX controller and "
        "nvidia-imex), restart it, then reboot"
    ),
)
def fabric(judge: Judge, facts: Report, profile: Sku, context: Context) -> None:
    rule = profile.gpus.fabric
    judge.expected = "state completed, status 0" + (", one cluster UUID and clique" if rule.cluster_uuid else "")
    if not rule.required:
        judge.expected += ", or no fabric"
    clusters: Counter[str] = Counter()
    cliques: Counter[int] = Counter()
    told = [(part, judge.read(part, "fabric", gpu.fabric)) for part, gpu in judge.gpus(facts, profile)]
    for part, info in told:
        if info is None:
            continue
        if info.state == NOT_SUPPORTED and not rule.required:
            judge.must(True, "", "")
            continue
        if info.state == IN_PROGRESS:
            judge.later(part, "fabric registration is in progress", _WAIT)
            continue
        words = {NOT_SUPPORTED: "not supported", NOT_STARTED: "not started"}.get(info.state, f"state {info.state}")
        if judge.must(info.state == COMPLETED, part, f"fabric {words}"):
            judge.must(info.status == 0, part, f"fabric completed with error {info.status}")
        clusters[cluster(info)] += 1
        cliques[info.clique_id] += 1
        if rule.healthy_mask_required:
            _health(judge, part, info.health_mask)
    if rule.cluster_uuid:
        for part, info in told:
            if info is not None and info.state == COMPLETED:
                judge.must(cluster(info) != NONE, part, "cluster UUID is zero: it belongs to no domain")
                for what, value, usual in (
                    ("cluster UUID", cluster(info), clusters),
                    ("clique", info.clique_id, cliques),
                ):
                    best = max(usual.values())
                    odd = usual[value] < best or list(usual.values()).count(best) > 1  # type: ignore[index]
                    judge.must(not odd, part, f"{what} {clean(value)} differs within the host")


def _health(judge: Judge, part: str, mask: int) -> None:
    if mask == 0:
        judge.unread(part, "the fabric reports no health")
        return
    for name, low, width, well in HEALTH:
        value = mask >> low & (1 << width) - 1
        judge.must(value in well, part, f"fabric health: {name} ({value})")


@domain_check(
    id="nvlink.domain",
    title="All trays of the NVLink domain are in one fabric",
    needs="domain",
    cause=Cause.FABRIC,
    source=("Azure rack_topology: 18 hosts a ClusterUUID; no public suite names the odd tray"),
    why="a tray cabled into another rack's fabric, or in none, splits the domain a tenant rents as one",
    action=Action.CHECK_FABRIC,
    remedy=(
        "check the tray's position and its NVLink cartridge, and the domain in the NMX controller; then reboot the tray"
    ),
)
def domain(judges: Mapping[str, Judge], reports: Mapping[str, Report], profile: Sku, context: Context) -> None:
    rule = profile.domain
    shown: dict[str, str] = {}
    for host, judge in judges.items():
        if rule is None:
            judge.unread("", "the SKU describes no domain")
            continue
        judge.expected = f"the cluster UUID of the domain; at least {rule.min_trays} of {rule.trays} trays in it"
        report = reports.get(host)
        if report is None:
            judge.later(
                "",
                "the tray has not reported",
                "power on and validate the tray; the domain is judged when it has reported",
            )
            continue
        seen: dict[str, None] = {}
        for part, gpu in judge.gpus(report, profile):
            info = judge.read(part, "fabric", gpu.fabric)
            if info is None:
                continue
            if info.state == IN_PROGRESS:
                judge.later(part, "fabric registration is in progress", _WAIT)
            elif judge.must(
                info.state == COMPLETED and info.status == 0, part, f"not in the fabric (state {info.state})"
            ):
                seen[cluster(info)] = None
        if len(seen) > 1:
            judge.must(False, "", f"the GPUs of the tray are in {len(seen)} fabrics: {', '.join(map(clean, seen))}")
        elif seen and judge.must(NONE not in seen, "", "cluster UUID is zero: the tray is in no domain"):
            shown[host] = next(iter(seen))
    if rule is not None:
        _majority(judges, reports, shown, rule.trays, rule.min_trays)


def _majority(
    judges: Mapping[str, Judge], reports: Mapping[str, Report], shown: Mapping[str, str], trays: int, least: int
) -> None:
    """The fabric most trays show is the domain, the others are wrong. A tie, or too few, is no domain at all."""
    votes = Counter(shown.values())
    ranked = votes.most_common()
    tie = len(ranked) > 1 and ranked[0][1] == ranked[1][1]
    for host, judge in judges.items():
        judge.note("trays reported", f"{len(reports)} of {trays}")
        judge.note("fabrics", ", ".join(f"{clean(uuid, 40)}: {n}" for uuid, n in ranked[:8]))
        if len(reports) > trays:
            judge.must(False, "", f"{len(reports)} trays, a domain has {trays}", Action.FIX_INVENTORY)
        if host not in shown:
            continue
        if tie:
            judge.must(
                False,
                "",
                f"{ranked[0][1]} trays show one fabric and {ranked[1][1]} another: nobody can say which is right",
            )
            continue
        right, number = ranked[0]
        judge.must(
            shown[host] == right,
            "tray",
            f"cluster UUID {clean(shown[host])}, {number} other trays show {clean(right)}",
        )
        if number < least:
            text = f"{number} trays in the domain, {least} needed"
            if len(judges) > len(reports) or len(reports) < least:
                judge.later(
                    "", text, "bring up the other trays of the domain; it is judged again when they have reported"
                )
            else:
                judge.must(False, "", text)
