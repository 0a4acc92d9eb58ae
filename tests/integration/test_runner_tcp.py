"""A replica on a port of its node, where anybody may connect: health checks, strangers, forced drains, its end."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from modalnomad_sdk import contract as c
from modalnomad_sdk.runner import relay as relay_module
from modalnomad_sdk.runner import serve as serve_module
from modalnomad_sdk.runner.door_answers import Porter
from modalnomad_sdk.runner.doors import Doors
from modalnomad_sdk.runner.gate import Gate
from modalnomad_sdk.runner.relay import Relay
from modalnomad_sdk.runner.serve import Server
from modalnomad_sdk.runner.sockets import Strangers

from tests.support.ports import held_port
from tests.support.runner import LONG, TICKET, Answer, Asking, Runner, dispose, head, spawn, wait_until

BOTH_LOOPS = True

SLOW = """
    import asyncio, pathlib, modal
    app = modal.App("app")
    here = pathlib.Path(__file__).parent

    @app.function()
    @modal.concurrent(max_inputs=8)
    @modal.fastapi_endpoint()
    async def f(wait: bool = False):
        if wait:
            (here / "started").touch()
            while not (here / "go").exists():
                await asyncio.sleep(0.01)
        return "done"
"""


class TcpRunner(Runner):
    """Spoken to on its port."""

    def connect(self) -> socket.socket:
        host, _, port = self.address.rpartition(":")
        return socket.create_connection((host, int(port)), LONG)

    def check(self, method: str = "GET") -> Answer:
        """As a health check asks."""
        return self.ask(c.READY_PATH, method, ticket=None)


@contextlib.contextmanager
def on_tcp(
    folder: Path, program: str = SLOW, *, port: int = 0, extra: Mapping[str, str] | None = None
) -> Iterator[TcpRunner]:
    """A runner as a task of Nomad: a port, and nobody who holds a lifeline."""
    with contextlib.ExitStack() as stack:
        port = port or stack.enter_context(held_port())
        variables = {c.ENV_LISTEN: "", c.ENV_LIFELINE: "", "NOMAD_PORT_http": str(port), "NOMAD_IP_http": "127.0.0.1"}
        started = spawn(folder, program, extra={**variables, c.ENV_MAX_INPUTS: "8", **(extra or {})})
        stack.callback(dispose, started)
        runner = TcpRunner(started.process, f"127.0.0.1:{port}", started.lifeline, folder, started.released)
        try:
            wait_until(lambda: listens(runner) or runner.process.poll() is not None, "something listens")
            yield runner
        finally:
            if runner.process.poll() is None:
                runner.process.kill()


def listens(runner: TcpRunner) -> bool:
    with contextlib.suppress(ConnectionRefusedError), runner.connect():
        return True
    return False


def test_a_health_check_needs_no_ticket_and_is_told_the_name(tmp_path: Path) -> None:
    with on_tcp(tmp_path) as runner:
        answer = runner.check()

        assert (answer.status, answer.headers[c.HEADER_REPLICA]) == (200, "rev-1 0.1")
        assert answer.headers["connection"] == "close"
        assert runner.check("HEAD").status == 200
        assert runner.check("POST").status == 403
        assert runner.ask("/", ticket=None).status == 403


def test_health_checks_keep_no_forgotten_replica_alive(tmp_path: Path) -> None:
    with on_tcp(tmp_path, extra={c.ENV_ORPHAN_AFTER: "1"}) as runner:

        def ended() -> bool:
            with contextlib.suppress(OSError):
                runner.check()
            return runner.process.poll() is not None

        wait_until(ended, "it ends although it is checked all the time")
        assert runner.wait() == c.Exit.OK
        assert "no router asked" in runner.err


def test_a_drain_may_be_forced_while_requests_run(tmp_path: Path) -> None:
    with on_tcp(tmp_path) as runner:
        runner.ready()
        asking = Asking(runner, path="/?wait=true")
        wait_until((tmp_path / "started").exists)
        assert runner.drain(0).status == 409

        forced = runner.ask(f"{c.DRAIN_PATH}?force=1", "POST")

        assert forced.status == 202
        refused = runner.ask("/")
        assert (refused.status, refused.headers[c.HEADER_BUSY]) == (503, "1")
        assert runner.check().status == 503, "no longer healthy"
        (tmp_path / "go").touch()
        assert asking.result().json() == "done"
        assert runner.wait() == c.Exit.OK


def test_a_forced_drain_needs_the_ticket(tmp_path: Path) -> None:
    with on_tcp(tmp_path) as runner:
        runner.ready()

        assert runner.ask(f"{c.DRAIN_PATH}?force=1", "POST", ticket=None).status == 403
        assert runner.ask("/").status == 200


def test_a_program_that_never_lets_go_does_not_keep_the_replica(tmp_path: Path) -> None:
    """Threads that are no daemons, and more: the replica has drained, and ends with 0."""
    program = """
        import threading, time, modal
        app = modal.App("app")
        threading.Thread(target=time.sleep, args=(3600,)).start()

        @app.function()
        @modal.fastapi_endpoint()
        def f():
            return "done"
    """
    with on_tcp(tmp_path, program) as runner:
        runner.ready()
        assert runner.drain(0).status == 202

        assert runner.wait() == c.Exit.OK


def test_the_port_can_be_taken_again_at_once(tmp_path: Path) -> None:
    """Connections of the one before are still in the kernel's hands."""
    for folder in (tmp_path / "1", tmp_path / "2"):
        folder.mkdir()
    with on_tcp(tmp_path / "1") as first:
        first.ready()
        sock = first.connect()
        sock.sendall(head("/?wait=true"))
        wait_until((tmp_path / "1" / "started").exists)
        first.process.kill()
        first.wait()
        port = int(first.address.rpartition(":")[2])
        wait_until(lambda: not listens(first), "its processes are gone")
    with on_tcp(tmp_path / "2", port=port) as second:
        assert second.ready().status == 200
    sock.close()


