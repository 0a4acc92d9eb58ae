"""WebSockets that stay open until the client leaves, and what the replica saw of their ends (GET /ends)."""

import modal

app = modal.App("holds-socket")


@app.function(max_containers=1)
@modal.concurrent(max_inputs=50)
@modal.asgi_app()
def site():
    import json

    state = {"open": 0, "codes": []}

    async def web_app(scope, receive, send):
        if scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.accept"})
            state["open"] += 1
            while (message := await receive())["type"] == "websocket.receive":
                await send({"type": "websocket.send", "text": message.get("text") or "bytes"})
            state["open"] -= 1
            state["codes"].append(message.get("code"))
            return
        if scope["type"] != "http":
            raise RuntimeError("no lifespan here")
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": json.dumps(state).encode()})

    return web_app
