"""Clears the TPM: what a tenant sealed in it goes, and nobody's owner password is left behind."""

from __future__ import annotations

from typing import Any

from fleetd.checks.judge import clean
from fleetd.lifecycle.outcome import Outcome, advance, fail, rewind
from fleetd.lifecycle.steps.base import StepContext
from fleetd.lifecycle.steps.ondeploy import HostReport, OnDeploy
from fleetd.model.check import Action
from fleetd.model.host import Host


class ClearTpm(OnDeploy):
    """A TPM that only its firmware may clear takes one more boot, after which it is looked at again."""

    name = "clear-tpm"
    summary = "clear the TPM, where there is one"
    seconds = 300.0
    command = "clear-tpm"
    needs = frozenset({"managed", "deploy"})
    gives = frozenset({"tpm-cleared"})

    def plan(self, host: Host, params: Any) -> str:
        return "CLEAR the TPM, where there is one; boot once more if only the firmware may do it"

    async def judge(self, ctx: StepContext, report: HostReport) -> Outcome:
        tpm = report.tpm
        why = clean(tpm.reason if tpm is not None else report.reason, 300)
        if tpm is None:
            return self._kept(why or "the host said nothing of a TPM", method="")
        method = clean(tpm.method, 64)
        if report.ok and not tpm.present:
            return advance("there is no TPM", present=False)
        if tpm.pending_reboot:
            if ctx.data.get("tpm-booted"):
                return self._kept(
                    f"the firmware did not clear it at the boot it was asked to: {why}".rstrip(": "), method
                )
            ctx.data["tpm-booted"] = True
            return rewind("the firmware clears the TPM at the next boot", to="deploy")
        if report.ok and tpm.cleared:
            return advance(f"TPM cleared by {method}", present=True, method=method)
        return self._kept(why or "it stays owned", method)

    @staticmethod
    def _kept(why: str, method: str) -> Outcome:
        return fail(
            "tpm.owned",
            f"the TPM was not cleared{f' by {method}' if method else ''}: {why}",
            remedy="clear the TPM in the firmware setup at the host's console (security, TPM), then retest; replace the"
            " TPM module if it stays owned",
            action=Action.CONFIGURE,
            parts=("TPM",),
        )
