"""What was seen of a machine on its way up, and what that means: `fleetctl boot doctor` tells it to who stands at the rack.

The trail lives in memory and is bounded: it is for people, and no decision stands on it. `diagnose` is pure: a table of
stages in the order of a boot; the first that was not reached says what is wrong and what to do.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Sequence
from typing import Final, Literal

import msgspec

from fleetd.model.boot import Boot
from fleetd.model.host import Host

MAX_MACHINES: Final = 4096
MAX_ENTRIES: Final = 64  # of one machine; the oldest go first
MAX_TEXT: Final = 200
MAX_KEPT: Final = 32768  # of all machines together: some 25 MB of what strangers may have made up
MAX_RELAYS: Final = 64  # that hand on requests of a network which the boot service does not have
SLACK: Final = 2.0  # seconds: clocks of boot service and daemon may differ that much; what was answered has ours
_PROXIED: Final = "told its boot file"  # by a proxy, beside a DHCP server of the site that we do not see
_TFTP_FAILURES: Final = ("is not there", "was cut off")

Answer = Literal["", "boot", "local", "denied"]


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """One sighting. `stage`: as of a Sighting, or keys, hello. `answer`: what the desk said; wall seconds."""

    stage: str
    at: float
    mac: str = ""
    source: str = ""
    detail: str = ""
    answer: Answer = ""
    serial: str = ""
    uuid: str = ""


class Trail:
    """The sightings of all machines, by MAC; one without a MAC counts for the machine last seen at its address."""

    def __init__(self, since: float) -> None:
        self.since = since
        self._machines: OrderedDict[str, deque[Entry]] = OrderedDict()
        self._macs: OrderedDict[str, str] = OrderedDict()  # address -> MAC
        self._relays: OrderedDict[str, Entry] = OrderedDict()  # address -> the last; no MAC is told
        self._kept = 0

    def add(self, entry: Entry) -> None:
        """Remember it; its texts are cut to what a person reads."""
        mac, source = entry.mac.lower()[:17], entry.source[:64]
        entry = msgspec.structs.replace(
            entry,
            stage=entry.stage[:20],
            mac=mac,
            source=source,
            detail=_line(entry.detail),
            serial=_line(entry.serial),
            uuid=_line(entry.uuid).lower(),
        )
        if entry.stage == "relay":
            self._relays[source] = entry
            self._relays.move_to_end(source)
            if len(self._relays) > MAX_RELAYS:
                self._relays.popitem(last=False)
            return
        if mac and source:
            self._macs[source] = mac
            self._macs.move_to_end(source)
            self._adopt(source, mac)
        place = mac or self._macs.get(source) or f"at {source}"
        self._keep(place, entry)
        self._machines.move_to_end(place)
        while len(self._machines) > MAX_MACHINES or self._kept > MAX_KEPT:
            self._kept -= len(self._machines.popitem(last=False)[1])
        while len(self._macs) > MAX_MACHINES:
            self._macs.popitem(last=False)

    def _adopt(self, source: str, mac: str) -> None:
        """What came from an address before we knew whose it is."""
        adopted = self._machines.pop(f"at {source}", ())
        self._kept -= len(adopted)
        for entry in adopted:
            self._keep(mac, entry)

    def _keep(self, place: str, entry: Entry) -> None:
        entries = self._machines.setdefault(place, deque(maxlen=MAX_ENTRIES))
        self._kept += len(entries) < MAX_ENTRIES
        entries.append(entry)

    def relays(self) -> list[Entry]:
        """Those whose network the boot service does not have, the latest last: any host may be behind one."""
        return list(self._relays.values())

    def of(self, host: Host) -> list[Entry]:
        """All of this host, oldest first: of its boot MAC, of the address its boot came from, and whoever told its serial."""
        mac = host.spec.boot_mac.lower()
        found = list(self._machines.get(mac, ()))
        for place, entries in self._machines.items():
            if place != mac:
                found += [entry for entry in entries if entry.serial and entry.serial == host.spec.serial]
        return sorted(found, key=lambda entry: entry.at)


def _line(text: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in text[:MAX_TEXT])


class Diagnosis(msgspec.Struct, frozen=True, kw_only=True):
    """`stage`: the last one reached. `ok`: it came up, or nothing is expected of it, or it is still in time."""

    stage: str
    ok: bool
    what: str
    remedy: str = ""


class Case(msgspec.Struct, frozen=True, kw_only=True):
    """One boot to judge. `seen`: of this boot only, oldest first."""

    host: Host
    boot: Boot
    seen: tuple[Entry, ...]
    now: float

    @property
    def mac(self) -> str:
        return self.host.spec.boot_mac.lower()

    def own(self, *stages: str) -> list[Entry]:
        """Those of the host's boot MAC, or of a wire that tells no MAC."""
        return [entry for entry in self.seen if entry.stage in stages and entry.mac in ("", self.mac)]

    def has(self, *stages: str) -> bool:
        return bool(self.own(*stages))


