"""Nomad's HTTP API, as far as it is used here (developer.hashicorp.com/nomad/api-docs): thin, typed, no decisions.

Every call raises BackendUnreachable (no answer: a change may have been made all the same) and ServerRefused.
"""

from __future__ import annotations

import asyncio
import base64
import json
import re
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Final, Literal
from urllib.parse import quote

import aiohttp

from modalnomad.hashicorp.http import ANSWER_LIMIT, Answer, HttpClient, Parameters, ServerRefused
from modalnomad.model.errors import BackendConflict, BackendRefused, BackendUnreachable
from modalnomad.render.cluster import environment_of

PAGE: Final = 250
"""Entries asked for at a time: what is parsed in one go must not hold up requests."""
CONFLICT: Final = "Enforcing job modify index"
"""Begins the text of a 500 that means: somebody else wrote first."""
NO_NAMESPACE: Final = re.compile(r'is in nonexistent namespace "([^"]*)"')
LOG_SILENCE: Final = 15.0
"""Seconds without even a heartbeat (one each second) after which following a log has failed."""

Shape = Mapping[str, Any]
"""JSON object as Nomad sends it."""
Output = Literal["stdout", "stderr"]
ODD: Final = (ValueError, KeyError, TypeError, AttributeError, RecursionError)
"""What reading something else than Nomad's words raises."""


@contextmanager
def readable(what: str) -> Iterator[None]:
    """`what` Nomad said is read within. Raises BackendRefused where it is not what Nomad says: of a proxy that answers
    itself, or another version."""
    try:
        yield
    except ODD as error:
        raise BackendRefused(
            f"what answers as Nomad to {what} says what Nomad does not: {type(error).__name__}: {str(error)[:100]}",
            "is NOMAD_ADDR (nomad.address) the address of a Nomad agent, and not of a proxy that answers itself?",
        ) from error


@dataclass(frozen=True, slots=True)
class Listing:
    """A whole list. What has a higher `index` than this happened after it was read."""

    items: tuple[Shape, ...]
    index: int


@dataclass(frozen=True, slots=True)
class Dispatched:
    """`repeated`: the token was used before, so this is the child of that time, alive or dead."""

    job: str
    repeated: bool
    index: int


@dataclass(frozen=True, slots=True)
class Frame:
    """Bytes of a log, none: a heartbeat, once a second while it is followed."""

    data: bytes
    offset: int = 0
    """Position after the data."""


