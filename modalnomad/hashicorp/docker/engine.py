"""A Docker engine's API, through the docker SDK's low-level client in threads: streams arrive live, and end when who
asked is cancelled (https://docs.docker.com/reference/api/engine/).

An engine answers a failing build, pull or push with status 200 and an `error` event at the end of the stream.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http import HTTPStatus
from typing import Any, BinaryIO, Final

import docker
import requests
from docker import errors
from docker.utils import kwargs_from_env

from modalnomad.hashicorp.docker.context import DOCKERFILE
from modalnomad.model.errors import BackendError, BackendRefused, BackendUnreachable

Event = Mapping[str, Any]
Take = Callable[[Event], None]
"""Called for each event, on the event loop's thread."""

ANSWER: Final = 60
"""Seconds an engine has for an answer that is no stream."""
SILENCE: Final = 120.0
"""Seconds without an event after which a pull or a push has failed: registries may hang."""
SOCKET: Final = "/var/run/docker.sock"
LOOK: Final = 1.0
"""Seconds between two looks at the clock."""
CLOSED_DOORS: Final = re.compile(r"unauthorized|denied|forbidden|authentication required|no basic auth", re.IGNORECASE)
NOBODY: Final = re.compile(
    r"connection refused|no such host|i/o timeout|dial tcp|deadline exceeded|TLS handshake|x509|server gave HTTP",
    re.IGNORECASE,
)
NO_ENGINE: Final = (
    'a Docker engine builds images for nomad.driver = "docker": start it, or name it in DOCKER_HOST; who deploys must '
    "be allowed to use it (group docker)"
)
HUNG: Final = "is the registry there, and does the engine reach it?"


class Rejected(BackendRefused):
    """The engine does not take the request as it is (status 400): a Dockerfile that cannot be read."""


class _Client(docker.APIClient):  # type: ignore[misc, unused-ignore]
    """Remembers the answer that is being read, so that another thread can end it."""

    answer: requests.Response | None = None

    def send(self, request: requests.PreparedRequest, **given: Any) -> requests.Response:
        self.answer = super().send(request, **given)
        return self.answer

    def interrupt(self) -> None:
        """Whoever reads the answer gets its end."""
        answer = self.answer
        if answer is None:
            return
        with (
            contextlib.suppress(OSError, ValueError, AttributeError),
            socket.socket(fileno=os.dup(answer.raw.fileno())) as line,
        ):
            line.shutdown(socket.SHUT_RDWR)


