"""The platform's credentials in every disguise: none of them reaches an app."""

from __future__ import annotations

import hashlib

import pytest

from modalnomad.model.routes import Token
from tests.support import raw
from tests.support.handshake import handshake, switches
from tests.support.router import route, served

TOKENS = [
    Token(id=id, secret_sha256=hashlib.sha256(f"ws-{id}".encode()).hexdigest(), environment=environment)
    for id, environment in (("wk-1", "main"), ("wk-2", "main"), ("wk-3", "staging"))
]
MINE = "Authorization: Bearer wk-1.ws-wk-1"
THEIRS = "Authorization: Basic YTpi"
PAIR = ("Modal-Key: wk-1", "Modal-Secret: ws-wk-1")


@pytest.mark.parametrize(
    "shown",
    [
        (MINE,),
        (MINE, THEIRS),
        (THEIRS, MINE),
        (MINE, MINE),
        ("Authorization: bEARER   wk-1.ws-wk-1",),
        ("Authorization: Bearer\twk-1.ws-wk-1",),
        ("Authorization: wk-1.ws-wk-1",),
        ("Authorization: Basic YTpi, Bearer wk-1.ws-wk-1",),
        ("Authorization: Bearer wk-1.ws-wk-1, Basic YTpi",),
        ("Authorization: Bearer wk-3.ws-wk-3",),
        ("Authorization: Bearer wk-1.ws-mistyped",),
        ("Authorization: Bearer wk-revoked.ws-revoked",),
        PAIR,
        (*PAIR, *PAIR),
        ("Modal-Key: wk-9", *PAIR),
        ("MODAL-KEY: wk-1", "modal-secret: ws-wk-1"),
        ("Modal_Key: wk-1", "Modal_Secret: ws-wk-1"),
        ("Modal-Secret: ws-wk-1",),
    ],
)
@pytest.mark.parametrize("protected", [False, True])
async def test_no_app_sees_a_credential_of_the_platform(shown: tuple[str, ...], protected: bool) -> None:
    async with (
        raw.replica(raw.polite) as backend,
        served(backend.address, routes=[route(auth=protected)], tokens=TOKENS) as router,
        raw.client(router.port) as client,
    ):
        status = (await client.request(raw.get("/", "app.localhost", *shown))).status
        assert status in ({200, 401, 403} if protected else {200})
        assert len(backend.requests) == (status == 200)
        for received in backend.requests:
            assert not [field for field in received.headers if "wk-" in field[1] or "ws-" in field[1]]


@pytest.mark.parametrize(
    "shown",
    [
        (MINE, THEIRS),
        (THEIRS, MINE),
        (MINE, "Authorization: Bearer wk-2.ws-wk-2"),
        (*PAIR, "Authorization: Bearer wk-2.ws-wk-2"),
        (*PAIR, "Authorization: Bearer wk-1.ws-mistyped"),
        (*PAIR, "Authorization: Bearer wk-3.ws-wk-3"),
        (*PAIR, *PAIR),
        ("Modal-Key: wk-2", *PAIR),
        (*PAIR, "Modal-Secret: ws-wk-2"),
    ],
)
async def test_credentials_that_contradict_each_other_let_nobody_in(shown: tuple[str, ...]) -> None:
    async with (
        raw.replica(raw.polite) as backend,
        served(backend.address, routes=[route(auth=True)], tokens=TOKENS) as router,
        raw.client(router.port) as client,
    ):
        refused = await client.request(raw.get("/", "app.localhost", *shown))
        assert (refused.status, refused["modalnomad-error"]) == (401, "invalid_credentials")
        assert not backend.requests


async def test_the_apps_own_authorization_passes_as_it_came() -> None:
    async with (
        raw.replica(raw.polite) as backend,
        served(backend.address, routes=[route(auth=True), route(host="open.localhost")], tokens=TOKENS) as router,
        raw.client(router.port) as client,
    ):
        own = "Bearer eyJhbGciOi.eyJzdWIi.sig-wk-ws"
        for host, shown in (("app.localhost", PAIR), ("open.localhost", ())):
            answer = await client.request(raw.get("/", host, *shown, f"Authorization: {own}"))
            assert answer.status == 200
            assert backend.requests[-1].get("authorization") == own
        both = (*PAIR, MINE)  # the same token twice
        assert (await client.request(raw.get("/", "app.localhost", *both))).status == 200


async def test_a_websocket_hands_no_credential_on_either() -> None:
    async with (
        raw.replica(switches) as backend,
        served(backend.address, tokens=TOKENS) as router,
        raw.client(router.port) as client,
    ):
        shown = "".join(f"{line}\r\n" for line in (MINE, THEIRS, *PAIR)).encode()
        request = handshake().replace(b"\r\n\r\n", b"\r\n" + shown + b"\r\n")
        assert (await client.request(request)).status == 101
        (received,) = backend.requests
        assert not [field for field in received.headers if "wk-" in field[1] or "ws-" in field[1]]