class Rule(msgspec.Struct, frozen=True, kw_only=True):
    """`finds` tells what is wrong in one sentence, or an empty text when this is not the case.

    `patience`: seconds since the last sighting (or the arming) within which the machine may just be busy with it.
    """

    stage: str
    finds: Callable[[Case], str]
    remedy: str
    patience: float = 0.0


def _other_mac(case: Case) -> str:
    others = {e.mac for e in case.seen if e.mac and e.mac != case.mac and e.serial == case.host.spec.serial}
    if others and not case.has("script"):
        return f"it asked from {', '.join(sorted(others))}, and the inventory says its boot MAC is {case.mac}"
    return ""


def _wrong_identity(case: Case) -> str:
    for entry in reversed(case.own("script")):
        if entry.answer == "denied":
            return f"something with its boot MAC, at {entry.source}, asked for its script as {entry.detail}"
        if entry.answer == "boot":
            return ""
    return ""


def _local(case: Case) -> str:
    asked = case.own("script")
    if asked and asked[-1].answer == "local":
        return f"its script said: boot from the local disk, because {asked[-1].detail or 'no boot was armed'}"
    return ""


def _denied_hello(case: Case) -> str:
    hellos = [entry for entry in case.seen if entry.stage == "hello"]
    if hellos and hellos[-1].answer == "denied":
        return f"it phoned home and was refused: {hellos[-1].detail}"
    return ""


def _denied_keys(case: Case) -> str:
    asked = case.own("keys")
    if asked and asked[-1].answer == "denied" and not case.has("hello"):
        return f"it asked for its keys and was refused: {asked[-1].detail}"
    return ""


def _missing(stage: Sequence[str], before: Sequence[str], text: str) -> Callable[[Case], str]:
    """Reached one of `before`, and nothing of `stage`."""

    def finds(case: Case) -> str:
        return text if (not before or case.has(*before)) and not case.has(*stage) else ""

    return finds


def _lost_relay(case: Case) -> str:
    """Which hosts such a relay asked for nobody tells: it concerns one of whom nothing else was heard."""
    if case.has(*_ALL):
        return ""
    relays = sorted({entry.source for entry in case.seen if entry.stage == "relay"})
    if not relays:
        return ""
    more = f" and {len(relays) - 4} more" if len(relays) > 4 else ""
    return (
        f"nothing was heard of it, but DHCP relays at {', '.join(relays[:4])}{more} hand on requests of networks that the"
        " boot service does not have"
    )


def _no_address(case: Case) -> str:
    asked = case.own("dhcp")
    answered = any(entry.source or _PROXIED in entry.detail for entry in asked)
    if not asked or answered or case.has(*_LOADED):
        return ""
    return (
        f"it asks for an address and gets none ({asked[-1].detail})"
        if asked[-1].detail
        else "it asks for an address and gets none"
    )


