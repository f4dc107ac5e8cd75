"""Writes an image and its seed to the system drive and reads its digest back."""

from __future__ import annotations

import secrets
import uuid
from collections.abc import Sequence
from typing import Any

import msgspec

from fleetd.checks.judge import clean
from fleetd.drivers.ssh.keys import new_key_pair
from fleetd.lifecycle.credentials import Seed
from fleetd.lifecycle.images import ORDERED, Ordered
from fleetd.lifecycle.outcome import Fail, Outcome, Retry, advance, fail, here
from fleetd.lifecycle.steps.base import StepContext
from fleetd.lifecycle.steps.ondeploy import DriveReport, HostReport, OnDeploy, no_boot_order, unwiped
from fleetd.model.boot import Boot
from fleetd.model.check import Action
from fleetd.model.host import Host
from fleetd.model.image import Manifest
from fleetd.store import hosts as host_rows

# The image or its way here is at fault, not this host.
_OF_THE_IMAGE = frozenset({"image-checksum", "image-stream", "image-source", "partition-table"})
_OF_THE_DRIVE = frozenset({"drive-too-small", "drive-write", "drive-read-back"})
GB = 10**9
MAX_ENTRIES = 256  # of a boot order


class WriteImage(OnDeploy):
    """A SKU image is seeded with a key of ours; a tenant's with the tenant's keys, and none of ours."""

    name = "write-image"
    version = 2
    summary = "write an image to the system drive, seed it, read it back"
    seconds = 2 * 3600.0  # up to 50 minutes of them in the queue of a full boot service
    command = "write-image"
    touches = True
    needs = frozenset({"managed", "deploy"})
    gives = frozenset({"image"})

    class Params(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
        """`image`: a name; `tenant`: the seed holds the tenant's keys, and none of ours."""

        image: str = "{{ sku.image }}"
        tenant: bool = False

    def plan(self, host: Host, params: Any) -> str:
        return f"OVERWRITE the system drive with image {params.image}, read it back and seed it"

    async def admit(self, ctx: StepContext, serials: Sequence[str]) -> Fail | None:
        """No drive that the last erase of this host did not see: plugged in since, or away then, it may hold anything."""
        erased = await host_rows.drives_of(ctx.db, ctx.host.id)
        late = sorted(clean(serial, 64) for serial in serials if serial not in erased) if erased else []
        if not late:
            return None
        return unwiped(ctx.host, late, "nothing was written")

    async def order(self, ctx: StepContext, boot: Boot, drives: list[DriveReport]) -> dict[str, Any]:
        params: WriteImage.Params = ctx.params
        manifest = await ctx.wires.images.manifest(ctx.resolve(params.image))
        # Pinned before the order leaves: what the name means may be another image by the time the report is judged.
        pinned = Ordered(intent=ctx.intent, step=ctx.index, manifest=manifest)
        await ctx.keep(**{ORDERED: msgspec.to_builtins(pinned)})
        host_private, host_public = new_key_pair(f"host {ctx.host.name}")
        private, public = ("", "") if params.tenant else new_key_pair(f"fleetd {ctx.host.name}")
        keys = list(ctx.lease.request.ssh_keys) if params.tenant and ctx.lease else [public]
        seed = Seed(token=secrets.token_urlsafe(32), host_key=host_public, private_key=private, public_key=public)
        # Stored before the order leaves: if we die now, the image on the disk still phones home with a token we know.
        await ctx.db.commit(ctx.wires.credentials.keep_seed(ctx.host, seed))
        return {
            "image": {
                "name": manifest.name,
                "format": str(manifest.format),
                "bytes": manifest.bytes,
                "sha256": manifest.sha256,
                "raw_bytes": manifest.raw_bytes,
                "raw_sha256": manifest.raw_sha256,
                "urls": ctx.wires.boots.image_urls(boot, ctx.host, manifest),
            },
            "rule": ctx.sku.storage.system_serial_rule,
            "seed": {
                "hostname": ctx.host.name,
                # A new one each time: an image that was started before on this disk's forebear must seed itself again.
                "instance_id": str(uuid.uuid4()),
                "authorized_keys": keys,
                "host_key_private": host_private,
                "host_key_public": host_public,
                "phone_home_url": ctx.wires.boots.base_url,
                "phone_home_token": seed.token,
                "user_data": (ctx.lease.request.user_data or "") if params.tenant and ctx.lease else "",
                "network": "",
                "boot_mac": ctx.host.spec.boot_mac,
            },
        }

    async def judge(self, ctx: StepContext, report: HostReport) -> Outcome:
        manifest = await self._ordered(ctx)
        drive = report.drives[0] if len(report.drives) == 1 else None
        evidence = _evidence(report, drive)
        wrong = _wrong(manifest, report, drive)
        if not wrong:
            assert drive is not None
            evidence["efi"], astray = _first_to_boot(report, uefi=ctx.sku.boot_mode == "uefi")
            if astray:
                return msgspec.structs.replace(no_boot_order(astray), evidence=evidence)
            return advance(
                f"image {manifest.name} written to drive {clean(drive.serial, 64)} and read back in {drive.seconds:.0f} s",
                **evidence,
            )
        # The image may have been on its way when a server or a line gave up: once more, then it is a finding.
        if report.code in _OF_THE_IMAGE and not ctx.data.get("image-tried"):
            ctx.data["image-tried"] = True
            return Retry(
                error=f"{clean(report.code, 40)}: {wrong}",
                code="image." + report.code.removeprefix("image-"),
                remedy=f"fleetctl image verify {manifest.name}",
                after=2.0,
                source=here(),
            )
        return msgspec.structs.replace(self._finding(ctx, manifest, report, drive, wrong), evidence=evidence)

    @staticmethod
    async def _ordered(ctx: StepContext) -> Manifest:
        """The image that this intent ordered; of an order by a fleetd that pinned none, what its name means now."""
        if (found := ctx.data.get(ORDERED)) is not None:
            pinned = msgspec.convert(found, Ordered)
            if pinned.intent == ctx.intent:
                return pinned.manifest
        return await ctx.wires.images.manifest(ctx.resolve(ctx.params.image))

    @staticmethod
    def _finding(
        ctx: StepContext, manifest: Manifest, report: HostReport, drive: DriveReport | None, wrong: str
    ) -> Fail:
        code = report.code
        serial = clean(drive.serial, 64) if drive is not None else ""
        parts = (serial,) if serial else ()
        if code in _OF_THE_IMAGE:
            return fail(
                "image." + code.removeprefix("image-"),
                f"image {manifest.name}: {wrong}; this host is not to blame",
                remedy=f"`fleetctl image verify {manifest.name}`: it reads the file again; add it anew if it is damaged,"
                " look at the mirrors if it is not; then retest",
                action=Action.RETEST,
            )
        if code == "drive-too-small":
            return fail(
                "storage.too-small",
                f"drive {serial or '?'} is too small for image {manifest.name}: {wrong}",
                remedy=f"pull the drive {serial} and fit one of at least {manifest.raw_bytes / GB:.0f} GB, or give the SKU"
                " a smaller image or another rule for its system drive",
                action=Action.RMA,
                parts=parts,
            )
        if code in _OF_THE_DRIVE:
            return fail(
                "storage.write" if code == "drive-write" else "storage.read-back",
                f"drive {serial or '?'} did not take image {manifest.name}: {wrong}",
                remedy=f"pull the drive {serial}, replace it, then retest",
                action=Action.RMA,
                parts=parts,
            )
        return fail(
            "image.write",
            f"image {manifest.name} was not written: {wrong}",
            remedy=f"read what the host said (`fleetctl run show --host {ctx.host.name} {ctx.run.id}`), then retest",
            action=Action.RETEST,
            parts=parts,
        )


def _wrong(manifest: Manifest, report: HostReport, drive: DriveReport | None) -> str:
    """Why this report is no proof that the image stands on a drive; empty when it is one."""
    if not report.ok or drive is None or not drive.written:
        reasons = "; ".join(clean(d.reason, 300) for d in report.drives if d.reason)
        return reasons or clean(report.reason, 300) or clean(report.code, 60) or "the host does not say why"
    if report.digest != f"sha256:{manifest.raw_sha256}":
        return (
            f"it reads back as {clean(report.digest, 80) or 'nothing'}, the manifest says sha256:{manifest.raw_sha256}"
        )
    return ""


def _first_to_boot(report: HostReport, *, uefi: bool) -> tuple[dict[str, Any], str]:
    """(what became of the firmware's order, why the written drive does not come first in it, or empty).

    A host that says it did not start by EFI has no order to set; `uefi`, of the SKU, counts where it does not say. The
    first boot proves nothing of this: the BMC's one-time boot device hides a wrong order until the tenant reboots.
    """
    told = report.efi.get("efi")
    view: dict[str, Any] = told if isinstance(told, dict) else {}
    first, reason = (
        clean(value, most) if isinstance(value := report.efi.get(key), str) else ""
        for key, most in (("first", 8), ("reason", 300))
    )
    listed = view.get("boot_order")
    order = [clean(number, 8) for number in listed[:MAX_ENTRIES]] if isinstance(listed, list) else []
    present = view.get("present")
    if present is False:
        reason = reason or "the host did not start by EFI"
    found = {"present": present is True, "first": first, "order": order, "reason": reason}
    if present is not True and (present is False or not uefi):
        return found, ""
    if not first:
        return found, reason or "the host does not say why"
    if order[:1] != [first]:
        return found, f"the system drive is entry {first}, and {order[0] if order else 'nothing'} comes first"
    return found, ""


def _evidence(report: HostReport, drive: DriveReport | None) -> dict[str, Any]:
    """What was proven. The ticket in a URL stays out."""
    found: dict[str, Any] = {"image": clean(report.image, 80), "digest": clean(report.digest, 80)}
    if report.code:
        found["code"] = clean(report.code, 40)
    if drive is not None:
        found |= {
            "drive": clean(drive.serial, 64),
            "model": clean(drive.model, 64),
            "seconds": drive.seconds,
            "wrote_bytes": drive.wrote_bytes,
            "zero_bytes": drive.zero_bytes,
            "read_bytes": drive.read_bytes,
            "resumed": drive.resumed,
            "url": clean(drive.url.partition("?")[0], 300),
        }
    return found
