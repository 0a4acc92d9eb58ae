"""A request through the router to a replica and back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support import raw
from tests.support.router import TICKET, served

BOTH_LOOPS = True


@pytest.mark.parametrize("unix", [False, True])
async def test_request_reaches_replica_and_answer_the_client(unix: bool, tmp_path: Path) -> None:
    async with (
        raw.replica(raw.polite, unix=tmp_path / "s" if unix else None) as backend,
        served(backend.address) as router,
        raw.client(router.port) as client,
    ):
        answer = await client.request(raw.post(b"hello", path="/a%20b/?q=%2F&&=", host="APP.localhost:8000"))
        assert (answer.status, answer.body) == (200, b"hello")
        (received,) = backend.requests
        assert received.line == "POST /a%20b/?q=%2F&&= HTTP/1.1"
        assert received.get("host") == "APP.localhost:8000"
        assert received.get("modalnomad-ticket") == TICKET.decode()
        assert received.get("modalnomad-endpoint") == "f"
        address, _, port = (received.get("modalnomad-client") or "").partition(" ")
        assert (address, int(port)) == ("127.0.0.1", client.writer.get_extra_info("sockname")[1])
        assert received.get("x-request-id") == answer["x-request-id"]


async def test_unknown_host_is_a_problem_document() -> None:
    async with served() as router, raw.client(router.port) as client:
        answer = await client.request(raw.get(host="nobody.localhost"))
        assert answer.status == 404
        assert answer["content-type"] == "application/problem+json"
        assert answer["modalnomad-error"] == "unknown_endpoint"
        problem = json.loads(answer.body)
        assert problem["code"] == "unknown_endpoint"
        assert problem["status"] == 404
        assert problem["title"] == "Not Found"
        assert problem["request_id"] == answer["x-request-id"]
        assert problem["type"]
        assert problem["detail"]
        again = await client.request(raw.get(host="nobody.localhost"))
        assert again.status == 404
