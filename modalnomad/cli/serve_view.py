"""What `serve` tells, whichever way it is shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from modalnomad.deploy.report import Report
from modalnomad.model.ids import DEFAULT_ENVIRONMENT
from modalnomad.model.manifest import Endpoint
from modalnomad.model.replica import LogLine, Replica
from modalnomad.model.revision import Revision


@dataclass(frozen=True, slots=True)
class Shown:
    """One endpoint as it is shown."""

    app: str
    endpoint: Endpoint
    label: str
    url: str
    direct_url: str
    """The same through a port of its own on 127.0.0.1: any client reaches it."""
    custom_urls: tuple[str, ...] = ()
    environment: str = DEFAULT_ENVIRONMENT

    def looks_like(self, other: Shown) -> bool:
        """Nobody who is shown both sees a difference: an endpoint that only moved in its file is the same."""
        return self._seen() == other._seen()

    def _seen(self) -> Shown:
        return replace(self, endpoint=self.endpoint.model_copy(update={"where": ""}))


class ServeView(Report, Protocol):
    """One of `TextView` and `JsonView`."""

    def endpoint(self, shown: Shown) -> None:
        """An endpoint is served, newly or under another URL."""

    def ready(self, watched: Sequence[str]) -> None:
        """All endpoints are served; these files and folders are watched."""

    def replica(self, revision: Revision, replica: Replica) -> None:
        """A replica's state changed."""

    def log(self, line: LogLine, number: str) -> None:
        """A replica wrote a line. `number`: its place in its pool."""

    async def room(self) -> None:
        """Return when there is room for one more of many lines."""

    def stopping(self, requests: Mapping[str, int], seconds: float) -> None:
        """The orderly end has begun and takes `seconds` at most. `requests`: function → how many are waited for."""
