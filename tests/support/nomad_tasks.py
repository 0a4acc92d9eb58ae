"""One Nomad with one node, a Vault, a Consul and an artifact server beside it, to run single tasks on: real or fake.

async with task_place("fake nomad", bao, folder) as place:
    ended = await place.run("print-it", {"Config": {"command": "/bin/echo", "args": ["hi"]}})
    assert await place.log(ended, "stdout") == "hi\n"
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import psutil
import pytest
from aiohttp import web

from tests.support.fakes.consul import FakeConsul
from tests.support.fakes.identity import Signer
from tests.support.fakes.nomad.server import FakeNomad
from tests.support.fakes.tasks.runner import TaskRunner
from tests.support.fakes.tasks.vault import VaultAccess
from tests.support.leftovers import mentioning
from tests.support.nomad_agent import NomadAgent, nomad_program
from tests.support.nomad_calls import PATIENCE, Calls
from tests.support.openbao import AUDIENCE, OpenBao

NOMADS: Final = ("fake nomad", "real nomad")
"""Parameters for tests; the real one skips with its reason where there is none."""
NAMESPACE: Final = "modalnomad-main"
ROLE: Final = "modalnomad-main"
OVER: Final = frozenset({"complete", "failed", "lost"})
TASK: Final = "app"
GROUP: Final = "replica"
META: Final = ("pool", "number", "epoch", "reason")
"""What a dispatch may give."""
VAULT: Final = {"Role": ROLE, "ChangeMode": "noop", "AllowTokenExpiration": True, "Env": False, "DisableFile": True}
"""As the platform renders it."""
RETRIES: Final = {"attempts": 3, "backoff": "100ms", "max_backoff": "500ms"}

_numbers = itertools.count(1)


class ArtifactHost:
    """Serves `files` (path → bytes) over HTTP."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.address = ""

    async def _answer(self, request: web.Request) -> web.Response:
        found = self.files.get(request.path[1:])
        return web.Response(status=404) if found is None else web.Response(body=found)

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """While it answers."""
        app = web.Application()
        app.router.add_get("/{path:.*}", self._answer)
        runner = web.AppRunner(app)
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            self.address = f"http://127.0.0.1:{runner.addresses[0][1]}"
            yield
        finally:
            await runner.cleanup()


