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
    engine → template   {"enter": [folder, …]}  control groups that the next replica's environment will name
    template → engine   {"started": <id>, "pid": n} + pidfd of the replica's outermost process
                        {"refused": <id>, "reason": text}                   start it the ordinary way instead

Only the replica's outermost process holds the result pipe. It writes `+` before anything else, and at its end its exit
code in decimal; end of file after `+` alone: killed; end of file and nothing: there never was a replica. SIGTERM goes
to the pid (through the pidfd); closing the lifeline kills, as ever.

Entering a control group takes as long as all the rest of a start, so the tree that waits enters in advance those it is
told; others it enters when it is started.

A start is refused when the template has more than one thread (a fork would copy locks that nobody releases), when the
environment changes how Python, the C library or a preloaded module starts (PYTHON*, LD_*, LANG …), or when the bundle
has a module of its own with the name of one that is here already.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from modalnomad_sdk import contract as c

from . import cgroups, start
from .config import BadConfiguration, read_config
from .network import PortTaken
from .processes import Inside, grow, guard, say
from .sockets import open_listener

_DESCRIPTORS = 6
_STARTUP_NAMES = ("PYTHON", "LD_", "LC_", "LANG", "MALLOC_", "GLIBC_", "PYDANTIC_", "WEBSOCKETS_")
"""Beginnings of names that count only when Python, the C library, or what is preloaded, starts."""
_PAUSE = 0.3
"""Seconds of quiet after a start before the next tree is grown in advance."""
_HARMLESS = ("PYTHONUNBUFFERED", "PYTHONDONTWRITEBYTECODE")
_PRELOADED = (
    "modalnomad_sdk.loading",
    "modalnomad_sdk.instances",
    "modalnomad_sdk.decorators",
    "modalnomad_sdk.image",
    "modalnomad_sdk.parameters",
    "modalnomad_sdk.secret",
    "modalnomad_sdk.runner.replica",
    "modalnomad_sdk.runner.usercode",
    "modalnomad_sdk.runner.calls",
    "modalnomad_sdk.runner.gate",
    "modalnomad_sdk.runner.relay",
    "modalnomad_sdk.runner.wsgi",
    "modalnomad_sdk.runner.serve",
    "uvicorn.protocols.http.httptools_impl",
    "uvicorn.protocols.websockets.websockets_sansio_impl",
    "uvicorn.lifespan.off",
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
        template = _Template(engine)
        template.grow_spare()
        try:
            engine.send(json.dumps({"ready": True, "contract": c.VERSION}).encode())
            return template.serve()
        except (BrokenPipeError, ConnectionResetError):
            return 0  # the engine is gone


class _Template:
    """Starts replicas. One process tree is always ready and waits only for what it shall run: forking three processes
    takes about as long as everything that comes after it."""

    def __init__(self, engine: socket.socket) -> None:
        self.engine = engine
        self.spare: tuple[int, socket.socket] | None = None
        self.groups: list[str] = []
        self.loaded = frozenset(name.partition(".")[0] for name in sys.modules) - {"__main__"}

    def serve(self) -> int:
        """Until the engine is gone."""
        orders = select.poll()
        orders.register(self.engine, select.POLLIN)
        while True:
            # A new spare is made when the last start has had its time.
            if self.spare is None and not orders.poll(1000 * _PAUSE) and _threads() == 1:
                self.grow_spare()
            packet, descriptors, _, _ = socket.recv_fds(self.engine, 4096, _DESCRIPTORS)
            if not packet:
                return 0
            order = json.loads(packet)
            try:
                if "enter" in order:
                    self.groups = order["enter"]
                    self._enter()
                else:
                    self._start(order["start"], descriptors)
            finally:
                for fd in descriptors:
                    os.close(fd)

    def grow_spare(self, others: Sequence[int] = ()) -> tuple[int, socket.socket]:
        """Fork a tree that waits. `others`: descriptors that are open here now and none of its business."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        pid = os.fork()
        if pid == 0:
            ours.close()
            self.engine.close()
            for fd in others:
                os.close(fd)
            guard(lambda: _become_replica(theirs))
        theirs.close()
        self.spare = pid, ours
        self._enter()
        return self.spare

    def _enter(self) -> None:
        if self.spare is not None and self.groups:
            with contextlib.suppress(OSError):  # somebody killed it while it waits, which the next start finds
                self.spare[1].send(json.dumps(self.groups).encode())

    def _start(self, name: Any, descriptors: list[int]) -> None:
        reason = f"{len(descriptors)} descriptors came, not {_DESCRIPTORS}"
        if len(descriptors) == _DESCRIPTORS:
            environment = _read_environment(descriptors[0])
            reason = _objection(environment) or _shadowing(environment.get(c.ENV_BUNDLE, ""), self.loaded)
        if reason:
            self.engine.send(json.dumps({"refused": name, "reason": reason}).encode())
            return
        pid, control = self.spare or self.grow_spare(descriptors)
        self.spare, self.groups = None, []
        with control, contextlib.ExitStack() as stack:
            try:
                pidfd = os.pidfd_open(pid)
                stack.callback(os.close, pidfd)
                socket.send_fds(control, [b"start"], descriptors)
            except OSError as error:  # somebody killed it while it waited
                text = f"the waiting process is gone: {error.strerror}"
                self.engine.send(json.dumps({"refused": name, "reason": text}).encode())
                return
            socket.send_fds(self.engine, [json.dumps({"started": name, "pid": pid}).encode()], [pidfd])


def _threads() -> int:
    return len(os.listdir("/proc/self/task"))


def _read_environment(fd: int) -> dict[str, str]:
    """From its beginning, wherever somebody else has read to."""
    environment: dict[str, str] = json.loads(os.pread(fd, os.fstat(fd).st_size, 0))
    return environment


def _objection(environment: Mapping[str, str]) -> str:
    """Why this replica cannot be forked from here; empty when it can."""
    threads = _threads()
    if threads != 1:
        return f"the template has {threads} threads"
    for name in environment.keys() | os.environ.keys():
        changes = environment.get(name) != os.environ.get(name)
        if name.startswith(_STARTUP_NAMES) and name not in _HARMLESS and changes:
            return f"{name} counts only when Python or a preloaded module starts"
    return ""


def _shadowing(bundle: str, loaded: frozenset[str]) -> str:
    """Why this program would find other modules than in a new Python; empty when it would not. The bundle comes first
    on its path, but a module that is loaded already is not looked for."""
    try:
        with os.scandir(bundle) as entries:
            for entry in entries:
                name = entry.name.partition(".")[0]
                if name in loaded and (
                    entry.name.endswith((".py", ".so")) or os.path.isfile(f"{entry.path}/__init__.py")
                ):
                    return f"the program has a module {name} of its own, and another is loaded already"
    except OSError as error:
        return f"its bundle cannot be read: {error.strerror}"
    return ""


def _become_replica(control: socket.socket) -> int:
    """The outermost process of a tree: grows it, waits for what it shall run, and watches it to its end."""
    os.setsid()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    tree = grow(_Unknown(control))
    entered: tuple[str, ...] = ()
    with control:
        while True:
            packet, descriptors, _, _ = socket.recv_fds(control, 65536, _DESCRIPTORS)
            if not packet or descriptors:
                break
            folders = tuple(json.loads(packet))
            # What does not work shows again, and is said, at the start.
            entered = () if cgroups.enter(folders) else folders
    if not descriptors:
        return 0  # the template has gone; the leash ends with us, and so does the tree
    environment, out, err, listener, lifeline, result = descriptors
    os.write(result, b"+")
    _take_over(environment, out, err, listener, lifeline)
    try:
        config = read_config(os.environ)
        claims = start.prepare_outside(config)
    except BadConfiguration as error:
        code = _give_up(str(error), c.Exit.BAD_CONFIGURATION)
    except PortTaken as taken:
        code = _give_up(str(taken), taken.code)
    else:
        socket.send_fds(tree.link, [b"start"], [environment, out, err, listener])
        for fd in (environment, out, err, listener):
            os.close(fd)
        if config.cgroups:
            tree.limit(() if config.cgroups == entered else config.cgroups)
        code = tree.watch(config)
        for claim in claims:
            claim.close()
    os.write(result, str(int(code)).encode())
    return code


def _give_up(text: str, code: int) -> int:
    say(text)
    return code


def _take_over(environment: int, out: int, err: int, listener: int, lifeline: int | None) -> None:
    """What an exec would have set up."""
    with open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    os.dup2(out, 1)
    os.dup2(err, 2)
    os.environ.clear()
    os.environ.update(_read_environment(environment))
    os.environ[c.ENV_LISTEN] = f"fd:{listener}"
    os.environ.pop(c.ENV_LIFELINE, None)
    if lifeline is not None:
        os.environ[c.ENV_LIFELINE] = f"fd:{lifeline}"
    time.tzset()  # TZ may have come with the environment
    with contextlib.suppress(OSError):  # the runner tells
        os.chdir(os.environ.get(c.ENV_WORKDIR) or os.environ.get(c.ENV_BUNDLE) or "/")


class _Unknown(Inside):
    """A tree that grew before its replica was known."""

    def __init__(self, control: socket.socket) -> None:
        self.control = control

    def before_runner(self) -> None:
        self.control.close()

    def run(self, link: socket.socket, mapped: bool) -> int:
        _, descriptors, _, _ = socket.recv_fds(link, 16, 4)
        if not descriptors:
            return c.Exit.PARENT_GONE
        environment, out, err, listener = descriptors
        _take_over(environment, out, err, listener, None)
        for fd in (environment, out, err):
            os.close(fd)
        try:
            config = read_config(os.environ)
            sock = open_listener(config.listen)
        except (BadConfiguration, OSError) as error:
            return _give_up(str(error), c.Exit.BAD_CONFIGURATION)
        return start.run_inside(config, sock, link, mapped)


def preload() -> None:
    """Import what replicas will need, as far as this image has it."""
    for name in _PRELOADED:
        try:
            importlib.import_module(name)
        except ImportError:
            continue  # not in this image, or not in this version of it


@dataclass
class _Warm:
    """A request body."""

    name: str
    count: int = 1


def warm_up() -> None:
    """Serve one request of each sort from a made-up application, because first times are slow: lazily imported modules,
    caches of type adapters, code that specialises itself."""
    try:
        from fastapi import FastAPI
        from fastapi.middleware.cors import CORSMiddleware
    except ImportError:
        return
    import asyncio

    async def posted(item: Any) -> Any:
        return item

    async def got(name: str = "x") -> dict[str, str]:
        return {"name": name}

    def got_sync(name: str = "x") -> str:
        return name

    posted.__annotations__["item"] = _Warm  # FastAPI cannot look up a name that is local to this function
    app = FastAPI()  # with its pages of documentation: their paths are patterns that compile once
    app.add_middleware(CORSMiddleware, allow_origins=["*"], allow_credentials=True)
    app.add_api_route("/", posted, methods=["POST"])
    app.add_api_route("/", got, methods=["GET"])
    app.add_api_route("/sync", got_sync, methods=["GET"])
    # Not asyncio.run, which remembers that there was a loop: code that wants one at its import would get an error.
    loop = asyncio.new_event_loop()
    loop.run_until_complete(_ask_each(app))
    loop.close()
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
