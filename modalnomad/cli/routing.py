"""What happens under one `router`, told as it happens."""

from __future__ import annotations

from contextlib import aclosing
from types import TracebackType
from typing import Self

from modalnomad.cli.endpoints_told import EndpointsTold
from modalnomad.cli.lines_told import told_all
from modalnomad.cli.replicas_told import ReplicasTold
from modalnomad.cli.serve_view import Shown
from modalnomad.cli.up_view import UpView
from modalnomad.deploy.hosts import label_of
from modalnomad.kit.tasks import Tasks
from modalnomad.model.ids import RevisionId
from modalnomad.model.revision import Revision
from modalnomad.router.table import Match
from modalnomad.wiring.routing import RouterParts


class Routing:
    """Owns the tasks that follow endpoints and replicas."""

    def __init__(self, parts: RouterParts, view: UpView) -> None:
        self._parts = parts
        self._view = view
        self._tasks = Tasks("told", parts.death.of)
        self._endpoints = EndpointsTold(view)

    async def start(self) -> None:
        """Tell all endpoints, then that they are served."""
        parts = self._parts
        told = ReplicasTold(self._view, self._revision, since=parts.started_at)
        self._tasks.guard(told.follow(parts.router.replicas.watch()), "replicas")
        await parts.router.feed.routes_index.until(lambda index: index >= 0)
        endpoints = self._tell_endpoints()
        admin = parts.admin
        self._view.up(
            parts.url(parts.settings.router.domain),
            f"the Apps of {parts.settings.nomad.address}",
            endpoints,
            admin.url if admin is not None else None,
        )

    async def watch(self) -> None:
        """Until cancelled. Raises BackendError when a part of the router died."""
        self._tasks.guard(self._follow(), "served")
        await self._parts.death.wait()

    async def stop(self) -> None:
        """Requests are finished; replicas stay, for other routers or the next one."""
        router = self._parts.router
        under_way: dict[str, int] = {}
        for match in router.router.table.matches():
            load = router.load(match.revision.id)
            if requests := load.running + load.waiting:
                under_way[f"{match.route.app}/{match.revision.function.tag}"] = requests
        limits = self._parts.settings.router
        self._view.stopping(under_way, limits.drain_delay + limits.drain_timeout)
        await router.drain()
        await told_all()

    async def _follow(self) -> None:
        async with aclosing(self._parts.router.feed.routes_index.watch()) as changes:  # type: ignore[type-var]
            async for _ in changes:
                self._tell_endpoints()

    def _revision(self, id: RevisionId) -> Revision | None:
        return self._parts.discovery.latest.revisions.get(id)

    def _tell_endpoints(self) -> int:
        """How many there are."""
        matches = {match.route.hosts[0]: match for match in self._parts.router.router.table.matches()}
        self._endpoints.tell({host: self._shown(host, match) for host, match in matches.items()})
        return len(matches)

    def _shown(self, host: str, match: Match) -> Shown:
        route = match.route
        label, _ = label_of(route.endpoint, route.app, ephemeral=False)
        urls = tuple(self._parts.url(custom) for custom in route.hosts[1:])
        return Shown(route.app, route.endpoint, label, self._parts.url(host), "", urls, route.environment)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await told_all()
        await self._tasks.close()
