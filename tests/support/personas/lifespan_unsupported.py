"""An app that knows no lifespan and raises when it is asked: tolerated, as the specification says."""

import modal

app = modal.App("lifespan-unsupported")


@app.function()
@modal.asgi_app()
def site():
    async def web_app(scope, receive, send):
        assert scope["type"] == "http"
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"fine"})

    return web_app