def _loader_failed(case: Case) -> str:
    sent = case.own("tftp")
    if sent and sent[-1].detail.endswith(_TFTP_FAILURES) and not case.has("http", *_SCRIPTED):
        return f"its boot loader did not come by TFTP: {sent[-1].detail}"
    return ""


_SCRIPTED: Final = ("script", "kernel", "initrd", "keys", "hello")
_LOADED: Final = ("tftp", "http", "rom", "iso", *_SCRIPTED)
_ALL: Final = ("dhcp", *_LOADED)

# In the order of a boot, the first that finds something is the diagnosis. Each begins where the one before was passed.
DEPLOY_RULES: Final = (
    Rule(
        stage="hello",
        finds=_denied_hello,
        remedy="compare serial, UUID and boot MAC at the rack with the inventory; correct it, apply it, boot again",
    ),
    Rule(stage="keys", finds=_denied_keys, remedy="boot the host again through fleetd: an old token is worth nothing"),
    Rule(
        stage="script",
        finds=_wrong_identity,
        remedy="compare serial and UUID at the rack with the inventory: is another machine on this port?",
    ),
    Rule(
        stage="script",
        finds=_other_mac,
        remedy="correct boot_mac in the inventory and apply it, or let the firmware boot from the other NIC",
    ),
    Rule(
        stage="script",
        finds=_local,
        remedy="boot it through fleetd (`fleetctl rack bringup`, `fleetctl host validate`): that arms a boot",
    ),
    Rule(
        stage="dhcp",
        finds=_lost_relay,
        remedy="is one of them the relay of its rack? Add its network to dnsmasq.relayed in boot.yaml and"
        " `systemctl reload fleetd-boot`; else look at its console",
        patience=300.0,
    ),
    Rule(
        stage="power",
        finds=_missing(_ALL, (), "nothing was heard of it since the boot was armed: no DHCP request, no HTTP"),
        remedy="look at its console: is it on, does it boot from the network first, is the boot NIC's cable in, and does"
        " its VLAN reach the boot service (a DHCP relay, where it is another)",
        patience=300.0,
    ),
    Rule(
        stage="dhcp",
        finds=_no_address,
        remedy="is its MAC that of the inventory, is the DHCP range large enough, does a second DHCP server answer first?",
        patience=20.0,
    ),
    Rule(
        stage="address",
        finds=_missing(_LOADED, ("dhcp",), "it got an address and fetched no boot loader, by TFTP or by HTTP"),
        remedy="let UDP 69 and the boot service's HTTP port through; does another DHCP server hand out another boot file?",
        patience=30.0,
    ),
    Rule(
        stage="loader",
        finds=_loader_failed,
        remedy="`fleetd boot` must have undionly.kpxe and snponly.efi in its `files`; one that is cut off points to the boot"
        " NIC, its cable, or a firewall that does not know TFTP",
        patience=30.0,
    ),
    Rule(
        stage="loader",
        finds=_missing(
            _SCRIPTED,
            ("tftp", "http", "rom"),
            "it fetched the boot loader, and the loader never asked for its script",
        ),
        remedy="look at its console: iPXE says why. Secure Boot refuses an unsigned loader; boot.url must be reachable",
        patience=30.0,
    ),
    Rule(
        stage="iso",
        finds=_missing(
            ("keys", "hello"),
            ("iso",),
            "the BMC fetched the boot medium, and the environment on it never asked for anything",
        ),
        remedy="look at its console: did it boot from the virtual CD, and do its NICs get an address?",
        patience=420.0,
    ),
    Rule(
        stage="script",
        finds=_missing(("kernel", "initrd", "keys", "hello"), ("script",), "it has its script, and fetched no kernel"),
        remedy="`fleetd boot` must have vmlinuz in its `files`, and boot.url must be reachable from the host",
        patience=30.0,
    ),
    Rule(
        stage="kernel",
        finds=_missing(("initrd", "keys", "hello"), ("kernel",), "it fetched the kernel, and no initrd"),
        remedy="`fleetd boot` must have initrd in its `files`; a transfer that breaks points to the boot NIC or its cable",
        patience=60.0,
    ),
    Rule(
        stage="initrd",
        finds=_missing(
            ("keys", "hello"),
            ("initrd",),
            "it has kernel and initrd, and the environment on them never asked for its keys",
        ),
        remedy="look at its console: enough memory for the environment, a driver for its NIC, an address by DHCP?",
        patience=180.0,
    ),
    Rule(
        stage="keys",
        finds=_missing(("hello",), ("keys",), "it has its keys, and did not phone home"),
        remedy="look at its console: the environment says what it waits for",
        patience=60.0,
    ),
)
DISK_RULES: Final = (
    Rule(
        stage="hello",
        finds=_denied_hello,
        remedy="compare serial, UUID and boot MAC at the rack with the inventory; correct it, apply it, boot again",
    ),
    Rule(
        stage="script",
        finds=lambda case: "it booted from the network and not from its disk" if case.has("script", "kernel") else "",
        remedy="look at its boot order: `fleetctl host boot HOST disk`, then power it on again",
    ),
    Rule(
        stage="power",
        finds=_missing(("hello",), (), "the system on its disk did not phone home"),
        remedy="look at its console: did the firmware find the disk, did the system get an address, does cloud-init run"
        " in the image (fleetd seeds it by NoCloud)?",
        patience=420.0,
    ),
)


