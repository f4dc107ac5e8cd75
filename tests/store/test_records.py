"""Boots, certificates, secrets, tokens, answers, settings, inventory."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import pytest

from fleetd.kit.errors import Conflict, Garbled, Invalid, NotFound
from fleetd.kit.yamlfile import parse
from fleetd.model.access import Role, Token
from fleetd.model.host import State
from fleetd.model.inventory import PduSpec, PowerSpec, RackSpec, SiteSpec
from fleetd.model.sku import Sku, read_sku
from fleetd.store import access, boots, certificates, hosts, inventory, secrets
from fleetd.store.database import Database
from tests.store.samples import LATER, NOW, a_boot, a_certificate, a_host

replace = msgspec.structs.replace


# Boots ---------------------------------------------------------------------------------------------------------------


async def test_a_boot_closes_the_one_before_and_its_key_is_gone(db: Database, sql: object) -> None:
    assert callable(sql)
    host = a_host(1)
    mac = host.spec.boot_mac
    first, second = a_boot("1", host), a_boot("2", host, armed=NOW + 60)
    await db.commit([hosts.insert(host), *boots.insert(first)])
    assert await boots.get(db, first.id) == first == await boots.open_of(db, host.id)
    assert await boots.armed_for_mac(db, mac) == first
    met = replace(first, met=NOW + 5, source="10.0.0.1", serial="x\0y")
    await db.commit([boots.save(met)])
    assert await boots.armed_for_mac(db, mac) is None
    assert await boots.open_of(db, host.id) == replace(met, version=2)
    await db.commit(boots.insert(second))
    closed = await boots.by_token(db, first.token_hash)
    assert closed == replace(met, closed=NOW + 60, private_key="", version=3)
    with pytest.raises(Conflict, match="changed since"):  # who still holds the old one cannot open it again
        await db.commit([boots.save(replace(met, version=2))])
    assert await boots.open_of(db, host.id) == second
    await db.commit([boots.save(replace(second, closed=NOW + 99))])
    assert await boots.open_of(db, host.id) is None
    assert sql("SELECT count(*) FROM boots WHERE private_key <> '' OR doc LIKE '%sealed%'") == "0"
    assert await boots.by_token(db, "none") is None
    with pytest.raises(NotFound):
        await boots.get(db, "boot-none")


async def test_a_boot_ends_by_its_id_and_only_once(db: Database) -> None:
    """Whoever saw the power go closes the boot that he saw, never one that came after it."""
    host = a_host(1)
    first, second = a_boot("1", host, met=NOW + 5), a_boot("2", host, armed=NOW + 60)
    await db.commit([hosts.insert(host), *boots.insert(first)])
    await db.commit([boots.close(first.id, NOW + 30)])
    assert await boots.get(db, first.id) == replace(first, closed=NOW + 30, private_key="", version=2)
    await db.commit(boots.insert(second))
    await db.commit([boots.close(first.id, NOW + 90)])
    assert (await boots.get(db, first.id)).closed == NOW + 30
    assert await boots.open_of(db, host.id) == second
    newest = await boots.newest_of(db, host.id)
    assert newest is not None
    assert newest.id == second.id
    assert await boots.newest_of(db, "nobody") is None


async def test_a_written_disk_comes_back_with_its_token_in_one_open_boot_at_a_time(db: Database) -> None:
    one, two = a_host(1), a_host(2)
    first, again = a_boot("1", one, environment="disk"), a_boot("2", one, environment="disk", token_hash="hash-1")
    await db.commit([hosts.insert(one), hosts.insert(two), *boots.insert(first)])
    with pytest.raises(Conflict, match="nonce exists"):
        await db.commit(boots.insert(a_boot("3", two, token_hash="hash-1")))
    await db.commit(boots.insert(again))
    assert await boots.by_token(db, "hash-1") == again
    await db.commit([boots.save(replace(again, closed=NOW + 1))])
    newest = await boots.by_token(db, "hash-1")
    assert newest is not None
    assert newest.id == again.id


async def test_only_an_open_unmet_deploy_boot_of_a_living_host_is_armed(db: Database) -> None:
    host = a_host(1)
    await db.commit([hosts.insert(host), *boots.insert(a_boot("1", host, environment="disk"))])
    assert await boots.armed_for_mac(db, host.spec.boot_mac) is None
    await db.commit(boots.insert(a_boot("2", host)))
    assert await boots.armed_for_mac(db, host.spec.boot_mac) is not None
    assert await boots.armed_for_mac(db, "00:00:00:00:00:00") is None
    await db.commit([hosts.save(replace(host, state=State.RETIRED))])
    assert await boots.armed_for_mac(db, host.spec.boot_mac) is None


# Certificates --------------------------------------------------------------------------------------------------------


async def test_certificates(db: Database) -> None:
    host = a_host(1)
    one, two = a_certificate("1", host), a_certificate("2", host)
    two = replace(two, statement=replace(two.statement, issued="2027-01-16T08:00:00Z"))
    await db.commit(
        [hosts.insert(host), *certificates.insert(one, expires=LATER), *certificates.insert(two, expires=LATER + 1)]
    )
    assert [c.certificate for c in await certificates.of_host(db, host.id)] == [two, one]
    stored = await certificates.get(db, "certificate-1")
    assert (stored.issued, stored.expires, stored.revoked) == (NOW, LATER, None)
    await db.commit([certificates.revoke("certificate-1", "GPU 3 was changed", NOW + 1)])
    await db.commit([certificates.revoke("certificate-1", "another reason", NOW + 2)])
    stored = await certificates.get(db, "certificate-1")
    assert (stored.revoked, stored.reason, stored.certificate) == (NOW + 1, "GPU 3 was changed", one)
    with pytest.raises(Conflict, match="exists"):
        await db.commit(certificates.insert(one, expires=LATER))
    with pytest.raises(NotFound):
        await certificates.get(db, "certificate-9")
    with pytest.raises(Invalid):
        certificates.insert(replace(one, statement=replace(one.statement, issued="soon")), expires=1)


# Secrets -------------------------------------------------------------------------------------------------------------


def test_the_sealer_seals() -> None:
    sealer = secrets.Sealer(os.urandom(32))
    blob = sealer.seal("hünter2", context="host-1/bmc")
    assert sealer.open(blob, context="host-1/bmc") == "hünter2"
    assert sealer.seal("hünter2", context="host-1/bmc") != blob
    assert "hünter2" not in blob
    raw = blob[:-4] + ("AAAA" if blob[-4:] != "AAAA" else "BBBB")
    for key, text, context in (
        (sealer, blob, "host-2/bmc"),
        (secrets.Sealer(os.urandom(32)), blob, "host-1/bmc"),
        (sealer, raw, "host-1/bmc"),
        (sealer, "v1:", "host-1/bmc"),
        (sealer, "v1:!!!", "host-1/bmc"),
        (sealer, "plain", "host-1/bmc"),
        (sealer, "", "host-1/bmc"),
    ):
        with pytest.raises(Garbled, match="does not open") as caught:
            key.open(text, context=context)
        assert "hünter2" not in f"{caught.value!r}{caught.value.why}{caught.value.__cause__!r}"
    assert repr(sealer) == "Sealer(***)"
    with pytest.raises(Invalid):
        secrets.Sealer(b"short")


async def test_put_promote_forget(db: Database) -> None:
    sealer = secrets.Sealer(bytes(32))

    def seal(text: str) -> str:
        return sealer.seal(text, context="host-1/bmc")

    assert await secrets.get(db, "host-1", "bmc") == {}
    with pytest.raises(Conflict, match="pending"):
        await db.commit(secrets.promote("host-1", "bmc", NOW))
    factory, first, second = seal("calvin"), seal("one"), seal("two")
    await db.commit(secrets.put("host-1", "bmc", "current", factory, NOW))
    await db.commit(secrets.put("host-1", "bmc", "pending", seal("never used"), NOW))
    await db.commit(secrets.put("host-1", "bmc", "pending", first, NOW))
    await db.commit(secrets.put("host-2", "bmc", "pending", factory, NOW))
    await db.commit(secrets.promote("host-1", "bmc", NOW))
    assert await secrets.get(db, "host-1", "bmc") == {"current": first, "old": factory}
    with pytest.raises(Conflict):
        await db.commit(secrets.promote("host-1", "bmc", NOW))
    assert await secrets.get(db, "host-1", "bmc") == {"current": first, "old": factory}
    await db.commit(secrets.put("host-1", "bmc", "pending", second, NOW))
    await db.commit(secrets.promote("host-1", "bmc", NOW))
    assert await secrets.get(db, "host-1", "bmc") == {"current": second, "old": first}
    assert await secrets.get(db, "host-2", "bmc") == {"pending": factory}
    await db.commit([secrets.forget("host-1", "bmc")])
    assert await secrets.get(db, "host-1", "bmc") == {}


async def test_no_clear_text_reaches_the_disk(db: Database, backend: str, tmp_path: Path, sql: object) -> None:
    password = "correct-horse-battery"
    with pytest.raises(Invalid):
        secrets.put("host-1", "bmc", "current", password, NOW)
    with pytest.raises(Invalid):
        secrets.put("host-1", "bmc", "newest", "v1:x", NOW)
    sealed = secrets.Sealer(bytes(32)).seal(password, context="host-1/bmc")
    await db.commit(secrets.put("host-1", "bmc", "current", sealed, NOW))
    await db.close()
    if backend == "sqlite":
        written = b"".join(path.read_bytes() for path in tmp_path.iterdir() if path.is_file())
        assert sealed.encode() in written
        assert password.encode() not in written
    else:
        assert callable(sql)
        assert sql("SELECT sealed FROM secrets") == sealed


# Access --------------------------------------------------------------------------------------------------------------


async def test_tokens(db: Database) -> None:
    token = Token(id="t1", name="ci", role=Role.OPERATOR, hash="h1", created=NOW, expires=LATER, tenant="acme")
    await db.commit(
        [access.insert_token(token), access.insert_token(replace(token, id="t2", hash="h2", created=NOW + 1))]
    )
    assert await access.token_by_hash(db, "h1") == token
    assert await access.token_by_hash(db, "h9") is None
    with pytest.raises(Conflict):
        await db.commit([access.insert_token(replace(token, id="t3"))])
    await db.commit([access.revoke_token("t1", NOW + 5)])
    await db.commit([access.revoke_token("t1", NOW + 9)])
    assert [t.revoked for t in await access.tokens(db)] == [NOW + 5, None]
    with pytest.raises(NotFound):
        await db.commit([access.revoke_token("t9", NOW)])


async def test_answers_to_repeated_requests(db: Database) -> None:
    body = b'{"id": "lease-1"}\x00\xff'
    await db.commit([access.remember("root", "POST /v1/leases", "k", "f", 201, body, NOW)])
    assert await access.recall(db, "root", "POST /v1/leases", "k") == access.Remembered("f", 201, body, NOW)
    assert await access.recall(db, "uid:1000", "POST /v1/leases", "k") is None
    with pytest.raises(Conflict, match="`k` was used"):
        await db.commit(
            [access.set_setting("x", "1"), access.remember("root", "POST /v1/leases", "k", "g", 201, b"", NOW)]
        )
    assert await access.setting(db, "x") is None
    await db.commit([access.forget_answers(NOW + 1)])
    assert await access.recall(db, "root", "POST /v1/leases", "k") is None


async def test_settings(db: Database) -> None:
    await db.commit([access.set_setting("freeze:site:ohio", "a"), access.set_setting("freeze:%", "b")])
    await db.commit([access.set_setting("freeze:site:ohio", "c"), access.set_setting("freezer", "d")])
    assert await access.setting(db, "freeze:site:ohio") == "c"
    assert await access.settings(db, "freeze:") == {"freeze:site:ohio": "c", "freeze:%": "b"}
    assert await access.settings(db, "freeze:%") == {"freeze:%": "b"}
    assert len(await access.settings(db, "")) == 3
    await db.commit([access.drop_setting("freeze:%"), access.drop_setting("absent")])
    assert await access.settings(db, "freeze:") == {"freeze:site:ohio": "c"}


# Inventory -----------------------------------------------------------------------------------------------------------


def _sku() -> Sku:
    path = next((Path(__file__).parents[2] / "inventory" / "skus").glob("*.yaml"))
    return read_sku(parse(path.read_text(), path.name))


async def test_inventory(db: Database) -> None:
    site = SiteSpec(site="ohio", pdus=(PduSpec(name="p", rack="r", address="10.0.0.1", driver="apc", credentials="c"),))
    rack, sku = RackSpec(rack="ohi-b01", site="ohio", power=PowerSpec("66 kW")), _sku()
    await db.commit(
        [
            inventory.put_site(SiteSpec(site="ohio")),
            inventory.put_site(site),
            inventory.put_rack(rack),
            inventory.put_sku(sku),
            inventory.put_playbook("validate", "steps:\n  - validate\n"),
        ]
    )
    assert await inventory.sites(db) == {"ohio": site}
    assert await inventory.racks(db) == {"ohi-b01": rack}
    assert await inventory.skus(db) == {sku.sku: sku}
    assert await inventory.sku(db, sku.sku) == sku
    assert await inventory.playbooks(db) == {"validate": "steps:\n  - validate\n"}
    with pytest.raises(NotFound):
        await inventory.sku(db, "none")