class NomadApi:
    """Calls of one Nomad. Job ids are given as they are, with slashes. `region` empty: the agent's own."""

    def __init__(self, http: HttpClient, region: str = "") -> None:
        self.http = http
        self._region = region

    # --- reading -------------------------------------------------------------------------------------------------

    async def jobs(self, namespace: str = "*", *, filter: str = "", prefix: str = "") -> Listing:
        """Stubs with their Meta. `filter`: an expression over fields of the job."""
        return await self._list("/v1/jobs", {"namespace": namespace, "meta": True}, filter, prefix)

    async def job(self, job: str, namespace: str) -> Shape | None:
        """The whole specification; None: there is none."""
        return await self._found(f"/v1/job/{_id(job)}", {"namespace": namespace})

    async def allocations(self, namespace: str = "*", *, filter: str = "") -> Listing:
        """Stubs with `AllocatedResources`."""
        return await self._list("/v1/allocations", {"namespace": namespace, "resources": True}, filter)

    async def allocation(self, id: str, namespace: str) -> Shape | None:
        """Job included; None: there is none."""
        return await self._found(f"/v1/allocation/{_id(id)}", {"namespace": namespace})

    async def evaluations_of(self, job: str, namespace: str) -> Listing:
        """Of one job; an unknown job has none."""
        return await self._list(f"/v1/job/{_id(job)}/evaluations", {"namespace": namespace})

    async def allocations_of(self, job: str, namespace: str) -> Listing:
        """Stubs of one job, without resources."""
        return await self._list(f"/v1/job/{_id(job)}/allocations", {"namespace": namespace})

    async def evaluation(self, id: str, namespace: str) -> Shape | None:
        """None: there is none."""
        return await self._found(f"/v1/evaluation/{_id(id)}", {"namespace": namespace})

    async def nodes(self, *, filter: str = "") -> Listing:
        """Stubs with `NodeResources`."""
        return await self._list("/v1/nodes", {"resources": True}, filter)

    async def node(self, id: str) -> Shape | None:
        """None: there is none."""
        return await self._found(f"/v1/node/{_id(id)}", {})

    async def namespaces(self, prefix: str = "") -> tuple[str, ...]:
        """Names of those the token may see."""
        listing = await self._list("/v1/namespaces", {}, "", prefix)
        with readable("GET /v1/namespaces"):
            return tuple(str(item["Name"]) for item in listing.items)

    async def agent(self) -> Shape:
        """Configuration and statistics of the agent that is asked (needs agent read)."""
        return _object(await self._request("GET", "/v1/agent/self"), "GET /v1/agent/self")

    def stream(
        self, topics: tuple[str, ...], namespace: str, *, silence: float
    ) -> AbstractAsyncContextManager[aiohttp.ClientResponse]:
        """The head of the event stream from now on, its body without end. `silence`: seconds without a byte."""
        query = [("topic", f"{topic}:*") for topic in topics]
        path = "/v1/event/stream?" + "&".join(f"{name}={quote(value)}" for name, value in query)
        return self.http.open("GET", path, params=self._with({"namespace": namespace}), silence=silence)

    # --- changing ------------------------------------------------------------------------------------------------

    async def register(self, body: Shape, *, expect: int | None = None) -> Shape:
        """Register the job of {"Job", "Submission"}. `expect`: only if its JobModifyIndex is this; 0: only if there is
        none. Raises BackendConflict."""
        checked = {} if expect is None else {"EnforceIndex": True, "JobModifyIndex": expect}
        try:
            answer = await self._request("POST", "/v1/jobs", _namespace_of(body["Job"]), {**body, **checked})
        except ServerRefused as error:
            if error.text.startswith(CONFLICT):
                raise BackendConflict(error.message, error.hint) from error
            raise
        return _object(answer, "POST /v1/jobs")

    async def deregister(self, job: str, namespace: str, *, purge: bool = False, hurry: bool = False) -> None:
        """Stop the job and all its allocations; an unknown one is as good as stopped. `hurry`: without the delay before
        the signal."""
        params: Parameters = {"namespace": namespace, "purge": purge, "no_shutdown_delay": hurry}
        await self._request("DELETE", f"/v1/job/{_id(job)}", params, ok=(200, 404))

    async def dispatch(
        self, parent: str, namespace: str, body: Shape, *, token: str = "", limit: float = ANSWER_LIMIT
    ) -> Dispatched:
        """Start a child. The same idempotency token starts once."""
        params: Parameters = {"namespace": namespace} | ({"idempotency_token": token} if token else {})
        answer = await self._request("POST", f"/v1/job/{_id(parent)}/dispatch", params, body, limit=limit)
        found = _object(answer, "a dispatch")
        with readable("a dispatch"):
            return Dispatched(str(found["DispatchedJobID"]), not found.get("EvalID"), int(found.get("Index") or 0))

    async def plan(self, job: Shape, *, diff: bool = False) -> Shape:
        """What registering it would do; changes nothing."""
        params = _namespace_of(job)
        answer = await self._request("POST", f"/v1/job/{_id(str(job['ID']))}/plan", params, {"Job": job, "Diff": diff})
        return _object(answer, "a plan")

    async def validate(self, job: Shape) -> Shape:
        """{"Error", "ValidationErrors", "Warnings"} of a job that is not registered."""
        answer = await self._request("POST", "/v1/validate/job", _namespace_of(job), {"Job": job})
        return _object(answer, "POST /v1/validate/job")

    async def signal(self, allocation: str, task: str, signal: str, *, limit: float = ANSWER_LIMIT) -> None:
        """Send a task a signal, `SIGKILL`; refused with 500 while it does not run."""
        body = {"Task": task, "Signal": signal}
        await self._request("POST", f"/v1/client/allocation/{_id(allocation)}/signal", {}, body, limit=limit)

    # --- output --------------------------------------------------------------------------------------------------

    async def tail(self, allocation: str, task: str, stream: Output, size: int, *, limit: float) -> bytes:
        """The last `size` bytes of a task's output as far as the node has them."""
        params: Parameters = {"task": task, "type": stream, "plain": True, "origin": "end", "offset": size}
        return (await self._request("GET", f"/v1/client/fs/logs/{_id(allocation)}", params, limit=limit)).body

    async def follow(self, allocation: str, task: str, stream: Output, *, size: int) -> AsyncGenerator[Frame, None]:
        """From the last `size` bytes on, without end; a heartbeat each second."""
        params = self._with({"task": task, "type": stream, "follow": True, "origin": "end", "offset": size})
        path = f"/v1/client/fs/logs/{_id(allocation)}"
        decoder, rest = json.JSONDecoder(), ""
        async with self.http.open("GET", path, params=params, silence=LOG_SILENCE) as response:
            try:
                async for piece in response.content.iter_any():
                    rest += piece.decode("ascii")
                    while rest:
                        try:
                            found, end = decoder.raw_decode(rest)
                        except ValueError:  # not all of it has come
                            break
                        rest = rest[end:].lstrip()
                        yield Frame(base64.b64decode(found.get("Data") or ""), int(found.get("Offset") or 0))
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                what = str(error) or type(error).__name__
                raise BackendUnreachable(f"Nomad's log of allocation {allocation[:8]} ended early: {what}") from error

    # --- one request ---------------------------------------------------------------------------------------------

    def _with(self, params: Parameters) -> dict[str, str | int | bool]:
        return {**params, **({"region": self._region} if self._region else {})}

    async def _request(
        self,
        method: str,
        path: str,
        params: Parameters | None = None,
        data: Any = None,
        ok: tuple[int, ...] = (200,),
        *,
        limit: float = ANSWER_LIMIT,
    ) -> Answer:
        try:
            return await self.http.request(method, path, params=self._with(params or {}), data=data, ok=ok, limit=limit)
        except ServerRefused as error:
            if (missing := NO_NAMESPACE.search(error.text)) is not None:
                environment = environment_of(missing[1])
                error.hint = f"prepare the environment: modalnomad setup --env {environment}" if environment else None
            raise

    async def _found(self, path: str, params: Parameters) -> Shape | None:
        answer = await self._request("GET", path, params, ok=(200, 404))
        if answer.status == 404:
            return None
        return _object(answer, f"GET {path}")

    async def _list(self, path: str, params: Parameters, filter: str = "", prefix: str = "") -> Listing:
        """All pages. The index is the first page's: what changed while the others were read is told again by events."""
        asked: dict[str, str | int | bool] = {**params, "per_page": PAGE}
        if filter:
            asked["filter"] = filter
        if prefix:
            asked["prefix"] = prefix
        items: list[Shape] = []
        index = None
        while True:
            answer = await self._request("GET", path, asked)
            with readable(f"GET {path}"):
                items += [dict(item) for item in answer.json() or ()]
                index = int(answer.headers.get("X-Nomad-Index", 0)) if index is None else index
            following = answer.headers.get("X-Nomad-Nexttoken", "")
            if not following:
                return Listing(tuple(items), index)
            asked["next_token"] = following
            await asyncio.sleep(0)


def _object(answer: Answer, what: str) -> Shape:
    with readable(what):
        return dict(answer.json().items())


def _namespace_of(job: Shape) -> Parameters:
    return {"namespace": str(job.get("Namespace") or "default")}


def _id(text: str) -> str:
    return quote(text, safe="")
