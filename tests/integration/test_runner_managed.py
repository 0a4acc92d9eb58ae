"""Endpoints that the runner serves itself: FastAPI endpoints, ASGI and WSGI apps (modal-api 2.1 to 2.4)."""

from __future__ import annotations

import contextlib
import json
import socket
from pathlib import Path

import pytest
from modalnomad_sdk import contract as c

from tests.support.runner import (
    TICKET,
    Runner,
    endless_grace,
    head,
    parameters,
    read_answer,
    running,
    wait_until,
    wait_until_running,
)

ENDPOINTS = """
    import asyncio, io
    from typing import Annotated
    import modal
    from fastapi import FastAPI, File, Form, Request, UploadFile, WebSocket
    from pydantic import BaseModel
    app = modal.App("app")

    class Item(BaseModel):
        name: str
        count: int = 1

    @app.cls()
    @modal.concurrent(max_inputs=100)
    class S:
        @modal.enter()
        def setup(self):
            self.greeting = "hello"

        @modal.fastapi_endpoint()
        def sync(self, name: str):
            return f"{self.greeting} {name}"

        @modal.fastapi_endpoint(method="POST", docs=True)
        async def post(self, item: Item):
            return {"got": item, "greeting": self.greeting}

        @modal.fastapi_endpoint(method="POST")
        async def upload(self, file: UploadFile, note: Annotated[str, Form()]):
            return {"name": file.filename, "size": len(await file.read()), "note": note}

        @modal.fastapi_endpoint()
        def who(self, request: Request):
            return {
                "client": request.client, "scheme": request.url.scheme, "headers": request.headers.raw,
                "id": modal.current_input_id(),
            }

        @modal.asgi_app()
        def echo(self):
            async def echo(scope, receive, send):
                assert scope["type"] == "http"
                await send({"type": "http.response.start", "status": 200, "headers": []})
                more = True
                while more:
                    message = await receive()
                    more = message["more_body"]
                    await send({"type": "http.response.body", "body": message["body"], "more_body": more})
            return echo

        @modal.asgi_app()
        def web(self):
            web = FastAPI()

            @web.websocket("/ws")
            async def ws(socket: WebSocket):
                await socket.accept(subprotocol=next(iter(socket.scope["subprotocols"]), None))
                while True:
                    await socket.send_text(await socket.receive_text())

            @web.get("/raw/{rest:path}")
            async def raw(request: Request):
                scope = request.scope
                return {"path": scope["path"], "raw": scope["raw_path"].decode(), "query": request.url.query}

            return web
"""


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory):  # type: ignore[no-untyped-def]
    folder = tmp_path_factory.mktemp("managed")
    with running(folder, ENDPOINTS, "S", extra={c.ENV_MAX_INPUTS: "100"}) as runner:
        runner.ready()
        yield runner


def to(endpoint: str, **more: str) -> dict[str, str]:
    return {c.HEADER_ENDPOINT: f"S.{endpoint}", **{name.replace("_", "-"): value for name, value in more.items()}}


def test_sync_and_async_methods_of_one_instance(served: Runner) -> None:
    assert served.ask("/?name=bob", headers=to("sync")).json() == "hello bob"
    body = b'{"name": "x"}'
    answer = served.ask("/", "POST", body=body, headers=to("post", content_type="application/json"))
    assert answer.json() == {"got": {"name": "x", "count": 1}, "greeting": "hello"}


def test_one_verb_one_route(served: Runner) -> None:
    assert served.ask("/", "POST", headers=to("sync")).status == 405
    assert served.ask("/other", headers=to("sync")).status == 404
    assert served.ask("/", headers=to("sync")).status == 422
    assert served.ask("/docs", headers=to("sync")).status == 404
    assert served.ask("/docs", headers=to("post")).status == 200


def test_cross_origin_requests_are_answered_as_modal_does(served: Runner) -> None:
    asked = {"access_control_request_method": "GET", "access_control_request_headers": "x-mine"}
    answer = served.ask("/", "OPTIONS", headers=to("sync", origin="https://a.example", **asked))
    assert answer.status == 200
    assert answer.headers["access-control-allow-origin"] == "https://a.example"
    assert answer.headers["access-control-allow-credentials"] == "true"
    assert "x-mine" in answer.headers["access-control-allow-headers"]


def test_forms_and_uploads(served: Runner) -> None:
    content = b"\x00\xff" * 100_000
    body = (
        b'--b\r\nContent-Disposition: form-data; name="note"\r\n\r\nhi\r\n'
        b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.bin"\r\n\r\n' + content + b"\r\n--b--\r\n"
    )
    answer = served.ask("/", "POST", body=body, headers=to("upload", content_type="multipart/form-data; boundary=b"))
    assert answer.json() == {"name": "a.bin", "size": len(content), "note": "hi"}


