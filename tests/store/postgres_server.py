"""A throwaway PostgreSQL server of this machine's own programs, on a free loopback port, gone after the tests."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path
from typing import Any


def find_postgres() -> Path | None:
    """The folder of initdb and postgres: Debian keeps them off the PATH."""
    debian = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: float(path.parent.name))
    on_path = shutil.which("initdb")
    folders = [*debian[::-1], *([Path(on_path).resolve().parent] if on_path else [])]
    needed = ("initdb", "postgres", "pg_ctl", "psql")
    return next((folder for folder in folders if all((folder / name).exists() for name in needed)), None)


class PostgresServer:
    """Use as a context manager. As root the server runs as the user `postgres`, since it refuses root."""

    def __init__(self) -> None:
        programs = find_postgres()
        if programs is None:
            raise FileNotFoundError("initdb")
        self._programs = programs
        self._folder = Path(tempfile.mkdtemp(prefix="fleetd-postgres-"))
        self._user = pwd.getpwnam("postgres") if os.getuid() == 0 else pwd.getpwuid(os.getuid())
        if os.getuid() == 0:
            os.chown(self._folder, self._user.pw_uid, self._user.pw_gid)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]

    def _as_user(self) -> dict[str, Any]:
        if os.getuid() != 0:
            return {}
        return {"user": self._user.pw_uid, "group": self._user.pw_gid, "extra_groups": []}

    def __enter__(self) -> PostgresServer:
        data = self._folder / "data"
        subprocess.run(
            [
                self._programs / "initdb",
                "-D",
                data,
                "-U",
                "fleetd",
                "-A",
                "trust",
                "-E",
                "UTF8",
                "--locale=C.UTF-8",
                "-N",
            ],
            check=True,
            capture_output=True,
            cwd=self._folder,
            **self._as_user(),
        )
        self.start()
        return self

    def start(self) -> None:
        """Start and wait until it takes connections."""
        subprocess.run(
            [
                self._programs / "pg_ctl",
                *("-D", self._folder / "data", "-w", "-t", "30", "-l", self._folder / "log"),
                *("-o", f"-p {self.port} -h 127.0.0.1 -k {self._folder} -c shared_buffers=32MB -c max_connections=50"),
                "start",
            ],
            check=True,
            stdout=subprocess.DEVNULL,
            cwd=self._folder,
            **self._as_user(),
        )

    def stop(self) -> None:
        """At once, as a power cut would: what was acknowledged must be there after `start`."""
        subprocess.run(
            [self._programs / "pg_ctl", "-D", self._folder / "data", "-m", "immediate", "-w", "stop"],
            check=False,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=self._folder,
            **self._as_user(),
        )

    def database(self, name: str) -> str:
        """The URL of a new, empty database."""
        self.run(f'CREATE DATABASE "{name}"', "postgres")
        return self.url(name)

    def copy(self, template: str, name: str) -> str:
        """The URL of a copy of a database nobody is connected to."""
        self.run(f'CREATE DATABASE "{name}" TEMPLATE "{template}"', "postgres")
        return self.url(name)

    def url(self, name: str) -> str:
        return f"postgresql://fleetd@127.0.0.1:{self.port}/{name}"

    def run(self, sql: str, database: str) -> str:
        """One statement by psql; its unaligned output."""
        done = subprocess.run(
            [self._programs / "psql", "-qAtX", "-c", sql, self.url(database)],
            check=True,
            capture_output=True,
            text=True,
            cwd=self._folder,
        )
        return done.stdout

    def __exit__(self, *_: object) -> None:
        self.stop()
        shutil.rmtree(self._folder, ignore_errors=True)
