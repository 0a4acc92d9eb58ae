"""`web_server`: fixed ports in networks of their own, the relay in front, and what goes wrong with ports."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
from modalnomad_sdk import contract as c

from tests.support.ports import held_port
from tests.support.runner import (
    Asking,
    Runner,
    drain_when_idle,
    head,
    parameters,
    read_answer,
    running,
    spawn,
    wait_until,
    wait_until_draining,
    wait_until_running,
)

SERVER = """
    import http.server, json, os, pathlib, socket, socketserver, sys, threading, time

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            if self.path == "/wait":
                pathlib.Path("waiting").touch()
                while not pathlib.Path("go").exists():
                    time.sleep(0.01)
            if self.path == "/die":
                os._exit(1)
            if self.path == "/forever":
                self.send_response(200)
                self.end_headers()
                while True:
                    self.wfile.write(b"x" * 65536)
            body = json.dumps({"path": self.path, "name": NAME, "headers": self.headers.items()}).encode()
            self.answer(body)

        def do_POST(self):
            self.answer(b"%d" % len(self.rfile.read(int(self.headers["content-length"]))))

        def answer(self, body):
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    NAME = sys.argv[3]

    class Server(http.server.ThreadingHTTPServer):
        address_family = socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET
        server_bind = socketserver.TCPServer.server_bind  # without a look-up of its own name

    Server((sys.argv[1], int(sys.argv[2])), Handler).serve_forever()
"""

PROGRAM = """
    import subprocess, sys
    import modal
    app = modal.App("app")

    @app.cls()
    class S:
        name: str = modal.parameter(default="x")

        @modal.web_server(PORT)
        def f(self):
            subprocess.Popen([sys.executable, "server.py", "HOST", "PORT", self.name])
"""

CAN_SEPARATE = os.getuid() == 0


def program(folder: Path, port: int = 8000, host: str = "127.0.0.1") -> str:
    import textwrap

    (folder / "server.py").write_text(textwrap.dedent(SERVER))
    return PROGRAM.replace("PORT", str(port)).replace("HOST", host)


def settings(network: str, port: int = 8000, **more: str) -> dict[str, str]:
    return {c.ENV_NETWORK: network, c.ENV_WEB_PORTS: str(port), c.ENV_MAX_INPUTS: "4", **more}


@pytest.fixture
def port() -> Iterator[int]:
    """The test's own."""
    with held_port() as found:
        yield found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ports")


@pytest.fixture(scope="module")
def served(folder: Path):  # type: ignore[no-untyped-def]
    with (
        held_port() as port,
        running(folder, program(folder, port), "S", extra=settings("exclusive", port)) as runner,
    ):
        runner.ready()
        yield runner


def test_three_replicas_at_once_on_port_8000(tmp_path: Path) -> None:
    with ExitStack() as stack:
        runners = []
        for name in ("a", "b", "c"):
            folder = tmp_path / name
            folder.mkdir()
            extra = {**settings("namespace"), c.ENV_PARAMETERS: parameters(name=name)}
            runners.append(stack.enter_context(running(folder, program(folder), "S", extra=extra)))
        for runner in runners:
            runner.ready()
        assert [runner.ask("/").json()["name"] for runner in runners] == ["a", "b", "c"]
        with pytest.raises(ConnectionRefusedError):  # none of it is open outside
            socket.create_connection(("127.0.0.1", 8000), 5)


@pytest.mark.parametrize("host", ["0.0.0.0", "::1"])
def test_any_address_it_listens_on_will_do(tmp_path: Path, host: str) -> None:
    with running(tmp_path, program(tmp_path, host=host), "S", extra=settings("namespace")) as runner:
        runner.ready()
        assert runner.ask("/p?q").json()["path"] == "/p?q"


def test_what_the_users_server_gets(served: Runner) -> None:
    headers = {
        "X-Forwarded-For": "203.0.113.9",
        "X-Forwarded-Proto": "https",
        c.HEADER_CLIENT: "203.0.113.9 1",
        "x-A": "1",
    }
    got = dict(served.ask("/a%2Fb", headers=headers).json()["headers"])
    assert got["X-Forwarded-For"] == "203.0.113.9"
    assert got["X-Forwarded-Proto"] == "https"
    assert got["x-A"] == "1"  # as it was written
    assert got["Connection"] == "close"
    assert not [name for name in got if name.lower().startswith("modalnomad-")]


