"""Sockets: ours alone, never stolen, passed on, and closed without waiting for watchers."""

from __future__ import annotations

import asyncio
import datetime
import os
import socket
import ssl
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from litestar import Litestar, get
from litestar.datastructures import State

from fleetd.api import server
from fleetd.kit.errors import Conflict, Invalid, NotFound, Refused
from tests.house import house


def test_unix_socket_is_0660_from_the_first_instant(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with server.bind_unix(path) as sock:
        assert path.stat().st_mode & 0o777 == 0o660
        assert sock.family == socket.AF_UNIX


def test_stale_socket_is_replaced_and_a_live_one_is_not(tmp_path: Path) -> None:
    path = tmp_path / "s"
    server.bind_unix(path).close()
    with server.bind_unix(path), pytest.raises(Conflict, match="another fleetd"):
        server.bind_unix(path)


def test_what_is_no_socket_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "s"
    path.write_text("precious")
    with pytest.raises(Conflict):
        server.bind_unix(path)
    assert path.read_text() == "precious"


def test_bad_places_are_named(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        server.bind_unix(tmp_path / "no" / "s")
    with pytest.raises(Invalid):
        server.bind_unix(tmp_path / ("x" * 120))
    with pytest.raises(NotFound):
        server.bind_unix(tmp_path / "s", group="no-such-group")
    assert not (tmp_path / "s").exists()


def test_clear_text_stays_on_loopback() -> None:
    with pytest.raises(Refused, match="without TLS"):
        server.bind_tcp("0.0.0.0", 0)
    with server.bind_tcp("127.0.0.1", 0) as sock, pytest.raises(Conflict):
        server.bind_tcp("127.0.0.1", sock.getsockname()[1])


def test_inherited_only_when_meant_for_us() -> None:
    assert server.inherited({}) == []
    assert server.inherited({"LISTEN_PID": "1", "LISTEN_FDS": "1"}) == []
    with pytest.raises(Invalid):
        server.inherited({"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "many"})


@pytest.mark.slow
def test_inherited_socket_is_taken(tmp_path: Path) -> None:
    """As systemd does it: descriptor 3, LISTEN_PID of the process itself."""
    code = (
        "import os, sys\n"
        "from fleetd.api.server import inherited\n"
        "os.environ['LISTEN_PID'] = str(os.getpid())\n"
        "sock, = inherited(os.environ)\n"
        "print(sock.family.name, sock.getsockname())\n"
    )
    with server.bind_unix(tmp_path / "s") as sock:
        os.set_inheritable(sock.fileno(), True)
        keep = os.dup(3) if _open(3) else None
        try:
            os.dup2(sock.fileno(), 3)
            done = subprocess.run(
                [sys.executable, "-c", code],
                env=os.environ | {"LISTEN_FDS": "1"},
                pass_fds=(3,),
                capture_output=True,
                text=True,
                check=True,
                timeout=20,
            )
        finally:
            if keep is not None:
                os.dup2(keep, 3)
                os.close(keep)
            else:
                os.close(3)
    assert done.stdout == f"AF_UNIX {tmp_path / 's'}\n"


def _open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


@pytest.mark.slow
def test_a_watcher_does_not_hold_the_end(tmp_path: Path) -> None:
    with house(tmp_path) as daemon:
        watching, ended = threading.Event(), threading.Event()

        def watch() -> None:
            transport = httpx.HTTPTransport(uds=str(daemon.socket))
            with (
                httpx.Client(transport=transport, base_url="http://fleetd", timeout=20, trust_env=False) as client,
                client.stream("GET", "/v1/events") as answer,
            ):
                for _ in answer.iter_lines():
                    watching.set()
            ended.set()

        thread = threading.Thread(target=watch)
        thread.start()
        assert watching.wait(5)
        began = time.monotonic()
    thread.join(5)
    assert time.monotonic() - began < 5
    assert ended.is_set()


@pytest.mark.slow
async def test_tls_listener(tmp_path: Path) -> None:
    """A second listener with a certificate, beside the clear ones: only who trusts it may come."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    day = datetime.timedelta(days=1)
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - day)
        .not_valid_after(now + day)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    certificate, private = tmp_path / "c.pem", tmp_path / "k.pem"
    certificate.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    private.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )

    @get("/", sync_to_thread=False)
    def hello() -> str:
        return "hello"

    class Stop:
        def __init__(self) -> None:
            self.stopping = asyncio.Event()

    app = Litestar([hello], state=State({"desks": Stop()}), openapi_config=None)
    tls = server.Tls(certificate=certificate, key=private)
    secure, clear = server.bind_tcp("127.0.0.1", 0, tls=True), server.bind_tcp("127.0.0.1", 0)
    stop, ready = asyncio.Event(), asyncio.Event()
    async with asyncio.TaskGroup() as group:
        listeners = [server.Listener(sock=secure, tls=tls), server.Listener(sock=clear)]
        port = secure.getsockname()[1]
        group.create_task(server.serve(app, listeners, stopping=stop, ready=ready.set))
        await ready.wait()
        context = ssl.create_default_context(cafile=str(certificate))
        async with httpx.AsyncClient(verify=context, trust_env=False) as client:
            text = (await client.get(f"https://localhost:{port}/")).text
        stop.set()
    assert text == "hello"
