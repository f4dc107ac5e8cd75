"""Faults as data: what is broken, on which part, how often it shows. A seed chooses them, a test names them."""

from __future__ import annotations

import msgspec

KINDS: dict[str, str] = {
    "gpu-off-bus": "a GPU fell off the bus (param gpu)",
    "nvlink-down": "one NVLink of a GPU is down (gpu, link)",
    "remap-pending": "a row remap waits for a reset (gpu)",
    "pcie-width": "a GPU trained at fewer lanes (gpu, width)",
    "ecc-uncorrectable": "volatile uncorrectable DRAM errors (gpu, count)",
    "throttled": "hardware slowdown is asserted (gpu)",
    "xid": "an Xid in the kernel log (gpu, code)",
    "wrong-serial": "the host's real serial is not the inventory's",
    "wrong-domain": "the tray's fabric shows another cluster UUID",
    "nic-down": "a NIC port is down (nic)",
    "dimm-gone": "a DIMM is missing",
    "disk-no-erase": "a drive refuses to erase (drive)",
    "erase-lies": "a drive says erased and keeps the data (drive)",
    "disk-too-small": "a drive is smaller than any image (drive, bytes)",
    "write-error": "a drive fails while the image is written (drive, at: percent of the image)",
    "read-back-flip": "a drive stores one bit of the image wrong (drive, at: percent of the image)",
    "checksum-mismatch": "the image reaches the host with one bit changed",
    "efi-full": "the firmware's variable store has no room for the boot entry of a written drive",
    "deaf-bmc": "the BMC answers nothing",
    "lying-bmc": "the BMC confirms power and boot verbs and does nothing",
    "slow-bmc": "every BMC answer takes long (seconds)",
    "busy-bmc": "the BMC answers 503 / node busy (count)",
    "account-added": "somebody made an account at the BMC, an administrator (username)",
    "no-boot": "network boot gets no answer; the host never phones home",
    "no-dhcp": "nobody answers its DHCP request: it never asks for its boot script",
    "boots-wrong-device": "it ignores a one-time boot device and starts from its disk",
    "wrong-mac": "its deploy environment phones home from another MAC (mac)",
    "probe-garbage": "the probe's output is not a report (mode: huge|truncated|text|other-boot|other-host)",
}


class Fault(msgspec.Struct, kw_only=True):
    """`count` None: as long as it stands; else it shows that many times and is spent. Mutable: it counts."""

    kind: str
    params: dict[str, int | str | float] = {}
    count: int | None = None
    fired: int = 0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"there is no fault {self.kind!r}; known: {', '.join(KINDS)}")

    @property
    def live(self) -> bool:
        return self.count is None or self.fired < self.count

    @property
    def told(self) -> dict[str, int | str | float]:
        """The parameters for the record, whose own field `at` is the time."""
        return {("percent" if key == "at" else key): value for key, value in self.params.items()}

    def number(self, name: str, default: int = 0) -> int:
        return int(self.params.get(name, default))
