"""WSGI applications: a thread per request, streaming both ways, the real client (PEP 3333)."""

from __future__ import annotations

from pathlib import Path

import pytest
from modalnomad_sdk import contract as c

from tests.support.runner import Asking, head, read_answer, running, wait_until, wait_until_running

PROGRAM = """
    import json, pathlib, sys, threading, time
    import modal
    app = modal.App("app")

    def wsgi(environ, start_response):
        path = environ["PATH_INFO"]
        if path == "/environ":
            start_response("200 OK", [("Content-Type", "application/json")])
            return [json.dumps({k: v for k, v in environ.items() if isinstance(v, (str, bool))}).encode()]
        if path == "/read":
            start_response("200 OK", [])
            body = environ["wsgi.input"]
            return [json.dumps([body.readline().decode(), body.read(4).decode(), len(body.read())]).encode()]
        if path == "/stream":
            return Stream(start_response)
        if path == "/wait":
            start_response("200 OK", [])
            pathlib.Path(f"in-{environ['QUERY_STRING']}").touch()
            while not pathlib.Path("go").exists():
                time.sleep(0.01)
            return [threading.current_thread().name.encode()]
        if path == "/raise":
            raise ValueError("wsgi broke")
        if path == "/late":
            start_response("200 OK", [])
            def chunks():
                yield b"some"
                raise ValueError("broke later")
            return chunks()
        if path == "/write":
            write = start_response("201 Created", [("X-A", "1"), ("X-A", "2")])
            write(b"written ")
            return [b"and returned"]
        if path == "/silent":
            return [b"no start_response"]
        start_response("404 Not Found", [("Content-Length", "0")])
        return []

    class Stream:
        def __init__(self, start_response):
            start_response("200 OK", [])
        def __iter__(self):
            while True:
                yield b"x" * 65536
        def close(self):
            pathlib.Path("closed").touch()

    @app.function()
    @modal.concurrent(max_inputs=8)
    @modal.wsgi_app()
    def f():
        return wsgi
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("wsgi")


@pytest.fixture(scope="module")
def served(folder: Path):  # type: ignore[no-untyped-def]
    with running(folder, PROGRAM, extra={c.ENV_MAX_INPUTS: "8"}) as runner:
        runner.ready()
        yield runner


def test_environ(served) -> None:  # type: ignore[no-untyped-def]
    headers = {
        c.HEADER_CLIENT: "203.0.113.9 4711",
        "x-forwarded-proto": "https",
        "host": "f.example",
        "x-under_score": "spoof",
        "cookie": "a=1",
    }
    environ = served.ask("/environ?a=%20b", headers=headers).json()
    assert environ["REMOTE_ADDR"] == "203.0.113.9"
    assert (environ["wsgi.url_scheme"], environ["SERVER_NAME"], environ["SERVER_PORT"]) == ("https", "f.example", "443")
    assert (environ["QUERY_STRING"], environ["SCRIPT_NAME"], environ["HTTP_COOKIE"]) == ("a=%20b", "", "a=1")
    assert "HTTP_X_UNDER_SCORE" not in environ
    assert not [name for name in environ if "MODALNOMAD" in name]


def test_a_path_that_is_no_utf8_reaches_the_app(served) -> None:  # type: ignore[no-untyped-def]
    assert served.ask("/environ/../%E9").status == 404


@pytest.mark.parametrize("size", [0, 100, 1_000_000])
def test_reading_the_body(served, size: int) -> None:  # type: ignore[no-untyped-def]
    answer = served.ask("/read", "POST", body=b"line\nfour" + b"x" * size)
    assert answer.json() == ["line\n", "four", size]


def test_chunked_bodies_are_read_to_their_end(served) -> None:  # type: ignore[no-untyped-def]
    with served.connect() as sock:
        sock.sendall(head("/read", "PUT", headers={"transfer-encoding": "chunked"}) + b"9\r\nline\nfour\r\n")
        sock.sendall(b"2\r\nab\r\n0\r\n\r\n")
        assert read_answer(sock).json() == ["line\n", "four", 2]


def test_write_and_repeated_headers(served) -> None:  # type: ignore[no-untyped-def]
    answer = served.ask("/write")
    assert (answer.status, answer.body) == (201, b"written and returned")
    with served.connect() as sock:
        sock.sendall(head("/write"))
        raw = b""
        while piece := sock.recv(65536):
            raw += piece
    assert raw.count(b"x-a: ") == 2


def test_requests_run_side_by_side(served, folder: Path) -> None:  # type: ignore[no-untyped-def]
    wait_until_running(served, 0)  # a request's thread, and with it its place, is free a little after its last byte
    asking = [Asking(served, path=f"/wait?{n}") for n in range(8)]
    wait_until(lambda: len(list(folder.glob("in-*"))) == 8)
    assert served.ask("/").status == 503  # no place is left
    (folder / "go").touch()
    assert len({one.result().body for one in asking}) == 8


def test_a_client_that_leaves_ends_the_stream(served, folder: Path) -> None:  # type: ignore[no-untyped-def]
    with served.connect() as sock:
        sock.sendall(head("/stream"))
        assert sock.recv(1000)
    wait_until((folder / "closed").exists)
    wait_until_running(served, 0)


def test_an_error_is_500_with_the_traceback_in_the_log(served) -> None:  # type: ignore[no-untyped-def]
    assert served.ask("/raise").status == 500
    assert "ValueError: wsgi broke" in served.err
    assert served.ask("/silent").status == 500


def test_an_error_in_mid_answer_is_a_cut(served) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ConnectionError, match="IncompleteRead"):
        served.ask("/late")


def test_a_websocket_to_wsgi_is_refused(served) -> None:  # type: ignore[no-untyped-def]
    fields = {
        "connection": "Upgrade",
        "upgrade": "websocket",
        "sec-websocket-version": "13",
        "sec-websocket-key": "dGhlIHNhbXBsZSBub25jZQ==",
    }
    with served.connect() as sock:
        sock.sendall(head("/", headers=fields))
        assert read_answer(sock).status == 403
