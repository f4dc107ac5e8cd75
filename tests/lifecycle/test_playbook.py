"""Playbooks are proven legal before any host is touched; the shipped ones are."""

from pathlib import Path

import pytest

from fleetd.kit.errors import Invalid
from fleetd.lifecycle.playbook import first_step, first_step_for, load
from fleetd.lifecycle.steps import registry
from fleetd.model.host import State

SHIPPED = sorted((Path(__file__).parents[2] / "playbooks").glob("*.yaml"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.stem)
def test_shipped_playbooks_are_legal(path):
    book = load(path.read_text(), path.name)
    assert book.name == path.stem
    assert book.ends in (State.AVAILABLE, State.LEASED)


def _book(steps, head=""):
    return f"playbook: t\n{head}steps:\n" + "".join(f"  - {s}\n" for s in steps)


@pytest.mark.parametrize(
    ("steps", "head", "message"),
    [
        (["enroll", "wipe"], "", "needs deploy"),
        (["enroll", "boot: {to: disk}"], "", "needs image"),
        (["power-off"], "starts: [registered]\n", "needs managed"),
        (["enroll", "publish"], "", "needs suite"),
        (["enroll", "boot: {to: deploy}", "power-off", "wipe"], "", "needs deploy"),
        (["enroll", "boot: {to: deploy}"], "starts: [registered]\n", "ends in preparing"),
        (["enroll"], "starts: [leased]\n", "cannot go there from leased"),
        (["no-such-step"], "", "no step"),
        (["enroll: {speed: 9}"], "", "unknown field"),
        (["boot: {to: moon}"], "", "to"),
        (["boot: {to: deploy, via: floppy}"], "", "via"),
        (["enroll", "drift-check"], "", "needs deploy"),
        (["enroll", "boot: {to: deploy}", "power-off", "clear-tpm"], "", "needs deploy"),
        (["enroll", 'write-image: {image: "{{ secrets.key }}"}'], "", "there is no"),
    ],
)
def test_illegal_sequences_are_refused_with_the_line(steps, head, message):
    with pytest.raises(Invalid) as caught:
        load(_book(steps, head), "t.yaml")
    assert message in str(caught.value)
    assert caught.value.where.startswith("t.yaml:")


@pytest.mark.parametrize(
    "text", ["", "[]", "playbook: t\n", "playbook: t\nsteps: []\n", "playbook: t\nsteps: 5\n", "a: &x 1\nb: *x\n"]
)
def test_what_is_no_playbook_is_refused(text):
    with pytest.raises(Invalid):
        load(text, "t.yaml")


@pytest.mark.parametrize("waves", ["[1, 200%]", "[x]"])
def test_a_strategy_must_make_sense(waves):
    with pytest.raises(Invalid):
        load(_book(["enroll"], f"strategy: {{waves: {waves}}}\n"), "t.yaml")


def test_a_quarantined_host_goes_on_where_its_work_failed():
    bringup = load((SHIPPED[0].parent / "rack-bringup.yaml").read_text(), "rack-bringup.yaml")
    names = [s.name for s in bringup.steps]
    assert first_step_for(bringup, State.ENROLLING) == 0
    assert first_step_for(bringup, State.PREPARING) == names.index("power-off")
    assert first_step_for(bringup, State.VALIDATING) == names.index("validate")
    assert first_step_for(bringup, State.RECLAIMING) is None
    assert first_step(bringup, State.MANAGEABLE) == names.index("power-off")
    assert first_step(bringup, State.REGISTERED) == 0


def test_steps_say_what_they_are():
    for name, step in registry.every().items():
        assert step.name == name
        assert step.summary
        assert step.seconds > 0
        assert step.attempts >= 1
        assert type(step).__doc__
    assert {s.name for s in registry.every().values() if s.destructive} == {
        "wipe",
        "write-image",
        "clear-tpm",
        "boot-order",
    }
