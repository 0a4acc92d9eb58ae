"""`modalnomad app logs` on a cluster: from the nodes that replicas run on, or ran."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable
from contextlib import aclosing

from modalnomad.embedded.log_reader import Wanted
from modalnomad.model.replica import LogLine
from modalnomad.settings import Settings


def show_cluster_logs(
    settings: Settings, app: str, wanted: Wanted, show: Callable[[LogLine], str], *, follow: bool, tail: int | None
) -> None:
    """`tail`: the newest lines; None: all. Raises NotFound, BackendError."""
    from modalnomad.wiring.loop import run

    try:
        run(_show(settings, app, wanted, show, follow=follow, tail=tail))
    except KeyboardInterrupt:
        if not follow:
            raise


async def _show(
    settings: Settings, app: str, wanted: Wanted, show: Callable[[LogLine], str], *, follow: bool, tail: int | None
) -> None:
    from modalnomad.deploy.changing import no_such_app
    from modalnomad.wiring.cluster_running import cluster_logs
    from modalnomad.wiring.records import open_records

    async with open_records(settings) as records:
        if await records.discovery.app(app, settings.environment) is None:
            raise await no_such_app(records.discovery, app, settings.environment)
    newest: deque[LogLine] = deque(maxlen=tail)
    async with aclosing(cluster_logs(settings, app, follow=follow)) as lines:  # type: ignore[type-var]
        async for line in lines:
            if not _fits(wanted, line):
                continue
            if follow:
                sys.stdout.write(show(line))
                sys.stdout.flush()
            else:
                newest.append(line)
    for line in newest:
        sys.stdout.write(show(line))
    sys.stdout.flush()


def _fits(wanted: Wanted, line: LogLine) -> bool:
    in_time = (wanted.since is None or line.time >= wanted.since) and (
        wanted.until is None or line.time <= wanted.until
    )
    return in_time and wanted.fits(line)
