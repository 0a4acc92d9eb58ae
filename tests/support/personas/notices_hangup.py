"""A stream without an end, and how many of them saw their client leave (GET /gone)."""

import modal

app = modal.App("notices-hangup")


@app.function(max_containers=1)
@modal.concurrent(max_inputs=50)
@modal.asgi_app()
def site():
    import asyncio

    state = {"gone": 0}

    async def web_app(scope, receive, send):
        if scope["type"] != "http":
            raise RuntimeError("no lifespan here")
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
        if scope["path"] == "/gone":
            await send({"type": "http.response.body", "body": str(state["gone"]).encode()})
            return
        while (await receive())["type"] != "http.disconnect":
            await send({"type": "http.response.body", "body": b"still here\n", "more_body": True})
            if scope["path"] == "/talking":
                await asyncio.sleep(0.05)
        state["gone"] += 1

    return web_app