class DockerEngine:
    """The engine that the environment names (DOCKER_HOST and its fellows; else the local socket), with the credentials
    of its configuration (`docker login`). One connection for each call."""

    def __init__(self, environment: Mapping[str, str] | None = None, *, silence: float = SILENCE) -> None:
        self._environment = dict(os.environ if environment is None else environment)
        self._silence = silence

    async def architecture(self) -> str:
        """`amd64`, `arm64`. Raises BackendUnreachable, as every method here."""
        return str((await self._ask(lambda client: client.version()))["Arch"])

    async def image(self, name: str) -> Event | None:
        """What is known of a local image; None: it is not there."""
        found: Event | None = await self._ask(
            lambda client: client.inspect_image(name)  # type: ignore[no-untyped-call]
        )
        return found

    async def remote_digest(self, name: str) -> str | None:
        """`sha256:…` of an image in its registry; None: it is not there. Raises BackendRefused, BackendUnreachable."""
        found = await self._ask(
            lambda client: client.inspect_distribution(name),  # type: ignore[no-untyped-call]
            f"the registry of {name}",
        )
        return None if found is None else str(found["Descriptor"]["digest"])

    async def build(self, context: BinaryIO, take: Take, **given: Any) -> None:
        """The classic builder, on the host's network, as replicas are. Raises what `take` raises."""

        def start(client: _Client) -> Iterator[Event]:
            return client.build(
                fileobj=context,
                custom_context=True,
                dockerfile=DOCKERFILE,
                decode=True,
                rm=True,
                forcerm=True,
                network_mode="host",
                **given,
            )

        await self._stream(start, take, "", None)

    async def pull(self, name: str, take: Take) -> None:
        """Raises BackendUnreachable when nothing comes for a while, and what `take` raises."""
        repository, tag = split_name(name)
        await self._stream(
            lambda client: client.pull(repository, tag=tag, stream=True, decode=True),
            take,
            f"the registry of {name}",
            self._silence,
        )

    async def push(self, repository: str, tag: str, take: Take) -> None:
        """As `pull`."""
        await self._stream(
            lambda client: client.push(repository, tag=tag, stream=True, decode=True),
            take,
            f"the registry of {repository}",
            self._silence,
        )

    # --- below ---------------------------------------------------------------------------------------------------

    async def _ask(self, call: Callable[[_Client], Any], whom: str = "") -> Any:
        """None: 404."""

        def work() -> Any:
            with self._opened(whom) as client:
                try:
                    return call(client)
                except errors.NotFound:
                    return None

        return await asyncio.to_thread(work)

    async def _stream(
        self, start: Callable[[_Client], Iterator[Event]], take: Take, whom: str, silence: float | None
    ) -> None:
        """Events to `take` on this loop until the stream ends. What `take` raises ends it. Cancelled, it ends the
        request first: engines stop what nobody reads."""
        loop = asyncio.get_running_loop()
        reading = _Reading()

        def work() -> None:
            with self._opened(whom) as client:
                reading.client = client
                for event in start(client):
                    reading.heard = time.monotonic()
                    if reading.over:
                        return
                    loop.call_soon_threadsafe(reading.hand, take, event)

        work_done = loop.run_in_executor(None, work)
        try:
            while not work_done.done():
                await asyncio.wait([work_done, reading.failure], timeout=LOOK, return_when=asyncio.FIRST_COMPLETED)
                if reading.failure.done():
                    break
                if silence is not None and time.monotonic() - reading.heard > silence:
                    raise BackendUnreachable(f"{whom} said nothing for {silence:g} s", HUNG)
            if not reading.failure.done():
                work_done.result()
        finally:
            await _ended(work_done, reading)
        if reading.failure.done():
            reading.failure.result()

    @contextmanager
    def _opened(self, whom: str) -> Iterator[_Client]:
        """Raises BackendError for whatever the SDK raises."""
        try:
            with contextlib.closing(self._client()) as client:
                yield client
        except errors.APIError as error:
            words = " ".join(str(error.explanation or error).split())
            if error.status_code == HTTPStatus.BAD_REQUEST:
                raise Rejected(f"the Docker engine refuses: {words}") from error
            raise refused(words, whom or "the Docker engine") from error
        except (errors.DockerException, requests.RequestException, OSError, ValueError, KeyError) as error:
            raise BackendUnreachable(f"the Docker engine does not answer: {_words(error)}", NO_ENGINE) from error

    def _client(self) -> _Client:
        given = kwargs_from_env(environment=self._environment)
        url = given.get("base_url") or f"unix://{SOCKET}"
        if url.startswith("unix://"):
            # The SDK forgets to close a socket that cannot be connected.
            with socket.socket(socket.AF_UNIX) as line:
                line.connect(url.removeprefix("unix://"))
        return _Client(version="auto", timeout=ANSWER, **given)


class _Reading:
    """What the thread that reads and the loop share."""

    def __init__(self) -> None:
        self.client: _Client | None = None
        self.heard = time.monotonic()
        self.over = False
        self.failure: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Set when `take` has raised."""

    def hand(self, take: Take, event: Event) -> None:
        if self.over or self.failure.done():
            return
        try:
            take(event)
        except Exception as error:
            self.failure.set_exception(error)


async def _ended(work: asyncio.Future[None], reading: _Reading) -> None:
    """The thread has ended; what it ended with no longer matters where it had to be interrupted."""
    if not work.done():
        reading.over = True
    while not work.done():
        # Again and again: it may not have come to reading its answer yet.
        if reading.client is not None:
            reading.client.interrupt()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait([work], timeout=0.05)
    if reading.over:
        work.exception()
    if reading.failure.done():
        reading.failure.exception()


def refused(words: str, whom: str) -> BackendError:
    """What an engine or, through it, a registry said no with."""
    words = " ".join(words.split())
    if CLOSED_DOORS.search(words):
        return BackendRefused(f"{whom} refuses: {words}", "log in on this machine: docker login <registry>")
    if NOBODY.search(words):
        return BackendUnreachable(f"{whom} is not reached: {words}", HUNG)
    return BackendRefused(f"{whom} refuses: {words}")


def split_name(name: str) -> tuple[str, str | None]:
    """`registry:5000/a/b:1` → repository and tag (or digest); `latest` where it names none."""
    if "@" in name:
        repository, _, digest = name.partition("@")
        return repository, digest
    head, _, last = name.rpartition("/")
    repository, _, tag = last.partition(":")
    return (f"{head}/{repository}" if head else repository), tag or "latest"


def _words(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
