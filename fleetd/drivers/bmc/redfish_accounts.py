"""The accounts of a BMC: all of them told, our own found by its name and given a new password, which stands in no error."""

from __future__ import annotations

from urllib.parse import quote, unquote

from fleetd.drivers.bmc.redfish_answers import Document, link, text
from fleetd.drivers.bmc.redfish_tree import members
from fleetd.drivers.bmc.session import Call, Session
from fleetd.kit.errors import AuthFailed, Garbled, Unsupported
from fleetd.model.bmc import MAX_ACCOUNTS, BmcAccount, told

_SERVICE = "/redfish/v1/AccountService"


async def accounts(session: Session, call: Call) -> tuple[BmcAccount, ...]:
    """The members of AccountService/Accounts (DSP2046 ManagerAccount); slots without a name that nobody enabled are empty.

    A member that cannot be read is told as such: leaving it out would hide who is behind it.

    Raises:
        Unsupported: no account service, or none with an account. Garbled: more than 64 of them.
    """
    paths = await _paths(session, call)
    if len(paths) > MAX_ACCOUNTS:
        raise Garbled(f"the BMC lists {len(paths)} accounts", why=f"more than {MAX_ACCOUNTS}", where=session.peer.name)
    found = []
    for path in paths:
        try:
            account = await session.get(call, path)
        except (Unsupported, Garbled):
            found.append(BmcAccount(id=_last(path), name="", role="not readable", enabled=True))
            continue
        name = text(account, "UserName")
        if name or account.get("Enabled") is True:
            # Absent, `Enabled` is optional: then nothing says that it may not log in.
            enabled = account.get("Enabled") is not False
            found.append(BmcAccount(id=_last(path), name=told(name), role=_role(account), enabled=enabled))
    if not found:
        raise Unsupported("the BMC lists no account", where=session.peer.name)
    return tuple(found)


def _role(account: Document) -> str:
    return told((text(account, "RoleId") or _last(link(account, "Links", "Role"))).lower()) or "no role"


def _last(path: str) -> str:
    return told(unquote(path.rstrip("/").rpartition("/")[2]))


async def _paths(session: Session, call: Call) -> list[str]:
    service = await session.get(call, link(session.root, "AccountService") or _SERVICE)
    return await members(session, call, link(service, "Accounts") or f"{_SERVICE}/Accounts")


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
        paths = await _paths(session, call)
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
