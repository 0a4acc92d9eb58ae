"""What a program under `run` may still say while its calls are being cancelled."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from modalnomad.deploy.entry import Message
from modalnomad.wiring.run import Exchange
from tests.support.stub_replicas import make_match


async def test_calls_that_come_after_the_end_are_let_go(caplog: pytest.LogCaptureFixture) -> None:
    """Ctrl-C in a `map`: the program goes on calling until it has heard of it."""
    revision = make_match().revision
    called: list[str] = []
    forever = asyncio.Event()

    async def call(call: Any, on_retry: Any) -> None:
        called.append(call.method)
        await forever.wait()

    parts: Any = SimpleNamespace(
        revisions={revision.id: revision}, router=SimpleNamespace(caller=SimpleNamespace(call=call))
    )
    process: Any = None
    exchange = Exchange(parts, process, lambda *retry: None)

    def message(number: int) -> Message:
        return Message({"call": number, "function": revision.function.tag, "method": f"m{number}", "parameters": ""})

    exchange.take(message(1))
    for _ in range(5):
        await asyncio.sleep(0)
    closing = asyncio.ensure_future(exchange.close())
    await asyncio.sleep(0)
    exchange.take(message(2))
    await closing
    exchange.take(message(3))
    exchange.take(Message({"cancel": 1}))

    assert called == ["m1"]
    assert not caplog.records
