"""The replica's process ends after half an answer (`/stream`), or before any byte of one (`/at-once`)."""

import modal

app = modal.App("dies-mid-answer")


@app.function()
@modal.concurrent(max_inputs=10)
@modal.asgi_app()
def site():
    import os

    async def web_app(scope, receive, send):
        if scope["type"] != "http":
            return
        if scope["path"] == "/at-once":
            os._exit(9)
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
        await send({"type": "http.response.body", "body": b"half of it", "more_body": True})
        if scope["path"] == "/stream":
            import asyncio

            await asyncio.sleep(0.2)  # the half is on its way
            os._exit(9)
        await send({"type": "http.response.body", "body": b" and the rest"})

    return web_app
