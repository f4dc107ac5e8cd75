"""Who may write a host's rows: an owner, an expiry, and a fencing token that only ever grows.

A dropped claim keeps its row, so that a token is never given twice; every guarded write elsewhere in this room
compares token and owner inside its own statement.
"""

from __future__ import annotations

from typing import Final

from sqlalchemy import bindparam, case, exists, literal_column, or_, select, update
from sqlalchemy.sql.elements import ColumnElement

from fleetd.kit.errors import Conflict, FleetError, StaleClaim
from fleetd.model.boot import Claim
from fleetd.store.database import Database, Op, Params, Statement
from fleetd.store.dialects import insert_into
from fleetd.store.tables import claims

_MINE: Final = (
    (claims.c.host == bindparam("claim_host"))
    & (claims.c.token == bindparam("claim_token"))
    & (claims.c.owner == bindparam("claim_owner"))
)


def held() -> ColumnElement[bool]:
    """For a WHERE: true while the claim given by `guard_params` is the newest of its host."""
    return exists(select(literal_column("1")).select_from(claims).where(_MINE))


def guard_params(claim: Claim) -> Params:
    """The parameters that `held` and `PROOF` need."""
    return {"claim_host": claim.host, "claim_token": claim.token, "claim_owner": claim.owner}


PROOF: Final = Statement(select(literal_column("1")).select_from(claims).where(_MINE))

_insert = insert_into(claims)
_TAKE = Statement(
    _insert.on_conflict_do_update(
        index_elements=["host"],
        set_={
            "owner": _insert.excluded.owner,
            "expires": _insert.excluded.expires,
            "token": claims.c.token + literal_column("1"),
        },
        where=or_(
            claims.c.owner == literal_column("''"),
            claims.c.owner == _insert.excluded.owner,
            claims.c.expires <= bindparam("now"),
        ),
    ).returning(claims.c.token),
    returns=True,
)
_LATER: Final = case((claims.c.expires > bindparam("expires"), claims.c.expires), else_=bindparam("expires"))
_RENEW = Statement(update(claims).where(_MINE).values(expires=_LATER))
_DROP = Statement(update(claims).where(_MINE).values(owner=literal_column("''"), expires=literal_column("0")))
_CURRENT = Statement(
    select(claims.c.owner, claims.c.token, claims.c.expires).where(
        claims.c.host == bindparam("host"), claims.c.owner != literal_column("''")
    )
)


def stale(claim: Claim) -> FleetError:
    """The error of a write under a claim that is no longer the newest."""
    return StaleClaim(
        f"the claim of {claim.owner} on {claim.host} is void",
        why=f"token {claim.token} is not the newest",
        remedy="nothing to do: the daemon that owns the host now goes on with it",
    )


async def take(db: Database, host_id: str, owner: str, *, now: float, ttl: float) -> Claim | None:
    """Claim a host that is free, expired or already ours; each take raises the token. None: another holds it.

    Args:
        now: wall seconds. ttl: seconds the claim lasts without `renew`.

    Raises:
        Conflict: there is no such host.
    """
    held_by_other = Conflict(f"{host_id} is claimed by another")
    op = Op(
        _TAKE,
        {"host": host_id, "owner": owner, "token": 1, "expires": now + ttl, "now": now},
        1,
        lambda: held_by_other,
    )
    try:
        rows = (await db.execute([op])).rows
    except Conflict as error:
        if error is held_by_other:
            return None
        raise
    return Claim(host=host_id, owner=owner, token=int(rows[0][0]), expires=now + ttl)


def renew(claim: Claim, *, now: float, ttl: float) -> Op:
    """Let it last until `now` + `ttl` at least; never shorter than it does. Raises StaleClaim at commit when another took it."""
    return Op(_RENEW, {**guard_params(claim), "expires": now + ttl}, 1, lambda: stale(claim))


def drop(claim: Claim) -> Op:
    """Give it back; nothing happens when it is another's by now."""
    return Op(_DROP, guard_params(claim))


async def current(db: Database, host_id: str) -> Claim | None:
    """The newest claim, expired or not; None when there is none or it was dropped."""
    for owner, token, expires in await db.fetch(_CURRENT, {"host": host_id}):
        return Claim(host=host_id, owner=owner, token=token, expires=expires)
    return None
