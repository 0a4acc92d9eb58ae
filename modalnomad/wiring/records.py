"""What commands need that only read or write records. Importing it loads no router and no engine."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from modalnomad.embedded.discovery import EmbeddedDiscovery
from modalnomad.embedded.environments import EnvironmentInfo
from modalnomad.embedded.environments import environments as environments_of
from modalnomad.embedded.secrets import EmbeddedSecrets
from modalnomad.ports.discovery import Discovery
from modalnomad.ports.secrets import Secrets
from modalnomad.settings import Settings
from modalnomad.wiring.home import home_of

if TYPE_CHECKING:
    from modalnomad.wiring.pruning import Pruned

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Records:
    """Secrets and everything else that is written down."""

    secrets: Secrets
    discovery: Discovery


@asynccontextmanager
async def open_records(settings: Settings) -> AsyncIterator[Records]:
    """Of the back end in use; starts nothing, and asks no server before something is asked of it. Raises
    BackendRefused, see `home_of`."""
    if settings.backend == "hashicorp":
        from modalnomad.wiring.cluster import open_cluster

        async with open_cluster(settings) as cluster:
            yield Records(cluster.secrets, cluster.discovery)
    else:
        home = home_of(settings)
        yield Records(EmbeddedSecrets(home), EmbeddedDiscovery(home))


async def with_records(settings: Settings, work: Callable[[Records], Awaitable[T]]) -> T:
    """What `work` makes of them. Raises as `open_records` and `work`."""
    async with open_records(settings) as records:
        return await work(records)


async def environments(settings: Settings) -> tuple[EnvironmentInfo, ...]:
    """Those of this home, or of the cluster. Raises BackendError."""
    if settings.backend == "hashicorp":
        from modalnomad.wiring.cluster_running import cluster_environments

        return await cluster_environments(settings)
    return environments_of(home_of(settings))


async def prune(settings: Settings) -> Pruned:
    """Remove what goes by the rules (docs/operate/home.md), without asking: after each deploy. Never raises for what
    cannot be looked at or removed: that stands in `problems`."""
    from modalnomad.wiring.prune import prune as prune_home

    return await prune_home(settings)
