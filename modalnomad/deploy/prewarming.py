"""Environments made on the machines that will run them before anything is switched over, so that no request waits for
that. What cannot be made ahead is told and made by the first replica: it keeps no deploy from going on."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from modalnomad.deploy.report import Report
from modalnomad.model.errors import BackendError
from modalnomad.model.manifest import Notice
from modalnomad.model.revision import BuiltImage, Revision

LIMIT: Final = 900.0
"""Seconds for one image on all machines."""

Told = Callable[[int, int], None]
"""Machines that are done, and all of them."""
Prewarm = Callable[[Revision, Told], Awaitable[int]]
"""Make a revision's environment everywhere; on how many machines. Raises BackendError naming those that failed."""


async def prewarm_all(revisions: Sequence[Revision], prewarm: Prewarm, report: Report, *, limit: float = LIMIT) -> None:
    """Each distinct image once, one after the other."""
    by_image: dict[BuiltImage, list[Revision]] = {}
    for revision in revisions:
        by_image.setdefault(revision.image, []).append(revision)
    for same in by_image.values():
        await _one(same, prewarm, report, limit)


async def _one(same: Sequence[Revision], prewarm: Prewarm, report: Report, limit: float) -> None:
    names = ", ".join(revision.function.tag for revision in same)
    said = (-1, -1)

    def told(done: int, total: int) -> None:
        nonlocal said
        if total and (done, total) != said:
            said = (done, total)
            report.progress(f"The environment of {names} is ready on {done} of {total} nodes")

    report.progress(f"Making the environment of {names} on all nodes")
    try:
        async with asyncio.timeout(limit):
            count = await prewarm(same[0], told)
    except TimeoutError:
        why = f"it took longer than {limit:g} s on some nodes"
    except BackendError as error:
        why = f"{error.message} ({error.hint})" if error.hint else error.message
    else:
        report.progress(f"The environment of {names} is on {count} node{'' if count == 1 else 's'}")
        return
    message = f"the environment of {names} is not on all nodes, where the first replica has to make it: {why}"
    report.notice(same[0].app, Notice(code="not_prewarmed", message=message, where=same[0].function.where))
