"""SSH to hosts that phoned home: one kept connection a host, exactly the phoned-home host key, exactly our client key.

A host may be hostile. It can make us wait until a deadline and read up to a bound; it cannot make us run, trust or keep
anything: no agent, no known_hosts, no configuration files, no forwarding, no password.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Callable
from typing import Any

import asyncssh

from fleetd.drivers.ssh.capabilities import Progress, Shell, ShellTarget, Zipapp
from fleetd.drivers.ssh.output import Refusal, Talk, refusal_in
from fleetd.kit.errors import (
    AuthFailed,
    Busy,
    DeadlineExceeded,
    FleetError,
    Garbled,
    Invalid,
    Permanent,
    PinMismatch,
    Refused,
    Unreachable,
    Unsupported,
)
from fleetd.probe import remote

CHUNK = 64 * 1024
PUSH_SECONDS = 60.0
# aes128-gcm first: half the CPU of the default chacha20 where the processor has AES.
_CIPHERS = ("aes128-gcm@openssh.com", "aes256-gcm@openssh.com", "chacha20-poly1305@openssh.com", "aes128-ctr")
_REFUSAL_REMEDY = (
    "read the reason: the host compares the order with its own serial, drives and boot; `fleetctl host why HOST`"
)


class SshShells:
    """Implements `Shells`. Connections are kept per host until its target changes or `close`."""

    def __init__(self) -> None:
        self._kept: dict[str, SshShell] = {}
        self._locks: dict[str, asyncio.Lock] = {}

    async def connect(self, target: ShellTarget, *, timeout: float) -> Shell:
        """The kept connection if it is to this very target and alive, else a new one; an old one is dropped.

        Raises: Unreachable, DeadlineExceeded, PinMismatch, AuthFailed, Garbled, Invalid (an unusable key of ours).
        """
        lock = self._locks.setdefault(target.host, asyncio.Lock())
        try:
            async with asyncio.timeout(timeout), lock:
                kept = self._kept.get(target.host)
                if kept is not None and kept.target == target and kept.alive:
                    return kept
                if kept is not None:
                    await kept.drop()
                end = _End()
                shell = SshShell(target, await _open(target, timeout, end), self._forget)
                end.lost = lambda: self._forget(shell)
                if not shell.alive:
                    raise Unreachable(f"host {target.host} closed the SSH connection at once")
                self._kept[target.host] = shell
                return shell
        except TimeoutError as error:
            raise DeadlineExceeded(f"no SSH session with host {target.host} within {timeout:.0f} s") from error

    def _forget(self, shell: SshShell) -> None:
        if self._kept.get(shell.target.host) is shell:
            del self._kept[shell.target.host]

    async def close(self) -> None:
        """Drop all kept connections."""
        for shell in list(self._kept.values()):
            await shell.drop()


class _End(asyncssh.SSHClient):
    """Our end of a connection: a dead one is forgotten when it dies, not when it is next used."""

    def __init__(self) -> None:
        self.lost: Callable[[], None] = _nothing

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost()


def _nothing() -> None:
    """Nobody keeps this connection yet."""


async def _open(target: ShellTarget, timeout: float, end: _End) -> asyncssh.SSHClientConnection:
    try:
        pinned = asyncssh.import_public_key(target.host_key)
        ours = asyncssh.import_private_key(target.private_key)
    except (asyncssh.KeyImportError, ValueError) as error:
        raise Invalid(f"a key for host {target.host} cannot be read", why=str(error)[:200]) from error
    where = f"{target.address}:{target.port}"
    try:
        return await asyncssh.connect(
            target.address,
            target.port,
            client_factory=lambda: end,
            username=target.username,
            client_keys=[ours],
            known_hosts=([pinned], [], []),
            server_host_key_algs=[_text(pinned.algorithm)],
            x509_trusted_certs=None,
            config=None,
            agent_path=None,
            preferred_auth="publickey",
            password_auth=False,
            kbdint_auth=False,
            host_based_auth=False,
            gss_auth=False,
            gss_kex=False,
            disable_trivial_auth=True,
            encryption_algs=_CIPHERS,
            compression_algs=None,
            connect_timeout=timeout,
            login_timeout=timeout,
            keepalive_interval=10,  # a host whose power was cut says nothing: 40 s until that is noticed
            keepalive_count_max=3,
        )
    except asyncssh.HostKeyNotVerifiable as error:
        raise PinMismatch(f"host {target.host} at {where} shows another SSH host key than it phoned home") from error
    except asyncssh.PermissionDenied as error:
        raise AuthFailed(
            f"host {target.host} refuses our SSH key", remedy="boot the host again: a boot and its key belong together"
        ) from error
    except asyncssh.KeyExchangeFailed as error:
        if "host key" in error.reason:
            raise PinMismatch(f"host {target.host} at {where} has no key of the type it phoned home") from error
        raise Garbled(f"host {target.host} speaks no SSH that we accept", why=error.reason[:200]) from error
    except (asyncssh.ConnectionLost, OSError) as error:
        raise Unreachable(f"host {target.host} does not answer SSH at {where}", why=_said(error)) from error
    except asyncssh.Error as error:
        raise Garbled(f"host {target.host} does not speak SSH properly", why=_said(error)) from error


def _text(value: bytes | str) -> str:
    return value.decode("ascii") if isinstance(value, bytes) else value


def _said(error: Exception) -> str:
    said = getattr(error, "reason", "") or str(error) or type(error).__name__
    return "".join(c if c.isprintable() else "?" for c in str(said)[:200])


class SshShell:
    """Implements `Shell` on one kept connection."""

    def __init__(
        self, target: ShellTarget, connection: asyncssh.SSHClientConnection, forget: Callable[[SshShell], None]
    ) -> None:
        self.target = target
        self._connection = connection
        self._forget = forget
        self._pushed: dict[str, str] = {}  # digest -> place
        self._pushing = asyncio.Lock()

    @property
    def alive(self) -> bool:
        return not self._connection.is_closed()

    async def close(self) -> None:
        """The caller is done. The connection stays kept for the next step; a dead one is forgotten. Never raises."""
        if not self.alive:
            self._forget(self)

    async def drop(self) -> None:
        """Really close it. Never raises."""
        self._forget(self)
        self._connection.abort()
        with contextlib.suppress(asyncssh.Error, OSError, TimeoutError):
            async with asyncio.timeout(2.0):
                await self._connection.wait_closed()

    async def run(
        self,
        app: Zipapp,
        arguments: tuple[str, ...],
        *,
        stdin: bytes = b"",
        timeout: float,
        max_output: int,
        progress: Progress | None = None,
        outlives_us: bool = False,
    ) -> bytes:
        """See `Shell.run`. The deadline covers pushing too."""
        try:
            async with asyncio.timeout(timeout):
                place = await self._ensure(app)
                command = remote.run(place, app.name, app.digest, arguments)
                talk = Talk(max_output, progress, seconds=timeout)
                code = await self._execute(command, stdin, talk, kill=not outlives_us)
        except TimeoutError as error:
            raise DeadlineExceeded(
                f"`{app.name}` on host {self.target.host} did not finish within {timeout:.0f} s",
                remedy="look at the host's console; fleetd tries again by itself",
            ) from error
        except ValueError as error:
            raise Invalid(f"`{app.name}` cannot be given these arguments", why=str(error)) from error
        return self._judge(app, code, talk)

    def _judge(self, app: Zipapp, code: int | None, talk: Talk) -> bytes:
        output = bytes(talk.output)
        refusal: Refusal | None = refusal_in(output)
        if refusal is not None and refusal.code == "busy":
            raise Busy(f"host {self.target.host} carries out another order", why=refusal.reason)
        if refusal is not None:
            raise Refused(
                f"host {self.target.host} refused `{app.name}` ({refusal.code})",
                why=refusal.reason,
                remedy=_REFUSAL_REMEDY,
            )
        if code == 0:
            return output
        if code in (126, 127):
            raise Unsupported(
                f"host {self.target.host} cannot run `{app.name}`", why=talk.tail, remedy="its image must have python3"
            )
        if code is None:
            raise Permanent(f"`{app.name}` on host {self.target.host} was killed", why=talk.tail)
        raise Permanent(f"`{app.name}` on host {self.target.host} ended with exit code {code}", why=talk.tail)

    async def _ensure(self, app: Zipapp) -> str:
        """Where the zipapp stands on the host, pushed if it was not there. Raises Permanent."""
        async with self._pushing:
            if app.digest in self._pushed:
                return self._pushed[app.digest]
            said = ""
            for place in remote.PLACES:
                code, _ = await self._small(remote.test(place, app.name, app.digest))
                if code != 0:
                    mark = secrets.token_hex(8)
                    code, said = await self._small(remote.push(place, app.name, app.digest, mark), app.data)
                if code == 0:
                    self._pushed[app.digest] = place
                    return place
            raise Permanent(
                f"host {self.target.host} does not take the program `{app.name}`",
                why=said,
                remedy="look for a full or read-only disk on the host",
            )

    async def _small(self, command: str, stdin: bytes = b"") -> tuple[int | None, str]:
        talk = Talk(4096, None)
        async with asyncio.timeout(PUSH_SECONDS):
            code = await self._execute(command, stdin, talk)
        return code, talk.tail

    async def _execute(self, command: str, stdin: bytes, talk: Talk, *, kill: bool = True) -> int | None:
        """Run one command to its end; its exit code, None when a signal ended it. Left before its end it is killed."""
        try:
            process = await self._connection.create_process(command, encoding=None)
        except asyncssh.ChannelOpenError as error:
            self._forget(self)
            raise Unreachable(f"host {self.target.host} opens no SSH channel", why=_said(error)) from error
        except (asyncssh.Error, OSError) as error:
            self._forget(self)
            raise Unreachable(f"the SSH connection to host {self.target.host} is gone", why=_said(error)) from error
        done = False
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(_write(process, stdin))
                group.create_task(_read(process.stderr, talk.hear))
                group.create_task(_read(process.stdout, talk.take))
            await process.wait_closed()
            done = True
        except BaseExceptionGroup as failures:
            raise _first(failures) from None
        except (asyncssh.Error, OSError) as error:
            raise Unreachable(f"the SSH connection to host {self.target.host} broke", why=_said(error)) from error
        finally:
            if not done:
                if kill:
                    with contextlib.suppress(asyncssh.Error, OSError):
                        process.kill()
                process.channel.abort()
        if process.exit_status is None and not self.alive:
            self._forget(self)
            raise Unreachable(f"the SSH connection to host {self.target.host} broke before the command ended")
        signalled = process.exit_signal is not None
        return None if signalled else process.exit_status


def _first(failures: BaseExceptionGroup[BaseException]) -> BaseException:
    """What went wrong, ours before the wire's."""
    flat: list[BaseException] = []
    queue: list[BaseException] = [failures]
    while queue:
        error = queue.pop()
        if isinstance(error, BaseExceptionGroup):
            queue.extend(error.exceptions)
        else:
            flat.append(error)
    for error in flat:
        if isinstance(error, FleetError):
            return error
    for error in flat:
        if isinstance(error, asyncssh.Error | OSError):
            return Unreachable("the SSH connection broke", why=_said(error))
    return flat[0]


async def _write(process: asyncssh.SSHClientProcess[bytes], data: bytes) -> None:
    """Feed standard input; a command that does not read it all is no error."""
    with contextlib.suppress(BrokenPipeError, ConnectionError, asyncssh.Error):
        for at in range(0, len(data), CHUNK):
            process.stdin.write(data[at : at + CHUNK])
            await process.stdin.drain()
        process.stdin.write_eof()


async def _read(stream: asyncssh.SSHReader[bytes], take: Any) -> None:
    while chunk := await stream.read(CHUNK):
        take(chunk)
