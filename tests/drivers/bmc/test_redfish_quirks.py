"""A quirk is one file with its evidence; adding one touches nothing else."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from fleetd.drivers.bmc import quirks
from fleetd.drivers.bmc.quirks import Facts, every_quirk, quirks_of
from fleetd.model.power import PowerVerb

DELL = Facts(vendor="dell", oem=frozenset({"dell"}), manufacturer="dell inc.", model="poweredge xe9680")


def named(facts: Facts) -> dict[str, quirks.Quirk]:
    return {quirk.name: quirk for quirk in quirks_of(facts)}


def test_every_quirk_cites_its_evidence():
    found = every_quirk()
    assert len(found) >= 7
    for quirk in found:
        assert len(quirk.evidence) > 40, quirk.name
        assert not quirk.applies(Facts()), f"{quirk.name} would hit a BMC nobody knows"
        assert type(quirk).__module__.rpartition(".")[2] == quirk.name.replace("-", "_")


def test_the_base_changes_nothing():
    class Nothing(quirks.Quirk):
        name, evidence = "nothing", "none"

    quirk = Nothing()
    assert not quirk.applies(DELL)
    assert quirk.boot_body({"a": 1}, {}) == {"a": 1}
    assert quirk.reset_types(PowerVerb.ON, ("On",)) == ("On",)
    assert (quirk.off_pause(), quirk.power_pause("On", 409, ()), quirk.serial({}), quirk.busy_ids()) == (
        0,
        None,
        None,
        (),
    )


def test_dell():
    found = named(DELL)
    body = {"BootSourceOverrideTarget": "Pxe", "BootSourceOverrideEnabled": "Once"}
    skip = found["dell-skip-unchanged-boot-enabled"]
    assert skip.boot_body(body, {"BootSourceOverrideEnabled": "Once"}) == {"BootSourceOverrideTarget": "Pxe"}
    assert skip.boot_body(body, {"BootSourceOverrideEnabled": "Disabled"}) == body
    conflict = found["dell-poweron-conflict-409"]
    assert conflict.power_pause("On", 409, ()) is not None
    assert conflict.power_pause("ForceOff", 409, ()) is None
    assert conflict.power_pause("On", 400, ()) is None
    tag = found["dell-serial-is-service-tag"]
    assert tag.serial({"SKU": "F54P1G3", "SerialNumber": "CNIVC0014M0388"}) == "F54P1G3"
    assert tag.serial({"SKU": None}) is None


@pytest.mark.parametrize(
    "facts", [Facts(vendor="ami"), Facts(oem=frozenset({"ami"})), Facts(manufacturer="asrockrack")]
)
def test_ami_sends_the_mode_always(facts):
    body = named(facts)["ami-boot-all-fields"].boot_body({"a": 1}, {"BootSourceOverrideMode": None})
    assert body == {"a": 1, "BootSourceOverrideMode": "UEFI"}


def test_supermicro_sends_the_mode_where_there_is_one():
    quirk = named(Facts(oem=frozenset({"supermicro"})))["supermicro-boot-all-fields"]
    assert quirk.boot_body({}, {"BootSourceOverrideMode": "Legacy"}) == {"BootSourceOverrideMode": "Legacy"}
    assert quirk.boot_body({}, {}) == {}


def test_lenovo_sr675_is_reset_by_off_and_on():
    quirk = named(Facts(vendor="lenovo", model="thinksystem sr675 v3"))["lenovo-sr675-reset-by-off-on"]
    assert quirk.reset_types(PowerVerb.RESET, ("ForceRestart",)) == ()
    assert quirk.reset_types(PowerVerb.ON, ("On",)) == ("On",)
    assert quirk.off_pause() == 10
    assert "lenovo-sr675-reset-by-off-on" not in named(Facts(vendor="lenovo", model="thinksystem sr670 v2"))


def test_a_new_file_is_all_it_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "acme_everything.py").write_text(
        "from fleetd.drivers.bmc.quirks import Facts, Quirk\n"
        "class Acme(Quirk):\n"
        "    name, evidence = 'acme', 'seen'\n"
        "    def applies(self, facts: Facts) -> bool:\n"
        "        return facts.made_by('acme')\n"
        "QUIRK = Acme()\n"
    )
    monkeypatch.setattr(quirks, "__path__", [*quirks.__path__, str(tmp_path)])
    every_quirk.cache_clear()
    try:
        assert set(named(Facts(vendor="acme"))) == {"acme"}
    finally:
        every_quirk.cache_clear()
        sys.modules.pop("fleetd.drivers.bmc.quirks.acme_everything", None)
