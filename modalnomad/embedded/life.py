"""One replica's life on this machine: from the request to start it to the last file removed."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Protocol

from modalnomad_sdk import contract
from modalnomad_sdk.image_files import lay_image_files
from modalnomad_sdk.store import IMAGE_FILES

from modalnomad.embedded.bundles import copy_bundle
from modalnomad.embedded.child import Child, OutputStream
from modalnomad.embedded.forked import Forked
from modalnomad.embedded.gpus import Gpus
from modalnomad.embedded.janitor import remove_tree
from modalnomad.embedded.limits import Bounds, Group, Limits
from modalnomad.embedded.logs import ReplicaLog
from modalnomad.embedded.runs import Run
from modalnomad.embedded.store import refused
from modalnomad.embedded.template import Template
from modalnomad.embedded.templates import Templates
from modalnomad.kit.clock import monotonic
from modalnomad.kit.log_lines import LineSplitter
from modalnomad.model.errors import ModalNomadError
from modalnomad.model.gpus import Gpu
from modalnomad.model.manifest import SecretRef
from modalnomad.model.replica import Failure, Replica, ReplicaKey, ReplicaState, UnixAddress
from modalnomad.model.revision import Revision
from modalnomad.render.outcome import outcome
from modalnomad.render.process import ProcessSpec, process_spec

logger = logging.getLogger("modalnomad.engine")

BACKLOG: Final = 4096
"""Connections the system holds for a replica that is still starting (the kernel may allow fewer)."""
DETAIL_LINES: Final = 100
"""Lines of output a failure carries."""
BUNDLE_FOLDER: Final = "root"
"""In a replica's folder: its copy of the bundle, named as it is in Modal's containers."""


class SecretValues(Protocol):
    """What a start needs beyond the secrets' port."""

    async def resolve(self, refs: Sequence[SecretRef], environment: str) -> dict[str, str]:
        """Keys and values of all of them, later ones winning. Raises SecretMissing."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """A revision that can be started."""

    revision: Revision
    image: Path
    bundle: Path
    network: str


@dataclass(frozen=True, slots=True)
class Tools:
    """What all replicas of an engine share."""

    run: Run
    gpus: Gpus
    secrets: SecretValues
    runner: Path
    inherited: Mapping[str, str]
    variables: Callable[[Prepared, ReplicaKey, int], dict[str, str]]
    """The contract's environment of a replica that was given so many GPUs."""
    changed: Callable[[], None]
    """Told when `replica` was replaced."""
    limits: Limits
    templates: Templates | None = None
    """Warm processes that replicas are forked from, where there is one."""


