"""A warm process of one image that replicas are forked from: what the runner needs is imported, nothing has started.

Started as `<image>/bin/python <sdk>/modalnomad_sdk/runner/__main__.py template <fd>`, where `fd` is an inherited Unix
socket of type SOCK_SEQPACKET whose other end only the engine holds; end of file ends the template (its replicas live
on: each has its own lifeline). Packets are JSON objects.

    template → engine   {"ready": true, "contract": 1}                      once, when it is warm
    engine → template   {"start": <any id>}  + descriptors, in this order:
                          0  environment: a file (memfd) with a JSON object of strings, the whole environment of the
                             replica; LISTEN and LIFELINE in it are replaced by what comes here
                          1  standard output      2  standard error
                          3  listening socket     4  lifeline (read end)
                          5  result (write end of a pipe)
    template → engine   {"started": <id>, "pid": n} + pidfd of the replica's outermost process
                        {"refused": <id>, "reason": text}                   start it the ordinary way instead

When the replica has ended, its exit code is written to the result pipe in decimal; end of file without one: killed.
SIGTERM goes to the pid (through the pidfd); closing the lifeline kills, as ever.

A start is refused when the template has more than one thread (a fork would copy locks that nobody releases), or when
the environment changes how Python or a preloaded module starts (PYTHON*, LD_*, PYDANTIC_*, WEBSOCKETS_*).
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import signal
import socket
import time
from collections.abc import Mapping
from typing import Any

from modalnomad_sdk import contract as c

from . import start
from .processes import guard

_DESCRIPTORS = 6
_STARTUP_NAMES = ("PYTHON", "LD_", "PYDANTIC_", "WEBSOCKETS_")
"""Beginnings of names that count only when Python, or what is preloaded, starts."""
_HARMLESS = ("PYTHONUNBUFFERED", "PYTHONDONTWRITEBYTECODE")
_PRELOADED = (
    "modalnomad_sdk.loading",
    "modalnomad_sdk.instances",
    "modalnomad_sdk.runner.replica",
    "modalnomad_sdk.runner.usercode",
    "modalnomad_sdk.runner.gate",
    "modalnomad_sdk.runner.relay",
    "modalnomad_sdk.runner.wsgi",
    "modalnomad_sdk.runner.serve",
    "uvicorn.protocols.http.httptools_impl",
    "uvicorn.protocols.websockets.websockets_sansio_impl",
    "uvloop",
    "fastapi.middleware.cors",
    "fastapi.responses",
)


def main(descriptor: int) -> int:
    """Serve starts until the engine is gone."""
    os.set_inheritable(descriptor, False)
    with socket.socket(fileno=descriptor) as engine:
        preload()
        warm_up()
        gc.collect()
        gc.freeze()  # what is here already is not looked through (and not copied) in replicas
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for replicas here
        engine.send(json.dumps({"ready": True, "contract": c.VERSION}).encode())
        while True:
            packet, descriptors, _, _ = socket.recv_fds(engine, 4096, _DESCRIPTORS)
            if not packet:
                return 0
            try:
                _serve(engine, json.loads(packet), descriptors)
            finally:
                for fd in descriptors:
                    os.close(fd)


def _serve(engine: socket.socket, request: dict[str, Any], descriptors: list[int]) -> None:
    name = request["start"]
    if len(descriptors) != _DESCRIPTORS:
        return _tell(engine, {"refused": name, "reason": f"{len(descriptors)} descriptors came, not {_DESCRIPTORS}"})
    with open(os.dup(descriptors[0]), encoding="utf-8") as file:
        file.seek(0)
        environment: dict[str, str] = json.load(file)
    reason = _objection(environment)
    if reason is not None:
        return _tell(engine, {"refused": name, "reason": reason})
    pid = os.fork()
    if pid == 0:
        guard(lambda: _become_replica(engine, environment, descriptors))
    pidfd = os.pidfd_open(pid)
    try:
        socket.send_fds(engine, [json.dumps({"started": name, "pid": pid}).encode()], [pidfd])
    finally:
        os.close(pidfd)
    return None


def _tell(engine: socket.socket, message: dict[str, Any]) -> None:
    engine.send(json.dumps(message).encode())


def _objection(environment: Mapping[str, str]) -> str | None:
    """Why this replica cannot be forked from here."""
    threads = len(os.listdir("/proc/self/task"))
    if threads != 1:
        return f"the template has {threads} threads"
    for name in environment.keys() | os.environ.keys():
        changes = environment.get(name) != os.environ.get(name)
        if name.startswith(_STARTUP_NAMES) and name not in _HARMLESS and changes:
            return f"{name} counts only when Python or a preloaded module starts"
    return None


def _become_replica(engine: socket.socket, environment: Mapping[str, str], descriptors: list[int]) -> int:
    """In the child: what an exec would have set up; then a replica like any other."""
    engine.close()
    _, out, err, listener, lifeline, result = descriptors
    os.setsid()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for fd, standard in ((nothing, 0), (out, 1), (err, 2)):
        os.dup2(fd, standard)
    for fd in (nothing, out, err, descriptors[0]):
        os.close(fd)
    os.environ.clear()
    os.environ.update(environment)
    os.environ[c.ENV_LISTEN] = f"fd:{listener}"
    os.environ[c.ENV_LIFELINE] = f"fd:{lifeline}"
    time.tzset()  # TZ may have come with the environment
    code = start.main(only_here=(result,))
    os.write(result, str(int(code)).encode())
    return code


def preload() -> None:
    """Import what replicas will need, as far as this image has it."""
    for name in _PRELOADED:
        try:
            importlib.import_module(name)
        except ImportError:
            continue  # not in this image, or not in this version of it


def warm_up() -> None:
    """Serve one request of each sort from a made-up application, because first times are slow: lazily imported modules,
    caches of type adapters, code that specialises itself."""
    try:
        from fastapi import FastAPI
        from fastapi.middleware.cors import CORSMiddleware
        from pydantic import create_model
    except ImportError:
        return
    import asyncio

    model = create_model("Warm", name=(str, ...), count=(int, 1))

    async def posted(item: Any) -> Any:
        return item

    async def got(name: str = "x") -> dict[str, str]:
        return {"name": name}

    def got_sync(name: str = "x") -> str:
        return name

    posted.__annotations__["item"] = model
    app = FastAPI(openapi_url=None)
    app.add_middleware(CORSMiddleware, allow_origins=["*"], allow_credentials=True)
    app.add_api_route("/", posted, methods=["POST"])
    app.add_api_route("/", got, methods=["GET"])
    app.add_api_route("/sync", got_sync, methods=["GET"])
    asyncio.run(_ask_each(app))
    deadline = time.monotonic() + 1
    while len(os.listdir("/proc/self/task")) > 1 and time.monotonic() < deadline:
        time.sleep(0.001)  # the sync handler's thread is on its way out


async def _ask_each(app: Any) -> None:
    for method, path, body in (("GET", "/", b""), ("POST", "/", b'{"name": "x"}'), ("GET", "/sync", b"")):

        async def receive(body: bytes = body) -> dict[str, Any]:
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message: dict[str, Any]) -> None:
            """Nobody reads it."""

        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"name=x" if method == "GET" else b"",
            "root_path": "",
            "headers": [(b"host", b"x"), (b"content-type", b"application/json"), (b"origin", b"http://x")],
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 80),
            "state": {},
        }
        await app(scope, receive, send)
