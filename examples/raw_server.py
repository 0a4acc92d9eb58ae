"""A server of one's own behind `web_server`: aiohttp on port 8000, with a WebSocket and a streamed answer.

modalnomad serve examples/raw_server.py

curl "$URL/"                         → what the server saw of the request
curl -N "$URL/count?to=5"            → one line after the other
python -m websockets "ws://…/ws"     → every message comes back reversed
"""

import modal

image = modal.Image.debian_slim().pip_install("aiohttp")
app = modal.App("raw-server", image=image)


@app.function()
@modal.concurrent(max_inputs=100)
@modal.web_server(8000, startup_timeout=30)
def server():
    import subprocess
    import sys

    subprocess.Popen([sys.executable, "-c", SERVER])


SERVER = """
import asyncio
from aiohttp import WSMsgType, web

async def seen(request):
    forwarded = {name: request.headers.get(name) for name in ("X-Forwarded-For", "X-Forwarded-Proto", "X-Request-Id")}
    return web.json_response({"path": request.path_qs, "host": request.host, **forwarded})

async def count(request):
    answer = web.StreamResponse()
    await answer.prepare(request)
    for number in range(1, int(request.query.get("to", "3")) + 1):
        await answer.write(f"{number}\\n".encode())
        await asyncio.sleep(0.05)
    await answer.write_eof()
    return answer

async def reverse(request):
    socket = web.WebSocketResponse(protocols=("reverse",))
    await socket.prepare(request)
    async for message in socket:
        if message.type is WSMsgType.TEXT:
            if message.data == "bye":
                await socket.close(code=4001, message=b"as you wish")
            else:
                await socket.send_str(message.data[::-1])
        elif message.type is WSMsgType.BINARY:
            await socket.send_bytes(message.data[::-1])
    return socket

web_app = web.Application()
web_app.add_routes([web.get("/count", count), web.get("/ws", reverse), web.get("/{tail:.*}", seen)])
web.run_app(web_app, host="127.0.0.1", port=8000, print=None)
"""
