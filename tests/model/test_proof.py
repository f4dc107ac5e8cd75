"""Certificates: what verifies, and that nothing else does. Every field is tampered with, one at a time."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, x25519
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from fleetd.kit.errors import Invalid, Refused
from fleetd.kit.yamlfile import parse
from fleetd.model import proof
from fleetd.model.certificate import Certificate, CheckProof
from fleetd.model.check import Outcome, Verdict
from fleetd.model.report import Gpu, Identity, Nvml, Reading, Report
from fleetd.model.sku import Sku, read_sku

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
OTHER = Ed25519PrivateKey.from_private_bytes(bytes(range(1, 33)))
NOW = 1_800_000_000.0
DAY = 86_400.0


def sku() -> Sku:
    path = Path(__file__).parents[2] / "inventory" / "skus" / "dell.xe9680-h100-8.yaml"
    return read_sku(parse(path.read_text(), path.name))


SKU = sku()


def report(gpus: int = 8) -> Report:
    return Report(
        format="fleetd.report/1",
        probe="1.0.0",
        nonce="nonce-1",
        host="host-1",
        boot_id=Reading(v="b7e8"),
        identity=Identity(serial=Reading(v="7XK21B3"), uuid=Reading(v="4c4c4544-0058-4b10-8032-b7c04f314233")),
        nvml=Nvml(
            gpus=[Gpu(index=i, uuid=Reading(v=f"GPU-{i}"), serial=Reading(v=f"16501240315{i}")) for i in range(gpus)]
        ),
    )


def verdicts() -> list[Verdict]:
    return [
        Verdict(check=id_, subject="host-1", outcome=Outcome.PASS, measured="m", expected="e", evidence={"GPU 0": "1"})
        for id_ in SKU.acceptance
    ]


def statement(**more: Any) -> Any:
    given_: dict[str, Any] = {
        "id": "certificate-1",
        "site": "louisiana",
        "host": "host-1",
        "host_name": "lou-a01-01",
        "sku": SKU,
        "suite": "acceptance",
        "report": report(),
        "report_digest": "ab" * 32,
        "probe": "1.0.0 sha256:cd",
        "verdicts": verdicts(),
        "issued": NOW,
    }
    return proof.build_statement(**{**given_, **more})


SIGNED = proof.sign(statement(), KEY)
SLACK = SIGNED.signature[:-3] + chr(ord(SIGNED.signature[-3]) + 1) + "=="  # other text, the same bytes
TRUST = [KEY.public_key()]


def problems(certificate: Certificate, now: float = NOW + DAY) -> list[str]:
    return proof.verify(certificate, TRUST, now)


def test_a_right_certificate_holds() -> None:
    assert problems(SIGNED) == []
    assert proof.verify(SIGNED, TRUST, NOW + DAY, sku=SKU) == []
    assert SIGNED.statement.expires == "2027-02-14T08:00:00.000Z"


def test_it_survives_the_file() -> None:
    data = proof.write_certificate(SIGNED)
    assert proof.read_certificate(data) == SIGNED
    reordered = json.dumps(json.loads(data), sort_keys=True, indent=7).encode()
    assert problems(proof.read_certificate(reordered)) == []


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from places(inner, (*path, key))
    elif isinstance(value, list):
        for i in {0, len(value) - 1} if value else ():
            yield from places(value[i], (*path, i))
    else:
        yield path


FIELDS = sorted(places(json.loads(proof.write_certificate(SIGNED))), key=str)


@pytest.mark.parametrize("path", FIELDS, ids=lambda p: ".".join(map(str, p)))
@pytest.mark.parametrize("how", ["changed", "emptied"])
def test_a_certificate_tampered_in_any_field_is_refused(path: tuple[Any, ...], how: str) -> None:
    raw = json.loads(proof.write_certificate(SIGNED))
    at = raw
    for step in path[:-1]:
        at = at[step]
    old = at[path[-1]]
    at[path[-1]] = "" if how == "emptied" else ("A" if not old.startswith("A") else "B") + old[1:]
    assert at[path[-1]] != old
    try:
        tampered = proof.read_certificate(json.dumps(raw).encode())
    except Invalid:
        return
    assert problems(tampered)


def test_every_field_was_tampered_with() -> None:
    names = {str(path[1]) for path in FIELDS if path[0] == "statement"}
    assert names == set(SIGNED.statement.__struct_fields__)


@pytest.mark.parametrize("what", ["dropped", "added", "reordered", "repeated"])
def test_the_list_of_verdicts_is_signed(what: str) -> None:
    told = SIGNED.statement.verdicts
    changed = {
        "dropped": told[1:],
        "added": (*told, CheckProof(check="x", outcome="pass", measured="", expected="", evidence="")),
        "reordered": (told[1], told[0], *told[2:]),
        "repeated": (*told, told[0]),
    }[what]
    forged = msgspec.structs.replace(SIGNED, statement=msgspec.structs.replace(SIGNED.statement, verdicts=changed))
    assert problems(forged)


def forge(**fields: Any) -> Certificate:
    """Signed by the trusted key itself: the signature is right, what it says is not."""
    return proof.sign(msgspec.structs.replace(SIGNED.statement, **fields), KEY)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"format": "fleetd.certificate/2"}, "format"),
        ({"verdicts": ()}, "zero checks"),
        ({"verdicts": (*SIGNED.statement.verdicts, SIGNED.statement.verdicts[0])}, "twice"),
        (
            {"verdicts": (msgspec.structs.replace(SIGNED.statement.verdicts[0], outcome="not_run"),)},
            "'not_run', not a pass",
        ),
        ({"verdicts": (msgspec.structs.replace(SIGNED.statement.verdicts[0], outcome="PASS"),)}, "not a pass"),
        ({"fingerprint": "0" * 64}, "fingerprint"),
        ({"parts": {}, "fingerprint": proof.fingerprint({})}, "no GPU"),
        ({"serial": "OTHER"}, "serial"),
        ({"expires": "2026-01-01T00:00:00.000Z"}, "expired"),
        ({"expires": "never"}, "times"),
        ({"expires": "2099-01-01T00:00:00"}, "times"),  # no time zone
        ({"issued": "2099-01-01T00:00:00.000Z"}, "future"),
    ],
)
def test_a_signed_lie_is_still_refused(fields: dict[str, Any], words: str) -> None:
    assert any(words in problem for problem in problems(forge(**fields)))


@pytest.mark.parametrize(
    ("now", "good"), [(NOW - 1, False), (NOW, True), (NOW + 30 * DAY - 1, True), (NOW + 30 * DAY, False)]
)
def test_it_holds_from_issue_to_expiry(now: float, good: bool) -> None:
    assert (problems(SIGNED, now) == []) is good


def test_another_text_of_the_sku_is_another_profile() -> None:
    changed = msgspec.structs.replace(SKU, digest="0" * 64)
    assert proof.verify(SIGNED, TRUST, NOW, sku=changed)


def test_a_suite_in_part_is_refused_by_its_sku() -> None:
    part = forge(verdicts=SIGNED.statement.verdicts[:3])
    assert problems(part) == []
    assert proof.verify(part, TRUST, NOW, sku=SKU) == ["its checks are not those of the suite"]


class TestTrust:
    def test_no_key_trusts_nothing(self) -> None:
        assert proof.verify(SIGNED, [], NOW) == ["no trusted key was given"]

    def test_another_key_does_not_verify(self) -> None:
        assert "not among the trusted keys" in proof.verify(SIGNED, [OTHER.public_key()], NOW)[0]

    def test_a_stolen_key_id_does_not_help(self) -> None:
        forged = msgspec.structs.replace(proof.sign(SIGNED.statement, OTHER), key_id=proof.key_id(KEY.public_key()))
        assert "signature is wrong" in problems(forged)[0]

    def test_one_of_several_keys_is_enough(self) -> None:
        assert proof.verify(SIGNED, [OTHER.public_key(), KEY.public_key()], NOW) == []

    def test_a_key_inside_the_file_is_refused(self) -> None:
        raw = json.loads(proof.write_certificate(proof.sign(SIGNED.statement, OTHER)))
        raw["public_key"] = proof.public_pem(OTHER.public_key()).decode()
        with pytest.raises(Invalid):
            proof.read_certificate(json.dumps(raw).encode())

    @pytest.mark.parametrize("signature", ["", "!", "AAAA", "é", SIGNED.signature + "\n", SIGNED.signature[:-4], SLACK])
    def test_a_signature_that_is_none(self, signature: str) -> None:
        assert problems(msgspec.structs.replace(SIGNED, signature=signature))


class TestFiles:
    @pytest.mark.parametrize(
        "data",
        [
            *(b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"statement": 1}', b'"' + b"x" * 100 + b'"'),
            b"[" * 100_000,
            b"x" * (proof.MAX_FILE + 1),
        ],
    )
    def test_garbage_is_refused(self, data: bytes) -> None:
        with pytest.raises(Invalid) as caught:
            proof.read_certificate(data, "c.json")
        assert caught.value.where == "c.json"

    @pytest.mark.parametrize("inside", ["", "statement"])
    def test_a_key_that_nobody_signed_is_refused(self, inside: str) -> None:
        raw = json.loads(proof.write_certificate(SIGNED))
        (raw[inside] if inside else raw)["note"] = "trust me"
        with pytest.raises(Invalid):
            proof.read_certificate(json.dumps(raw).encode())

    def test_a_key_that_stands_twice_is_refused(self) -> None:
        text = proof.write_certificate(SIGNED).decode().replace('"site": ', '"site": "ohio", "site": ', 1)
        with pytest.raises(Invalid):
            proof.read_certificate(text.encode())

    @settings(max_examples=50)
    @given(st.binary(max_size=200))
    def test_any_bytes_are_refused(self, data: bytes) -> None:
        with pytest.raises(Invalid):
            proof.read_certificate(data)


class TestKeys:
    def test_round_trip(self) -> None:
        key = proof.new_key()
        loaded = proof.load_private_key(proof.private_pem(key))
        assert proof.key_id(loaded.public_key()) == proof.key_id(key.public_key())

    def test_a_trust_file_of_several_keys(self) -> None:
        pem = (
            b"# louisiana\n" + proof.public_pem(KEY.public_key()) + b"\n# ohio\n" + proof.public_pem(OTHER.public_key())
        )
        assert [proof.key_id(k) for k in proof.load_public_keys(pem)] == [
            proof.key_id(KEY.public_key()),
            proof.key_id(OTHER.public_key()),
        ]

    @pytest.mark.parametrize(
        "pem",
        [
            b"",
            b"not a key",
            b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n",
            b"-----BEGIN PUBLIC KEY-----\n",
            proof.public_pem(KEY.public_key())[:60],
            proof.private_pem(KEY),
            proof.public_pem(KEY.public_key()) + proof.private_pem(OTHER),
            ec.generate_private_key(ec.SECP256R1())
            .public_key()
            .public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo),
            x25519.X25519PrivateKey.generate()
            .public_key()
            .public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo),
            proof.public_pem(KEY.public_key()) * (proof.MAX_KEYS + 1),
            b"x" * (proof.MAX_PEM + 1),
        ],
    )
    def test_what_is_no_trust_file(self, pem: bytes) -> None:
        with pytest.raises(Invalid) as caught:
            proof.load_public_keys(pem, "trust.pem")
        assert caught.value.where == "trust.pem"

    @pytest.mark.parametrize(
        "pem",
        [
            b"",
            b"garbage",
            proof.public_pem(KEY.public_key()),
            KEY.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"x")),
            ec.generate_private_key(ec.SECP256R1()).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
            b"x" * (proof.MAX_PEM + 1),
        ],
    )
    def test_what_is_no_signing_key(self, pem: bytes) -> None:
        with pytest.raises(Invalid):
            proof.load_private_key(pem)


class TestStatement:
    @pytest.mark.parametrize("outcome", [Outcome.FAIL, Outcome.NOT_RUN])
    def test_no_certificate_for_less_than_a_pass(self, outcome: Outcome) -> None:
        told = verdicts()
        told[4] = msgspec.structs.replace(told[4], outcome=outcome)
        with pytest.raises(Refused, match="did not pass"):
            statement(verdicts=told)

    @pytest.mark.parametrize(
        "told", [[], verdicts()[1:], [*verdicts(), verdicts()[0]], [*verdicts()[1:], verdicts()[1]]], ids=len
    )
    def test_no_certificate_for_another_set_of_checks(self, told: list[Verdict]) -> None:
        with pytest.raises(Refused, match="not those of the suite"):
            statement(verdicts=told)

    def test_no_certificate_without_every_gpu(self) -> None:
        with pytest.raises(Refused, match="7 of 8"):
            statement(report=report(7))

    def test_no_certificate_without_the_host(self) -> None:
        with pytest.raises(Refused, match="serial and UUID"):
            statement(report=msgspec.structs.replace(report(), identity=Identity()))

    def test_the_lifetime_is_the_skus_unless_said(self) -> None:
        assert statement(lifetime=60.0).expires == "2027-01-15T08:01:00.000Z"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner)
    ),
    max_leaves=12,
)


@settings(max_examples=30)
@given(JSON)
def test_canonical_json_is_what_any_other_tool_writes(value: Any) -> None:
    """So that a certificate can be checked without fleetd."""
    wanted = json.dumps(value, separators=(",", ":"), ensure_ascii=False, sort_keys=False)
    mine = proof.canonical(value).decode()
    assert json.loads(mine) == value
    assert len(json.dumps(json.loads(mine), separators=(",", ":"), ensure_ascii=False)) == len(wanted)
    assert proof.canonical(json.loads(mine)).decode() == mine


def test_canonical_json_sorts_keys_and_leaves_no_spaces() -> None:
    assert proof.canonical({"b": 1, "a": {"d": [1, 2], "c": "é"}}) == '{"a":{"c":"é","d":[1,2]},"b":1}'.encode()
    for bad in ("\ud800", object(), {"x": {1j: 2}}):
        with pytest.raises(Invalid):
            proof.canonical(bad)


@settings(max_examples=30)
@given(st.dictionaries(st.text("ab", min_size=1), st.lists(st.text("xyz"), max_size=4), max_size=3), st.randoms())
def test_the_fingerprint_does_not_depend_on_order(parts: dict[str, list[str]], random: Any) -> None:
    shuffled = {}
    for kind in random.sample(list(parts), len(parts)):
        shuffled[kind] = random.sample(parts[kind], len(parts[kind]))
    assert proof.fingerprint(parts) == proof.fingerprint(shuffled)


def test_a_changed_part_changes_the_fingerprint() -> None:
    parts = dict(SIGNED.statement.parts)
    assert proof.fingerprint({**parts, "gpu": parts["gpu"][1:]}) != SIGNED.statement.fingerprint