def test_a_taken_port_is_said(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with on_tcp(tmp_path, port=port) as runner:
            assert runner.wait() == c.Exit.BAD_CONFIGURATION
            assert f"127.0.0.1:{port}" in runner.err


def test_a_second_signal_ends_it_at_once(tmp_path: Path) -> None:
    with on_tcp(tmp_path, extra={c.ENV_GRACE_PERIOD: "60"}) as runner:
        runner.ready()
        asking = Asking(runner, path="/?wait=true")
        wait_until((tmp_path / "started").exists)

        runner.terminate()
        wait_until(lambda: runner.check().status == 503, "it drains")
        runner.terminate()

        assert runner.wait() == c.Exit.GRACE_EXPIRED
        asking.join(LONG)
        assert asking.answer is None


PARENT = """
import subprocess, sys
child = subprocess.Popen(sys.argv[1:])
print(child.pid, flush=True)
sys.stdin.read()
"""


def test_it_ends_with_the_process_that_started_it(tmp_path: Path) -> None:
    """Nomad's executor: without it nobody would hear of the replica, and its port may be given to another."""
    (tmp_path / "prog.py").write_text(
        "import modal\napp = modal.App('app')\n@app.function()\n@modal.fastapi_endpoint()\ndef f(): return 1\n"
    )
    from tests.support.runner import PYTHON, RUNNER, environment

    with (
        held_port() as port,
        open(tmp_path / "err", "wb") as err,
        subprocess.Popen(
            [sys.executable, "-c", PARENT, PYTHON, str(RUNNER)],
            env=environment(
                tmp_path, "script:prog.py", "f", {"NOMAD_PORT_http": str(port), "NOMAD_IP_http": "127.0.0.1"}
            ),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=err,
        ) as parent,
    ):
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        alive = os.pidfd_open(child)
        runner = TcpRunner(parent, f"127.0.0.1:{port}", -1, tmp_path)
        wait_until(lambda: listens(runner), "it listens")
        runner.ready()

        parent.send_signal(signal.SIGKILL)
        import select

        ended = select.poll()
        ended.register(alive, select.POLLIN)
        assert ended.poll(1000 * LONG), "it goes on"
        os.close(alive)
    assert "started this replica has ended" in (tmp_path / "err").read_text()
    wait_until(lambda: not listens(runner), "the port is free")


# --- strangers who say nothing, in this process --------------------------------------------------------------------


class Opened:
    """A front of a replica on a port: what serves managed endpoints, or the relay before a `web_server`."""

    def __init__(self, port: int, strangers: Strangers) -> None:
        self.port = port
        self.strangers = strangers

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.port)


async def _hello(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"hi"})


