"""Real servers of a cluster for tests: one Nomad and one OpenBao for all of them, an environment of its own for each.

with Servers() as servers:                          # some seconds
    async with servers.environment() as place: ...  # milliseconds
"""

from __future__ import annotations

import asyncio
import itertools
import shutil
import sys
import tempfile
import threading
from collections.abc import AsyncIterator, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from modalnomad.render.cluster import namespace_of
from tests.support.fakes.consul import FakeConsul
from tests.support.fakes.identity import Signer
from tests.support.fakes.nomad.server import FakeNomad
from tests.support.fakes.tasks.runner import TaskRunner
from tests.support.fakes.tasks.vault import VaultAccess
from tests.support.nomad_agent import NomadAgent
from tests.support.nomad_calls import Calls
from tests.support.openbao import OpenBao

T = TypeVar("T")

START_LIMIT = 60.0
"""Seconds for all servers."""
VAULT_RETRY = {"attempts": 3, "backoff": "100ms", "max_backoff": "500ms"}
RIGHTS = ["list-jobs", "read-job", "submit-job", "dispatch-job", "read-logs", "alloc-lifecycle"]
"""Of a deployer and a router."""

_numbers = itertools.count(1)


@dataclass(frozen=True)
class Place:
    """One environment of a cluster, and a token that sees no other."""

    environment: str
    nomad: str
    """Its address."""
    token: str
    bao: OpenBao
    mount: str
    """Of its secrets there."""
    auth_mount: str
    store: Path
    """Environments on its node."""
    fake: FakeNomad | None = None

    @property
    def namespace(self) -> str:
        """Of Nomad."""
        return namespace_of(self.environment)


class Servers:
    """They run on an event loop in a thread of their own, so that tests with loops of theirs can share them."""

    def __init__(self, bao: OpenBao) -> None:
        self._bao = bao
        self._mount = bao.mount()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="servers", daemon=True)
        self._open = AsyncExitStack()
        self._folder = Path()
        self.agent = NomadAgent()

    def __enter__(self) -> Self:
        self._folder = Path(tempfile.mkdtemp(prefix="servers-"))
        self._thread.start()
        try:
            self.call(self._start())
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.call(self._open.aclose())
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()
            shutil.rmtree(self._folder, ignore_errors=True)

    def call(self, work: Coroutine[Any, Any, T]) -> T:
        """On the servers' own loop; blocks."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(START_LIMIT)

    async def _start(self) -> None:
        enter = self._open.enter_async_context
        consul = await enter(FakeConsul())
        vault = {
            "enabled": True,
            "address": self._bao.address,
            "jwt_auth_backend_path": self._mount,
            "default_identity": {"aud": ["vault.io"], "ttl": "1h"},
        }
        agent = NomadAgent(
            acl=True,
            consul=consul.address.removeprefix("http://"),
            vault=vault,
            client={"template": {"vault_retry": VAULT_RETRY}},
        )
        self.agent = await enter(agent)
        wanted = {"consul.version", "vault.version"}
        await agent.calls.until(f"/v1/node/{agent.node}", lambda node: wanted <= node["Attributes"].keys())
        jwks = f"{agent.address}/.well-known/jwks.json"
        await asyncio.to_thread(self._bao.enable_jwt, self._mount, jwks_url=jwks)

    @asynccontextmanager
    async def environment(self) -> AsyncIterator[Place]:
        """One that nobody else uses; its jobs are stopped afterwards."""
        name = f"t{next(_numbers)}"
        namespace = namespace_of(name)
        await asyncio.to_thread(_make_role, self._bao, self._mount, self._mount, name)
        async with Calls(self.agent.address, self.agent.token) as calls:
            await calls.put(f"/v1/namespace/{namespace}", {"Name": namespace})
            await calls.put(f"/v1/acl/policy/{namespace}", {"Name": namespace, "Rules": _rules(namespace)})
            made = await calls.put("/v1/acl/token", {"Name": name, "Type": "client", "Policies": [namespace]})
            try:
                yield Place(
                    environment=name,
                    nomad=self.agent.address,
                    token=made["SecretID"],
                    bao=self._bao,
                    mount=self._mount,
                    auth_mount=self._mount,
                    store=self._folder / "store",
                )
            finally:
                await _end_jobs(calls, namespace)


@asynccontextmanager
async def fake_place(bao: OpenBao, folder: Path, window: float = 0.0, **options: Any) -> AsyncIterator[Place]:
    """On a fake Nomad with one node. `window`: see FakeNomad. `options`: of the node."""
    name = f"t{next(_numbers)}"
    mount = await asyncio.to_thread(bao.mount)
    signer = Signer()
    await asyncio.to_thread(bao.enable_jwt, mount, public_keys=[signer.public_pem()])
    await asyncio.to_thread(_make_role, bao, mount, mount, name)
    nodes = Path(tempfile.mkdtemp(prefix="mn-nodes-"))
    runner = TaskRunner(nodes, vault=VaultAccess(bao.address, path=mount), signer=signer)
    async with FakeNomad(acl=True, runner=runner, window=window) as nomad:
        attributes = {"consul.version": "1.20.0", "vault.version": "2.7.2", "vault.accessible": "true"}
        nomad.add_node("node", attributes=attributes, **options)
        nomad.add_namespace(namespace_of(name))
        yield Place(
            environment=name,
            nomad=nomad.address,
            token=nomad.token(_rules(namespace_of(name))),
            bao=bao,
            mount=mount,
            auth_mount=mount,
            store=folder / "store",
            fake=nomad,
        )


def _rules(namespace: str) -> str:
    quoted = ", ".join(f'"{right}"' for right in RIGHTS)
    return f'namespace "{namespace}" {{ capabilities = [{quoted}] }}\nnode {{ policy = "read" }}'


def _make_role(bao: OpenBao, mount: str, auth_mount: str, environment: str) -> None:
    name = namespace_of(environment)
    bao.policy(name, f'path "{mount}/data/modalnomad/{environment}/*" {{ capabilities = ["read"] }}')
    bao.jwt_role(name, name, [name], path=auth_mount)


async def _end_jobs(calls: Calls, namespace: str) -> None:
    for job in await calls.get("/v1/jobs", namespace=namespace):
        path = f"/v1/job/{job['ID'].replace('/', '%2F')}"
        await calls.call("DELETE", path, namespace=namespace, no_shutdown_delay=True)


def this_environment(store: Path, digest: str) -> None:
    """The environment that runs the tests, as one of a node's."""
    folder = store / "images" / digest
    if folder.exists():
        return
    folder.mkdir(parents=True)
    for name in ("bin", "lib", "lib64", "include", "pyvenv.cfg"):
        source = Path(sys.prefix) / name
        if source.exists():
            (folder / name).symlink_to(source)
    (folder / "modalnomad-image.json").write_text("{}")
