"""The app answers lifespan start-up with a failure."""

import modal

app = modal.App("lifespan-fails")


@app.function()
@modal.asgi_app()
def site():
    async def web_app(scope, receive, send):
        if scope["type"] == "lifespan":
            await receive()
            await send({"type": "lifespan.startup.failed", "message": "no database here"})
            return
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"never"})

    return web_app