def diagnose(host: Host, boot: Boot | None, trail: Iterable[Entry], now: float, *, waited: bool = True) -> Diagnosis:
    """The last stage reached, what is wrong, and what to do; wall second `now`.

    Args:
        boot: the host's open boot, None when there is none.
        trail: all that was seen of the host, as `Trail.of` tells it, and the `Trail.relays`; what is older than the boot
            is left aside.
        waited: whether a step still waits for the phone-home; else nothing is on its way.
    """
    if boot is None or boot.closed is not None:
        return _unexpected(host, [e for e in trail if e.at >= now - 3600.0])
    if boot.met is not None:
        return Diagnosis(
            stage="up", ok=True, what=f"it is up in the {boot.environment} environment, from {boot.source}"
        )
    seen = tuple(sorted((e for e in trail if e.at >= boot.armed - (0 if e.answer else SLACK)), key=lambda e: e.at))
    case = Case(host=host, boot=boot, seen=seen, now=now)
    for rule in DISK_RULES if boot.environment == "disk" else DEPLOY_RULES:
        what = rule.finds(case)
        if what:
            break
    else:
        rule = Rule(stage="hello", finds=_denied_hello, remedy="read the daemon's log around this time")
        what = "it phoned home, and the boot is still open: the daemon was restarted in between, or is just about it"
    if boot.expires < now or not waited:
        late = boot.expires < now
        what += (
            f"; the boot expired {now - boot.expires:.0f} s ago" if late else "; no step waits for this boot any more"
        )
        return Diagnosis(
            stage=rule.stage, ok=False, what=what, remedy=f"{rule.remedy}; then boot it again through fleetd"
        )
    quiet = now - max([boot.armed, *(entry.at for entry in seen if entry.stage != "relay")])
    if rule.patience and quiet < rule.patience:
        return Diagnosis(stage=rule.stage, ok=True, what=f"on its way for {now - boot.armed:.0f} s; so far {what}")
    return Diagnosis(stage=rule.stage, ok=False, what=what, remedy=rule.remedy)


def _unexpected(host: Host, lately: list[Entry]) -> Diagnosis:
    """No boot is open: then nothing is expected, and a machine that asks is told to boot from its disk."""
    asked = [entry for entry in lately if entry.stage == "script"]
    what = f"no boot of {host.name} is armed: it is not expected to come"
    if asked:
        what += f"; it asked for a boot script {len(asked)} times in the last hour and was sent to its local disk"
    return Diagnosis(stage="none", ok=True, what=what)
