"""Nothing a BMC sends crashes the driver, fills it, or leads it to another host: every bad answer is a typed error."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

import msgspec
import pytest
from aiohttp import web
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fleetd.drivers.bmc import redfish_answers
from fleetd.drivers.bmc.redfish_http import MAX_BODY, Answer, checked_path
from fleetd.kit.errors import AuthFailed, Busy, FleetError, Garbled, Unreachable, Unsupported
from fleetd.model.power import BootDevice, PowerState, PowerVerb
from tests.redfish_rig import raw, served, tree

ROOT = {"@odata.id": "/redfish/v1/", "Systems": {"@odata.id": "/redfish/v1/Systems"}}
MEMBERS = {"Members": [{"@odata.id": "/redfish/v1/Systems/1"}]}
RESET = "/redfish/v1/Systems/1/Actions/ComputerSystem.Reset"
SYSTEM = {
    "@odata.id": "/redfish/v1/Systems/1",
    "PowerState": "On",
    "Actions": {"#ComputerSystem.Reset": {"target": RESET}},
}
DEEP = b'{"a":' * 100_000 + b"1" + b"}" * 100_000
DEEPISH = b'{"a":' * 200 + b"1" + b"}" * 200


def text(body: bytes, **headers: str) -> Callable[[], web.Response]:
    return lambda: web.Response(body=body, headers={"Content-Type": "application/json", **headers})


BODIES = {
    "truncated": b'{"PowerState": "O',
    "html": b"<html><body>Login</body></html>",
    "empty": b"",
    "list": b"[1,2,3]",
    "number": b"7",
    "null": b"null",
    "latin1": b'{"PowerState": "\xff\xfe"}',
    "deep": DEEP,
    "deep enough to be refused": DEEPISH,
    "huge": b'{"PowerState":"' + b"A" * (MAX_BODY + 10) + b'"}',
    "number too long": b'{"Members":' + b"9" * 5000 + b"}",
}


async def every_verb(bmc):
    for call in (
        bmc.power_state(timeout=0.2),
        bmc.system(timeout=0.2),
        bmc.power(PowerVerb.OFF, timeout=0.2),
        bmc.set_boot_once(BootDevice.NETWORK, timeout=0.2),
        bmc.identify(True, timeout=0.2),
        bmc.set_password("x" * 12, timeout=0.2),
        bmc.reset_bmc(timeout=0.2),
    ):
        try:
            await call
            said = None
        except FleetError as error:
            said = error
        assert len(str(said)) < 1000
        yield said


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
async def test_bad_body_at_the_root(body):
    async with served(tree({"/redfish/v1": text(body)})) as (driver, target):
        with pytest.raises(Garbled):
            await driver.open(target, timeout=2)


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
async def test_bad_body_behind_the_login(body):
    documents = {"/redfish/v1": ROOT, "/redfish/v1/Systems": MEMBERS, "/redfish/v1/Systems/1": text(body)}
    async with served(tree(documents)) as (driver, target):
        bmc = await driver.open(target, timeout=2)
        async for error in every_verb(bmc):
            assert isinstance(error, Garbled | Unsupported)
        documents["/redfish/v1/Systems/1"] = SYSTEM
        assert await bmc.power_state(timeout=2) is PowerState.ON, "the driver lives on"
        documents["/redfish/v1/Systems/1"] = text(body)
        if body not in (DEEPISH, BODIES["number too long"]):  # the hot poll skips what it does not need
            with pytest.raises(Garbled):
                await bmc.power_state(timeout=2)


WRONG = [None, True, 7, "x", [], [None], {}, {"@odata.id": 5}, {"@odata.id": "https://evil.example/redfish/v1/x"}]


@pytest.mark.parametrize("key", ["Actions", "Boot", "Links", "PowerState", "UUID", "SerialNumber", "@Redfish.Settings"])
@pytest.mark.parametrize("wrong", WRONG, ids=repr)
async def test_wrong_types(key, wrong):
    documents = {
        "/redfish/v1": ROOT | {"Oem": wrong, "Links": wrong, "AccountService": wrong},
        "/redfish/v1/Systems": MEMBERS,
        "/redfish/v1/Systems/1": SYSTEM | {key: wrong},
    }
    async with served(tree(documents)) as (driver, target):
        try:
            bmc = await driver.open(target, timeout=2)
        except Garbled:
            assert isinstance(wrong, dict)
        else:
            async for error in every_verb(bmc):
                assert error is None or isinstance(error, FleetError)


REPLIES = {
    "not http": b"SSH-2.0-OpenSSH_9.2\r\n",
    "half a header": b"HTTP/1.1 200 OK\r\nContent-Le",
    "body cut short": b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{}",
    "endless header": b"HTTP/1.1 200 OK\r\nX: " + b"a" * 200_000,
    "bad chunk": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    "bad length": b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n",
    "length of a terabyte": b"HTTP/1.1 200 OK\r\nContent-Length: 1099511627776\r\n\r\n{",
    "status 999": b"HTTP/1.1 999 What\r\nContent-Length: 2\r\n\r\n{}",
    "nothing": b"",
}


@pytest.mark.parametrize("reply", REPLIES.values(), ids=REPLIES)
async def test_bad_http(reply):
    async with raw(reply) as (driver, target):
        with pytest.raises((Garbled, Unreachable)):
            await driver.open(target, timeout=1)


async def test_a_body_without_length_is_bounded_too():
    async def pour(request: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        try:
            for _ in range(4 * MAX_BODY // 65536):
                await response.write(b" " * 65536)
        except OSError:
            pass
        return response

    async with served(pour) as (driver, target):
        with pytest.raises(Garbled, match="too large"):
            await driver.open(target, timeout=2)


async def test_a_compressed_bomb_stays_compressed():
    import zlib

    bomb = zlib.compress(b" " * (50 * MAX_BODY))
    async with served(tree({"/redfish/v1": text(bomb, **{"Content-Encoding": "deflate"})})) as (driver, target):
        with pytest.raises(Garbled):
            await driver.open(target, timeout=2)


@pytest.mark.parametrize("place", ["/redfish/v1/", "https://127.0.0.1:1/redfish/v1/", "//evil.example/x"])
async def test_redirects_are_not_followed(place):
    asked = []

    async def away(request: web.BaseRequest) -> web.Response:
        asked.append(request.path)
        return web.Response(status=302, headers={"Location": place})

    async with served(away) as (driver, target):
        with pytest.raises(Garbled):
            await driver.open(target, timeout=1)
    assert asked == ["/redfish/v1/"]


@pytest.mark.parametrize(
    "uri",
    [
        "https://evil.example/redfish/v1/Systems/1",
        "//evil.example/redfish/v1",
        "http:/redfish",
        "/redfish/v1/Systems/1\r\nX-Evil: 1",
        "/redfish/v1/ x",
        "/redfish/v1/\u00e9",
        "/cgi-bin/reboot",
        "/redfishy",
        "@evil.example/redfish",
        "/redfish/" + "a" * 5000,
        "",
        None,
        5,
    ],
)
def test_paths_outside_the_tree(uri):
    with pytest.raises(Garbled):
        checked_path(uri)


async def test_a_collection_without_end():
    asked = 0

    async def pages(request: web.BaseRequest) -> web.Response:
        nonlocal asked
        asked += 1
        return web.json_response(MEMBERS | {"Members@odata.nextLink": f"/redfish/v1/Systems?$skip={asked}"})

    documents = {"/redfish/v1": ROOT, "/redfish/v1/Systems/1": SYSTEM}
    async with served(tree(documents, also=pages, all_gets=True)) as (driver, target):
        bmc = await driver.open(target, timeout=2)
        with pytest.raises(Garbled, match="does not end"):
            await bmc.power_state(timeout=2)
    assert asked < 50


async def test_a_second_page_is_read():
    documents = {
        "/redfish/v1": ROOT,
        "/redfish/v1/Systems": {"Members": [], "Members@odata.nextLink": "/redfish/v1/Systems?$skip=1"},
        "/redfish/v1/Systems?$skip=1": MEMBERS,
        "/redfish/v1/Systems/1": SYSTEM,
    }
    async with served(tree(documents)) as (driver, target):
        bmc = await driver.open(target, timeout=2)
        assert await bmc.power_state(timeout=2) is PowerState.ON


async def test_the_push_button_is_not_pressed_blindly():
    """A toggle in an unknown state could do the opposite."""
    pressed = []
    reset = {"target": RESET, "ResetType@Redfish.AllowableValues": ["PushPowerButton"]}
    documents = {
        "/redfish/v1": ROOT,
        "/redfish/v1/Systems": MEMBERS,
        "/redfish/v1/Systems/1": SYSTEM | {"PowerState": None, "Actions": {"#ComputerSystem.Reset": reset}},
    }

    async def press(request: web.BaseRequest) -> web.Response:
        pressed.append(await request.read())
        documents["/redfish/v1/Systems/1"]["PowerState"] = "On"
        return web.Response(status=204)

    async with served(tree(documents, also=press)) as (driver, target):
        bmc = await driver.open(target, timeout=2)
        with pytest.raises(Unsupported):
            await bmc.power(PowerVerb.ON, timeout=0.2)
        assert pressed == []
        documents["/redfish/v1/Systems/1"]["PowerState"] = "Off"
        assert await bmc.power(PowerVerb.ON, timeout=1) is PowerState.ON
        assert len(pressed) == 1


async def test_refused_reset_type_falls_back_to_off_and_on():
    sent = []
    documents = {"/redfish/v1": ROOT, "/redfish/v1/Systems": MEMBERS, "/redfish/v1/Systems/1": dict(SYSTEM)}

    async def act(request: web.BaseRequest) -> web.Response:
        kind = msgspec.json.decode(await request.read())["ResetType"]
        sent.append(kind)
        if kind == "ForceRestart":
            return web.Response(status=501)
        documents["/redfish/v1/Systems/1"]["PowerState"] = {"ForceOff": "Off", "On": "On"}[kind]
        return web.Response(status=204)

    async with served(tree(documents, also=act)) as (driver, target):
        bmc = await driver.open(target, timeout=2)
        assert await bmc.power(PowerVerb.RESET, timeout=2) is PowerState.ON
    assert sent == ["ForceRestart", "ForceOff", "On"]


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (401, AuthFailed), (403, AuthFailed), (404, Unsupported), (405, Unsupported), (501, Unsupported), (400, Unsupported),
        (409, Busy), (412, Busy), (429, Busy), (500, Busy), (502, Busy), (503, Busy), (302, Garbled), (700, Garbled),
    ],
)  # fmt: skip
def test_status_to_error(status, error):
    assert type(redfish_answers.error_of(Answer(status, {}, b""), "x", "y")) is error


def test_messages_are_bounded_printable_and_without_secrets():
    info = [{"MessageId": "Base.1.0.Oops", "Message": "pw hunter2 \x1b[31m" + "x" * 9000}] * 50
    body = msgspec.json.encode({"error": {"@Message.ExtendedInfo": info}})
    error = redfish_answers.error_of(Answer(400, {}, body), "x", "y", secret="hunter2")
    assert "Oops" in error.why
    assert "hunter2" not in error.why
    assert "\x1b" not in error.why
    assert len(error.why) < 1000


def test_sys518_is_busy_under_any_status():
    body = b'{"error":{"@Message.ExtendedInfo":[{"MessageId":"IDRAC.2.8.SYS518","Message":"not ready"}]}}'
    assert redfish_answers.is_busy(Answer(500, {}, body))
    assert redfish_answers.is_busy(Answer(400, {}, body))
    assert not redfish_answers.is_busy(Answer(200, {}, body))


@pytest.mark.parametrize(
    ("header", "seconds"),
    [("5", 5.0), ("0", 0.0), ("99999999", None), ("9999999", 600.0), ("-1", None), ("soon", None), ("", None)],
)
def test_retry_after(header, seconds):
    assert redfish_answers.retry_after(Answer(503, {"retry-after": header}, b"")) == seconds


def test_retry_after_as_a_date():
    answer = Answer(503, {"retry-after": "Tue, 24 Nov 2026 00:00:10 GMT"}, b"")
    assert redfish_answers.retry_after(answer, now=1795478400.0) == 10.0


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["error", "@odata.id", "a"]), inner),
)


@given(st.binary(max_size=200) | JSON.map(msgspec.json.encode))
def test_no_body_crashes_the_reading(body):
    answer = Answer(500, {}, body)
    assert isinstance(redfish_answers.error_of(answer, "x", "y"), FleetError)
    for read in (redfish_answers.decode, redfish_answers.decode_power):
        with contextlib.suppress(Garbled):
            read(body, "here")


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(st.text())
def test_no_string_becomes_a_path_to_another_place(text):
    try:
        path = checked_path(text)
    except Garbled:
        return
    assert path.startswith("/redfish")
    assert path.isascii()
    assert not any(c.isspace() for c in path)


async def test_the_deadline_holds_against_a_drip():
    async def drip(request: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            await response.write(b" ")
            await asyncio.sleep(0.01)

    async with served(drip) as (driver, target):
        with pytest.raises(Unreachable):
            await driver.open(target, timeout=0.1)
