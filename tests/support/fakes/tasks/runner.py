"""Runs a fake Nomad's allocations for real; see `tests.support.fakes.nomad.running.Running`.

runner = TaskRunner(tmp_path / "nodes", consul=consul.address, vault=VaultAccess(bao.address), signer=signer)
async with FakeNomad(runner=runner, ...): ...
"""

from __future__ import annotations

import asyncio
import os
import shutil
import ssl
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import aiohttp

from modalnomad.kit.tasks import Tasks
from tests.support.fakes.identity import Signer
from tests.support.fakes.nomad.running import Tell
from tests.support.fakes.tasks.allocation import Allocation, World
from tests.support.fakes.tasks.services import Consul
from tests.support.fakes.tasks.vault import VaultAccess

LATE: Final = 4.2
"""Seconds by which Nomad tells that an artifact, a template or the driver's Config failed."""


class TaskRunner:
    """One for all nodes of a fake. `folder`: of allocations; made when needed, gone at the end. Let its path be short:
    that of a task's Unix socket is bounded.

    `inherited`: environment of the agent, which every task gets (raw_exec does that); only PATH and HOME by default.
    `late`: see LATE; 0 spares tests the wait. `tls`: how the agent trusts Consul and Vault. Memory and CPU limits are
    not enforced, nothing is restarted.
    """

    def __init__(
        self,
        folder: Path,
        *,
        inherited: Mapping[str, str] | None = None,
        consul: str = "",
        consul_token: str = "",
        vault: VaultAccess | None = None,
        signer: Signer | None = None,
        late: float = 0.0,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._tls = tls
        self.folder = folder
        self.consul = Consul(consul, consul_token)
        self.vault = vault
        self.signer = signer or Signer()
        self.late = late
        self._inherited = inherited if inherited is not None else {"PATH": os.environ["PATH"], "HOME": str(folder)}
        self._tasks = Tasks("task runner")
        self._session: aiohttp.ClientSession | None = None
        self._allocations: dict[str, tuple[Allocation, asyncio.Task[None]]] = {}

    @property
    def attributes(self) -> dict[str, str]:
        """What a node finds out of this Consul and Vault; jobs that use them are only placed where it did."""
        found = {"consul.version": "1.22.5", "consul.datacenter": "dc1"} if self.consul.address else {}
        return found | ({"vault.version": "2.7.2", "vault.accessible": "true"} if self.vault is not None else {})

    def _world(self) -> World:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, force_close=True, ssl=self._tls or True)
            )
        return World(
            folder=self.folder,
            session=self._session,
            inherited=self._inherited,
            consul=self.consul,
            vault=self.vault,
            signer=self.signer,
            late=self.late,
        )

    async def start(self, alloc: dict[str, Any], job: dict[str, Any], node: dict[str, Any], tell: Tell) -> None:
        """See Running."""
        allocation = Allocation(self._world(), alloc, job, node, tell)
        life = self._tasks.spawn(self._run(allocation), f"allocation {alloc['ID']}")
        self._allocations[alloc["ID"]] = allocation, life
        await allocation.begun.wait()

    async def _run(self, allocation: Allocation) -> None:
        if allocation.services_there:
            allocation.keeping = self._tasks.spawn(allocation.services.keep(), f"services of {allocation.folder.name}")
        try:
            await allocation.run()
        finally:
            if allocation.services_there and not allocation.muted:
                await allocation.services.leave()

    async def signal(self, alloc_id: str, signal: str) -> None:
        """See Running."""
        self._allocations[alloc_id][0].signal(signal)

    async def stop(self, alloc_id: str, kill_timeout: float) -> None:
        """See Running."""
        allocation, life = self._allocations[alloc_id]
        await allocation.stop(kill_timeout, life)

    def logs(self, alloc_id: str, stream: str) -> Path:
        """See Running: of several files the newest."""
        return self.log_files(alloc_id, stream)[-1]

    def log_files(self, alloc_id: str, stream: str) -> list[Path]:
        """Files of a stream that are kept, oldest first; the first need not be `.0`. Raises KeyError."""
        prefix = self._allocations[alloc_id][0].log(stream)
        found = sorted(prefix.parent.glob(f"{prefix.name}.*"), key=lambda path: int(path.suffix[1:]))
        return found or [Path(f"{prefix}.0")]

    def pid(self, alloc_id: str) -> int:
        """Of the task's process. Raises KeyError: it has none."""
        process = self._allocations[alloc_id][0].process
        if process is None or not process.pid:
            raise KeyError(alloc_id)
        return process.pid

    async def lose(self, alloc_id: str) -> None:
        """See Running. Its services stay in Consul: there is nobody to take them away."""
        allocation, life = self._allocations[alloc_id]
        if not allocation.ended.is_set():
            allocation.muted = True
            life.cancel()
            if allocation.keeping is not None:
                allocation.keeping.cancel()
        await asyncio.wait([life])

    async def forget(self, alloc_id: str) -> None:
        """See Running."""
        await self.lose(alloc_id)
        allocation, _ = self._allocations.pop(alloc_id)
        await asyncio.to_thread(allocation.forget)

    async def close(self) -> None:
        """See Running. Twice does nothing more."""
        for allocation, _ in self._allocations.values():
            allocation.muted = True
        await self._tasks.close()
        session, self._session = self._session, None
        if session is not None:
            await session.close()
        await asyncio.to_thread(shutil.rmtree, self.folder, ignore_errors=True)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()
