"""The lifespan state machine: supported, unsupported, failed (ASGI lifespan 2.0)."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from modalnomad_sdk.runner.lifespan import Lifespan, LifespanFailed, Receive, Scope, Send


async def good(scope: Scope, receive: Receive, send: Send) -> None:
    assert scope["type"] == "lifespan"
    assert (await receive())["type"] == "lifespan.startup"
    scope["state"]["seen"] = ["startup"]
    await send({"type": "lifespan.startup.complete"})
    assert (await receive())["type"] == "lifespan.shutdown"
    scope["state"]["seen"].append("shutdown")
    await send({"type": "lifespan.shutdown.complete"})


async def test_supported() -> None:
    lifespan = Lifespan(good)
    await lifespan.start()
    assert lifespan.supported
    assert lifespan.state == {"seen": ["startup"]}
    await lifespan.stop()
    assert lifespan.state == {"seen": ["startup", "shutdown"]}


async def raises_first(scope: Scope, receive: Receive, send: Send) -> None:
    raise ValueError("only http")


async def returns_first(scope: Scope, receive: Receive, send: Send) -> None:
    return


async def returns_after_asking(scope: Scope, receive: Receive, send: Send) -> None:
    await receive()


@pytest.mark.parametrize("app", [raises_first, returns_first, returns_after_asking])
async def test_unsupported_is_tolerated(app: Any) -> None:
    lifespan = Lifespan(app)
    await lifespan.start()
    assert not lifespan.supported
    await lifespan.stop()


async def says_failed(scope: Scope, receive: Receive, send: Send) -> None:
    await receive()
    await send({"type": "lifespan.startup.failed", "message": "no database"})
    raise RuntimeError("no database")


async def raises_later(scope: Scope, receive: Receive, send: Send) -> None:
    await receive()
    raise RuntimeError("no database")


async def sends_nonsense(scope: Scope, receive: Receive, send: Send) -> None:
    await receive()
    await send({"type": "http.response.start", "message": "no database"})


@pytest.mark.parametrize(
    ("app", "text"),
    [(says_failed, "no database"), (raises_later, "no database"), (sends_nonsense, "http.response.start")],
)
async def test_a_failed_start(app: Any, text: str) -> None:
    with pytest.raises(LifespanFailed, match=text):
        await Lifespan(app).start()


async def test_a_failed_shutdown() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        raise RuntimeError("cannot close")

    lifespan = Lifespan(app)
    await lifespan.start()
    with pytest.raises(LifespanFailed, match="shutdown failed: RuntimeError: cannot close"):
        await lifespan.stop()


async def test_an_app_that_ended_meanwhile_needs_no_shutdown() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "lifespan.startup.complete"})

    lifespan = Lifespan(app)
    await lifespan.start()
    await asyncio.sleep(0)
    await lifespan.stop()
