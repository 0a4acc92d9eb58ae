"""A page that stays connected: FastAPI with lifespan, a WebSocket and server-sent events.

    modalnomad serve examples/live_page.py        then open the URL in a browser

    curl "$URL/"            → the page
    curl -N "$URL/ticks"    → three events, one after the other

`modal.concurrent` lets one replica hold many connections: without it every WebSocket would get a replica of its own.
"""

import modal

image = modal.Image.debian_slim().pip_install("fastapi[standard]")
app = modal.App("live-page", image=image)

PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<title>Live page</title>
<style>
  body { font: 18px/1.5 system-ui, sans-serif; max-width: 34rem; margin: 3rem auto; padding: 0 1rem; }
  b { color: #0a6847; }
</style>
<h1>Live page</h1>
<p>WebSocket: <b id="socket">connecting</b></p>
<p>Events: <b id="events">waiting</b></p>
<script>
  const show = (id, text) => { document.getElementById(id).textContent = text }
  const socket = new WebSocket(location.origin.replace(/^http/, "ws") + "/echo", "shout")
  socket.onopen = () => socket.send("hello from the page")
  socket.onmessage = (message) => { show("socket", message.data); socket.close(1000) }
  socket.onerror = () => show("socket", "failed")
  const seen = []
  const events = new EventSource("/ticks")
  events.addEventListener("tick", (event) => { seen.push(event.data); show("events", seen.join(", ")) })
  events.addEventListener("done", () => { seen.push("done"); show("events", seen.join(", ")); events.close() })
</script>
"""


@app.function()
@modal.concurrent(max_inputs=100)
@modal.asgi_app()
def site():
    import asyncio
    from contextlib import asynccontextmanager

    from fastapi import FastAPI, WebSocket, WebSocketDisconnect
    from fastapi.responses import HTMLResponse, StreamingResponse

    @asynccontextmanager
    async def lifespan(web_app):
        print("the page wakes up")
        yield {"greeted": []}
        print("the page goes to sleep")

    web_app = FastAPI(lifespan=lifespan)

    @web_app.get("/", response_class=HTMLResponse)
    async def page():
        return PAGE

    @web_app.websocket("/echo")
    async def echo(socket: WebSocket):
        await socket.accept(subprotocol="shout" if "shout" in socket.scope["subprotocols"] else None)
        try:
            while True:
                text = await socket.receive_text()
                socket.state.greeted.append(text)
                await socket.send_text(text.upper())
        except WebSocketDisconnect as gone:
            print("socket closed with", gone.code)

    @web_app.get("/ticks")
    async def ticks(count: int = 3, pause: float = 0.1):
        async def events():
            for number in range(1, count + 1):
                yield f"event: tick\nid: {number}\ndata: {number}\n\n"
                await asyncio.sleep(pause)
            yield "event: done\ndata: \n\n"

        return StreamingResponse(events(), media_type="text/event-stream")

    return web_app
