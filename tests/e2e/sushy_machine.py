"""sushy-emulator as the Redfish BMC of one machine of the lab. Run by the Python of the peers' environment.

The service is sushy-tools' own, with TLS and its own password check; the driver behind it presses the machine's power button.
Two things a BMC has and sushy-tools lacks are added: the system's serial number (its template is extended), and an account
service that changes the password in the file sushy-tools checks against.

Usage: sushy_machine.py SETTINGS.json and sushy-emulator's own options.
"""

from __future__ import annotations

import json
import socket
import sys
from pathlib import Path
from typing import Any

import bcrypt
import flask
import jinja2
from sushy_tools import error
from sushy_tools.emulator import api_utils
from sushy_tools.emulator import main as emulator
from sushy_tools.emulator.resources.systems.base import AbstractSystemsDriver

SETTINGS: dict[str, Any] = {}
RESET = {
    "On": "on",
    "ForceOn": "on",
    "ForceOff": "off",
    "GracefulShutdown": "soft",
    "ForceRestart": "reset",
    "GracefulRestart": "reset",
}
DEVICES = {"Pxe": "network", "Hdd": "disk", "Cd": "cd"}
NAMES = {"none": "Hdd", "network": "Pxe", "disk": "Hdd", "cd": "Cd"}


def ask(**order: Any) -> dict[str, Any]:
    with socket.socket(socket.AF_UNIX) as wire:
        wire.settimeout(20)
        wire.connect(SETTINGS["socket"])
        with wire.makefile("rw", encoding="utf-8") as stream:
            stream.write(json.dumps(order) + "\n")
            stream.flush()
            answer: dict[str, Any] = json.loads(stream.readline())
    if "error" in answer:
        raise error.FishyError(answer["error"])
    return answer


class LabDriver(AbstractSystemsDriver):  # type: ignore[misc]
    """One system: the machine."""

    @classmethod
    def initialize(cls, config: Any, logger: Any, *_args: Any, **_kwargs: Any) -> type[LabDriver]:
        cls._config, cls._logger = config, logger
        return cls

    @property
    def driver(self) -> str:
        return "<lab>"

    @property
    def systems(self) -> list[str]:
        return [SETTINGS["uuid"]]

    def _mine(self, identity: str) -> None:
        if identity not in (SETTINGS["uuid"], SETTINGS["name"]):
            raise error.NotFound(f"no system {identity}")
        if identity == SETTINGS["name"]:
            raise error.AliasAccessError(SETTINGS["uuid"])

    def uuid(self, identity: str) -> str:
        self._mine(identity)
        return str(SETTINGS["uuid"])

    def name(self, identity: str) -> str:
        self._mine(identity)
        return str(SETTINGS["name"])

    def get_power_state(self, identity: str) -> str:
        self._mine(identity)
        return "On" if ask(op="state")["power"] else "Off"

    def set_power_state(self, identity: str, state: str) -> None:
        self._mine(identity)
        if state not in RESET:
            raise error.NotSupportedError(f"no {state} here")
        ask(op=RESET[state])

    def get_boot_device(self, identity: str) -> str:
        self._mine(identity)
        return NAMES[ask(op="state")["boot"]]

    def set_boot_device(self, identity: str, boot_source: str) -> None:
        self._mine(identity)
        ask(op="boot", device=DEVICES[boot_source])

    def get_boot_mode(self, identity: str) -> str:
        self._mine(identity)
        return str(SETTINGS["mode"])

    def set_boot_mode(self, identity: str, boot_mode: str) -> None:
        self._mine(identity)
        if boot_mode != SETTINGS["mode"]:
            raise error.NotSupportedError(f"the firmware is {SETTINGS['mode']}")

    def get_versions(self, identity: str) -> dict[str, str]:
        self._mine(identity)
        return {"BiosVersion": SETTINGS["bios"]}

    def get_nics(self, identity: str) -> list[dict[str, str]]:
        self._mine(identity)
        return [{"id": SETTINGS["mac"], "mac": SETTINGS["mac"]}]

    def get_boot_image(self, identity: str, device: str) -> tuple[str | None, bool, bool]:
        self._mine(identity)
        media = ask(op="state")["media"] if device == "Cd" else ""
        return media or None, True, bool(media)

    def set_boot_image(
        self, identity: str, device: str, boot_image: str | None = None, write_protected: bool = True
    ) -> None:
        self._mine(identity)
        if device != "Cd":
            raise error.NotSupportedError("only the CD drive boots")
        ask(op="media", path=boot_image or "")


accounts = flask.Blueprint("AccountService", __name__, url_prefix="/redfish/v1/AccountService")


def _user() -> str:
    return Path(SETTINGS["passwords"]).read_text().partition(":")[0]


@accounts.route("")
@api_utils.returns_json
def service() -> str:
    return json.dumps({"Id": "AccountService", "Accounts": {"@odata.id": f"{accounts.url_prefix}/Accounts"}})


@accounts.route("/Accounts")
@api_utils.returns_json
def collection() -> str:
    return json.dumps({"Members": [{"@odata.id": f"{accounts.url_prefix}/Accounts/1"}], "Members@odata.count": 1})


@accounts.route("/Accounts/1", methods=["GET", "PATCH"])
@api_utils.returns_json
def account() -> Any:
    if flask.request.method == "GET":
        return json.dumps({"Id": "1", "UserName": _user(), "RoleId": "Administrator", "Enabled": True})
    password = (flask.request.json or {}).get("Password")
    if not isinstance(password, str) or not 8 <= len(password) <= 32:
        raise error.BadRequest("a password has 8 to 32 characters")
    write_passwords(Path(SETTINGS["passwords"]), _user(), password)
    return "", 204


def write_passwords(path: Path, user: str, password: str) -> None:
    """The file sushy-tools checks logins against; cheap rounds, every request is a login."""
    part = path.with_suffix(".part")
    part.write_text(f"{user}:{bcrypt.hashpw(password.encode(), bcrypt.gensalt(4)).decode()}\n")
    part.replace(path)


def extended(name: str, marker: str, addition: str) -> str:
    """A template of sushy-tools with one more line after `marker`."""
    assert emulator.app.jinja_loader is not None
    source = emulator.app.jinja_loader.get_source(emulator.app.jinja_env, name)[0]
    if marker not in source:
        sys.exit(f"sushy-tools' {name} has changed: no {marker!r}")
    return source.replace(marker, marker + addition, 1)


def main() -> None:
    SETTINGS.update(json.loads(Path(sys.argv.pop(1)).read_text()))
    write_passwords(Path(SETTINGS["passwords"]), SETTINGS["user"], SETTINGS["password"])
    serial = json.dumps(SETTINGS["serial"])
    service_link = '\n    "AccountService": {"@odata.id": "/redfish/v1/AccountService"},'
    templates = {
        "system.json": extended("system.json", '"UUID": {{ uuid|string|tojson }},', f'\n    "SerialNumber": {serial},'),
        "root.json": extended("root.json", '"Name": "Redvirt Service",', service_link),
    }
    loaders = [jinja2.DictLoader(templates), emulator.app.jinja_loader]
    emulator.app.jinja_loader = jinja2.ChoiceLoader([loader for loader in loaders if loader is not None])
    emulator.app.register_blueprint(accounts)
    emulator.fakedriver.FakeDriver = LabDriver
    emulator.main()


if __name__ == "__main__":
    main()