@pytest.fixture(params=[("managed", 0.3), ("relayed", 0.3)], ids=["managed", "relayed"])
async def opened(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Opened]:
    kind, head_time = request.param
    monkeypatch.setattr(serve_module, "HEAD_TIME", head_time)
    monkeypatch.setattr(relay_module, "HEAD_TIME", head_time)
    doors = Doors(4)
    porter = Porter(hashlib.sha256(TICKET.encode()).hexdigest(), "pool 0.1", doors)
    listener = socket.create_server(("127.0.0.1", 0))
    front: Server | Relay
    if kind == "managed":
        from modalnomad_sdk.runner.gate import Mounted
        from modalnomad_sdk.runner.lifespan import Lifespan

        front = Server(Gate({"f": Mounted(_hello, Lifespan(_hello))}, doors, porter, 20))
    else:
        front = Relay({"f": ("127.0.0.1", 1)}, doors, porter, 20)
    await front.listen(listener)
    yield Opened(listener.getsockname()[1], front.strangers)
    front.stop_listening()
    await (front.close(1.0) if isinstance(front, Server) else front.close())


@pytest.mark.parametrize("said", [b"", b"GET / HTTP/1.1\r\nHost: a\r\nX-Long: "])
async def test_who_sends_no_whole_head_is_cut_off(opened: Opened, said: bytes) -> None:
    reader, writer = await opened.connect()
    writer.write(said)

    with contextlib.suppress(ConnectionResetError):
        async with asyncio.timeout(LONG):
            assert await reader.read() == b""

    writer.close()


async def test_dripping_does_not_help(opened: Opened) -> None:
    reader, writer = await opened.connect()
    ended = asyncio.ensure_future(reader.read())
    writer.write(b"GET / HTTP/1.1\r\nX-Long: ")
    async with asyncio.timeout(LONG):
        while not ended.done():
            writer.write(b"x")
            await asyncio.wait([ended], timeout=0.02)
    with contextlib.suppress(ConnectionResetError):
        assert ended.result() == b""
    writer.close()


PATIENT = pytest.mark.parametrize("opened", [("managed", 20.0), ("relayed", 20.0)], indirect=True)


@PATIENT
@pytest.mark.parametrize("said", [b"GET / HTTP/1.1\r\nX-Long: ", b"GET / HTTP/1.1\r\n", b"GET /"])
async def test_no_head_is_longer_than_routers_send(opened: Opened, said: bytes) -> None:
    """Nothing of it is kept, and nobody waits while it is read."""
    reader, writer = await opened.connect()
    writer.write(said)
    sent, line = 0, b"X-Long: " + b"a" * 992 if said.endswith(b"\n") else b"a" * 1000
    with contextlib.suppress(ConnectionError):
        async with asyncio.timeout(LONG):
            while not writer.is_closing() and sent <= 64 << 20:
                writer.write(b"".join([line, b"\r\n" if said.endswith(b"\n") else b""] * 64))
                sent += 64_000
                await writer.drain()
            await reader.read()
    assert sent < 32 << 20, "far more than the limit was taken"
    writer.close()


@PATIENT
async def test_strangers_do_not_take_all_files(opened: Opened) -> None:
    """Of those who say nothing the oldest makes room; whoever sent a head stays."""
    opened.strangers.most = 4
    silent = [await opened.connect() for _ in range(5)]
    async with asyncio.timeout(LONG):
        with contextlib.suppress(ConnectionResetError):
            assert await silent[0][0].read() == b""
        for reader, writer in silent[1:]:
            writer.write(b"GET /.modalnomad/ready HTTP/1.1\r\nHost: a\r\n\r\n")
            assert (await reader.read()).startswith(b"HTTP/1.1 200 ")
    for _, writer in silent:
        writer.close()


@PATIENT
async def test_a_stranger_is_answered_and_not_kept(opened: Opened) -> None:
    reader, writer = await opened.connect()
    writer.write(b"GET /.modalnomad/ready HTTP/1.1\r\nHost: a\r\n\r\n")
    async with asyncio.timeout(LONG):
        answer = await reader.read()
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert b"modalnomad-replica: pool 0.1" in answer
    writer.close()


@pytest.mark.parametrize("opened", [("managed", 2.0)], indirect=True)
async def test_a_router_may_be_idle_between_requests(opened: Opened) -> None:
    reader, writer = await opened.connect()
    for pause in (2.2, 0):  # longer than a head may take; that nothing happens has no event
        writer.write(head("/", headers={"connection": "keep-alive"}))
        async with asyncio.timeout(LONG):
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
            assert await reader.readexactly(2) == b"hi"
        await asyncio.sleep(pause)
    writer.close()
