"""`setup`: a cluster is prepared, with nothing else of the platform loaded."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

from modalnomad.hashicorp.setup.key import change_key as change_key
from modalnomad.hashicorp.setup.platform import SERVERS, ServerName
from modalnomad.hashicorp.setup.run import set_up
from modalnomad.hashicorp.setup.steps import Step
from modalnomad.settings import Settings


async def prepare(
    settings: Settings,
    environments: Sequence[str],
    *,
    router_job: str | None = None,
    only: ServerName | None = None,
    dry: bool = False,
) -> AsyncIterator[Step]:
    """Each step when it is done; what failed is a step too. `router_job`: the namespace for routers as a job.
    `only`: this server. Raises UserError, before anything is done."""
    servers = (only,) if only else SERVERS
    async for step in set_up(settings, environments, router_job=router_job, only=servers, dry=dry):
        yield step