@dataclass
class Place:
    """`kv`: a mount of its own in `bao`, of which tasks of the namespace may read `modalnomad/main/`."""

    calls: Calls
    bao: OpenBao
    kv: str
    consul: FakeConsul
    files: ArtifactHost
    fake: FakeNomad | None

    async def start(
        self,
        name: str,
        task: Mapping[str, Any],
        *,
        group: Mapping[str, Any] | None = None,
        meta: Mapping[str, str] | None = None,
        revision: str = "R",
    ) -> str:
        """Register a parent with this one task and dispatch it with `meta` → id of the child."""
        job = _job(f"{name}-{next(_numbers)}", task, group or {}) | {"Meta": {"revision": revision}}
        await self.calls.put("/v1/jobs", {"Job": job}, namespace=NAMESPACE)
        body = {"Meta": meta or {"pool": "P", "number": "0"}}
        made = await self.calls.put(f"/v1/job/{job['ID']}/dispatch", body, namespace=NAMESPACE)
        return str(made["DispatchedJobID"])

    async def until(self, child: str, holds: Any) -> dict[str, Any]:
        """The child's allocation, from when on `holds(it)`."""
        path = f"/v1/job/{quote(child, safe='')}/allocations"
        found = await self.calls.until(path, lambda allocs: allocs and holds(allocs[0]), namespace=NAMESPACE)
        alloc: dict[str, Any] = await self.calls.get(f"/v1/allocation/{found[0]['ID']}", namespace=NAMESPACE)
        return alloc

    async def running(self, child: str, says: str = "") -> dict[str, Any]:
        """Its allocation, when its process runs and has said so."""
        alloc = await self.until(child, lambda alloc: alloc["ClientStatus"] == "running")
        async with asyncio.timeout(PATIENCE):
            while True:
                if not says or says in await self.log(alloc):
                    return alloc
                await asyncio.sleep(0.01)

    async def ended(self, child: str) -> dict[str, Any]:
        """Its allocation, when it is over."""
        return await self.until(child, lambda alloc: alloc["ClientStatus"] in OVER)

    async def run(
        self, name: str, task: Mapping[str, Any], *, group: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """The allocation of a task that ends by itself."""
        return await self.ended(await self.start(name, task, group=group))

    async def stop(self, child: str) -> None:
        """Deregister it, without waiting."""
        await self.calls.call("DELETE", f"/v1/job/{quote(child, safe='')}", namespace=NAMESPACE)

    async def signal(self, alloc: Mapping[str, Any], name: str) -> None:
        """To its task."""
        body = {"Signal": name, "TaskName": TASK}
        await self.calls.put(f"/v1/client/allocation/{alloc['ID']}/signal", body, namespace=NAMESPACE)

    async def log(self, alloc: Mapping[str, Any], stream: str = "stdout") -> str:
        """All that is kept of it."""
        query = {"task": TASK, "type": stream, "plain": "true", "origin": "start", "namespace": NAMESPACE}
        reply = await self.calls.call("GET", f"/v1/client/fs/logs/{alloc['ID']}", **query)
        assert reply.status == 200, reply.text
        return reply.text


def events_of(alloc: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Type and message of each, without the two that all begin with."""
    events = alloc["TaskStates"][TASK]["Events"]
    assert [event["Type"] for event in events[:2]] == ["Received", "Task Setup"]
    return [(event["Type"], event["DisplayMessage"]) for event in events[2:]]


async def descendants(alloc_id: str, name: str, count: int) -> list[psutil.Process]:
    """Processes of this name that an allocation has, as soon as there are so many."""
    async with asyncio.timeout(PATIENCE):
        while True:
            found = [each for each in mentioning(alloc_id) if _name(each) == name]
            if len(found) == count:
                return found
            await asyncio.sleep(0.01)


def _name(process: psutil.Process) -> str:
    try:
        return process.name()
    except psutil.NoSuchProcess:
        return ""


def shell(script: str, **more: Any) -> dict[str, Any]:
    """A task that runs it."""
    return {"Config": {"command": "/bin/sh", "args": ["-c", script]}, **more}


def _job(name: str, task: Mapping[str, Any], group: Mapping[str, Any]) -> dict[str, Any]:
    """As the platform makes a parent: one start, reported as it went."""
    whole = {
        "Name": TASK,
        "Driver": "raw_exec",
        "Resources": {"CPU": 50, "MemoryMB": 64},
        "LogConfig": {"MaxFiles": 2, "MaxFileSizeMB": 1},
        "KillSignal": "SIGTERM",
        **task,
    }
    return {
        "ID": name,
        "Name": name,
        "Namespace": NAMESPACE,
        "Region": "global",
        "Type": "batch",
        "Datacenters": ["*"],
        "ParameterizedJob": {"Payload": "optional", "MetaOptional": list(META)},
        "TaskGroups": [
            {
                "Name": GROUP,
                "Count": 1,
                "RestartPolicy": {"Attempts": 0, "Mode": "fail"},
                "ReschedulePolicy": {"Attempts": 0, "Unlimited": False},
                "Networks": [{"Mode": "host", "DynamicPorts": [{"Label": "http"}]}],
                "EphemeralDisk": {"SizeMB": 10},
                "Tasks": [whole],
                **group,
            }
        ],
    }


@asynccontextmanager
async def task_place(kind: str, bao: OpenBao, folder: Path) -> AsyncIterator[Place]:
    """One of NOMADS, with all that a task may need. `folder`: of a fake's tasks."""
    if kind == NOMADS[1] and nomad_program() is None:
        pytest.skip("no nomad on PATH")
    files, number = ArtifactHost(), next(_numbers)
    path = f"jwt-tasks-{number}"
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(files.open())
        consul = await stack.enter_async_context(FakeConsul())
        if kind == NOMADS[1]:
            vault = {
                "enabled": True,
                "address": bao.address,
                "jwt_auth_backend_path": path,
                "create_from_role": ROLE,
                "default_identity": {"aud": [AUDIENCE], "ttl": "1h"},
            }
            client = {"template": {"vault_retry": RETRIES}}
            agent = NomadAgent(consul=consul.address.removeprefix("http://"), vault=vault, client=client)
            await stack.enter_async_context(agent)
            calls, fake = agent.calls, None
        else:
            signer = Signer()
            access = VaultAccess(bao.address, path=path)
            runner = TaskRunner(folder, consul=consul.address, vault=access, signer=signer)
            fake = await stack.enter_async_context(FakeNomad(runner=runner, signer=signer))
            fake.clients.prompt = True
            fake.add_node(attributes=runner.attributes)
            calls = await stack.enter_async_context(Calls(fake.address))
        await calls.put(f"/v1/namespace/{NAMESPACE}", {"Name": NAMESPACE})
        kv = await asyncio.to_thread(_prepare, bao, path, f"{calls.address}/.well-known/jwks.json", number)
        yield Place(calls, bao, kv, consul, files, fake)


def _prepare(bao: OpenBao, path: str, jwks: str, number: int) -> str:
    kv = bao.mount()
    bao.enable_jwt(path, jwks_url=jwks)
    policy = bao.policy(f"tasks-{number}", f'path "{kv}/data/modalnomad/main/*" {{ capabilities = ["read"] }}')
    bao.jwt_role(ROLE, NAMESPACE, [policy], path=path)
    bao.jwt_role("elsewhere", "modalnomad-other", [policy], path=path)
    return kv
