"""The engine of this machine: every replica a child process, nothing left behind."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Protocol, Self, TypeVar
from weakref import WeakValueDictionary

from modalnomad_sdk import contract

from modalnomad.embedded.bundles import Bundles
from modalnomad.embedded.effects import without_effect
from modalnomad.embedded.gpus import Gpus
from modalnomad.embedded.life import Life, Prepared, SecretValues, Tools
from modalnomad.embedded.limits import Limits
from modalnomad.embedded.logs import Journal, Origin
from modalnomad.embedded.network import Network
from modalnomad.embedded.runs import Run
from modalnomad.embedded.store import refused, translated
from modalnomad.embedded.templates import START_AFTER, Templates
from modalnomad.kit.tasks import Tasks
from modalnomad.kit.watch import Cell
from modalnomad.model.errors import BackendRefused, ModalNomadError, NotFound
from modalnomad.model.ids import Digest, RevisionId
from modalnomad.model.manifest import Function, Notice
from modalnomad.model.replica import Failure, LogLine, Replica, ReplicaKey
from modalnomad.model.revision import Revision
from modalnomad.ports.artifacts import Artifacts
from modalnomad.ports.engine import Engine, Verdict
from modalnomad.render.environment import contract_environment
from modalnomad.settings import EmbeddedSettings, ScalingSettings

T = TypeVar("T")

ENDED_KEPT: Final = 75.0
"""Seconds an ended replica stays in the snapshots, with its output."""
COMPILE_AFTER: Final = 2.0
"""Seconds after which a new bundle is byte-compiled: not while its first replica starts."""
RUNNER: Final = Path(contract.__file__).parent / "runner" / "__main__.py"

WebUrls = Callable[[Revision], Mapping[str, str]]
"""Endpoint name → public URL."""
Known = Callable[[RevisionId], Revision | None]
"""A revision by its id, for one that is to be started and was not prepared."""


def nothing_known(revision: RevisionId) -> None:
    """What was not prepared cannot be started."""


class ImageStore(Protocol):
    """Where the environments are (`modalnomad_sdk.store.ImageStore`)."""

    def path(self, digest: str) -> Path | None:
        """The environment's folder, None when it is not (completely) built."""


