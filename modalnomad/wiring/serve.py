"""The parts of `serve`: a router with an engine behind it, for Apps that live as long as this process."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from modalnomad.deploy.build import Builder
from modalnomad.deploy.bundle import pack
from modalnomad.deploy.hosts import Naming, name_function
from modalnomad.deploy.images import Images
from modalnomad.deploy.succession import OrderedEngine
from modalnomad.embedded.artifacts import EmbeddedArtifacts
from modalnomad.embedded.discovery import EphemeralDiscovery
from modalnomad.embedded.engine import EmbeddedEngine
from modalnomad.embedded.gpus import Gpus
from modalnomad.embedded.keys import platform_key
from modalnomad.embedded.secrets import EmbeddedSecrets
from modalnomad.kit.watch import Cell
from modalnomad.model.errors import UserCodeFailed
from modalnomad.model.ids import RevisionId
from modalnomad.model.replica import PoolKey, Replica
from modalnomad.model.revision import Revision
from modalnomad.ports.discovery import Discovery
from modalnomad.ports.engine import Engine
from modalnomad.router.activator import StartFailed
from modalnomad.router.server import RouterServer
from modalnomad.settings import Settings
from modalnomad.wiring.ending import Ending
from modalnomad.wiring.records import image_store
from modalnomad.wiring.tls import tls_context


@dataclass(frozen=True, slots=True)
class RouterPools:
    """What a reload asks of the router (`deploy.warming.Pools`)."""

    router: RouterServer

    @property
    def replicas(self) -> Cell[tuple[Replica, ...]]:
        """All replicas, with the router's knowledge of who is ready."""
        return self.router.replicas

    async def warm(self, revision: Revision, key: PoolKey, count: int) -> None:
        """Return when that many are ready. Raises UserCodeFailed with the replica's last output."""
        try:
            await self.router.activator.warm(revision, key, count)
        except StartFailed as error:
            failure = error.failure
            raise UserCodeFailed(
                f"{revision.app}/{revision.function.tag} does not start: {failure.reason}", failure.detail
            ) from error

    async def retire(self, revision: RevisionId) -> None:
        """Drain all replicas of the revision."""
        await self.router.activator.retire(revision)

    async def routed(self, revisions: frozenset[RevisionId]) -> None:
        """Return when requests are led to these revisions."""
        table = self.router.router
        await self.router.feed.routes_index.until(
            lambda _: revisions <= {match.revision.id for match in table.table.matches()}
        )


@dataclass(slots=True)
class ServeParts:
    """A router with an engine behind it, for Apps that live as long as this process."""

    settings: Settings
    naming: Naming
    engine: Engine
    discovery: Discovery
    builder: Builder
    router: RouterServer
    pools: RouterPools
    succession: OrderedEngine
    revisions: dict[RevisionId, Revision] = field(default_factory=dict)
    """All that were ever published."""

    def url(self, host: str) -> str:
        """Public address of a host name."""
        return address(host, self.router.port, tls=self.settings.router.tls_cert is not None)

    def ending(self) -> Ending:
        """The orderly end of everything that was published."""
        return Ending(self.router, self.pools, self.revisions, self.settings)


@asynccontextmanager
async def open_serve(settings: Settings) -> AsyncIterator[ServeParts]:
    """The parts of `serve`, the router listening. Leaving it ends every replica at once; run `ending` before for an
    orderly end. Raises BackendError: port taken, home not writable."""
    tls = tls_context(settings.router)
    key = platform_key(settings.home)
    secrets = EmbeddedSecrets(settings.home)
    artifacts = EmbeddedArtifacts(settings.home)
    discovery = EphemeralDiscovery(settings.home)
    store = image_store(settings)
    gpus = Gpus(settings.home)
    naming = Naming(settings.router.domain, settings.router.workspace, settings.environment)
    port = 0

    def web_urls(revision: Revision) -> Mapping[str, str]:
        return urls_of(revision, naming, port, tls=tls is not None)

    embedded = EmbeddedEngine(
        home=settings.home,
        settings=settings.embedded,
        scaling=settings.scaling,
        secrets=secrets,
        images=store,
        artifacts=artifacts,
        platform_key=key,
        web_urls=web_urls,
        gpus=gpus,
    )

    def apart(revision: Revision) -> bool:
        gpu = revision.function.resources.gpu
        return embedded.shares_port(revision) or bool(gpu and not gpus.free(gpu))

    engine = OrderedEngine(embedded, apart)
    builder = Builder(
        engine=engine,
        secrets=secrets,
        images=Images(store, lambda refs: secrets.resolve(refs, settings.environment)),
        bundles=lambda description, functions: pack(description, functions, artifacts),
        naming=naming,
        ephemeral=True,
    )
    router = RouterServer(
        engine=engine,
        discovery=discovery,
        settings=settings.router,
        scaling=settings.scaling,
        platform_key=key,
        tls=tls,
    )
    try:
        with temporary_files_in(await embedded.open()):
            await router.start()
            port = router.port
            try:
                yield ServeParts(settings, naming, engine, discovery, builder, router, RouterPools(router), engine)
            finally:
                await router.stop(wait=False)
    finally:
        await embedded.close()


@contextmanager
def temporary_files_in(folder: Path) -> Iterator[None]:
    """Temporary files of this process lie in `folder`, which goes with it also when it is killed."""
    before, tempfile.tempdir = tempfile.tempdir, str(folder)
    try:
        yield
    finally:
        tempfile.tempdir = before


def urls_of(revision: Revision, naming: Naming, port: int, *, tls: bool) -> Mapping[str, str]:
    """Endpoint name → public URL, as the Function's own `get_web_url` is to say it."""
    return {
        named.endpoint.name: address(named.hosts[0], port, tls=tls)
        for named in name_function(revision.function, revision.app, naming, ephemeral=True)[0]
    }


def address(host: str, port: int, *, tls: bool) -> str:
    """`http[s]://host[:port]`."""
    scheme, usual = ("https", 443) if tls else ("http", 80)
    return f"{scheme}://{host}" if port == usual else f"{scheme}://{host}:{port}"
