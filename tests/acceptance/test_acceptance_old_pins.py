"""An image whose pins are years old serves every kind of endpoint: the runner takes what the user's packages allow."""

from __future__ import annotations

from pathlib import Path
from textwrap import dedent

from tests.support.doors import direct_door, web_socket
from tests.support.serve import serve

PROGRAM = """
    import modal

    pins = ["fastapi==0.80.0", "pydantic<2", "uvicorn==0.21.0", "websockets==10.4"]
    app = modal.App("old", image=modal.Image.debian_slim().pip_install(*pins))

    @app.cls()
    @modal.concurrent(max_inputs=10)
    class Old:
        @modal.fastapi_endpoint()
        def versions(self, name: str):
            from importlib.metadata import version

            return {name: version(name)}

        @modal.asgi_app()
        def site(self):
            from fastapi import FastAPI, File, Form, UploadFile, WebSocket
            from fastapi.responses import StreamingResponse

            web = FastAPI()
            started = []
            web.on_event("startup")(lambda: started.append("started"))

            @web.post("/upload")
            async def upload(name: str = Form(), file: UploadFile = File()):
                return [name, (await file.read()).decode(), *started]

            @web.get("/stream")
            def stream():
                return StreamingResponse(iter(["a", "b"]), media_type="text/plain")

            @web.websocket("/ws")
            async def socket(socket: WebSocket):
                await socket.accept()
                await socket.send_text("heard " + await socket.receive_text())
                await socket.close()

            return web

        @modal.wsgi_app()
        def plain(self):
            def application(environ, start_response):
                start_response("200 OK", [("Content-Type", "text/plain")])
                return [b"wsgi ", environ["wsgi.input"].read()]

            return application
"""


OLD = {"fastapi": "0.80.0", "starlette": "0.19.1", "uvicorn": "0.21.0", "websockets": "10.4"}


def test_packages_years_old_serve_every_kind_of_endpoint(tmp_path: Path) -> None:
    program = tmp_path / "old.py"
    program.write_text(dedent(PROGRAM), "utf-8")
    with serve(program) as s:
        with direct_door(s, "Old.versions") as client:
            for name, version in OLD.items():
                assert client.get("/", params={"name": name}).json() == {name: version}
            assert client.get("/", params={"name": "pydantic"}).json()["pydantic"].startswith("1.")
            assert client.get("/").status_code == 422
        with direct_door(s, "Old.site") as client:
            uploaded = client.post("/upload", data={"name": "n"}, files={"file": b"content"})
            assert uploaded.json() == ["n", "content", "started"]
            assert client.get("/stream").text == "ab"
        with web_socket(s, "/ws", "Old.site") as connection:
            connection.send("it")
            assert connection.recv(timeout=60) == "heard it"
        with direct_door(s, "Old.plain") as client:
            assert client.post("/", content=b"body").text == "wsgi body"
