"""The external program that ipmi_sim asks for the power and boot device of its chassis; it asks the machine of the lab.

ipmi_sim runs it as `chassis.py SOCKET MC check|get|set NAME [VALUE] …`. Standard library only: it starts for every question.
"""

from __future__ import annotations

import json
import socket
import sys

# What ipmi_sim calls a boot device, and what the lab calls it.
DEVICES = {"none": "none", "pxe": "network", "default": "disk", "cdrom": "cd", "bios": "none"}
NAMES = {"none": "none", "network": "pxe", "disk": "default", "cd": "cdrom"}


def ask(path: str, **order: object) -> dict[str, object]:
    """One order to the machine, one answer."""
    with socket.socket(socket.AF_UNIX) as wire:
        wire.settimeout(20)
        wire.connect(path)
        with wire.makefile("rw", encoding="utf-8") as stream:
            stream.write(json.dumps(order) + "\n")
            stream.flush()
            answer: dict[str, object] = json.loads(stream.readline())
    if "error" in answer:
        raise OSError(answer["error"])
    return answer


def get(path: str, name: str) -> str:
    state = ask(path, op="state")
    if name == "power":
        return "1" if state["power"] else "0"
    return NAMES[str(state["boot"])] if name == "boot" else "0"


def put(path: str, name: str, value: str) -> None:
    if name == "power":
        ask(path, op="on" if value == "1" else "off")
    elif name == "reset" and value == "1":
        ask(path, op="reset")
    elif name == "shutdown":
        ask(path, op="soft")
    elif name == "boot":
        ask(path, op="boot", device=DEVICES[value])


def main(path: str, _mc: str, verb: str, *words: str) -> None:
    if verb == "get":
        for name in words:
            print(f"{name}:{get(path, name)}")  # noqa: T201 -- the wire to ipmi_sim
    elif verb == "set":
        for name, value in zip(words[::2], words[1::2], strict=False):
            put(path, name, value)


if __name__ == "__main__":
    main(*sys.argv[1:])
