"""Writes an image and its seed to the system drive and reads its digest back."""

from __future__ import annotations

import secrets
from typing import Any

import msgspec

from fleetd.drivers.ssh.keys import new_key_pair
from fleetd.lifecycle.credentials import Seed
from fleetd.lifecycle.outcome import Outcome, advance, fail
from fleetd.lifecycle.steps.base import StepContext
from fleetd.lifecycle.steps.ondeploy import DriveReport, HostReport, OnDeploy
from fleetd.model.check import Action
from fleetd.model.host import Host


class WriteImage(OnDeploy):
    """A SKU image is seeded with a key of ours; a tenant's with the tenant's keys, and none of ours."""

    name = "write-image"
    summary = "write an image to the system drive, seed it, read it back"
    seconds = 3600.0
    command = "write-image"
    needs = frozenset({"managed", "deploy"})
    gives = frozenset({"image"})

    class Params(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
        """`image`: a name; `keys`: whose SSH keys the seed holds."""

        image: str = "{{ sku.image }}"
        tenant: bool = False

    def plan(self, host: Host, params: Any) -> str:
        return f"OVERWRITE the system drive with image {params.image}"

    async def order(self, ctx: StepContext, drives: list[DriveReport]) -> dict[str, Any]:
        params: WriteImage.Params = ctx.params
        host_private, host_public = new_key_pair(f"host {ctx.host.name}")
        private, public = ("", "") if params.tenant else new_key_pair(f"fleetd {ctx.host.name}")
        keys = list(ctx.lease.request.ssh_keys) if params.tenant and ctx.lease else [public]
        seed = Seed(token=secrets.token_urlsafe(32), host_key=host_public, private_key=private, public_key=public)
        # Stored before the order leaves: if we die now, the image on the disk still phones home with a token we know.
        await ctx.db.commit(ctx.wires.credentials.keep_seed(ctx.host, seed))
        return {
            "image": {"name": ctx.resolve(params.image)},
            "rule": ctx.sku.storage.system_serial_rule,
            "seed": {
                "hostname": ctx.host.name,
                "authorized_keys": keys,
                "host_key_private": host_private,
                "host_key_public": host_public,
                "phone_home_url": ctx.wires.boots.base_url,
                "phone_home_token": seed.token,
                "user_data": (ctx.lease.request.user_data or "") if params.tenant and ctx.lease else "",
            },
        }

    async def judge(self, ctx: StepContext, report: HostReport) -> Outcome:
        if not report.ok:
            reasons = "; ".join(d.reason for d in report.drives if d.reason) or "the read-back digest differs"
            return fail(
                "image.write",
                f"the image was not written: {reasons}",
                remedy="replace the system drive, then retest",
                action=Action.RMA,
            )
        return advance(f"image {report.image} written and read back", image=report.image, digest=report.digest)
