"""What every platform on this machine is made of: an engine, and a router in front of it."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from modalnomad_sdk.store import ImageStore

from modalnomad.deploy.succession import OrderedEngine
from modalnomad.embedded.artifacts import EmbeddedArtifacts
from modalnomad.embedded.engine import EmbeddedEngine, Known, WebUrls, nothing_known
from modalnomad.embedded.gpus import Gpus
from modalnomad.embedded.keys import platform_key
from modalnomad.embedded.secrets import EmbeddedSecrets
from modalnomad.kit.watch import Cell
from modalnomad.model.errors import UserCodeFailed
from modalnomad.model.ids import RevisionId
from modalnomad.model.replica import PoolKey, Replica
from modalnomad.model.revision import Revision
from modalnomad.ports.discovery import Discovery
from modalnomad.router.activator import StartFailed
from modalnomad.router.server import RouterServer
from modalnomad.settings import RouterSettings, Settings
from modalnomad.wiring.home import home_of, image_store
from modalnomad.wiring.tls import tls_context

if TYPE_CHECKING:
    from modalnomad.router.admin import Admin


@dataclass(frozen=True, slots=True)
class RouterPools:
    """What a reload asks of the router (`deploy.warming.Pools`)."""

    router: RouterServer

    @property
    def replicas(self) -> Cell[tuple[Replica, ...]]:
        """All replicas, with the router's knowledge of who is ready."""
        return self.router.replicas

    @property
    def led_to(self) -> frozenset[RevisionId]:
        """Revisions that requests wake now."""
        return self.router.activator.served

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
        """Return when these revisions are served."""
        await self.router.feed.routes_index.until(lambda _: revisions <= self.router.activator.served)


@dataclass(frozen=True, slots=True)
class Parts:
    """Built, not started: see `running`."""

    settings: Settings
    secrets: EmbeddedSecrets
    artifacts: EmbeddedArtifacts
    images: ImageStore
    embedded: EmbeddedEngine
    engine: OrderedEngine
    """The same, with the order of revisions that cannot live at once."""
    router: RouterServer
    pools: RouterPools
    admin: Admin | None
    """None: the settings want no admin listener."""

    def url(self, host: str) -> str:
        """Public address of a host name."""
        return address(host, self.router.port, tls=self.settings.router.tls_cert is not None)


def build(settings: Settings, discovery: Discovery, *, web_urls: WebUrls, known: Known = nothing_known) -> Parts:
    """`known`: revisions that are prepared when they are started, at the latest. Raises UserError, BackendError."""
    tls = tls_context(settings.router)
    key = platform_key(home_of(settings))
    secrets = EmbeddedSecrets(settings.home)
    artifacts = EmbeddedArtifacts(settings.home)
    store = image_store(settings)
    gpus = Gpus(settings.home)
    embedded = EmbeddedEngine(
        home=settings.home,
        settings=settings.embedded,
        scaling=settings.scaling,
        secrets=secrets,
        images=store,
        artifacts=artifacts,
        platform_key=key,
        web_urls=web_urls,
        known=known,
        gpus=gpus,
    )

    def apart(revision: Revision) -> bool:
        gpu = revision.function.resources.gpu
        return embedded.shares_port(revision) or bool(gpu and not gpus.free(gpu))

    engine = OrderedEngine(embedded, apart)
    router = RouterServer(
        engine=engine,
        discovery=discovery,
        settings=settings.router,
        scaling=settings.scaling,
        platform_key=key,
        tls=tls,
    )
    pools = RouterPools(router)
    return Parts(
        settings, secrets, artifacts, store, embedded, engine, router, pools, admin_of(router, settings.router)
    )


def admin_of(router: RouterServer, settings: RouterSettings) -> Admin | None:
    """The admin listener, where the settings want one; loads what makes metrics only then."""
    if settings.admin_port is None or not settings.admin_host:
        return None
    from modalnomad.router.admin import Admin

    return Admin(router, settings.admin_host, settings.admin_port)


@asynccontextmanager
async def running(parts: Parts, *, listen: bool = True) -> AsyncIterator[None]:
    """The engine open, the router listening (`listen` False: without a listener). Leaving it ends every replica at
    once; run `ending` before for an orderly end. Raises BackendError: port taken, home not writable."""
    try:
        with temporary_files_in(await parts.embedded.open()):
            try:
                # First come, last gone: readiness is seen to begin and to end.
                if parts.admin is not None:
                    await parts.admin.start()
                await parts.router.start(listen=listen)
                yield
            finally:
                await parts.router.stop(wait=False)
                if parts.admin is not None:
                    await parts.admin.close()
    finally:
        await parts.embedded.close()


@contextmanager
def temporary_files_in(folder: Path) -> Iterator[None]:
    """Temporary files of this process lie in `folder`, which goes with it also when it is killed."""
    before, tempfile.tempdir = tempfile.tempdir, str(folder)
    try:
        yield
    finally:
        tempfile.tempdir = before


def address(host: str, port: int, *, tls: bool) -> str:
    """`http[s]://host[:port]`."""
    scheme, usual = ("https", 443) if tls else ("http", 80)
    return f"{scheme}://{host}" if port == usual else f"{scheme}://{host}:{port}"
