"""What a simulated BMC shows: its Redfish resources, built from the machine when they are asked for."""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from collections.abc import Callable
from typing import Any

from fleetd.model.power import BootDevice, PowerState
from fleetd.sim.host import SimHost
from fleetd.sim.redfish_profiles import Profile

Document = dict[str, Any]
V1 = "/redfish/v1"

_DEVICES: dict[BootDevice, tuple[str, ...]] = {
    BootDevice.NETWORK: ("Pxe", "UefiHttp"),
    BootDevice.DISK: ("Hdd",),
    BootDevice.CD: ("Cd", "UsbCd"),
    BootDevice.BIOS_SETUP: ("BiosSetup",),
}


class SimBmc:
    """The BMC beside one simulated machine: sessions, transits, restarts. The machine knows nothing of Redfish."""

    def __init__(self, host: SimHost, profile: Profile) -> None:
        self.host = host
        self.profile = profile
        self.sessions: dict[str, tuple[str, str]] = {}  # token -> (id, user name)
        self.down_until = 0.0  # loop seconds: the BMC itself restarts
        self._next_session = 1
        self._goal: tuple[PowerState, float] | None = (
            None  # what a verb wanted, and when the transit ends at the latest
        )
        self.off_since = float("-inf")
        self.media_busy = 0  # requests to media that are still answered with 500

    # --- state ----------------------------------------------------------------------------------------------------

    def open_session(self, username: str) -> tuple[str, str] | None:
        """(token, id), or None if every slot is taken."""
        if len(self.sessions) >= self.profile.sessions:
            return None
        token, number = secrets.token_hex(16), str(self._next_session)
        self._next_session += 1
        self.sessions[token] = (number, username)
        return token, number

    def heads_for(self, state: PowerState) -> None:
        """A verb was taken; until the machine follows, the BMC shows a transit (or still the old state)."""
        now = asyncio.get_running_loop().time()
        self._goal = (state, now + self.host.timings.power + 1.0)
        if state is PowerState.OFF and self.host.power_state is not PowerState.OFF:
            self.off_since = now

    def power_word(self) -> str:
        """PowerState as this vendor writes it."""
        host = self.host
        if self._goal is not None:
            state, until = self._goal
            if host.power_state is state or asyncio.get_running_loop().time() >= until:
                self._goal = None
            elif self.profile.transits:
                return "PoweringOn" if state is PowerState.ON else "PoweringOff"
        return "On" if host.power_state is PowerState.ON else "Off"

    def device_of(self, target: str) -> BootDevice | None:
        return next((device for device, names in _DEVICES.items() if target in names), None)

    # --- paths ----------------------------------------------------------------------------------------------------

    @property
    def system_path(self) -> str:
        return f"{V1}/Systems/{self.profile.system}"

    @property
    def manager_path(self) -> str:
        return f"{V1}/Managers/{self.profile.manager}"

    @property
    def media_path(self) -> str:
        """The collection of virtual media slots."""
        return f"{self.manager_path if self.profile.media_in == 'manager' else self.system_path}/VirtualMedia"

    def account_ids(self) -> dict[str, str]:
        """id -> user name; empty slots have an empty one (Dell shows all sixteen)."""
        names = list(self.host.accounts)
        if self.profile.account_ids == "names":
            return {name: name for name in names}
        ids = {str(number): name for number, name in enumerate(names, self.profile.first_slot)}
        for number in range(1, self.profile.slots + 1):
            ids.setdefault(str(number), "")
        return dict(sorted(ids.items(), key=lambda item: int(item[0])))

    # --- resources ------------------------------------------------------------------------------------------------

    def resource(self, path: str) -> Document | None:
        """The resource at a path without trailing slash; None: 404."""
        fixed: dict[str, Callable[[], Document]] = {
            V1: self._root,
            f"{V1}/Systems": lambda: self._collection("ComputerSystem", "Systems", self._system_ids()),
            f"{V1}/Managers": lambda: self._collection("Manager", "Managers", self._manager_ids()),
            f"{V1}/SessionService": self._session_service,
            f"{V1}/SessionService/Sessions": lambda: self._collection(
                "Session", "SessionService/Sessions", [number for number, _ in self.sessions.values()]
            ),
            f"{V1}/AccountService": self._account_service,
            f"{V1}/AccountService/Accounts": lambda: self._collection(
                "ManagerAccount", "AccountService/Accounts", list(self.account_ids())
            ),
            self.system_path: self._system,
            f"{self.system_path}/ResetActionInfo": lambda: self._action_info(
                f"{self.system_path}/ResetActionInfo", self.profile.reset_types
            ),
            self.manager_path: self._manager,
            f"{self.manager_path}/ResetActionInfo": lambda: self._action_info(
                f"{self.manager_path}/ResetActionInfo", self.profile.manager_reset_types
            ),
        }
        if self.profile.media_slots:
            name = self.media_path.removeprefix(f"{V1}/")
            fixed[self.media_path] = lambda: self._collection(
                "VirtualMedia", name, [slot for slot, _ in self.profile.media_slots]
            )
        if self.profile.boot_in_settings:
            fixed[f"{self.system_path}/Settings"] = lambda: {
                **self._head(f"{self.system_path}/Settings", "ComputerSystem.v1_20_0.ComputerSystem"),
                "Boot": self.boot(),
            }
        if self.profile.baseboard:
            fixed[f"{V1}/Systems/HGX_Baseboard_0"] = self._baseboard
            fixed[f"{V1}/Managers/HGX_BMC_0"] = self._baseboard_manager
        make = fixed.get(path)
        if make is not None:
            return make()
        parent, _, last = path.rpartition("/")
        if parent == self.media_path:
            return self._media(path, last)
        if parent == f"{V1}/AccountService/Accounts":
            return self._account(path, last)
        if parent == f"{V1}/SessionService/Sessions":
            for number, username in self.sessions.values():
                if number == last:
                    return {**self._head(path, "Session.v1_5_0.Session"), "Id": number, "UserName": username}
        return None

    def etag(self, document: Document) -> str:
        """Of what the client would read; weak where this vendor's are."""
        if self.profile.etag == "none":
            return ""
        strong = '"' + hashlib.md5(repr(document).encode(), usedforsecurity=False).hexdigest() + '"'
        return f"W/{strong}" if self.profile.etag == "weak-refused" else strong

    def boot(self) -> Document:
        """The Boot object. Supermicro keeps showing Pxe while disabled (recorded)."""
        once = self.host.boot_once
        offered = [name for name in _DEVICES[once] if name in self.profile.boot_targets] if once is not None else []
        resting = "Pxe" if self.profile.boot_all_fields else "None"
        boot: Document = {
            "BootSourceOverrideEnabled": "Disabled" if once is None else "Once",
            "BootSourceOverrideTarget": offered[0] if offered else resting,
            "BootSourceOverrideTarget@Redfish.AllowableValues": list(self.profile.boot_targets),
        }
        if self.profile.boot_mode:
            boot["BootSourceOverrideMode"] = "UEFI"
        return boot

    @staticmethod
    def _head(path: str, kind: str) -> Document:
        return {
            "@odata.id": path,
            "@odata.type": f"#{kind}",
            "Id": path.rpartition("/")[2],
            "Name": path.rpartition("/")[2],
        }

    @staticmethod
    def _collection(kind: str, name: str, ids: list[str]) -> Document:
        return {
            "@odata.id": f"{V1}/{name}",
            "@odata.type": f"#{kind}Collection.{kind}Collection",
            "Name": f"{kind} Collection",
            "Members": [{"@odata.id": f"{V1}/{name}/{each}"} for each in ids],
            "Members@odata.count": len(ids),
        }

    def _system_ids(self) -> list[str]:
        return (["HGX_Baseboard_0"] if self.profile.baseboard else []) + [self.profile.system]

    def _manager_ids(self) -> list[str]:
        return (["HGX_BMC_0"] if self.profile.baseboard else []) + [self.profile.manager]

    def _root(self) -> Document:
        root: Document = {
            "@odata.id": f"{V1}/",
            "@odata.type": "#ServiceRoot.v1_15_0.ServiceRoot",
            "Id": "RootService",
            "Name": "Root Service",
            "RedfishVersion": "1.15.0",
            "UUID": self.host.uuid,
            "Links": {"Sessions": {"@odata.id": f"{V1}/SessionService/Sessions"}},
        }
        for name in ("Systems", "Managers", "SessionService", "AccountService"):
            root[name] = {"@odata.id": f"{V1}/{name}"}
        if self.profile.vendor:
            root["Vendor"] = self.profile.vendor
        if self.profile.product:
            root["Product"] = self.profile.product
        if self.profile.oem:
            root["Oem"] = {self.profile.oem: {}}
        if self.profile.baseboard:
            root["Links"]["ManagerProvidingService"] = {"@odata.id": self.manager_path}
        return root

    def _system(self) -> Document:
        host, profile, path = self.host, self.profile, self.system_path
        reset: Document = {"target": f"{path}/Actions/ComputerSystem.Reset"}
        if profile.action_info:
            reset["@Redfish.ActionInfo"] = f"{path}/ResetActionInfo"
        else:
            reset["ResetType@Redfish.AllowableValues"] = list(profile.reset_types)
        system = {
            **self._head(path, "ComputerSystem.v1_20_0.ComputerSystem"),
            "SystemType": "Physical",
            "Manufacturer": profile.manufacturer or host.sku.vendor,
            "Model": host.sku.model,
            "SerialNumber": host.serial,
            "UUID": host.uuid.upper() if profile.uuid_upper else host.uuid,
            "BiosVersion": host.bios_version,
            "PowerState": self.power_word(),
            "Status": {"State": "Enabled", "Health": "OK"},
            "Boot": self.boot(),
            "Actions": {"#ComputerSystem.Reset": reset},
            "Links": {"ManagedBy": [{"@odata.id": self.manager_path}]},
        }
        if profile.service_tag:
            board = hashlib.md5(host.serial.encode(), usedforsecurity=False).hexdigest()[:9].upper()
            system |= {"SKU": host.serial, "SerialNumber": f"CNSIM{board}"}
        if profile.media_slots and profile.media_in == "system":
            system["VirtualMedia"] = {"@odata.id": self.media_path}
        if profile.boot_in_settings:
            system["@Redfish.Settings"] = {"SettingsObject": {"@odata.id": f"{path}/Settings"}}
        if profile.led == "LocationIndicatorActive":
            system["LocationIndicatorActive"] = host.identify_led
        else:
            system["IndicatorLED"] = "Blinking" if host.identify_led else "Off"
        return system

    def _baseboard(self) -> Document:
        """The GPU baseboard: Physical too, with a serial of its own, nothing to switch (DGX, GH200, GB300 trees)."""
        return {
            **self._head(f"{V1}/Systems/HGX_Baseboard_0", "ComputerSystem.v1_20_0.ComputerSystem"),
            "SystemType": "Physical",
            "Manufacturer": "NVIDIA",
            "SerialNumber": f"HGX-{self.host.serial}",
            "PowerState": "On",
            "Links": {"ManagedBy": [{"@odata.id": f"{V1}/Managers/HGX_BMC_0"}]},
        }

    def _manager(self) -> Document:
        path, types = self.manager_path, self.profile.manager_reset_types
        reset: Document = {"target": f"{path}/Actions/Manager.Reset"}
        if types and self.profile.action_info:
            reset["@Redfish.ActionInfo"] = f"{path}/ResetActionInfo"
        elif types:
            reset["ResetType@Redfish.AllowableValues"] = list(types)
        manager: Document = {
            **self._head(path, "Manager.v1_17_0.Manager"),
            "ManagerType": "BMC",
            "FirmwareVersion": self.host.bmc_version,
            "Status": {"State": "Enabled", "Health": "OK"},
            "Actions": {"#Manager.Reset": reset},
            "Links": {"ManagerForServers": [{"@odata.id": self.system_path}]},
        }
        if self.profile.media_slots and self.profile.media_in == "manager":
            manager["VirtualMedia"] = {"@odata.id": self.media_path}
        return manager

    def _baseboard_manager(self) -> Document:
        path = f"{V1}/Managers/HGX_BMC_0"
        return {**self._head(path, "Manager.v1_17_0.Manager"), "ManagerType": "BMC", "FirmwareVersion": "HGX-22.10-1"}

    def _media(self, path: str, slot: str) -> Document | None:
        kinds = dict(self.profile.media_slots).get(slot)
        if kinds is None:
            return None
        image = self.host.media.get(slot)
        shown: Document = {
            **self._head(path, "VirtualMedia.v1_4_0.VirtualMedia"),
            "MediaTypes": list(kinds),
            "Inserted": image is not None,
            "Image": image,
            "ConnectedVia": "NotConnected" if image is None else "URI",
        }
        actions = {name: {"target": f"{path}/Actions/VirtualMedia.{name}"} for name in ("EjectMedia", "InsertMedia")}
        if slot in self.profile.media_local:
            del actions["InsertMedia"], shown["Image"]
        if self.profile.media_way != "patch":
            shown["Actions"] = {f"#VirtualMedia.{name}": action for name, action in actions.items()}
        return shown

    def _action_info(self, path: str, types: tuple[str, ...]) -> Document:
        parameter = {"Name": "ResetType", "Required": True, "DataType": "String", "AllowableValues": list(types)}
        return {**self._head(path, "ActionInfo.v1_1_2.ActionInfo"), "Parameters": [parameter]}

    def _session_service(self) -> Document:
        path = f"{V1}/SessionService"
        return {
            **self._head(path, "SessionService.v1_1_8.SessionService"),
            "ServiceEnabled": True,
            "SessionTimeout": 1800,
            "Sessions": {"@odata.id": f"{path}/Sessions"},
        }

    def _account_service(self) -> Document:
        path = f"{V1}/AccountService"
        return {
            **self._head(path, "AccountService.v1_10_0.AccountService"),
            "MaxPasswordLength": self.profile.password_max,
            "Accounts": {"@odata.id": f"{path}/Accounts"},
        }

    def _account(self, path: str, last: str) -> Document | None:
        username = self.account_ids().get(last)
        if username is None:
            return None
        return {
            **self._head(path, "ManagerAccount.v1_8_0.ManagerAccount"),
            "UserName": username,
            "Password": None,
            "RoleId": self.host.roles.get(username, "Administrator") if username else "",
            "Enabled": self.host.may_log_in(username),
        }
