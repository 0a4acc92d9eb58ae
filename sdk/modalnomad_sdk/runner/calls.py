"""Calls of the Function, or of methods of the Cls, that come from the platform (contract.CALL_PATH).

An `async def` runs on the loop; everything else in a thread of its own, one per place, so that the replica answers
while it computes. Both sides of a call are the same user's program: that is why arguments and results are pickled.
"""

from __future__ import annotations

import asyncio
import base64
import contextvars
import ctypes
import inspect
import io
import json
import pickle
import sys
import threading
import traceback
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from modalnomad_sdk.contract import CALL_LIMIT, CALL_PICKLE, HEADER_OUTCOME
from modalnomad_sdk.exception import InputCancellation

from .door_answers import Answer
from .doors import Doors
from .failures import user_part
from .lifespan import Receive, Send
from .processes import say

YIELD_TIME = 5.0
"""Seconds a call that was cancelled gets to end. Then the replica takes no more, and ends when all others are done."""
_LOOK = 0.02
"""Seconds between two looks at whether a cancelled thread has ended."""

_NO_CALLABLE = Answer(404, b"Nothing of that name can be called here.\n")
_TOO_LARGE = Answer(413, b"The arguments are too large.\n")


class Gone(Exception):
    """Whoever called has hung up."""


class Calls:
    """Runs what is called. `callables` by method name, `""` the Function itself; `timeout` in seconds."""

    def __init__(self, callables: Mapping[str, Callable[..., Any]], timeout: float, doors: Doors) -> None:
        self.callables = callables
        self.timeout = timeout
        self.doors = doors

    async def answer(self, method: str, tell: bool, receive: Receive, send: Send) -> None:
        """From the request's body to the last byte of the answer, and until nothing of the call runs any more."""
        function = self.callables.get(method)
        if function is None:
            return await _send(send, _NO_CALLABLE)
        try:
            body = await _body(receive)
        except Gone:
            return None
        if body is None:
            return await _send(send, _TOO_LARGE)
        work: _Work = _OnLoop(function, body) if inspect.iscoroutinefunction(function) else _InThread(function, body)
        hang_up = asyncio.ensure_future(_hang_up(receive))
        either: set[asyncio.Future[Any]] = {work.done, hang_up}
        try:
            await asyncio.wait(either, timeout=self.timeout, return_when=asyncio.FIRST_COMPLETED)
            answer: Answer | None
            if work.done.cancelled():
                answer = _problem("InputCancellation", "the function cancelled the task it runs in")
            elif work.done.done():
                answer = work.done.result()
            else:
                answer = None if hang_up.done() else _expired(self.timeout)
            if answer is not None:
                if tell and answer.content_type == _JSON:
                    sys.stderr.write(json.loads(answer.body)["traceback"])
                await _send(send, answer)
        finally:
            hang_up.cancel()
            await self._end(work)
        return None

    async def _end(self, work: _Work) -> None:
        """Nothing of a cancelled call may go on behind the back of the next one."""
        if not work.running:
            return
        work.cancel()
        if await work.ended(YIELD_TIME):
            return
        say(f"a call was cancelled and goes on after {YIELD_TIME:g} s: this replica takes no more")
        self.doors.strand()
        try:
            await work.ended(None)
        finally:
            self.doors.unstrand()


class _Work:
    """A call under way. `done` holds its answer."""

    done: asyncio.Future[Answer]

    @property
    def running(self) -> bool:
        """Code of the user's may still run."""
        raise NotImplementedError

    def cancel(self) -> None:
        """Ask it to end."""
        raise NotImplementedError

    async def ended(self, within: float | None) -> bool:
        """Wait; False: not within that many seconds."""
        raise NotImplementedError


class _OnLoop(_Work):
    """An `async def`."""

    def __init__(self, function: Callable[..., Any], body: bytes) -> None:
        self.done = self._task = asyncio.ensure_future(self._run(function, body))

    @staticmethod
    async def _run(function: Callable[..., Any], body: bytes) -> Answer:
        try:
            args, kwargs = _arguments(body)
            return _result(function, await function(*args, **kwargs))
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            return _raised(error)

    @property
    def running(self) -> bool:
        return not self._task.done()

    def cancel(self) -> None:
        self._task.cancel()

    async def ended(self, within: float | None) -> bool:
        done, _ = await asyncio.wait({self._task}, timeout=within)
        return bool(done)


