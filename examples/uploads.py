"""Files in, streams out: an upload form, a body read piece by piece, and an answer written while it is read.

modalnomad serve examples/uploads.py

curl -F file=@README.md -F note=mine "$URL/form"      → {"name":"README.md","size":…,"note":"mine"}
curl --data-binary @README.md "$URL/digest"           → the SHA-256 of what was sent, however large
curl -N -T - "$URL/shout"                             → type lines: each comes back in capitals at once
curl "$URL/zeros?mib=1024" | wc -c                    → a gibibyte, made as it is sent
"""

import modal

image = modal.Image.debian_slim().pip_install("fastapi[standard]")
app = modal.App("uploads", image=image)


@app.function(timeout=600)
@modal.concurrent(max_inputs=20)
@modal.asgi_app()
def files():
    import hashlib

    from fastapi import FastAPI, Form, Request, UploadFile
    from fastapi.responses import StreamingResponse

    web_app = FastAPI()

    @web_app.post("/form")
    async def form(file: UploadFile, note: str = Form("")):
        return {"name": file.filename, "size": len(await file.read()), "note": note}

    @web_app.post("/digest")
    async def digest(request: Request):
        sha, size = hashlib.sha256(), 0
        async for piece in request.stream():
            sha.update(piece)
            size += len(piece)
        return {"sha256": sha.hexdigest(), "size": size}

    class Shout:
        """Plain ASGI: Starlette's StreamingResponse would wait for a disconnect on the stream that is read here."""

        async def __call__(self, scope, receive, send):
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
            more = True
            while more:
                message = await receive()
                more = message.get("more_body", False)
                body = message.get("body", b"").upper()
                await send({"type": "http.response.body", "body": body, "more_body": more})

    web_app.add_route("/shout", Shout())

    @web_app.get("/zeros")
    async def zeros(mib: int = 1):
        async def pieces():
            for _ in range(mib * 16):
                yield bytes(65536)

        return StreamingResponse(pieces(), media_type="application/octet-stream")

    return web_app
