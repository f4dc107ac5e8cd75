"""Certificates: the signed document itself, its history, and the key to judge it by."""

from __future__ import annotations

from typing import Any

from litestar import Request, get

from fleetd.api import auth, params, views
from fleetd.api.state import desks
from fleetd.model.certificate import Certificate
from fleetd.model.resource import CertificateView, Page, PublicKeyView
from fleetd.store import certificates

Req = Request[Any, Any, Any]


@get("/v1/hosts/{ref:str}/certificate", guards=[auth.viewer])
async def host_certificate(request: Req, ref: params.Ref) -> Certificate:
    """The newest certificate of a host, as signed: save it and verify it offline."""
    return await desks(request).services.proofs.of_host(ref)


@get("/v1/hosts/{ref:str}/certificates", guards=[auth.viewer])
async def host_certificates(request: Req, ref: params.Ref) -> Page[CertificateView]:
    """All certificates a host ever had, and why those that were revoked were."""
    return Page(items=[views.certificate(c) for c in await desks(request).services.proofs.history(ref)])


@get("/v1/certificates/{certificate_id:str}", guards=[auth.viewer])
async def get_certificate(request: Req, certificate_id: params.Id) -> Certificate:
    """One certificate by id, also an old one."""
    return (await certificates.get(desks(request).services.db, certificate_id)).certificate


@get("/v1/public-key", guards=[auth.tenant], sync_to_thread=False)
def public_key(request: Req) -> PublicKeyView:
    """The key this site signs with."""
    return PublicKeyView(pem=desks(request).services.proofs.public_key_pem())


HANDLERS = [host_certificate, host_certificates, get_certificate, public_key]
