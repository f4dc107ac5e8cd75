"""A drive that is a JSON document: content in words, an image payload, and firmware that may refuse or lie.

``{"name", "serial", "model", "bytes", "content", "payload", "erase": "ok"|"refuses"|"lies", "seconds": {verb: n}}``
``content`` is "blank" or anything else; a read of anything else never gives zeros.
"""

from __future__ import annotations

import base64
import hashlib
import json
import time
from collections.abc import Callable
from typing import Any


class SimulatedDrive:
    """See `machine.Drive`. `save` stores the state, `note` tells the simulator of each act as it happens."""

    def __init__(
        self, state: dict[str, Any], *, save: Callable[[dict[str, Any]], None], note: Callable[..., None]
    ) -> None:
        self._state, self._save, self._note = state, save, note
        self.name, self.serial, self.model = str(state["name"]), str(state["serial"]), str(state["model"])
        self.size = int(state["bytes"])

    def erase(self, intent: str) -> str:
        firmware = self._state.get("erase", "ok")
        self._note("wipe.drive", intent=intent, drive=self.serial, firmware=firmware)
        if firmware == "refuses":
            raise OSError(5, "Format NVM: Invalid Format (status 0x10a)")
        self._take_time("erase")
        if firmware != "lies":
            self._state["content"], self._state["payload"] = "blank", ""
            self._save(self._state)
        return "simulated-format"

    def write(self, intent: str, payload: bytes) -> None:
        self._take_time("write")
        image = json.loads(payload)["image"]["name"]
        self._note("image.write", intent=intent, drive=self.serial, image=image)
        self._state["content"] = f"image:{image}"
        self._state["payload"] = base64.b64encode(payload).decode("ascii")
        self._save(self._state)

    def read(self, offset: int, length: int) -> bytes:
        """Zeros where blank, the payload at the start where written, else bytes that follow from the content."""
        if offset < 0 or offset + length > self.size:
            raise OSError(22, "read beyond the end of the drive")
        if self._state["content"] == "blank":
            return bytes(length)
        payload = base64.b64decode(self._state.get("payload") or "")
        found = payload[offset : offset + length]
        seed = hashlib.sha256(f"{self._state['content']}/{offset}".encode()).digest()
        return found + (seed * (length // len(seed) + 1))[: length - len(found)]

    def _take_time(self, verb: str) -> None:
        if seconds := float(self._state.get("seconds", {}).get(verb, 0)):
            time.sleep(min(seconds, 3600.0))
