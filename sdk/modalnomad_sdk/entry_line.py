"""The socket between a local entrypoint and `modalnomad run`: JSON objects, one a line, some with bytes behind them.

    entry → command   {"described": {"needs": tags, "name": …}, "size": n} + Description     then waits
                      {"error": {code, message, where, traceback, hint}}                     instead: as `describe`
                      {"call": id, "function", "method", "parameters", "size": n} + pickle of (args, kwargs)
                      {"cancel": id}
                      {"returned": {"result" | "repr", "text"}}                              at the end
    command → entry   {"start": true}      everything is built
                      {"answer": id, "outcome", "size": n} + body, as contract.CALL_PATH
                      {"interrupt": true}
                      {"heard": true}      to `returned`: an answer that meets a closed end loses what is unread there

End of file: the command is gone, and this process goes too.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import socket
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from .calling import Answer, Target


class SocketLine:
    """Our end. One thread reads, and calls `on_gone` when the command is gone."""

    def __init__(self, descriptor: int, on_gone: Callable[[], None]) -> None:
        self._on_gone = on_gone
        os.set_inheritable(descriptor, False)
        self._socket = socket.socket(fileno=descriptor)
        self._file = self._socket.makefile("rb")
        self._ids = itertools.count(1)
        self._writing = threading.Lock()
        self._open: dict[int, Future[Answer]] = {}
        self._started = threading.Event()
        self._heard = threading.Event()
        threading.Thread(target=self._read, name="line", daemon=True).start()

    def tell(self, record: dict[str, Any], payload: bytes | None = None) -> None:
        """Write one message."""
        if payload is not None:
            record = {**record, "size": len(payload)}
        data = json.dumps(record).encode() + b"\n"
        with self._writing:
            self._socket.sendall(data)
            if payload:
                self._socket.sendall(payload)

    def wait_for_start(self) -> None:
        """Return when everything is built."""
        self._started.wait()

    def finish(self, record: dict[str, Any]) -> None:
        """Tell what was returned. Back when the command has it."""
        self.tell({"returned": record})
        self._heard.wait()

    def send(self, target: Target, payload: bytes) -> Future[Answer]:
        """Start a call. Raises InvalidError for parameters that do not fit the class."""
        parameters = target.parameters()
        future: Future[Answer] = Future()
        number = next(self._ids)
        self._open[number] = future
        future.add_done_callback(lambda done: self._ended(number, done))
        record = {"call": number, "function": target.tag, "method": target.method, "parameters": parameters}
        self.tell(record, payload)
        return future

    def _ended(self, number: int, future: Future[Answer]) -> None:
        self._open.pop(number, None)
        if future.cancelled():
            self.tell({"cancel": number})

    def _read(self) -> None:
        while line := self._file.readline():
            record = json.loads(line)
            body = self._file.read(record["size"]) if record.get("size") else b""
            if "answer" in record:
                future = self._open.get(record["answer"])
                if future is not None and future.set_running_or_notify_cancel():
                    future.set_result(Answer(record["outcome"], body))
            elif "start" in record:
                self._started.set()
            elif "heard" in record:
                self._heard.set()
            elif "interrupt" in record:
                os.kill(os.getpid(), signal.SIGINT)
        self._on_gone()