def test_an_unknown_endpoint_is_404(served: Runner) -> None:
    assert served.ask("/", headers=to("nothing")).status == 404
    assert served.ask("/").status == 404  # several endpoints, and none was named


def test_the_real_client_scheme_and_request_id_reach_the_app(served: Runner) -> None:
    headers = to("who", modalnomad_client="203.0.113.9 4711", x_forwarded_proto="https", x_request_id="req-1")
    answer = served.ask("/", headers=headers).json()
    assert answer["client"] == ["203.0.113.9", 4711]
    assert (answer["scheme"], answer["id"]) == ("https", "req-1")
    names = [name for name, _ in answer["headers"]]
    assert "x-request-id" in names
    assert not [name for name in names if name.startswith("modalnomad-")]


def test_a_path_goes_through_byte_for_byte(served: Runner) -> None:
    answer = served.ask("/raw/a%2Fb/%C3%A9?x=%20&y", headers=to("web")).json()
    assert answer == {"path": "/raw/a/b/é", "raw": "/raw/a%2Fb/%C3%A9", "query": "x=%20&y"}


def test_bodies_stream_both_ways_at_once(served: Runner) -> None:
    with served.connect() as sock:
        sock.sendall(
            head("/echo", "POST", headers=to("echo", transfer_encoding="chunked", content_length="0")).replace(
                b"content-length: 0\r\n", b""
            )
        )
        sock.sendall(b"3\r\none\r\n")
        seen = b""
        while b"one" not in seen:
            seen += sock.recv(4096)
        sock.sendall(b"3\r\ntwo\r\n0\r\n\r\n")
        while b"0\r\n\r\n" not in seen:
            seen += sock.recv(4096)
        assert b"two" in seen


def test_keep_alive_serves_request_after_request(served: Runner) -> None:
    with served.connect() as sock:
        for name in ("a", "b", "c"):
            sock.sendall(head(f"/?name={name}", headers=to("sync", connection="keep-alive")))
            response = b""
            while not response.endswith(f'"hello {name}"'.encode()):
                response += sock.recv(4096)


def handshake(served: Runner, **more: str) -> socket.socket:
    sock = served.connect()
    fields = {
        "connection": "Upgrade",
        "upgrade": "websocket",
        "sec_websocket_version": "13",
        "sec_websocket_key": "dGhlIHNhbXBsZSBub25jZQ==",
        **more,
    }
    sock.sendall(head("/ws", headers=to("web", **fields)))
    return sock


def read_until(sock: socket.socket, end: bytes) -> bytes:
    data = b""
    while end not in data:
        piece = sock.recv(65536)
        assert piece, data
        data += piece
    return data


def frame(payload: bytes, opcode: int = 1) -> bytes:
    """A client's frame with a mask of zeros (RFC 6455, 5.2)."""
    size = len(payload)
    length = bytes([0x80 | size]) if size < 126 else b"\xff" + size.to_bytes(8, "big")
    return bytes([0x80 | opcode]) + length + bytes(4) + payload


def test_websockets_echo_with_a_subprotocol_and_no_compression(served: Runner) -> None:
    with handshake(served, sec_websocket_protocol="chat, other", sec_websocket_extensions="permessage-deflate") as sock:
        answer = read_until(sock, b"\r\n\r\n").lower()
        assert answer.startswith(b"http/1.1 101 ")
        assert b"sec-websocket-protocol: chat\r\n" in answer
        assert b"sec-websocket-extensions" not in answer
        sock.sendall(frame(b"hi"))
        assert read_until(sock, b"hi") == b"\x81\x02hi"


def test_a_websocket_message_over_2_mib_is_closed_with_1009(served: Runner) -> None:
    with handshake(served) as sock:
        read_until(sock, b"\r\n\r\n")
        limit = c.WEBSOCKET_MESSAGE_LIMIT
        sock.sendall(frame(b"x" * limit))
        received = 0
        while received < limit + 10:
            received += len(sock.recv(1 << 20))
        with contextlib.suppress(OSError):  # it need not read what it refuses
            sock.sendall(frame(b"x" * (limit + 1)))
        assert read_until(sock, (1009).to_bytes(2, "big"))[:1] == b"\x88"


def test_a_websocket_holds_its_place(served: Runner) -> None:
    with handshake(served) as sock:
        read_until(sock, b"\r\n\r\n")
        wait_until_running(served, 1)  # what other tests of this replica opened may end a little later
    wait_until_running(served, 0)


def test_a_websocket_is_refused_without_ticket_or_place(tmp_path: Path) -> None:
    program = """
        import modal
        from fastapi import FastAPI, WebSocket
        app = modal.App("app")

        @app.cls()
        class S:
            @modal.asgi_app()
            def web(self):
                web = FastAPI()

                @web.websocket("/ws")
                async def ws(socket: WebSocket):
                    await socket.accept()
                    await socket.receive_text()

                return web
    """
    with running(tmp_path, program, "S") as runner:
        runner.ready()
        with handshake(runner, modalnomad_ticket="no") as sock:
            assert read_answer(sock).status == 403
        with handshake(runner) as first:
            read_until(first, b"\r\n\r\n")
            with handshake(runner) as second:
                answer = read_answer(second)
                assert (answer.status, answer.headers[c.HEADER_BUSY]) == (503, "1")


