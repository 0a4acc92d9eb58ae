"""One warm template process and the talk with it (the protocol: modalnomad_sdk/runner/template.py)."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from modalnomad_sdk import contract

from modalnomad.embedded.child import OnOutput, Output, OutputStream, kill_group, watch_exit
from modalnomad.embedded.forked import Forked
from modalnomad.embedded.limits import Group
from modalnomad.kit.open_files import lower_limit_of
from modalnomad.render.process import ProcessSpec

logger = logging.getLogger("modalnomad.engine")

WARM_LIMIT: Final = 60.0
"""Seconds a template may take to get warm."""
ANSWER_LIMIT: Final = 5.0
"""Seconds it may take to answer; a healthy one takes a hundredth."""
VANISH_LIMIT: Final = 2.0
"""Seconds in which a start that nobody took over shows that it is lost, once the template has gone."""
LAST_WORDS: Final = 4096
"""Bytes of its standard error that are kept."""


class Template:
    """A started template. Its owner awaits `close`, whatever happens; replicas live on."""

    def __init__(self, process: subprocess.Popen[bytes], link: socket.socket, errors: int) -> None:
        self.pid = process.pid
        self.ready = False
        """It takes starts."""
        self.handed_over = 0
        """Replicas it has started."""
        self.ended = asyncio.Event()
        """Its process has gone, or is of no use any more."""
        self.group: Group | None = None
        """Where the next replica waits already."""
        self._closed = False
        self._process = process
        self._link = link
        self._number = 0
        self._answers: dict[int, asyncio.Future[int | None]] = {}
        """By start: pidfd of the replica's outermost process; None when it was refused."""
        self._changed = asyncio.Event()
        self._words = b""
        self._errors = Output(errors, "stderr", self._hear)
        self._exited = asyncio.Event()
        self._stop_watching = watch_exit(process.pid, self._exited)
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(link, self._readable)

    @classmethod
    def spawn(cls, spec: ProcessSpec) -> Template:
        """On the event loop's thread. Raises OSError."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        errors, errors_write = os.pipe()
        try:
            process = subprocess.Popen(
                (*spec.argv, str(theirs.fileno())),
                cwd=spec.cwd,
                env=spec.environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=errors_write,
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
            )
        except BaseException:
            ours.close()
            os.close(errors)
            raise
        finally:
            theirs.close()
            os.close(errors_write)
        lower_limit_of(process.pid)
        ours.setblocking(False)
        return cls(process, ours, errors)

    def _hear(self, stream: OutputStream, data: bytes) -> float:
        self._words = (self._words + data)[-LAST_WORDS:]
        return 0.0

    @property
    def last_words(self) -> str:
        """The end of what it wrote on standard error."""
        return self._words.decode("utf-8", "replace").strip()

    async def warm(self) -> bool:
        """True when it is ready, False when it never will be."""
        with suppress(TimeoutError):
            async with asyncio.timeout(WARM_LIMIT):
                while not self.ready and not self.ended.is_set():
                    self._changed.clear()
                    await self._changed.wait()
        return self.ready

    async def news(self) -> None:
        """Until it has ended, or a replica was started from it."""
        self._changed.clear()
        await self._changed.wait()

    def provide(self, group: Group) -> None:
        """The next replica shall wait in this group. It is the template's until it is taken."""
        self.group = group
        with suppress(OSError):  # gone, or it has not read for long: the replica enters it later
            self._link.send(json.dumps({"enter": group.folders}).encode())

    def take_group(self) -> Group | None:
        """For a replica that is started now; the caller owns it or gives it back."""
        group, self.group = self.group, None
        return group

    def give_back(self, group: Group) -> bool:
        """No replica was started after all. False: the template has gone, or has another one by now, and the group is
        still the caller's."""
        if self._closed or self.group is not None:
            return False
        self.group = group
        return True

    def _readable(self) -> None:
        try:
            packet, descriptors, _, _ = socket.recv_fds(self._link, 4096, 1)
        except BlockingIOError:
            return
        except OSError:
            packet, descriptors = b"", []
        for descriptor in descriptors:
            os.set_inheritable(descriptor, False)
        if not packet or not self._take(json.loads(packet), descriptors):
            for descriptor in descriptors:
                os.close(descriptor)
        if not packet and not self.ended.is_set():
            self._lose()

    def _take(self, said: dict[str, Any], descriptors: list[int]) -> bool:
        """True when the descriptors have found an owner."""
        if said.get("ready"):
            self.ready = said.get("contract") == contract.VERSION
            if not self.ready:
                self._lose()
            self._changed.set()
            return False
        answer = self._answers.pop(said.get("started", said.get("refused", -1)), None)
        if answer is None or answer.done():
            return False  # nobody waits any more: the lifeline has told the replica
        if "refused" in said:
            logger.debug("started without a template: %s", said.get("reason"))
        answer.set_result(descriptors[0] if descriptors else None)
        return bool(descriptors)

    def _lose(self) -> None:
        """Nothing more will be heard of it."""
        self.ready = False
        self._loop.remove_reader(self._link)
        self.ended.set()
        self._changed.set()
        answers, self._answers = self._answers, {}
        for answer in answers.values():
            if not answer.done():
                answer.set_exception(ConnectionResetError())

    async def start(
        self, spec: ProcessSpec, listener: socket.socket, folder: Path, on_output: OnOutput
    ) -> Forked | None:
        """A replica forked from it, or None: there is none and will be none; start it the ordinary way. Raises OSError.

        When it cannot be known whether there is one, what may be there is being ended and returned to be waited for.
        """
        forked, descriptors, to_close = Forked.make(spec.environment, listener.fileno(), folder, on_output)
        self._number += 1
        number, answer = self._number, self._loop.create_future()
        try:
            socket.send_fds(self._link, [json.dumps({"start": number}).encode()], descriptors)
        except OSError:  # gone, or it has not read for long
            forked.discard()
            return None
        finally:
            for descriptor in to_close:
                os.close(descriptor)
        self._answers[number] = answer
        try:
            async with asyncio.timeout(ANSWER_LIMIT):
                pidfd = await answer
        except (ConnectionResetError, TimeoutError):
            self.kill()
            if not await forked.never_was(VANISH_LIMIT):
                forked.end()
                return forked
            forked.discard()
            return None
        except asyncio.CancelledError:
            if answer.done() and not answer.cancelled() and not answer.exception() and answer.result() is not None:
                forked.adopt(answer.result())
            else:
                self.kill()  # it may have the start still before it
            forked.end()
            await forked.wait()
            raise
        if pidfd is None:
            forked.discard()
            return None
        forked.adopt(pidfd)
        self.handed_over += 1
        self._changed.set()
        return forked

    def kill(self) -> None:
        """At once: it holds nothing of its own."""
        if not self._exited.is_set():
            kill_group(self.pid)

    async def close(self) -> None:
        """End it and free everything. Cancelled, it is cancelled afterwards."""
        if not self.ended.is_set():
            self._lose()
        self._link.close()
        self.kill()
        cancelled = False
        while not self._exited.is_set():
            try:
                await self._exited.wait()
            except asyncio.CancelledError:
                cancelled = True
        self._stop_watching()
        self._process.wait()
        self._closed = True
        if (group := self.take_group()) is not None:
            await asyncio.to_thread(group.end)  # cancelled, the thread goes on
        self._errors.finish()
        if cancelled:
            raise asyncio.CancelledError
