"""Requests after which a replica answers nothing more, or only when it likes, without ending by itself."""

import asyncio
import contextlib
import os
import time

import modal

app = modal.App("hangs-in-requests")


async def stubborn():
    while True:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(600)


async def site(scope, receive, send):
    if scope["type"] == "lifespan":
        return
    path = scope["path"]
    if path.startswith("/begun"):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"begun", "more_body": True})
        await asyncio.sleep(0.2)
    if path.endswith("/hang"):
        time.sleep(600)  # noqa: ASYNC251 - that is what it is for
    if path.endswith("/stubborn"):
        await stubborn()
    if path == "/close":
        os.closerange(3, 256)
        time.sleep(600)  # noqa: ASYNC251 - that is what it is for
    if path == "/become-another":
        os.execv("/bin/sleep", ["sleep", "600"])
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


@app.function(timeout=2, startup_timeout=30)
@modal.concurrent(max_inputs=10)
@modal.asgi_app()
def many():
    return site


@app.function(timeout=2, startup_timeout=30, max_containers=1)
@modal.asgi_app()
def one():
    return site


@app.function(timeout=2, startup_timeout=30, max_containers=1)
@modal.fastapi_endpoint()
def sync(seconds: float = 0):
    time.sleep(seconds)
    return "ok"