def test_the_relay_keeps_the_door(served: Runner) -> None:
    assert served.ask("/", ticket=None).status == 403
    assert served.ask("/", ticket="b" * 64).status == 403
    assert served.ask(c.READY_PATH).headers[c.HEADER_REPLICA] == "rev-1 0.1"
    assert served.ask("/.modalnomad/other").status == 404
    assert served.ask("/", headers={c.HEADER_ENDPOINT: "S.other"}).status == 404
    assert served.ask("/", headers={c.HEADER_ENDPOINT: "S.f"}).status == 200


@pytest.mark.parametrize(
    "raw",
    [
        b"GET / HTTP/2.0\r\n\r\n",
        b"nonsense\r\n\r\n",
        b"GET / HTTP/1.1\r\n folded: 1\r\n\r\n",
        b"GET / HTTP/1.1\r\na: \x00\r\n\r\n",
    ],
)
def test_a_strange_head_is_refused(served: Runner, raw: bytes) -> None:
    with served.connect() as sock:
        sock.sendall(raw)
        assert read_answer(sock).status == 400


def test_bodies_and_a_head_in_pieces(served: Runner) -> None:
    body = os.urandom(3_000_000)
    assert served.ask("/", "POST", body=body).body == b"3000000"
    with served.connect() as sock:
        for byte in head("/", "POST", body=b"abc"):
            sock.sendall(bytes([byte]))
        sock.sendall(b"abc")
        assert read_answer(sock).body == b"3"


def test_places_are_held_per_connection(served: Runner, folder: Path) -> None:
    wait_until_running(served, 0)  # the place of an answered request is free a little after its last byte
    asking = [Asking(served, path="/wait") for _ in range(4)]
    wait_until_running(served, 4)
    refused = served.ask("/")
    assert (refused.status, refused.headers[c.HEADER_BUSY]) == (503, "1")
    (folder / "go").touch()
    assert [one.result().status for one in asking] == [200] * 4
    wait_until_running(served, 0)


def test_a_slow_reader_holds_the_server_back_and_leaving_ends_it(served: Runner) -> None:
    import psutil

    with served.connect() as sock:
        sock.sendall(head("/forever"))
        sock.recv(1000)
        before = sum(p.memory_info().rss for p in psutil.Process(served.process.pid).children(recursive=True))
        threading.Event().wait(0.5)  # time in which an unbounded buffer would have grown
        after = sum(p.memory_info().rss for p in psutil.Process(served.process.pid).children(recursive=True))
        assert after - before < 16 << 20
    wait_until_running(served, 0)


def test_a_request_over_its_timeout_is_cut(tmp_path: Path, port: int) -> None:
    extra = settings("exclusive", port, **{c.ENV_TIMEOUT: "0.1", c.ENV_STARTUP_TIMEOUT: "20"})
    with running(tmp_path, program(tmp_path, port), "S", extra=extra) as runner:
        runner.ready()
        with pytest.raises(ConnectionError):
            runner.ask("/wait")
        wait_until(lambda: runner.drain(0).status == 202)


def test_sigterm_lets_a_running_request_finish(tmp_path: Path) -> None:
    with running(tmp_path, program(tmp_path), "S", extra=settings("namespace")) as runner:
        runner.ready()
        asking = Asking(runner, path="/wait")
        wait_until((tmp_path / "waiting").exists)
        runner.terminate()
        wait_until_draining(runner)
        (tmp_path / "go").touch()
        assert asking.result().status == 200
        assert runner.wait() == 0


def test_a_server_that_died_ends_the_replica(tmp_path: Path) -> None:
    with running(tmp_path, program(tmp_path), "S", extra=settings("namespace")) as runner:
        runner.ready()
        with pytest.raises(ConnectionError):
            runner.ask("/die")

        def refused() -> bool:
            # The system still accepts for a process that ends after it has closed its connections, and cuts that off.
            with suppress(ConnectionError):
                return runner.ask("/").headers[c.HEADER_BUSY] == "1"
            return False

        wait_until(refused, "it is tried elsewhere")
        assert runner.wait() == c.Exit.USER_CODE_FAILED
        assert "the server on port 8000 stopped accepting" in runner.err


def test_a_port_that_never_opens_is_told(tmp_path: Path) -> None:
    text = """
        import socket
        import modal
        app = modal.App("app")
        kept = []

        @app.function()
        @modal.web_server(8000, startup_timeout=0.5)
        def f():
            kept.append(socket.create_server(("127.0.0.1", 8501)))
    """
    with running(tmp_path, text, extra=settings("namespace")) as runner:
        assert runner.wait() == c.Exit.PORT_NEVER_OPENED
        assert "nothing accepted connections on port 8000 within 0.5 s; listening now: 8501" in runner.err
        assert "startup_timeout" in runner.err


