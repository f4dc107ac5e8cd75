"""What systemd wants to hear: ready, a status line a person reads in `systemctl status`, and a heartbeat of the engine itself."""

from __future__ import annotations

import os
import socket


class Notifier:
    """Speaks sd_notify; says nothing when not under systemd."""

    def __init__(self) -> None:
        self._address = os.environ.get("NOTIFY_SOCKET", "")
        self._socket: socket.socket | None = None
        if self._address:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)

    @property
    def watchdog_seconds(self) -> float | None:
        """How often systemd wants a heartbeat at the latest; None when it does not watch."""
        microseconds = os.environ.get("WATCHDOG_USEC", "")
        for_us = os.environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        return int(microseconds) / 1e6 if microseconds.isdigit() and for_us else None

    def say(self, **fields: str | int) -> None:
        """Send fields such as READY=1, STATUS=…, WATCHDOG=1, STOPPING=1."""
        if self._socket is None:
            return
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        text = "\n".join(f"{key}={value}" for key, value in fields.items())
        self._socket.sendto(text.encode(), address)

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None
