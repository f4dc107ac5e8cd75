"""Our own account at a BMC: found by its name, given a new password. The password stands in no error."""

from __future__ import annotations

from urllib.parse import quote

from fleetd.drivers.bmc.redfish_answers import link, text
from fleetd.drivers.bmc.redfish_tree import members
from fleetd.drivers.bmc.session import Call, Session
from fleetd.kit.errors import AuthFailed, Garbled, Unsupported

_SERVICE = "/redfish/v1/AccountService"


async def set_password(session: Session, call: Call, password: str) -> None:
    """PATCH Password of the account that this session logged in with.

    Raises:
        Unsupported: no such account in the service, or the BMC refuses this password (length, characters).
    """
    path, etag = await _own_account(session, call)
    answer = await session.patch(call, path, {"Password": password}, etag)
    if not answer.ok:
        raise session.error(answer, "setting the password", secret=password)
    session.password_changed(password)


async def _own_account(session: Session, call: Call) -> tuple[str, str]:
    """(path, ETag). Slots (Dell 1 to 16) are searched; where ids are names (DGX, OpenBMC) ours is tried first."""
    name = session.login.username
    by_name = f"{_SERVICE}/Accounts/{quote(name, safe='')}"
    try:
        service = await session.get(call, link(session.root, "AccountService") or _SERVICE)
        paths = await members(session, call, link(service, "Accounts") or f"{_SERVICE}/Accounts")
    except AuthFailed:
        return by_name, ""  # a factory password that must be changed first opens nothing but our own account
    for path in sorted(paths, key=lambda p: p.rpartition("/")[2] != quote(name, safe="")):
        try:
            account, etag = await session.get_with_etag(call, path)
        except (Unsupported, Garbled):
            continue  # one broken slot hides no other
        if text(account, "UserName") == name:
            return path, etag
    raise Unsupported(f"the BMC lists no account {name!r}", where=session.peer.name)
