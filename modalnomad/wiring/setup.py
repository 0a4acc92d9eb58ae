"""`setup`: a cluster is prepared, with nothing else of the platform loaded."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

from modalnomad.hashicorp.setup.platform import SERVERS, ServerName
from modalnomad.hashicorp.setup.run import set_up
from modalnomad.hashicorp.setup.steps import Step
from modalnomad.settings import Settings


async def prepare(
    settings: Settings, environments: Sequence[str], *, only: ServerName | None = None, dry: bool = False
) -> AsyncIterator[Step]:
    """Each step when it is done; what failed is a step too. `only`: this server. Raises UserError, before anything
    is done."""
    async for step in set_up(settings, environments, only=(only,) if only else SERVERS, dry=dry):
        yield step