def test_a_port_taken_by_another_program_names_it(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
        with running(tmp_path, program(tmp_path, port), "S", extra=settings("exclusive", port)) as runner:
            assert runner.wait() == c.Exit.PORT_TAKEN
            assert f"port {port} of web_server({port}) is held by process {os.getpid()} (" in runner.err
            assert "three ways out" in runner.err


def test_a_port_taken_by_another_replica_names_it(tmp_path: Path, port: int) -> None:
    with running(tmp_path, program(tmp_path, port), "S", extra=settings("exclusive", port)) as first:
        first.ready()
        other = tmp_path / "other"
        other.mkdir()
        with running(other, program(other, port), "S", extra=settings("exclusive", port)) as second:
            assert second.wait() == c.Exit.PORT_TAKEN
            assert f"held by another replica, process {first.process.pid}" in second.err
        assert first.drain().status == 202
        assert first.wait() == 0
    with running(tmp_path, program(tmp_path, port), "S", extra=settings("exclusive", port)) as third:  # free again
        third.ready()


def test_host_network_is_the_users_choice(tmp_path: Path, port: int) -> None:
    with running(tmp_path, program(tmp_path, port), "S", extra=settings("host", port)) as runner:
        runner.ready()
        assert runner.ask("/").status == 200
        socket.create_connection(("127.0.0.1", port), 5).close()


@pytest.mark.skipif(not CAN_SEPARATE, reason="only root can take its own rights away")
def test_without_namespaces_the_port_is_exclusive(tmp_path: Path, port: int) -> None:
    away = ("setpriv", "--bounding-set=-sys_admin")
    with running(tmp_path, program(tmp_path, port), "S", extra=settings("namespace", port), prefix=away) as runner:
        runner.ready()
        assert "no network namespace is to be had here" in runner.err
        assert runner.ask("/").status == 200
        other = tmp_path / "other"
        other.mkdir()
        second = spawn(other, program(other, port), "S", extra=settings("namespace", port), prefix=away)
        from tests.support.runner import dispose

        try:
            assert second.wait() == c.Exit.PORT_TAKEN
        finally:
            dispose(second)


def test_a_class_with_a_server_and_managed_endpoints(tmp_path: Path) -> None:
    text = (
        program(tmp_path)
        + """
        @modal.fastapi_endpoint()
        def managed(self):
            return f"managed {self.name}"

        @modal.wsgi_app()
        def old(self):
            def wsgi(environ, start_response):
                start_response("200 OK", [])
                return [environ["REMOTE_ADDR"].encode()]
            return wsgi
    """
    )
    with running(tmp_path, text, "S", extra=settings("namespace")) as runner:
        runner.ready()
        assert runner.ask("/", headers={c.HEADER_ENDPOINT: "S.managed"}).json() == "managed x"
        assert runner.ask("/", headers={c.HEADER_ENDPOINT: "S.f"}).json()["name"] == "x"
        mine = {c.HEADER_ENDPOINT: "S.old", c.HEADER_CLIENT: "203.0.113.9 1"}
        assert runner.ask("/", headers=mine).body == b"203.0.113.9"
        assert runner.ask("/").status == 404
        asking = Asking(runner, path="/wait", headers={c.HEADER_ENDPOINT: "S.f"})
        wait_until((tmp_path / "waiting").exists)
        wait_until_running(runner, 1)  # one count for all
        (tmp_path / "go").touch()
        assert asking.result().status == 200
        drain_when_idle(runner)
        assert runner.wait() == 0


def test_websockets_pass_through_the_relay(tmp_path: Path) -> None:
    text = """
        import asyncio, threading
        import modal
        from websockets.sync.server import serve
        app = modal.App("app")

        def echo(socket):
            for message in socket:
                socket.send(message)

        @app.function()
        @modal.web_server(8000)
        def f():
            server = serve(echo, "127.0.0.1", 8000)
            threading.Thread(target=server.serve_forever, daemon=True).start()
    """
    with running(tmp_path, text, extra=settings("namespace")) as runner:
        runner.ready()
        from websockets.sync.client import unix_connect

        with unix_connect(runner.address, uri="ws://f/", additional_headers={c.HEADER_TICKET: "a" * 64}) as ws:
            ws.send("hi")
            assert ws.recv(10) == "hi"
            assert runner.drain(0).json()["running"] == 1
