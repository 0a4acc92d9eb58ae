"""Programs that misbehave, on a cluster as on one machine: the same answers, and the next request is served. On the
fake and on a real Nomad."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from tests.support.cluster import PATIENCE, Router, cluster
from tests.support.repository import persona

pytestmark = pytest.mark.asyncio(loop_scope="module")

PERSONAS = (
    "answers_garbage",
    "fails_first",
    "hangs_in_requests",
    "holds_socket",
    "lifespan_fails",
    "lifespan_unsupported",
    "notices_hangup",
    "server_dies",
    "slow_answer",
)
MORE = """
async def ends(scope, receive, send):
    import os
    import resource
    if scope["type"] == "lifespan":
        return
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.accept"})
        await receive()
        os._exit(9)
    body = b"ok"
    if scope["path"] == "/files":
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
        try:
            ends.kept = []
            while True:
                ends.kept.append(open("/dev/null"))
        except OSError as error:
            body = str(error).encode()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body})

@app.function(timeout=2, startup_timeout=30)
@modal.asgi_app()
def cut():
    return ends
"""
SETTINGS = {
    "MODALNOMAD_NOMAD__GRACE_PERIOD": "30",
    "MODALNOMAD_ROUTER__DRAIN_TIMEOUT": "2",
    "MODALNOMAD_SCALING__BREAKER_BACKOFF_MAX": "1",
}
"""With a grace period so long that nothing here may wait for it."""
TIMEOUT = 5
"""Seconds of a request, in place of the personas' two: on a machine that stands still for a moment, a harmless one is
answered in time, too."""


def together(names: Sequence[str]) -> str:
    """One App of them all. Where one has a single Function, that is called like the persona."""
    parts = ["import modal\n\napp = modal.App('all')\n"]
    for name in names:
        text = persona(name).read_text()
        text = re.sub(r"(?m)^app = .*$", "", text).replace("SERVER", f"SERVER_{name}")
        found = list(re.finditer(r"(?m)^(?:@.*\n)+(?:async def|def|class) (\w+)", text))
        if len(found) == 1:
            text = text[: found[0].start(1)] + name + text[found[0].end(1) :]
        parts.append(text)
    return "\n".join(parts)


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=["fake", "real"])
async def router(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Router]:
    """One for all tests of this file."""
    if request.param == "real" and shutil.which("nomad") is None:
        pytest.skip("nomad is not on PATH")
    folder = tmp_path_factory.mktemp("world")
    text = together(PERSONAS) + MORE
    (folder / "personas.py").write_text(text.replace("(timeout=2,", f"(timeout={TIMEOUT},"))
    (folder / "count.json").write_text(json.dumps({"COUNT_FILE": str(folder / "count")}))
    async with cluster(folder, real=request.param == "real", **SETTINGS) as made:  # type: ignore[arg-type]
        await made.cli("secret", "create", "fails-first", "--from-json", str(folder / "count.json"))
        await made.cli("deploy", str(folder / "personas.py"))
        async with made.router() as running:
            yield running


def host(name: str) -> str:
    """Of an endpoint."""
    return f"all-{name.replace('_', '-')}.localhost"


async def ask(router: Router, name: str, path: str = "/") -> tuple[int, str]:
    """Status, and the router's own code or the program's answer."""
    status, text = await router.get(host(name), path)
    return status, json.loads(text)["code"] if text.startswith('{"type"') else text


async def serves(router: Router, name: str) -> str:
    """What it answers, as soon as it answers well."""
    async with asyncio.timeout(PATIENCE):
        while (answer := await ask(router, name))[0] != 200:  # noqa: ASYNC110 - what a caller can do
            await asyncio.sleep(0.1)
    return answer[1]


@asynccontextmanager
async def streaming(router: Router, name: str, path: str) -> AsyncIterator[aiohttp.ClientResponse]:
    """The answer, as it comes."""
    headers = {"Host": host(name)}
    async with aiohttp.request("GET", router.url + path, headers=headers) as answer:
        yield answer


@asynccontextmanager
async def web_socket(router: Router, name: str) -> AsyncIterator[aiohttp.ClientWebSocketResponse]:
    """Open."""
    headers = {"Host": host(name)}
    async with aiohttp.ClientSession() as session, session.ws_connect(router.url, headers=headers) as opened:
        yield opened


async def test_a_lifespan_that_fails_and_one_there_is_not(router: Router) -> None:
    assert await ask(router, "lifespan_fails") == (503, "start_failed")
    await router.told("all/lifespan_fails: the program failed while it was starting")
    await router.told("no database here")
    assert await ask(router, "lifespan_unsupported") == (200, "fine")


@pytest.mark.parametrize(
    "path",
    ["/noise", "/two-lengths", "/length-and-chunked", "/folded", "/huge-head", "/switches", "/silent"],
)
async def test_an_answer_that_is_no_http_never_looks_like_one(router: Router, path: str) -> None:
    code = "replica_gone" if path == "/silent" else "bad_answer"
    assert await ask(router, "answers_garbage", path) == (502, code)
    assert await ask(router, "answers_garbage") == (200, "ok")


@pytest.mark.parametrize("path", ["/short", "/bad-chunk"])
async def test_an_answer_that_breaks_off_never_ends_cleanly(router: Router, path: str) -> None:
    with pytest.raises((aiohttp.ClientPayloadError, aiohttp.ServerDisconnectedError)):
        await ask(router, "answers_garbage", path)
    assert await ask(router, "answers_garbage") == (200, "ok")


async def test_a_server_of_the_users_that_dies_is_replaced(router: Router) -> None:
    assert await ask(router, "server_dies") == (200, "ok")
    assert await ask(router, "server_dies", "/die") == (502, "replica_gone")
    assert await serves(router, "server_dies") == "ok"


async def test_one_without_file_descriptors_is_replaced(router: Router) -> None:
    assert "Too many open files" in (await ask(router, "cut", "/files"))[1]
    assert await serves(router, "cut") == "ok"


async def test_an_end_under_an_open_websocket_is_no_clean_one(router: Router) -> None:
    await serves(router, "cut")
    async with web_socket(router, "cut") as opened:
        await opened.send_str("end")
        await opened.receive()
        assert opened.close_code == 1006, "none was sent"
    assert await serves(router, "cut") == "ok"


async def test_sockets_that_stay_open_are_counted_and_freed(router: Router) -> None:
    async def seen() -> dict[str, Any]:
        found: dict[str, Any] = json.loads((await ask(router, "holds_socket"))[1])
        return found

    async with web_socket(router, "holds_socket") as first, web_socket(router, "holds_socket") as second:
        for each in (first, second):
            await each.send_str("heard")
            assert await each.receive_str() == "heard"
        assert (await seen())["open"] == 2
        await first.close(code=4000)
    async with asyncio.timeout(PATIENCE):
        while (last := await seen())["open"]:  # noqa: ASYNC110 - the program has no event for it
            await asyncio.sleep(0.05)
    assert last["codes"] == [4000, 1000]


# --- those that take their time ----------------------------------------------------------------------------------


async def fails_first(router: Router) -> None:
    """Repeated failures open the breaker, and success closes it."""
    assert await ask(router, "fails_first-f") == (503, "start_failed")
    assert await serves(router, "fails_first-f") == "3"


async def slow(router: Router) -> None:
    """An answer that takes too long."""
    assert await ask(router, "slow_answer", "/?seconds=60") == (504, "execution_timeout")
    assert await ask(router, "slow_answer", "/?seconds=0.1") == (200, "0.1")


async def hangs(router: Router, function: str, path: str, code: str) -> None:
    """One that answers nothing more costs the requests after it nothing."""
    assert "ok" in (await ask(router, function))[1]
    try:
        told = (await ask(router, function, path))[1]
    except aiohttp.ClientPayloadError:
        told = "cut"
    assert told == code
    for _ in range(2):
        status, text = await ask(router, function)
        assert (status, text.strip('"')) == (200, "ok")


async def left(router: Router) -> None:
    """A client that leaves is noticed."""
    for path in ("/silent", "/talking"):
        async with streaming(router, "notices_hangup", path) as answer:
            await answer.content.readany()
    async with asyncio.timeout(PATIENCE):
        while (await ask(router, "notices_hangup", "/gone"))[1] != "2":  # noqa: ASYNC110 - as above
            await asyncio.sleep(0.1)


async def test_those_that_take_their_time(router: Router) -> None:
    await asyncio.gather(
        fails_first(router),
        slow(router),
        hangs(router, "many", "/hang", "execution_timeout"),
        hangs(router, "one", "/begun/hang", "cut"),
        hangs(router, "sync", "/?seconds=600", "execution_timeout"),
        left(router),
    )
    await hangs(router, "many", "/become-another", "replica_gone")
