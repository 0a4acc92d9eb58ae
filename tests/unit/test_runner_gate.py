"""The gate as an ASGI application, without a server."""

from __future__ import annotations

import asyncio
import hashlib
from typing import Any

import pytest
from modalnomad_sdk import contract as c
from modalnomad_sdk import state
from modalnomad_sdk.runner import gpus
from modalnomad_sdk.runner.door_answers import Porter
from modalnomad_sdk.runner.doors import Doors
from modalnomad_sdk.runner.gate import Gate, Mounted
from modalnomad_sdk.runner.lifespan import Lifespan, Message, Receive, Scope, Send

TICKET = (c.HEADER_TICKET.encode(), b"t")


def gate(app: Any, timeout: float = 60, max_inputs: int = 1) -> Gate:
    doors = Doors(max_inputs)
    porter = Porter(hashlib.sha256(b"t").hexdigest(), "p 0.1", doors)
    return Gate({"f": Mounted(app, Lifespan(app))}, doors, porter, timeout)


async def ask(app: Gate, *headers: tuple[bytes, bytes], kind: str = "http", **scope: Any) -> list[Message]:
    sent: list[Message] = []

    async def receive() -> Message:
        raise AssertionError("the body was read")

    async def send(message: Message) -> None:
        sent.append(message)

    whole = {"type": kind, "method": "GET", "path": "/", "query_string": b"", "headers": list(headers), **scope}
    await app(whole, receive, send)
    return sent


async def answering(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b""})


async def test_refusals_read_nothing() -> None:
    one = gate(answering)
    assert (await ask(one))[0]["status"] == 403
    assert (await ask(one, TICKET, (c.HEADER_ENDPOINT.encode(), b"g")))[0]["status"] == 404
    assert one.doors.enter()
    assert (await ask(one, TICKET, (b"content-length", b"9")))[0]["status"] == 503
    one.doors.leave()
    assert (await ask(one, TICKET))[0]["status"] == 200


async def test_a_place_is_free_again_whatever_happens() -> None:
    async def raising(scope: Scope, receive: Receive, send: Send) -> None:
        raise ValueError("broke")

    one = gate(raising)
    for _ in range(3):
        with pytest.raises(ValueError, match="broke"):
            await ask(one, TICKET)
    assert one.doors.running == 0


async def test_a_cancelled_request_stays_cancelled() -> None:
    started = asyncio.Event()

    async def waiting(scope: Scope, receive: Receive, send: Send) -> None:
        started.set()
        await asyncio.Event().wait()

    one = gate(waiting)
    task = asyncio.ensure_future(ask(one, TICKET))
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert one.doors.running == 0


async def test_websocket_refusals() -> None:
    one = gate(answering)
    sent = await ask(one, kind="websocket", extensions={"websocket.http.response": {}})
    assert (sent[0]["type"], sent[0]["status"]) == ("websocket.http.response.start", 403)
    sent = await ask(one, kind="websocket")  # a server without that extension
    assert sent == [{"type": "websocket.close", "code": 1013}]


async def test_what_the_app_sees() -> None:
    seen: dict[str, Any] = {}

    async def looking(scope: Scope, receive: Receive, send: Send) -> None:
        seen.update(scope, id=state.current_input.get())

    headers = [
        (b"modalnomad-client", b"::1 9"),
        (b"x-request-id", b"r"),
        (b"x-forwarded-proto", b"https"),
        (b"a", b"b"),
    ]
    await ask(gate(looking), TICKET, *headers, kind="websocket")
    assert (seen["client"], seen["scheme"], seen["id"]) == (("::1", 9), "wss", "r")
    assert seen["headers"] == headers[1:]


@pytest.mark.parametrize(
    ("named", "present", "expected"),
    [
        (None, 2, 2),
        ("0", 2, 1),
        ("0,1", 2, 2),
        ("", 2, 0),
        ("-1", 2, 0),
        ("0,7", 2, 1),
        ("GPU-a,GPU-b", 1, 1),
        ("MIG-a,MIG-b", 1, 2),
    ],
)
def test_visible_gpus(monkeypatch: pytest.MonkeyPatch, named: str | None, present: int, expected: int) -> None:
    monkeypatch.setattr(gpus, "_present", lambda: present)
    assert gpus.visible_gpus({} if named is None else {"CUDA_VISIBLE_DEVICES": named}) == expected