def test_an_open_websocket_is_closed_with_1012_at_the_end_of_the_grace_period(tmp_path: Path) -> None:
    with running(tmp_path, ENDPOINTS, "S", extra={c.ENV_GRACE_PERIOD: "1"}) as runner:
        runner.ready()
        with handshake(runner) as sock:
            read_until(sock, b"\r\n\r\n")
            with endless_grace(runner):
                assert read_until(sock, (1012).to_bytes(2, "big"))[:1] == b"\x88"
        assert runner.wait() == c.Exit.GRACE_EXPIRED


def test_lifespan_state_is_copied_into_each_request(tmp_path: Path) -> None:
    program = """
        import contextlib
        import modal
        from fastapi import FastAPI, Request
        app = modal.App("app")

        @app.function()
        @modal.asgi_app()
        def f():
            @contextlib.asynccontextmanager
            async def lifespan(web):
                yield {"shared": [], "count": 0}

            web = FastAPI(lifespan=lifespan)

            @web.get("/")
            async def index(request: Request):
                request.state.count += 1
                request.state.shared.append(1)
                return request.state.count, len(request.state.shared)

            return web
    """
    with running(tmp_path, program) as runner:
        runner.ready()
        assert [runner.ask("/").json(), runner.ask("/").json()] == [[1, 1], [1, 2]]


def test_class_parameters(tmp_path: Path) -> None:
    program = """
        import modal
        app = modal.App("app")

        @app.cls()
        class S:
            name: str = modal.parameter()
            count: int = modal.parameter(default=3)
            data: bytes = modal.parameter(default=b"")

            @modal.fastapi_endpoint()
            def f(self):
                return self.name, self.count, self.data.hex()
    """
    given = parameters(name="é", data={"bytes": "AP8="})
    with running(tmp_path, program, "S", extra={c.ENV_PARAMETERS: given}) as runner:
        runner.ready()
        assert runner.ask("/").json() == ["é", 3, "00ff"]


def test_a_missing_parameter_ends_the_start(tmp_path: Path) -> None:
    program = """
        import modal
        app = modal.App("app")

        @app.cls()
        class S:
            name: str = modal.parameter()

            @modal.fastapi_endpoint()
            def f(self):
                return self.name
    """
    with running(tmp_path, program, "S") as runner:
        assert runner.wait() == c.Exit.USER_CODE_FAILED
        assert "needs the parameter name" in runner.err


def test_web_urls_and_environment(tmp_path: Path) -> None:
    program = """
        import os
        import modal
        app = modal.App("app")

        @app.function()
        @modal.fastapi_endpoint()
        def f():
            environ = {k: v for k, v in os.environ.items() if k.startswith("MODAL_")}
            return f.get_web_url(), modal.is_local(), environ, os.getcwd()
    """
    urls = json.dumps({"f": "http://f.example"})
    extra = {c.ENV_WEB_URLS: urls, c.ENV_ENVIRONMENT: "staging", c.ENV_IMAGE: "sha256:abc"}
    with running(tmp_path, program, extra=extra) as runner:
        runner.ready()
        url, local, environ, folder = runner.ask("/").json()
        assert (url, local, folder) == ("http://f.example", False, str(tmp_path))
        assert environ["MODAL_IS_REMOTE"] == "1"
        assert environ["MODAL_ENVIRONMENT"] == "staging"
        assert environ["MODAL_TASK_ID"]


def test_hanging_up_reaches_the_app(tmp_path: Path) -> None:
    program = """
        import pathlib
        import modal
        app = modal.App("app")

        async def asgi(scope, receive, send):
            assert scope["type"] == "http"
            await receive()
            pathlib.Path("started").touch()
            if (await receive())["type"] == "http.disconnect":
                pathlib.Path("gone").touch()

        @app.function()
        @modal.asgi_app()
        def f():
            return asgi
    """
    with running(tmp_path, program) as runner:
        runner.ready()
        with runner.connect() as sock:
            sock.sendall(head("/"))
            wait_until((tmp_path / "started").exists)
        wait_until((tmp_path / "gone").exists)
        wait_until(lambda: runner.drain(0).status == 202)


def test_the_ticket_is_compared_by_its_hash(tmp_path: Path) -> None:
    with running(tmp_path, ENDPOINTS, "S") as runner:
        runner.ready()
        environ = Path(f"/proc/{runner.process.pid}/environ").read_bytes()
        assert TICKET.encode() not in environ
