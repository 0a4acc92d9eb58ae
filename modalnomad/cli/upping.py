"""What happens under one `up`, told as it happens."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import aclosing
from types import TracebackType
from typing import Self

from modalnomad.cli.endpoints_told import EndpointsTold
from modalnomad.cli.lines_told import LinesTold
from modalnomad.cli.replicas_told import ReplicasTold
from modalnomad.cli.serve_view import Shown
from modalnomad.cli.up_view import UpView
from modalnomad.kit.tasks import Tasks
from modalnomad.model.errors import BackendError
from modalnomad.model.ids import RevisionId
from modalnomad.wiring.following import Served, ServedEndpoint
from modalnomad.wiring.up import UpParts

Functions = Mapping[tuple[str, str], Mapping[str, RevisionId]]
"""(environment, App) → function tag → revision."""


class Upping:
    """Owns the tasks that follow endpoints, replicas and their output."""

    def __init__(self, parts: UpParts, view: UpView, *, quiet: bool) -> None:
        """`quiet`: lines that replicas write are not told."""
        self._parts = parts
        self._view = view
        self._quiet = quiet
        self._lines = LinesTold(parts.engine, view)
        self._tasks = Tasks("told", parts.death.of)
        self._endpoints = EndpointsTold(view)
        self._functions: Functions = {}

    async def start(self) -> None:
        """Tell all endpoints, then that they are served."""
        if not self._quiet:
            self._tasks.guard(self._lines.follow(), "logs")
        told = ReplicasTold(self._view, self._parts.revisions.find)
        self._tasks.guard(told.follow(self._parts.pools.replicas.watch()), "replicas")
        served = await self._parts.following.served.until(lambda served: served is not None)
        assert served is not None
        self._functions = _functions(served)
        self._tell_endpoints(served)
        parts = self._parts
        admin = parts.parts.admin
        self._view.up(
            parts.url(parts.settings.router.domain),
            str(parts.settings.home),
            len(served.endpoints),
            admin.url if admin is not None else None,
        )

    async def watch(self) -> None:
        """Until cancelled. Raises BackendError when a part of the platform died."""
        self._tasks.guard(self._follow_served(), "served")
        await self._parts.death.wait()

    async def stop(self) -> None:
        """The orderly end: deploys told, requests finished, replicas drained."""
        ending = self._parts.ending()
        self._view.stopping(ending.under_way(), ending.limit)
        await self._parts.control.stop()
        await ending.run(self._view.progress)

    async def _follow_served(self) -> None:
        async with aclosing(self._parts.following.served.watch()) as changes:  # type: ignore[type-var]
            async for served in changes:
                if served is not None:
                    self._tell_endpoints(served)
                    await self._tell_versions(_functions(served))

    def _tell_endpoints(self, served: Served) -> None:
        self._endpoints.tell({host: _shown(endpoint) for host, endpoint in served.endpoints.items()})

    async def _tell_versions(self, functions: Functions) -> None:
        before, self._functions = self._functions, functions
        for (environment, app), revisions in functions.items():
            old = before.get((environment, app), {})
            if revisions != old:
                changed = tuple(tag for tag, revision in revisions.items() if old.get(tag) != revision)
                try:
                    record = await self._parts.discovery.app(app, environment)
                except BackendError:
                    record = None
                self._view.version(environment, app, changed, record.version if record else None)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._lines.caught_up()
        await self._tasks.close()


def _functions(served: Served) -> Functions:
    found: dict[tuple[str, str], dict[str, RevisionId]] = {}
    for revision in served.snapshot.revisions.values():
        found.setdefault((revision.environment, revision.app), {})[revision.function.tag] = revision.id
    return found


def _shown(served: ServedEndpoint) -> Shown:
    return Shown(
        served.app,
        served.endpoint,
        served.label,
        served.url,
        served.direct_url,
        served.custom_urls,
        served.environment,
    )