class _InThread(_Work):
    """Everything else. Cancelled, InputCancellation is raised in it as soon as Python code runs there."""

    def __init__(self, function: Callable[..., Any], body: bytes) -> None:
        self._loop = asyncio.get_running_loop()
        self.done = self._loop.create_future()
        context = contextvars.copy_context()
        self._thread = threading.Thread(target=context.run, args=(self._run, function, body), name="call", daemon=True)
        self._thread.start()

    def _run(self, function: Callable[..., Any], body: bytes) -> None:
        try:
            try:
                args, kwargs = _arguments(body)
                value = function(*args, **kwargs)
                answer = _result(function, asyncio.run(_awaited(value)) if inspect.isawaitable(value) else value)
            except BaseException as error:
                answer = _raised(error)
            self._loop.call_soon_threadsafe(self._tell, answer)
        except (InputCancellation, RuntimeError):
            return  # cancelled as it ended, or the loop is closed: nobody waits for the answer

    def _tell(self, answer: Answer) -> None:
        if not self.done.done():
            self.done.set_result(answer)

    @property
    def running(self) -> bool:
        return not self.done.done()

    def cancel(self) -> None:
        if self._thread.ident is not None:
            ctypes.pythonapi.PyThreadState_SetAsyncExc(
                ctypes.c_ulong(self._thread.ident), ctypes.py_object(InputCancellation)
            )

    async def ended(self, within: float | None) -> bool:
        end = None if within is None else self._loop.time() + within
        while self._thread.is_alive():
            if end is not None and self._loop.time() >= end:
                return False
            await asyncio.sleep(_LOOK)
        return True


async def _awaited(value: Awaitable[Any]) -> Any:
    return await value


async def _body(receive: Receive) -> bytes | None:
    """The whole request body; None: too large. Raises Gone."""
    taken = io.BytesIO()
    while True:
        message = await receive()
        if message["type"] != "http.request":
            raise Gone
        taken.write(message.get("body", b""))
        if taken.tell() > CALL_LIMIT:
            return None
        if not message.get("more_body", False):
            return taken.getvalue()


async def _hang_up(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        continue


async def _send(send: Send, answer: Answer) -> None:
    headers = answer.all_headers(close=True)
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    await send({"type": "http.response.body", "body": answer.body, "more_body": False})


# --- Values --------------------------------------------------------------------------------------------------------

_JSON = b"application/json"
_OUTCOME = HEADER_OUTCOME.encode()


def _arguments(body: bytes) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if not body:
        return (), {}
    args, kwargs = pickle.loads(body)
    return args, kwargs


def _result(function: Callable[..., Any], value: Any) -> Answer:
    try:
        body = pickle.dumps(value, CALL_PICKLE)
    except Exception as error:
        name = getattr(function, "__qualname__", repr(function))
        kind = f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")
        return _problem(
            "SerializationError",
            f"the result of `{name}` is a {kind}, which cannot be pickled ({error}): return plain values, or objects "
            "of classes at the top level of a module",
        )
    if len(body) > CALL_LIMIT:
        return _problem("SerializationError", f"the result has {len(body)} bytes; at most {CALL_LIMIT} can be returned")
    return Answer(200, body, ((_OUTCOME, b"result"),), b"application/octet-stream")


def _problem(kind: str, message: str) -> Answer:
    """An error of the call itself: `kind` is a class of `modal.exception`."""
    return _told(b"raised", {"type": kind, "message": message, "traceback": f"{kind}: {message}\n", "exception": None})


def _expired(timeout: float) -> Answer:
    message = f"the call ran longer than its timeout of {timeout:g} s"
    text = f"FunctionTimeoutError: {message}\n"
    return _told(b"timeout", {"type": "FunctionTimeoutError", "message": message, "traceback": text, "exception": None})


def _raised(error: BaseException) -> Answer:
    pickled = None
    if isinstance(error, Exception):
        try:
            pickled = base64.b64encode(pickle.dumps(error, CALL_PICKLE)).decode()
        except Exception:
            pickled = None  # its type, message and traceback are told all the same
    trace = user_part(error.__traceback__)
    if trace is error.__traceback__:
        trace = None  # arguments that do not fit: none of the user's code ran
    text = "".join(traceback.format_exception(type(error), error, trace))
    try:
        message = str(error)
    except Exception:
        message = ""
    return _told(
        b"raised", {"type": type(error).__qualname__, "message": message, "traceback": text, "exception": pickled}
    )


def _told(outcome: bytes, record: dict[str, Any]) -> Answer:
    body = json.dumps(record).encode("utf-8", "backslashreplace")
    return Answer(200, body, ((_OUTCOME, outcome),), _JSON)
