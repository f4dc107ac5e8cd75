"""What the process at the other end of the unix socket may be: by the configuration's policy, never by its own word."""

from __future__ import annotations

import grp
import os
import pwd
from collections.abc import Mapping

import msgspec

from fleetd.kit.errors import Denied
from fleetd.kit.peer import Peer
from fleetd.model.access import Principal, Role


class SocketPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """What a caller on the unix socket may be. `groups` maps a group's name to a role; `others` None denies the rest."""

    groups: Mapping[str, Role] = msgspec.field(default_factory=lambda: {"fleetd-ops": Role.OPERATOR})
    others: Role | None = None


def principal_of_peer(peer: Peer, policy: SocketPolicy) -> Principal:
    """root and the daemon's own user are admin; then the strongest role of their groups; then `others`.

    Raises:
        Denied: the policy has nothing for them.
    """
    try:
        user = pwd.getpwuid(peer.uid).pw_name
    except KeyError:
        user = f"uid:{peer.uid}"
    if peer.uid in (0, os.geteuid()):
        return Principal(name=user, role=Role.ADMIN)
    best = policy.others
    for name, role in policy.groups.items():
        try:
            group = grp.getgrnam(name)
        except KeyError:
            continue
        if (group.gr_gid in peer.gids or user in group.gr_mem) and (best is None or role.covers(best)):
            best = role
    if best is None:
        names = ", ".join(sorted(policy.groups)) or "an admitted group"
        raise Denied(
            f"{user} may not use this socket",
            why=f"not in {names}",
            remedy=f"sudo usermod -aG {names.split(',')[0]} {user}",
        )
    return Principal(name=user, role=best)
