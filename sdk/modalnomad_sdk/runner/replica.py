"""A replica's life in its innermost process: load, enter, build, start up, serve, drain, shut down, exit."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import faulthandler
import gc
import os
import socket
import sys
from typing import TYPE_CHECKING

from modalnomad_sdk.contract import Exit

from . import logs
from .config import Config
from .door_answers import Porter
from .doors import Doors
from .failures import Failed, report
from .network import reach_resolver, wait_for_outbound
from .processes import DRAINING, READY, SIGNAL_TRACEBACK, TERMINATE, say, wait_until_limited
from .sockets import keep_from_children, refuse_newcomers

if TYPE_CHECKING:
    from .relay import Relay
    from .serve import Server
    from .usercode import UserCode

LAST_TASKS = 1.0
"""Seconds that background tasks of the user get to end when they are cancelled."""


def run(config: Config, listener: socket.socket, link: socket.socket, outbound: int | None) -> int:
    """The whole life; the exit code. `outbound`: the process that connects our network namespace."""
    keep_from_children(listener.fileno(), link.fileno())
    logs.install(config.log_tags)
    # `chain`: then the signal does what it does where nobody handles it. That end tells that all is written.
    faulthandler.register(SIGNAL_TRACEBACK, file=2, all_threads=True, chain=True)
    thresholds = gc.get_threshold()
    # Imports make no garbage worth looking for so often.
    gc.set_threshold(100_000, 50, 100)
    try:
        return _live(config, listener, link, outbound, thresholds)
    except Failed as failed:
        report(failed)
        return failed.code
    finally:
        atexit._run_exitfuncs()
        logs.finish()


def _live(
    config: Config,
    listener: socket.socket,
    link: socket.socket,
    outbound: int | None,
    thresholds: tuple[int, int, int],
) -> int:
    from . import usercode

    _check_gpus(config)
    usercode.prepare_environment(config)
    if outbound is not None:
        _connect(outbound)
    if config.cgroups:
        wait_until_limited(link)
    declaration = usercode.load(config)
    loop = _new_loop()
    asyncio.set_event_loop(loop)
    code = usercode.UserCode(declaration, config, loop)
    code.enter()
    code.build()
    door = FrontDoor(config, listener, link, code)
    code.start_up()
    gc.freeze()
    gc.set_threshold(*thresholds)
    result = loop.run_until_complete(door.serve())
    if not code.shut_down():
        result = result or Exit.EXIT_FAILED
    _end_tasks(loop)
    return result


class FrontDoor:
    """Lets requests in from ready to drained."""

    def __init__(self, config: Config, listener: socket.socket, link: socket.socket, code: UserCode) -> None:
        self.config = config
        self.listener = listener
        self.link = link
        self.code = code
        self.doors = Doors(config.max_inputs)
        self.porter = Porter(config.ticket_sha256, config.name, self.doors)
        self.changed = asyncio.Event()
        self.doors.on_change = self.changed.set
        self.server: Server | None = None
        if code.mounted or code.callables:  # imported before anything starts, so that nothing waits for it
            from .calls import Calls
            from .gate import Gate
            from .serve import Server

            calls = Calls(code.callables, config.timeout, self.doors)
            self.server = Server(Gate(code.mounted, self.doors, self.porter, config.timeout, calls))

    async def serve(self) -> int:
        """Accept, say that we are ready, and return the exit code when all requests are done."""
        config, loop = self.config, asyncio.get_running_loop()
        _one_thread_per_place(config.max_inputs)
        relay = self._relay()
        front = relay or self.server
        assert front is not None
        loop.add_reader(self.link, self._on_link)
        self.doors.open()
        await front.listen(self.listener)
        self.link.send(READY)
        orphan = loop.create_task(self._end_when_forgotten()) if config.orphan_after else None
        while not self.doors.draining:
            await self._change(None)
        self.link.send(DRAINING)
        if orphan is not None:
            orphan.cancel()
        reserve = min(2.0, config.grace_period / 5)
        deadline = loop.time() + config.grace_period - reserve
        while self.doors.running > self.doors.stuck and await self._change(deadline - loop.time()):
            continue
        cut, stuck = self.doors.running, self.doors.stuck
        await self._stop_listening(front, within=reserve / (4 if cut else 2))
        if self.server is not None:
            await self.server.close(within=reserve / 2)
        if relay is not None:
            await relay.close()
        if cut and cut == stuck:
            return Exit.GRACE_EXPIRED
        if cut:
            say(f"{cut} requests were still running when the grace period of {config.grace_period:g} s ended")
            return Exit.GRACE_EXPIRED
        return Exit.USER_CODE_FAILED if relay is not None and relay.failed else Exit.OK

    async def _stop_listening(self, front: Relay | Server, within: float) -> None:
        """Nobody connects any more. Who already did is refused, not cut off: of a request that is cut off no router can
        know that it did not run. Routers send theirs as soon as they are connected."""
        loop = asyncio.get_running_loop()
        # asyncio loses, unclosed, a connection that it accepts in the turn in which its server is closed.
        loop.remove_reader(self.listener)
        await asyncio.sleep(0)
        late = refuse_newcomers(self.listener)
        front.stop_listening()
        for sock in late:
            with contextlib.suppress(OSError):  # it has left
                await loop.connect_accepted_socket(front.protocol, sock)
        await front.strangers.heard(within)

    def _relay(self) -> Relay | None:
        if not self.code.servers:
            return None
        from .relay import Relay

        relay = Relay(self.code.servers, self.doors, self.porter, self.config.timeout)
        if self.server is not None:
            relay.managed = self.server.protocol
            relay.managed_names = frozenset(self.code.mounted)
        return relay

    async def _change(self, limit: float | None) -> bool:
        """Wait until a request ended or draining began; False: not within `limit` seconds."""
        try:
            await asyncio.wait_for(self.changed.wait(), limit)
        except asyncio.TimeoutError:  # noqa: UP041 - a class of its own in Python 3.10
            return False
        self.changed.clear()
        return True

    def _on_link(self) -> None:
        try:
            orders = self.link.recv(64)
        except ConnectionResetError:  # it ended before it read what we said last
            orders = b""
        if not orders:
            os._exit(Exit.PARENT_GONE)  # the supervisor has gone
        if TERMINATE in orders:
            self.doors.shut()

    async def _end_when_forgotten(self) -> None:
        """Nobody has asked for anything for so long: no router knows this replica any more."""
        limit = self.config.orphan_after
        while not self.doors.draining:
            left = limit - self.doors.forgotten_for()
            if left <= 0 and self.doors.drain(0):
                say(f"no router asked for anything for {limit:g} s: this replica ends")
                return
            await asyncio.sleep(max(left, 0.05))


def _connect(outbound: int) -> None:
    if not wait_for_outbound(outbound):
        say("pasta could not connect this replica: nothing in it reaches the network outside")
        return
    try:
        reach_resolver()
    except OSError as error:
        say(f"names of the network outside cannot be looked up in this replica: {error.strerror}")


def _check_gpus(config: Config) -> None:
    if not config.gpus:
        return
    from .gpus import visible_gpus

    found = visible_gpus(os.environ)
    if found < config.gpus:
        named = os.environ.get("CUDA_VISIBLE_DEVICES")
        shown = "CUDA_VISIBLE_DEVICES is not set" if named is None else f"CUDA_VISIBLE_DEVICES={named}"
        asked = "1 GPU was" if config.gpus == 1 else f"{config.gpus} GPUs were"
        seen = "1 is" if found == 1 else f"{found} are"
        raise Failed(Exit.GPU_MISSING, f"{asked} asked for and {seen} visible here ({shown})")


def _one_thread_per_place(places: int) -> None:
    """Sync handlers of Starlette run on anyio's threads, 40 unless told otherwise."""
    if "anyio" in sys.modules:
        from anyio.to_thread import current_default_thread_limiter

        limiter = current_default_thread_limiter()
        limiter.total_tokens = max(limiter.total_tokens, places)


def _new_loop() -> asyncio.AbstractEventLoop:
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    made: asyncio.AbstractEventLoop = uvloop.new_event_loop()
    return made


def _end_tasks(loop: asyncio.AbstractEventLoop) -> None:
    """Cancel what the user left running, and give it a moment to clean up."""
    left = asyncio.all_tasks(loop)
    for task in left:
        task.cancel()
    if left:
        loop.run_until_complete(asyncio.wait(left, timeout=LAST_TASKS))
