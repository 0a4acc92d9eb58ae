"""The life of one allocation on a node: prepared, run, stopped; told as it goes."""

from __future__ import annotations

import asyncio
import shutil
import signal
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import aiohttp

from tests.support.fakes.identity import AUDIENCE, HOUR, Signer
from tests.support.fakes.tasks import preparing
from tests.support.fakes.tasks.environment import Environment, NotValid, node_variables, task_environment
from tests.support.fakes.tasks.events import TaskState, duration
from tests.support.fakes.tasks.process import NotStarted, Process, Spec, found
from tests.support.fakes.tasks.services import Consul, Services, registrations
from tests.support.fakes.tasks.vault import VaultAccess

CONFIG: Final = frozenset({"command", "args"})
"""Keys of raw_exec's Config that this fake knows."""
MEGABYTE: Final = 1024 * 1024


@dataclass(frozen=True, kw_only=True)
class World:
    """What all allocations of a runner share."""

    folder: Path
    session: aiohttp.ClientSession
    inherited: Mapping[str, str]
    consul: Consul
    vault: VaultAccess | None
    signer: Signer
    late: float
    """Seconds by which a failure before the process is told late."""


class Allocation:
    """`run` is its whole life; `begun` is set when its process runs or never will, `ended` when all is over."""

    def __init__(
        self,
        world: World,
        alloc: Mapping[str, Any],
        job: Mapping[str, Any],
        node: Mapping[str, Any],
        tell: Callable[[dict[str, Any]], None],
    ) -> None:
        self.begun, self.ended = asyncio.Event(), asyncio.Event()
        self.stopping = self.muted = False
        self.folder: Path = world.folder / alloc["ID"]
        self._world, self._alloc, self._job = world, alloc, job
        self._told = tell
        self._group = next(group for group in job["TaskGroups"] if group["Name"] == alloc["TaskGroup"])
        (self._task,) = self._group["Tasks"]  # all that the platform renders
        own = task_environment(alloc, job, self._group, self._task, self.folder)
        own["NOMAD_DC"] = node["Datacenter"]
        self.environment = Environment(world.inherited, own, node_variables(node))
        self.environment.add(self._task.get("Env") or {})
        self.state = TaskState()
        self.services = Services(
            world.session, world.consul, registrations(alloc, self._group, self.environment.replace)
        )
        self.process: Process | None = None
        self._running = asyncio.Event()
        self.keeping: asyncio.Task[None] | None = None

    def _tell(self) -> None:
        if not self.muted:
            self._told({"TaskStates": {self._task["Name"]: self.state.shown()}})

    async def run(self) -> None:
        """To its end. Cancelled: killed, and told as such."""
        try:
            self.state.received()
            self._tell()
            await self._prepare()
            await self._execute()
        except preparing.Failed as failure:
            try:
                if failure.late:
                    await asyncio.sleep(self._world.late)
            finally:  # stopped meanwhile, it has failed all the same
                self.state.end(failed=True)
        except asyncio.CancelledError:
            self.state.add("Killed", "Task successfully killed")
            self.state.end(failed=False)
            raise
        except Exception as error:
            # A mistake in the fake or in the job a test made: seen where it is looked for.
            self.state.add("Driver Failure", f"the fake cannot run this: {error!r}", FailsTask=True)
            self.state.end(failed=True)
            raise
        finally:
            if self.process is not None:
                await self.process.kill()
            self._tell()
            self.begun.set()
            self.ended.set()

    async def _prepare(self) -> None:
        """Raises preparing.Failed."""
        task, world = self._task, self._world
        folder = preparing.folders(self.folder, task["Name"])
        hooks = preparing.Preparing(world.session, task, folder, self.environment, self.state, self._tell)
        await hooks.artifacts()
        token = ""
        if task.get("Vault"):
            assert world.vault is not None, "the runner was given no Vault"
            audience, ttl = [AUDIENCE], HOUR
            identity = world.signer.identity(self._alloc, self._job, task["Name"], audience=audience, ttl=ttl)
            token = await hooks.token(world.vault, identity)
        await hooks.templates(world.vault, token)

    async def _execute(self) -> None:
        """Raises preparing.Failed."""
        try:
            spec = self._spec()
            self.process = process = Process(spec)
            await process.start()
        except NotValid as error:
            text = str(error)
            self.state.add("Failed Validation", text, {"validation_error": text}, ValidationError=text)
            self.state.not_restarting()
            raise preparing.Failed(late=True) from error
        except NotStarted as error:
            text = str(error)
            self.state.add("Driver Failure", text, {"driver_error": text}, DriverError=text)
            self.state.not_restarting()
            raise preparing.Failed(late=False) from error
        self.state.started()
        self._tell()
        self._running.set()
        self.begun.set()
        code, number = await process.ended()
        self._over(code, number)

    def _spec(self) -> Spec:
        """Raises NotValid, NotStarted."""
        task, config = self._task, self._task.get("Config") or {}
        for name in config:
            if name not in CONFIG:
                raise NotValid(f'Invalid label: No argument or block type is named "{name}".')
        if "command" not in config:
            raise NotValid(
                'Missing required argument: The argument "command" is required, but no definition was found.'
            )
        command, *args = [self.environment.hcl(text) for text in [config["command"], *(config.get("args") or [])]]
        folder, log = self.folder / task["Name"], task.get("LogConfig") or {}
        return Spec(
            path=found(command, folder, self.environment.variables.get("PATH", "")),
            argv=[command, *args],
            env=self.environment.variables,
            cwd=str(folder),
            logs=[str(self.log(stream)) for stream in ("stdout", "stderr")],
            files=log.get("MaxFiles") or 10,
            size=(log.get("MaxFileSizeMB") or 10) * MEGABYTE,
        )

    def _over(self, code: int, number: int) -> None:
        failed = bool(code or number or self._job["Type"] in {"service", "system"})
        self.state.terminated(code, number)
        if self.stopping:
            self.state.add("Killed", "Task successfully killed")
            failed = False
        elif failed:
            policy = self._group.get("RestartPolicy") or {}
            allowed = policy.get("Attempts", 0)
            self.state.not_restarting(*(["this fake restarts nothing"] if allowed else []))
        self.state.end(failed=failed)

    def log(self, stream: str) -> Path:
        """Prefix of the files of a stream."""
        name: str = self._task["Name"]
        return self.folder / "alloc" / "logs" / f"{name}.{stream}"

    def signal(self, name: str) -> None:
        """To its process. Raises KeyError: it does not run."""
        if self.process is None or not self._running.is_set() or self.ended.is_set():
            raise KeyError(self._alloc["ID"])
        self.state.add("Signaling", "Task being sent a signal", {"signal": name}, TaskSignal=name)
        self._tell()
        self.process.signal(_number(name))

    async def stop(self, timeout: float, life: asyncio.Task[None]) -> None:
        """In Nomad's order; `life`: the task of `run`. Returns when it has ended."""
        if self.ended.is_set() or self.stopping:
            await self.ended.wait()
            return
        self.stopping = True
        if self.services_there:
            await self.services.leave()
        await self._pause(self._group.get("ShutdownDelay"))
        if not self._running.is_set():
            life.cancel()
            await self.ended.wait()
            return
        if self.ended.is_set():
            return
        assert self.process is not None
        self.state.killing(timeout)
        if delay := self._task.get("ShutdownDelay"):
            text = f"Waiting for shutdown_delay of {duration(delay / 1e9)} before killing the task."
            self.state.add("Waiting for shutdown delay", text)
        self._tell()
        await self._pause(delay)
        self.process.signal(_number(self._task.get("KillSignal") or "SIGINT"))
        with suppress(TimeoutError):
            await asyncio.wait_for(self.ended.wait(), timeout)
        if not self.ended.is_set():
            self.process.signal(signal.SIGKILL)
            await self.ended.wait()

    async def _pause(self, nanoseconds: int | None) -> None:
        if nanoseconds:
            with suppress(TimeoutError):
                await asyncio.wait_for(self.ended.wait(), nanoseconds / 1e9)

    @property
    def services_there(self) -> bool:
        """Whether it has any, and a Consul to have them in."""
        return bool(self._world.consul.address and self._group.get("Services"))

    def forget(self) -> None:
        """Its folder."""
        shutil.rmtree(self.folder, ignore_errors=True)


def _number(name: str) -> int:
    """What Nomad makes of a name it does not know is SIGINT, too."""
    return getattr(signal.Signals, name, signal.SIGINT).value
