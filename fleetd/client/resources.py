"""The API's nouns as methods. What comes back keeps the API's own JSON (`raw`) beside the typed value.

A newer daemon may send fields this client does not know: `raw` has them, the typed value leaves them out.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator
from typing import IO, Any, Generic, TypeVar

import msgspec

from fleetd.client.http import Endpoint, Http, segment
from fleetd.kit.errors import Garbled
from fleetd.model import bootresource as b
from fleetd.model import resource as r

T = TypeVar("T")
POWER_SECONDS = 240.0  # a cycle is confirmed off, then confirmed on
PAGE = 1000
SLOWEST_READ = 20 * 1024**2  # bytes a second at which a daemon reads, unpacks and hashes an image, at worst


def _reading_seconds(size: int) -> float:
    return 120.0 + size / SLOWEST_READ


class Document(Generic[T]):
    """One resource."""

    def __init__(self, raw: Any, kind: type[T]) -> None:
        self.raw = raw
        self.value: T = _typed(raw, kind)


class Listing(Generic[T]):
    """A whole list, all pages of it, as one `{"items": […], "next": null}`."""

    def __init__(self, items: list[Any], kind: type[T], following: str | None = None) -> None:
        self.raw: dict[str, Any] = {"items": items, "next": following}
        self.items: list[T] = [_typed(item, kind) for item in items]


def _typed(raw: Any, kind: type[T]) -> T:
    try:
        return msgspec.convert(raw, kind)
    except msgspec.ValidationError as error:
        raise Garbled(
            "the daemon's answer does not fit this client",
            why=str(error),
            remedy="bring fleetctl and fleetd to the same version",
        ) from error


class Fleet:
    """One daemon. Every method raises what the API's problem says, or Unreachable and DeadlineExceeded of the way there."""

    def __init__(self, endpoint: Endpoint, *, timeout: float = 60.0) -> None:
        self.http = Http(endpoint, timeout=timeout)

    def close(self) -> None:
        self.http.close()

    def again(self) -> Fleet:
        """Another connection to the same daemon, for use in another thread."""
        return Fleet(self.http.endpoint)

    # --- the two shapes ---------------------------------------------------------------------------------------------

    def get(self, path: str, kind: type[T], **query: Any) -> Document[T]:
        return Document(self.http.request("GET", path, query=query).data, kind)

    def post(
        self, path: str, kind: type[T], body: Any = None, *, version: int | None = None, timeout: float | None = None
    ) -> Document[T]:
        reply = self.http.request("POST", path, body=body, version=version, timeout=timeout)
        return Document(reply.data, kind)

    def all(self, path: str, kind: type[T], *, most: int | None = None, **query: Any) -> Listing[T]:
        """Every page, or the first `most` items."""
        items: list[Any] = []
        for page in self.pages(path, **query):
            items += page["items"]
            if most is not None and len(items) >= most:
                return Listing(items[:most], kind)
        return Listing(items, kind)

    def pages(self, path: str, **query: Any) -> Iterator[dict[str, Any]]:
        """Page after page."""
        cursor = None
        while True:
            page = self.http.request("GET", path, query={**query, "cursor": cursor}).data
            if not isinstance(page, dict) or not isinstance(page.get("items"), list):
                raise Garbled("the daemon's answer is no list", why=path)
            yield page
            cursor = page.get("next")
            if cursor is None:
                return

    # --- hosts ------------------------------------------------------------------------------------------------------

    def hosts(self, hosts: str | None = None) -> Listing[r.HostView]:
        return self.all("/v1/hosts", r.HostView, hosts=hosts, limit=PAGE)

    def host(self, ref: str) -> Document[r.HostView]:
        return self.get(f"/v1/hosts/{segment(ref)}", r.HostView)

    def why(self, ref: str) -> Document[dict[str, Any]]:
        return self.get(f"/v1/hosts/{segment(ref)}/why", dict[str, Any])

    def history(self, ref: str, limit: int) -> Listing[r.EventView]:
        return self.all(f"/v1/hosts/{segment(ref)}/history", r.EventView, most=limit, limit=min(limit, PAGE))

    def host_steps(self, ref: str, limit: int) -> Listing[r.StepRecordView]:
        return self.all(f"/v1/hosts/{segment(ref)}/steps", r.StepRecordView, most=limit, limit=min(limit, PAGE))

    def power(self, ref: str, verb: str) -> Document[r.PowerView]:
        return self.post(f"/v1/hosts/{segment(ref)}/power", r.PowerView, {"verb": verb}, timeout=POWER_SECONDS)

    def boot(self, ref: str, device: str) -> Document[r.DoneView]:
        return self.post(f"/v1/hosts/{segment(ref)}/boot", r.DoneView, {"device": device})

    def identify(self, ref: str, on: bool) -> Document[r.DoneView]:
        return self.post(f"/v1/hosts/{segment(ref)}/identify", r.DoneView, {"on": on})

    def quarantine(self, ref: str, reason: str, version: int | None = None) -> Document[r.HostView]:
        return self.post(f"/v1/hosts/{segment(ref)}/quarantine", r.HostView, {"reason": reason}, version=version)

    def maintenance(self, ref: str, reason: str, until: str, version: int | None = None) -> Document[r.HostView]:
        body = {"reason": reason, "until": until}
        return self.post(f"/v1/hosts/{segment(ref)}/maintenance", r.HostView, body, version=version)

    def release_host(self, ref: str) -> Document[r.RunView]:
        return self.post(f"/v1/hosts/{segment(ref)}/release", r.RunView)

    def retire(self, ref: str, version: int | None = None) -> Document[r.HostView]:
        return self.post(f"/v1/hosts/{segment(ref)}/retire", r.HostView, version=version)

    # --- certificates -----------------------------------------------------------------------------------------------

    def certificate(self, ref: str) -> Document[dict[str, Any]]:
        return self.get(f"/v1/hosts/{segment(ref)}/certificate", dict[str, Any])

    def certificates(self, ref: str) -> Listing[r.CertificateView]:
        return self.all(f"/v1/hosts/{segment(ref)}/certificates", r.CertificateView)

    def public_key(self) -> Document[r.PublicKeyView]:
        return self.get("/v1/public-key", r.PublicKeyView)

    # --- images and boots -------------------------------------------------------------------------------------------

    def images(self) -> Listing[b.ImageView]:
        return self.all("/v1/images", b.ImageView, limit=PAGE)

    def image(self, name: str) -> Document[b.ImageView]:
        return self.get(f"/v1/images/{segment(name)}", b.ImageView)

    def offer_image(self, signed: dict[str, Any]) -> Document[b.ImageOfferView]:
        return self.post("/v1/images", b.ImageOfferView, signed)

    def upload_image(
        self, path: str, signed: bytes, file: IO[bytes], size: int, *, disk: int, sent: Callable[[int], None]
    ) -> Document[b.ImageView]:
        """`path`: as the offer's answer names it; `signed`: the manifest's JSON; `disk`: bytes it unpacks to."""
        headers = {"Fleetd-Manifest": base64.urlsafe_b64encode(signed).decode().rstrip("=")}
        timeout = _reading_seconds(size + disk)
        reply = self.http.upload(path, file, size, headers=headers, timeout=timeout, sent=sent)
        return Document(reply.data, b.ImageView)

    def verify_image(self, name: str) -> Document[b.ImageCheckView]:
        size = self.image(name).value
        timeout = _reading_seconds(size.bytes + size.raw_bytes)
        return self.post(f"/v1/images/{segment(name)}/verify", b.ImageCheckView, timeout=timeout)

    def remove_image(self, name: str) -> None:
        self.http.request("DELETE", f"/v1/images/{segment(name)}")

    def boot_doctor(self, ref: str) -> Document[b.BootDoctorView]:
        return self.get(f"/v1/hosts/{segment(ref)}/boot", b.BootDoctorView)

    # --- inventory --------------------------------------------------------------------------------------------------

    def plan(self, files: dict[str, str]) -> Document[r.PlanView]:
        return self.post("/v1/inventory/plan", r.PlanView, {"files": files}, timeout=300.0)

    def apply(self, files: dict[str, str], expect: str | None) -> Document[r.PlanView]:
        return self.post("/v1/inventory/apply", r.PlanView, {"files": files, "expect": expect}, timeout=300.0)

    def inventory(self) -> Document[r.InventoryView]:
        return self.get("/v1/inventory", r.InventoryView)

    # --- runs -------------------------------------------------------------------------------------------------------

    def runs(self, state: str | None = None, most: int | None = None) -> Listing[r.RunView]:
        limit = PAGE if most is None else min(most, PAGE)
        return self.all("/v1/runs", r.RunView, most=most, state=state, limit=limit)

    def run(self, run_id: str) -> Document[r.RunView]:
        return self.get(f"/v1/runs/{segment(run_id)}", r.RunView)

    def run_hosts(self, run_id: str) -> Listing[r.RunHostView]:
        return self.all(f"/v1/runs/{segment(run_id)}/hosts", r.RunHostView, limit=PAGE)

    def run_steps(self, run_id: str, host: str) -> Listing[r.StepRecordView]:
        return self.all(f"/v1/runs/{segment(run_id)}/hosts/{segment(host)}/steps", r.StepRecordView)

    def start(self, playbook: str, hosts: str) -> Document[r.RunView]:
        return self.post("/v1/runs", r.RunView, {"playbook": playbook, "hosts": hosts})

    def dry_run(self, playbook: str, hosts: str) -> Document[r.RunPlanView]:
        return self.post("/v1/runs", r.RunPlanView, {"playbook": playbook, "hosts": hosts, "dry_run": True})

    def cancel(self, run_id: str) -> Document[r.RunView]:
        return self.post(f"/v1/runs/{segment(run_id)}/cancel", r.RunView)

    def retry(self, run_id: str) -> Document[r.RunView]:
        return self.post(f"/v1/runs/{segment(run_id)}/retry", r.RunView)

    # --- leases -----------------------------------------------------------------------------------------------------

    def leases(self, tenant: str | None = None, live: bool = False) -> Listing[r.LeaseView]:
        return self.all("/v1/leases", r.LeaseView, tenant=tenant, live=live, limit=PAGE)

    def lease(self, lease_id: str) -> Document[r.LeaseView]:
        return self.get(f"/v1/leases/{segment(lease_id)}", r.LeaseView)

    def create_lease(self, request: dict[str, Any]) -> Document[r.LeaseView]:
        return self.post("/v1/leases", r.LeaseView, request)

    def plan_lease(self, request: dict[str, Any]) -> Document[r.LeasePlanView]:
        return self.post("/v1/leases", r.LeasePlanView, {**request, "dry_run": True})

    def extend(self, lease_id: str, ends_at: str) -> Document[r.LeaseView]:
        return self.post(f"/v1/leases/{segment(lease_id)}/extend", r.LeaseView, {"ends_at": ends_at})

    def release_lease(self, lease_id: str, wipe_now: bool) -> Document[r.LeaseView]:
        return self.post(f"/v1/leases/{segment(lease_id)}/release", r.LeaseView, {"wipe_now": wipe_now})

    # --- the rest ---------------------------------------------------------------------------------------------------

    def capacity(self, sku: str | None, site: str | None, by_rack: bool) -> Listing[r.CapacityView]:
        return self.all("/v1/capacity", r.CapacityView, sku=sku, site=site, by_rack=by_rack)

    def events(self, after: int, limit: int = PAGE, **wanted: Any) -> Listing[r.EventView]:
        return self.all("/v1/events/list", r.EventView, most=limit, after=after, limit=min(limit, PAGE), **wanted)

    def freezes(self) -> Listing[r.FreezeView]:
        return self.all("/v1/freezes", r.FreezeView)

    def holds(self) -> Listing[r.HoldView]:
        return self.all("/v1/holds", r.HoldView)

    def freeze(self, scope: str, reason: str) -> Document[r.FreezeView]:
        reply = self.http.request("PUT", f"/v1/freezes/{segment(scope)}", body={"reason": reason})
        return Document(reply.data, r.FreezeView)

    def thaw(self, scope: str) -> None:
        self.http.request("DELETE", f"/v1/freezes/{segment(scope)}")

    def lift(self, hold: str) -> None:
        self.http.request("DELETE", f"/v1/holds/{segment(hold)}")

    def health(self) -> Document[r.HealthView]:
        return self.get("/v1/health", r.HealthView)
