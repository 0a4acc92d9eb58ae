"""Requests and answers of the API: routes as Nomad matches them, blocking queries, filters and pages of lists."""

from __future__ import annotations

import asyncio
import json
import random
import re
import zlib
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from aiohttp import web

from tests.support.fakes.nomad.acl import DENIED, Rights
from tests.support.fakes.nomad.filters import compiled
from tests.support.fakes.nomad.state import Refused, Shape, State

WAIT: Final = 300.0
"""Seconds a blocking query lasts when it does not say."""
LONGEST: Final = 600.0
UNITS: Final = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


@dataclass(frozen=True)
class Ask:
    """One request. `path` is decoded, ids in it may hold slashes."""

    request: web.BaseRequest
    method: str
    path: str
    body: bytes
    rights: Rights
    secret: str
    parts: Mapping[str, str]
    """What the route's pattern named."""

    def query(self, name: str, default: str = "") -> str:
        """Of several, the first."""
        return self.request.query.get(name, default)

    def flag(self, name: str) -> bool:
        """`true`, or 1."""
        return self.query(name).lower() in {"true", "1", "t"}

    @property
    def namespace(self) -> str:
        """As asked for; `*`: all that may be seen."""
        return self.query("namespace") or "default"

    def json(self) -> dict[str, Any]:
        """The body. Raises Refused as Go's decoder does."""
        if not self.body.strip():
            raise Refused(400, "Request body is empty")
        try:
            found = json.loads(self.body)
        except ValueError as error:
            short = "Expecting" in str(error) or "Unterminated" in str(error)
            raise Refused(400, "unexpected EOF" if short else "invalid character") from None
        return found if isinstance(found, dict) else {}

    def must(self, capability: str, namespace: str | None = None) -> None:
        """Raises Refused: the token has no such capability in the namespace."""
        if not self.rights.can(capability, self.namespace if namespace is None else namespace):
            raise DENIED

    def must_read(self, what: str) -> None:
        """`node`, `agent`, `operator`."""
        if not self.rights.may_read(what):
            raise DENIED

    def must_manage(self) -> None:
        """Only a management token may."""
        if not self.rights.management:
            raise DENIED

    def visible(self, capability: str) -> Callable[[str], bool]:
        """Which namespaces a list shows. Raises Refused: none."""
        wanted = self.namespace
        self.must(capability, wanted)
        if wanted == "*":
            return lambda namespace: self.rights.can(capability, namespace)
        return lambda namespace: namespace == wanted


Handler = Callable[[Ask], Awaitable[web.StreamResponse]]
Read = Callable[[], tuple[int, Any]]
"""Index and answer as they are now; Refused as the answer: that, with the index."""


def answer(
    ask: Ask, data: Any, index: int | None = None, *, read: bool = False, more: Mapping[str, str] | None = None
) -> web.Response:
    """A JSON answer; None: no body. `read`: with the headers of a read."""
    headers = {**(more or {}), "Vary": "Accept-Encoding"}
    if index is not None:
        headers["X-Nomad-Index"] = str(index)
    if read:
        headers |= {"X-Nomad-Knownleader": "true", "X-Nomad-Lastcontact": "0"}
    body = b"" if data is None else json.dumps(data, separators=(",", ":"), sort_keys=True).encode()
    if body:
        headers["Content-Type"] = "application/json"
        if "gzip" in ask.request.headers.get("Accept-Encoding", ""):
            packer = zlib.compressobj(1, wbits=31)
            body = packer.compress(body) + packer.flush()
            headers["Content-Encoding"] = "gzip"
    return web.Response(status=200, body=body, headers=headers)


def refusal(refused: Refused, index: int | None = None) -> web.Response:
    """Its text, bare; reads that found nothing tell the index."""
    headers = {"Content-Type": "text/plain; charset=utf-8"}
    if index is not None:
        headers |= {"X-Nomad-Index": str(index), "X-Nomad-Knownleader": "true", "X-Nomad-Lastcontact": "0"}
    return web.Response(status=refused.status, body=refused.text.encode(), headers=headers)


async def blocking(ask: Ask, state: State, read: Read, more: Mapping[str, str] | None = None) -> web.Response:
    """The answer of a read, at once or when it has an index above `index`."""
    try:
        since = int(ask.query("index") or 0)
    except ValueError:
        raise Refused(400, "Invalid index") from None
    wait = min(duration(ask.query("wait")) or WAIT, LONGEST) if ask.query("wait") else WAIT
    index, data = read()
    if since > 0 and index <= since:
        wait += random.random() * wait / 16
        try:
            async with asyncio.timeout(wait):
                while index <= since:
                    await state.changed()
                    index, data = read()
        except TimeoutError:
            pass
    if isinstance(data, Refused):
        return refusal(data, index)
    if isinstance(data, Page):
        return answer(ask, data.items, index, read=True, more=data.headers)
    return answer(ask, data, index, read=True, more=more)


def duration(text: str) -> float:
    """`5s`, `1m30s`. Raises Refused."""
    found = re.findall(r"(\d+(?:\.\d+)?)(ns|us|µs|ms|s|m|h)", text)
    if not found or "".join(number + unit for number, unit in found) != text:
        raise Refused(400, "Invalid wait time")
    return sum(float(number) * UNITS[unit] for number, unit in found)


@dataclass(frozen=True, slots=True)
class Page:
    """Entries of a list, and the header that leads to the next ones."""

    items: list[Any]
    headers: Mapping[str, str]


def page(
    ask: Ask,
    items: Iterable[Shape],
    token: Callable[[Shape], str],
    shown: Callable[[Shape], Any],
    *,
    tested: Callable[[Shape], Shape] = lambda item: item,
) -> Page:
    """`filter`, `reverse`, `next_token` and `per_page` of a list. `tested`: what a filter sees. Raises Refused."""
    test = compiled(ask.query("filter")) if ask.query("filter") else None
    sequence = sorted(items, key=token, reverse=ask.flag("reverse"))
    after = ask.query("next_token")
    try:
        size = int(ask.query("per_page") or 0)
    except ValueError:
        raise Refused(400, "Invalid per_page") from None
    found: list[Any] = []
    for item in sequence:
        name = token(item)
        if after and (name > after if ask.flag("reverse") else name < after):
            continue
        if test is not None and not test(tested(item)):
            continue
        if size and len(found) == size:
            return Page(found, {"X-Nomad-Nexttoken": name})
        found.append(shown(item))
    return Page(found, {})


class Routes:
    """Patterns are tried in order; one that fits with another method is a 405."""

    def __init__(self) -> None:
        self._routes: list[tuple[frozenset[str], re.Pattern[str], Handler]] = []

    def add(self, methods: str, pattern: str, handler: Handler) -> None:
        """`methods`: `GET`, `PUT POST`."""
        self._routes.append((frozenset(methods.split()), re.compile(pattern), handler))

    def find(self, method: str, path: str) -> tuple[Handler, Mapping[str, str]]:
        """Raises Refused."""
        fits = False
        for methods, pattern, handler in self._routes:
            match = pattern.fullmatch(path)
            if match is not None and method in methods:
                return handler, match.groupdict()
            fits = fits or match is not None
        raise Refused(405, "Invalid method") if fits else Refused(404, "")
