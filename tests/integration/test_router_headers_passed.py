"""What a replica and a client see of each other's headers, through the whole router."""

from __future__ import annotations

import hashlib

import pytest

from modalnomad.model.routes import Token
from modalnomad.settings import RouterSettings, Settings
from tests.support import raw
from tests.support.router import route, served

TOKEN = Token(id="wk-1", secret_sha256=hashlib.sha256(b"ws-2").hexdigest(), environment="main")


async def test_strangers_word_about_the_client_does_not_count() -> None:
    lies = ("X-Forwarded-For: 1.2.3.4", "X-Forwarded-Proto: https", "X-Forwarded-Host: evil", "Forwarded: for=1.2.3.4",
            "X-Real-IP: 1.2.3.4", "X_Forwarded_For: 1.2.3.4", "Modalnomad-Client: 1.2.3.4 5",
            "Modalnomad-Ticket: guess", "Modalnomad-Endpoint: other")  # fmt: skip
    async with raw.replica(raw.polite) as backend, served(backend.address) as router, raw.client(router.port) as client:
        assert (await client.request(raw.get("/", "app.localhost", *lies))).status == 200
        (received,) = backend.requests
        assert not any("1.2.3.4" in value or "evil" in value or value == "guess" for _, value in received.headers)
        assert received.get("x-forwarded-for") == "127.0.0.1"
        assert received.get("x-forwarded-proto") == "http"
        assert received.get("x-forwarded-host") == "app.localhost"
        assert received.get("modalnomad-endpoint") == "f"


@pytest.mark.parametrize("trusted", ["127.0.0.1", "127.0.0.0/8"])
async def test_trusted_proxys_word_counts(trusted: str) -> None:
    settings = RouterSettings(trusted_proxies=(trusted, "10.0.0.0/8"))
    said = ("X-Forwarded-For: 9.9.9.9, 203.0.113.5", "X-Forwarded-For: 10.1.1.1", "X-Forwarded-Proto: https",
            "X-Forwarded-Host: public.example")  # fmt: skip
    async with (
        raw.replica(raw.polite) as backend,
        served(backend.address, settings=settings) as router,
        raw.client(router.port) as client,
    ):
        assert (await client.request(raw.get("/", "app.localhost", *said))).status == 200
        (received,) = backend.requests
        assert received.get("modalnomad-client") == "203.0.113.5 0"
        assert received.get("x-forwarded-for") == "9.9.9.9, 203.0.113.5, 10.1.1.1, 127.0.0.1"
        assert received.get("x-forwarded-proto") == "https"
        assert received.get("x-forwarded-host") == "public.example"
        assert received.get("host") == "app.localhost"


async def test_platforms_credentials_stay_here_and_the_apps_own_pass() -> None:
    async with (
        raw.replica(raw.polite) as backend,
        served(backend.address, routes=[route(auth=True)], tokens=[TOKEN]) as router,
        raw.client(router.port) as client,
    ):
        shown = {
            (): 401,
            ("Modal-Key: wk-1", "Modal-Secret: ws-3"): 401,
            ("Modal-Key: wk-1", "Modal-Secret: ws-2", "Authorization: Basic abc"): 200,
            ("Authorization: Bearer wk-1.ws-2",): 200,
        }
        for lines, status in shown.items():
            answer = await client.request(raw.get("/", "app.localhost", *lines))
            assert answer.status == status
            if status == 401:
                assert answer["www-authenticate"].startswith("Bearer")
        assert [received.get("authorization") for received in backend.requests] == ["Basic abc", None]
        assert all(received.get("modal-secret") is None for received in backend.requests)


async def test_rate_limit_says_when_to_come_back() -> None:
    settings = RouterSettings(rate=0.01, rate_burst=1)
    async with (
        raw.replica(raw.polite) as backend,
        served(backend.address, settings=settings) as router,
        raw.client(router.port) as client,
    ):
        answers = [await client.request(raw.get()) for _ in range(3)]
        assert [answer.status for answer in answers] == [200, 429, 429]
        assert answers[1]["modalnomad-error"] == "rate_limited"
        assert int(answers[1]["retry-after"]) >= 1


async def test_request_id_is_kept_when_sane_and_made_when_not() -> None:
    async with raw.replica(raw.polite) as backend, served(backend.address) as router, raw.client(router.port) as client:
        answer = await client.request(raw.get("/", "app.localhost", "X-Request-Id: my.id_1-2"))
        assert answer["x-request-id"] == "my.id_1-2" == backend.requests[0].get("x-request-id")
        answer = await client.request(raw.get("/", "app.localhost", "X-Request-Id: a b"))
        assert answer["x-request-id"] == backend.requests[1].get("x-request-id") != "a b"
        answer = await client.request(raw.get("/", "app.localhost", "X-Request-Id: " + "a" * 129))
        assert len(answer["x-request-id"]) == 32


async def test_hop_by_hop_headers_of_an_answer_stay_here() -> None:
    script = raw.says(raw.answer(b"", "200 OK", "Connection: X-Hop, keep-alive", "X-Hop: 1", "Keep-Alive: timeout=5",
                                 "X-Request-Id: theirs", "Modalnomad-Replica: p 0.1", "Modalnomad-Error: fake",
                                 "Set-Cookie: a", "Set-Cookie: b"))  # fmt: skip
    async with raw.replica(script) as backend, served(backend.address) as router, raw.client(router.port) as client:
        answer = await client.request(raw.get())
        assert [value for name, value in answer.headers if name == "set-cookie"] == ["a", "b"]
        assert answer["x-request-id"] != "theirs"
        assert {name for name, _ in answer.headers} == {"set-cookie", "x-request-id", "content-length"}


async def test_an_endpoints_own_rate_is_kept_beside_its_environments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODALNOMAD_ROUTER__RATES", '{"app/f": 2}')
    monkeypatch.setenv("MODALNOMAD_ROUTER__RATE_BURST", "1")
    async with (
        raw.replica(raw.polite) as backend,
        served(backend.address, settings=Settings().router) as router,
        raw.client(router.port) as client,
    ):
        monkeypatch.setattr(router.router, "_clock", lambda: 0.0)  # half a second lets one more in
        answers = [await client.request(raw.get()) for _ in range(3)]
        assert [answer.status for answer in answers] == [200, 200, 429]
        assert b"2 requests per second for this endpoint" in answers[2].body


@pytest.mark.parametrize("name", ["f", "main/app/f/g", "app/", "/f", "app//f"])
def test_a_rate_of_no_endpoint_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="not app/endpoint"):
        RouterSettings(rates={name: 1.0})
