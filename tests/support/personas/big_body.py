"""Bodies of any size, both ways, without holding them: `/out?mib=` makes one, `/in?stall=` waits so many seconds and
counts one."""

import modal

app = modal.App("big-body")


@app.function(timeout=600)
@modal.concurrent(max_inputs=20)
@modal.asgi_app()
def site():
    import asyncio
    from urllib.parse import parse_qs

    piece = bytes(range(256)) * 256

    async def web_app(scope, receive, send):
        if scope["type"] != "http":
            raise RuntimeError("no lifespan here")
        query = parse_qs(scope["query_string"].decode())
        if scope["path"] == "/out":
            count = int(query["mib"][0]) * 16
            headers = [(b"content-length", str(count * len(piece)).encode())]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            for _ in range(count):
                await send({"type": "http.response.body", "body": piece, "more_body": True})
            await send({"type": "http.response.body", "body": b""})
            return
        await asyncio.sleep(float(query.get("stall", ["0"])[0]))
        total, more = 0, True
        while more:
            message = await receive()
            total, more = total + len(message.get("body", b"")), message.get("more_body", False)
        answer = str(total).encode()
        headers = [(b"content-length", str(len(answer)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": answer})

    return web_app