class EmbeddedEngine(Engine):
    """Port `Engine` on child processes. `close` ends them all; if this process is killed, they end by themselves."""

    def __init__(
        self,
        *,
        home: Path,
        settings: EmbeddedSettings,
        scaling: ScalingSettings,
        secrets: SecretValues,
        images: ImageStore,
        artifacts: Artifacts,
        platform_key: bytes,
        web_urls: WebUrls = lambda revision: {},
        known: Known = nothing_known,
        inherited: Mapping[str, str] | None = None,
        runner: Path = RUNNER,
        gpus: Gpus | None = None,
        ended_kept: float = ENDED_KEPT,
        template_after: float = START_AFTER,
        compile_after: float = COMPILE_AFTER,
    ) -> None:
        self._home = home
        self._settings = settings
        self._scaling = scaling
        self._secrets = secrets
        self._images = images
        self._platform_key = platform_key
        self._web_urls = web_urls
        self._known = known
        self._inherited = dict(os.environ if inherited is None else inherited)
        self._runner = runner
        self._gpus = gpus or Gpus(home)
        self._ended_kept = ended_kept
        self._template_after = template_after
        self._compile_after = compile_after
        self._bundles = Bundles(home, artifacts)
        self._journal = Journal(settings.log_lines)
        self._tasks = Tasks("engine")
        self._prepared: dict[RevisionId, Prepared] = {}
        self._changes: set[asyncio.Task[Any]] = set()
        self._changing: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        """Revision → held while it is prepared or retired."""
        self._compiling = asyncio.Semaphore(1)
        self._opening = asyncio.Lock()
        self._tools: Tools | None = None
        self._network = Network(settings.network)
        self._limits = Limits(settings.limits, settings.max_processes)
        self._lives: dict[ReplicaKey, Life] = {}
        self._forgetting: dict[ReplicaKey, asyncio.TimerHandle] = {}
        self._started = 0
        self._replicas: Cell[tuple[Replica, ...]] = Cell(())
        self._closed = False

    async def open(self) -> Path:
        """Make the engine's run; other calls do it by themselves. Returns a folder for temporary files that is removed
        however this process ends. Raises BackendRefused."""
        with translated(f"write to {self._home}"):
            return (await self._open()).run.scratch

    # --- revisions -------------------------------------------------------------------------------------------

    async def prepare(self, revision: Revision) -> None:
        """Make the revision startable: bundle unpacked, image present. Idempotent. Raises BackendError, NotFound."""
        if self._closed:
            raise BackendRefused("the engine is closed")
        if (error := await self._to_its_end(self._prepare(revision), f"prepare {revision.id}")) is not None:
            raise error

    async def _to_its_end(self, work: Coroutine[Any, Any, T], name: str) -> T:
        """In a task of our own: a caller that gives up must not leave a folder locked that nobody frees."""
        task = self._tasks.spawn(work, name)
        self._changes.add(task)
        task.add_done_callback(self._changes.discard)
        return await asyncio.shield(task)

    async def _prepare(self, revision: Revision) -> ModalNomadError | None:
        async with self._change_of(revision.id):
            return await self._prepare_alone(revision)

    def _change_of(self, revision: str) -> asyncio.Lock:
        return self._changing.setdefault(revision, asyncio.Lock())

    async def _prepare_alone(self, revision: Revision) -> ModalNomadError | None:
        try:
            await self._open()
            image = await asyncio.to_thread(self._images.path, revision.image.digest)
            if image is None:
                raise _image_missing(revision)
            bundle = await self._bundles.hold(revision.bundle, revision.id)
            new = revision.id not in self._prepared
            self._prepared[revision.id] = Prepared(revision, image, bundle, await self._network_for(revision))
        except ModalNomadError as error:
            return error
        except OSError as error:
            return refused(f"prepare {revision.app}/{revision.function.tag}", error)
        if new:
            self._tasks.spawn(self._compile_later(revision.bundle, image), f"compile {revision.bundle[:12]}")
        return None

    async def _compile_later(self, bundle: Digest, image: Path) -> None:
        await asyncio.sleep(self._compile_after)
        async with self._compiling:  # a platform that starts prepares all that is deployed
            await self._bundles.compile(bundle, image / "bin" / "python")

    async def _open(self) -> Tools:
        async with self._opening:
            if self._tools is None:
                run = await asyncio.to_thread(Run.open, self._home)
                await asyncio.to_thread(self._limits.open, run.path)
                self._tools = Tools(
                    run=run,
                    gpus=self._gpus,
                    secrets=self._secrets,
                    runner=self._runner,
                    inherited=self._inherited,
                    variables=self._variables,
                    changed=self._publish,
                    limits=self._limits,
                    templates=self._templates(run),
                )
                await asyncio.to_thread(self._bundles.tidy)
            return self._tools

    def _templates(self, run: Run) -> Templates | None:
        if not self._settings.templates or sys.platform != "linux":
            return None
        return Templates(
            self._tasks,
            folder=run.path / "template",
            runner=self._runner,
            inherited=self._inherited,
            idle=self._settings.template_idle,
            start_after=self._template_after,
            limits=self._limits,
        )

    async def _network_for(self, revision: Revision) -> str:
        if not revision.function.web_ports:
            return "host"  # no fixed port: nothing to keep apart
        return await self._network.mode()

    def shares_port(self, revision: Revision) -> bool:
        """Whether a fixed port keeps two replicas of it from living at once. Known once it is prepared."""
        return bool(revision.function.web_ports) and self._network.known != "namespace"

    async def retire(self, revision: str) -> None:
        """Forget a revision: its running replicas are killed, what was prepared for it is freed. Unknown: nothing."""
        if self._closed:
            return
        id = RevisionId(revision)
        # Before anything else can happen: what is started from here on is prepared anew, and not killed with the rest.
        held = self._prepared.pop(id, None) is not None
        await self._to_its_end(self._retire(id, held), f"retire {id}")

    async def _retire(self, revision: RevisionId, held: bool) -> None:
        async with self._change_of(revision):
            held |= self._prepared.pop(revision, None) is not None
            lives = [life for key, life in self._lives.items() if key.pool.revision == revision]
            await asyncio.gather(*(life.kill() for life in lives))
            if held:
                await self._bundles.release(revision)

    async def explain(self, revision: Revision) -> Verdict:
        """Could anything run it, and if not, why. Starts nothing."""
        wanted = revision.function.resources.gpu
        if wanted and not await asyncio.to_thread(self._gpus.possible, wanted):
            has = self._gpus.describe()
            return Verdict("never", f"it asks for the GPU {' or '.join(wanted)}; this machine has: {has}")
        image = await asyncio.to_thread(self._images.path, revision.image.digest)
        if image is None:
            return Verdict("never", _image_missing(revision).message)
        if wanted and not self._gpus.free(wanted):
            return Verdict("not_now", f"no GPU is free (wanted {' or '.join(wanted)})")
        if (full := self._full()) is not None:
            return Verdict("not_now", full.reason)
        return Verdict("yes")

    async def remarks(self, functions: Sequence[Function]) -> tuple[Notice, ...]:
        """What has no effect here, and how fixed ports are kept apart."""
        unlimited = {}
        if any(pair and pair[1] for each in functions for pair in (each.resources.memory, each.resources.cpu)):
            unlimited = (await asyncio.to_thread(self._limits.look)).missing
        found = list(without_effect(functions, unlimited))
        if any(function.web_ports for function in functions):
            try:
                message = await self._network.described(self._inherited.get("PATH"))
            except OSError as error:
                raise refused("look for network namespaces", error) from error
            found.append(Notice(code="network", message=message))
        return tuple(found)

    # --- replicas --------------------------------------------------------------------------------------------

    async def start(self, key: ReplicaKey, reason: str, *, request_id: str = "") -> None:
        """Start this replica. The same key twice starts once. Cancelling the call does not stop the start. The request
        it is for is told by the router's log. Raises NotFound, or BackendError when it has to be prepared first and
        cannot be."""
        id = key.pool.revision
        # Once more, should it have been retired, and wanted again, before this start went on.
        while key not in self._lives and id not in self._prepared and (revision := self._known(id)) is not None:
            await self.prepare(revision)
        life = self._lives.get(key) or self._begin(key, reason)
        await life.under_way.wait()

    def _begin(self, key: ReplicaKey, reason: str) -> Life:
        prepared = self._prepared.get(key.pool.revision)
        if prepared is None or self._tools is None:
            raise NotFound(f"revision {key.pool.revision} is not prepared on this engine")
        full = self._full()
        self._started += 1
        revision = prepared.revision
        log = self._journal.open(Origin(key, revision.app, revision.function.tag, revision.environment))
        life = Life(key, prepared, self._tools, log, number=self._started, reason=reason)
        self._lives[key] = life
        if full is not None:
            life.refuse(full)
            return life
        try:
            listener = life.listen()
        except OSError as error:
            life.refuse(Failure("start_failed", refused("make a socket", error).message))
            return life
        self._tasks.spawn(life.run(listener), f"replica {key}")
        self._publish()
        return life

    def _full(self) -> Failure | None:
        limit = self._settings.max_replicas
        running = sum(not life.ended.is_set() for life in self._lives.values())
        if not limit or running < limit:
            return None
        return Failure("no_capacity", f"this machine runs {running} replicas, and its limit (max_replicas) is {limit}")

    def _variables(self, prepared: Prepared, key: ReplicaKey, gpus: int) -> dict[str, str]:
        return contract_environment(
            prepared.revision,
            key,
            platform_key=self._platform_key,
            grace_period=self._settings.grace_period,
            orphan_factor=self._scaling.orphan_factor,
            network=prepared.network,
            gpus=gpus,
            web_urls=self._web_urls(prepared.revision),
        )

    def watch(self) -> AsyncIterator[tuple[Replica, ...]]:
        """Whole snapshots of all replicas, the first at once, then one per change."""
        return self._replicas.watch()

    async def kill(self, key: ReplicaKey) -> None:
        """End it at once with everything it started. Unknown or ended: nothing happens. Returns when it is gone."""
        if (life := self._lives.get(key)) is not None:
            await life.kill()

    def logs(self, key: ReplicaKey | None, *, follow: bool) -> AsyncIterator[LogLine]:
        """Lines of one replica, or of all (None), oldest first. Raises NotFound at the first step."""
        return self._journal.read(key, follow=follow)

    def _publish(self) -> None:
        loop = asyncio.get_running_loop()
        for key, life in self._lives.items():
            if life.ended.is_set() and key not in self._forgetting:
                self._forgetting[key] = loop.call_later(self._ended_kept, self._forget, key)
        self._replicas.set(tuple(life.replica for life in self._lives.values()))

    def _forget(self, key: ReplicaKey) -> None:
        del self._lives[key], self._forgetting[key]
        self._journal.forget(key)
        self._publish()

    # --- the end ---------------------------------------------------------------------------------------------

    async def close(self) -> None:
        """Kill everything and remove all that was made. Twice does nothing more."""
        self._closed = True
        if self._changes:
            await asyncio.wait(set(self._changes))
        prepared, self._prepared = self._prepared, {}
        await asyncio.gather(*(life.kill() for life in self._lives.values()))
        await self._tasks.close()
        for timer in self._forgetting.values():
            timer.cancel()
        for revision in prepared:
            await self._bundles.release(revision)
        tools, self._tools = self._tools, None
        if tools is not None:
            await asyncio.to_thread(tools.run.close)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()


def _image_missing(revision: Revision) -> BackendRefused:
    return BackendRefused(
        f"the image {revision.image.digest[:12]} of {revision.app}/{revision.function.tag} is not on this machine",
        "deploy the App again: that builds it",
    )