class Life:
    """`replica` is its present state. `listen` and then `run`, or `refuse`."""

    def __init__(
        self, key: ReplicaKey, prepared: Prepared, tools: Tools, log: ReplicaLog, *, number: int, reason: str
    ) -> None:
        self._prepared = prepared
        self._tools = tools
        self._log = log
        self._folder = tools.run.replica_folder(number)
        self._socket_path = tools.run.socket_path(number)
        self._splitters: dict[OutputStream, LineSplitter] = {"stdout": LineSplitter(), "stderr": LineSplitter()}
        self._child: Child | Forked | None = None
        self._number = number
        self._group: Group | None = None
        self._killed = False
        self.under_way = asyncio.Event()
        """Its process runs, or never will."""
        self.ended = asyncio.Event()
        """Its processes, sockets and files are gone."""
        self.replica = Replica(
            key, ReplicaState.STARTING, UnixAddress(self._socket_path), started_at=time.time(), reason=reason
        )

    def refuse(self, failure: Failure) -> None:
        """It cannot even begin."""
        self._end(ReplicaState.FAILED, failure)

    def listen(self) -> socket.socket:
        """Its socket, which takes connections before there is a process: whoever knows the address may connect at once.

        Raises OSError.
        """
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            listener.bind(self._socket_path)
            os.chmod(self._socket_path, 0o600)
            listener.listen(BACKLOG)
        except BaseException:
            listener.close()
            unlink_socket(self._socket_path)
            raise
        return listener

    async def run(self, listener: socket.socket) -> None:
        """To the end. What goes wrong is told in `replica`."""
        state, failure = ReplicaState.GONE, None
        try:
            async with AsyncExitStack() as stack:
                stack.push_async_callback(self._remove)
                stack.callback(listener.close)
                state, failure = await self._live(listener, stack)
        except ModalNomadError as error:
            state, failure = ReplicaState.FAILED, Failure("start_failed", error.message)
        except OSError as error:
            message = refused(f"start {self._prepared.image / 'bin' / 'python'}", error).message
            state, failure = ReplicaState.FAILED, Failure("start_failed", message)
        except Exception:
            state, failure = ReplicaState.FAILED, Failure("start_failed", "the engine failed; see its log")
            raise
        finally:
            self._end(state, failure)

    async def _live(self, listener: socket.socket, stack: AsyncExitStack) -> tuple[ReplicaState, Failure | None]:
        revision = self._prepared.revision
        wanted = revision.function.resources.gpu
        gpus: tuple[Gpu, ...] = ()
        if wanted:
            taken = stack.enter_context(self._tools.gpus.taken(wanted))
            if taken is None:
                return ReplicaState.FAILED, Failure("no_capacity", f"no GPU is free (wanted {' or '.join(wanted)})")
            gpus = taken
        spec = await self._spec(gpus)
        await asyncio.to_thread(self._lay_out, spec.cwd)
        if self._killed:
            return ReplicaState.GONE, None
        self._child = await self._spawn(spec, listener)
        if self._killed:
            self._child.end()
        listener.close()  # from here on only the replica accepts, and its end is seen by whoever is connected
        self._log.write("system", [(None, f"started: {self.replica.reason}")])
        self.under_way.set()
        code = await self._child.wait()
        exceeded = None
        if self._group is not None:
            exceeded, refused = await asyncio.to_thread(self._group.troubles)
            if refused is not None:
                self._log.write("system", [(None, refused)])
        return outcome(code, killed=self._killed, output=self._log.tail(DETAIL_LINES), exceeded=exceeded)

    async def _spawn(self, spec: ProcessSpec, listener: socket.socket) -> Child | Forked:
        """From the image's template, else as a new process. Raises OSError."""
        revision, image, templates = self._prepared.revision, self._prepared.image, self._tools.templates
        bounds = Bounds.of(revision.function.resources, self._tools.limits.max_processes)
        if templates is not None:
            templates.used(revision, image)
            if (template := templates.ready(image)) is not None:
                forked = await self._fork(template, bounds, spec, listener)
                if forked is not None:
                    return forked
        if self._group is None:
            self._group = await asyncio.to_thread(self._tools.limits.make, str(self._number), bounds)
        _enters(spec, self._group)
        return Child.spawn(spec, listener, self._folder, self._output)

    async def _fork(
        self, template: Template, bounds: Bounds, spec: ProcessSpec, listener: socket.socket
    ) -> Forked | None:
        """None: start it as a new process. Raises OSError."""
        if (group := template.take_group()) is not None:
            await asyncio.to_thread(self._tools.limits.bind, group, bounds)
        else:
            group = self._group = await asyncio.to_thread(self._tools.limits.make, str(self._number), bounds)
        _enters(spec, group)
        forked = None
        try:
            forked = await template.start(spec, listener, self._folder, self._output)
        finally:
            if forked is not None:
                self._group = group
            elif group is not None and group is not self._group and not template.give_back(group):
                await asyncio.to_thread(group.end)
        return forked

    async def _spec(self, gpus: tuple[Gpu, ...]) -> ProcessSpec:
        revision, key = self._prepared.revision, self.replica.key
        secrets = await self._tools.secrets.resolve(revision.secrets, revision.environment) if revision.secrets else {}
        variables = self._tools.variables(self._prepared, key, len(gpus))
        # Empty where none was asked for: a replica must not take what another was given.
        variables["CUDA_VISIBLE_DEVICES"] = ",".join(gpu.uuid for gpu in gpus)
        return process_spec(
            revision,
            key,
            image=self._prepared.image,
            runner=self._tools.runner,
            bundle=self._folder / BUNDLE_FOLDER,
            inherited=self._tools.inherited,
            secrets=secrets,
            variables=variables,
        )

    def _lay_out(self, workdir: Path) -> None:
        """Its own folder with its own copy of the bundle, and under it the image's files."""
        try:
            self._folder.mkdir(mode=0o700)
            copy_bundle(self._prepared.bundle, self._folder / BUNDLE_FOLDER)
            lay_image_files(self._prepared.image / IMAGE_FILES, self._folder / BUNDLE_FOLDER)
            workdir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise refused(f"copy the bundle to {self._folder}", error) from error

    def _output(self, stream: OutputStream, data: bytes) -> float:
        began = monotonic()
        splitter = self._splitters[stream]
        if lines := splitter.feed(data) if data else splitter.end():
            self._log.write(stream, lines)
        return self._log.pace.pause(data, began)

    async def kill(self) -> None:
        """End it at once. Returns when it is gone."""
        if not self.ended.is_set():
            self._killed = True
            if self._child is not None:
                self._child.end()
        await self.ended.wait()

    async def _remove(self) -> None:
        unlink_socket(self._socket_path)
        if self._group is not None and not await asyncio.to_thread(self._group.end):
            logger.warning("a process of %s cannot be ended yet; it goes with the engine", self.replica.key)
        if not await asyncio.to_thread(remove_tree, str(self._folder)):
            logger.warning("cannot remove all of %s yet; it goes with the engine", self._folder)

    def _end(self, state: ReplicaState, failure: Failure | None) -> None:
        text = "ended" if failure is None else f"failed: {failure.reason}"
        self._log.write("system", [(None, text)])
        self._log.end()
        self.replica = replace(self.replica, state=state, failure=failure, address=None)
        self.under_way.set()
        self.ended.set()
        self._tools.changed()


def _enters(spec: ProcessSpec, group: Group | None) -> None:
    """Tell the runner where it belongs."""
    spec.environment.pop(contract.ENV_CGROUPS, None)
    if group is not None:
        spec.environment[contract.ENV_CGROUPS] = "\n".join(group.folders)


def unlink_socket(path: str) -> None:
    """Gone already is fine."""
    with suppress(FileNotFoundError):
        os.unlink(path)
