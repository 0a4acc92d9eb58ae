"""The programs of one `serve`: built, published, watched, told about, and taken away."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

from modalnomad.cli.lines_told import LinesTold
from modalnomad.cli.replicas_told import ReplicasTold
from modalnomad.cli.serve_view import ServeView, Shown
from modalnomad.deploy.collect import Reference
from modalnomad.deploy.plan import Plan, check_together
from modalnomad.deploy.session import Platform, Session
from modalnomad.kit.tasks import Tasks
from modalnomad.model.ids import RevisionId
from modalnomad.model.replica import LogLine
from modalnomad.wiring.death import Death
from modalnomad.wiring.serve import ServeParts

HELD_LINES = 1000
"""Lines kept of a revision that may never be served."""
HELD_REVISIONS = 20
"""Such revisions whose lines are kept."""


class Serving:
    """Owns the sessions and the tasks that follow replicas and their output."""

    def __init__(self, parts: ServeParts, view: ServeView) -> None:
        self._parts = parts
        self._view = view
        self._lines = LinesTold(parts.engine, view)
        self._sessions: list[Session] = []
        self._death = Death("serve")
        self._tasks = Tasks("serve", self._death.of)
        self._started = False
        self._shown: dict[str, Shown] = {}
        """Host → what was told of it."""
        self._held: dict[RevisionId, deque[LogLine]] = {}

    async def start(self, references: Sequence[Reference], name: str | None) -> None:
        """Build every program, then publish all and say where they are. Raises ModalNomadError."""
        parts = self._parts
        platform = Platform(
            builder=parts.builder,
            engine=parts.engine,
            discovery=parts.discovery,
            pools=parts.pools,
            succession=parts.succession,
            report=self._view,
        )
        plans: dict[Reference, Plan] = {}
        for reference in references:
            session = Session(
                reference, platform, name=name, check=self._checker(plans, reference), on_published=self._published
            )
            self._sessions.append(session)
            await session.build()
        self._tasks.guard(self._lines.follow(self._served), "logs")
        self._tasks.guard(self._follow_replicas(), "replicas")
        for session in self._sessions:
            await session.publish()
        self._started = True
        await self._published()
        self._view.ready(sorted({path for session in self._sessions for path in session.watched}))

    @staticmethod
    def _checker(plans: dict[Reference, Plan], reference: Reference) -> Callable[[Plan], None]:
        def check(plan: Plan) -> None:
            check_together((*(other for key, other in plans.items() if key != reference), plan))
            plans[reference] = plan

        return check

    async def watch(self) -> None:
        """Reload until cancelled. Raises BackendError when a part of the platform died."""
        for session in self._sessions:
            self._tasks.guard(session.run(), "reload")
        self._tasks.spawn(self._death.watch("router", self._parts.router.died), "router")
        await self._death.wait()

    async def stop(self) -> None:
        """The orderly end: no more reloads, requests finished, replicas drained."""
        ending = self._parts.ending()
        self._view.stopping(ending.under_way(), ending.limit)
        for session in self._sessions:
            await session.close()
        await ending.run(self._view.progress)

    async def _published(self) -> None:
        """After a publication: ports of new endpoints open, ports of gone ones close, changes are told."""
        parts = self._parts
        for session in self._sessions:
            for revision in session.current.revisions:
                parts.revisions[revision.id] = revision
                for line in self._held.pop(revision.id, ()):
                    self._lines.tell(line)
        if not self._started:
            return
        wanted: dict[str, Shown] = {}
        for session in self._sessions:
            plan = session.current.plan
            for named in plan.named:
                host = named.hosts[0]
                port = await parts.router.direct_port(host)
                urls = tuple(parts.url(custom) for custom in named.hosts[1:])
                wanted[host] = Shown(
                    plan.app,
                    named.endpoint,
                    named.label,
                    parts.url(host),
                    f"http://127.0.0.1:{port}",
                    urls,
                    plan.environment,
                )
        for host in self._shown.keys() - wanted.keys():
            await parts.router.close_direct(host)
        told, self._shown = self._shown, wanted
        for host, shown in wanted.items():
            if host not in told or not shown.looks_like(told[host]):
                self._view.endpoint(shown)

    def _served(self, line: LogLine) -> bool:
        """Held otherwise: it was started on a guess, or before its routes flip, and is shown when it is served."""
        revision = RevisionId(line.replica[:32])
        if revision in self._parts.revisions:
            return True
        self._held.setdefault(revision, deque(maxlen=HELD_LINES)).append(line)
        while len(self._held) > HELD_REVISIONS:
            del self._held[next(iter(self._held))]
        return False

    async def _follow_replicas(self) -> None:
        await ReplicasTold(self._view, self._parts.revisions.get).follow(self._parts.pools.replicas.watch())

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for session in self._sessions:
            await session.close()
        await self._lines.caught_up()
        await self._tasks.close()
        self._death.close()
