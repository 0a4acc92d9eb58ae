"""A whole cluster for tests: Consul (fake), OpenBao (real), Nomad (fake or real), prepared by `modalnomad setup`, and
the real commands against it.

    async with cluster(tmp_path) as c:
        await c.cli("deploy", "examples/hello.py")
        async with c.router() as router:
            answer = await router.get("hello.localhost", "/")
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

import aiohttp

from modalnomad.hashicorp.artifact_server import ArtifactServer
from modalnomad.hashicorp.artifacts import ObjectArtifacts
from modalnomad.hashicorp.setup.platform import wanted
from modalnomad.kit.tasks import Tasks
from modalnomad.settings import ArtifactSettings, Settings
from tests.support.cluster_tls import CONSUL_NAME, NOMAD_NAME, Secured
from tests.support.fakes.consul import FakeConsul
from tests.support.fakes.nomad.server import FakeNomad
from tests.support.fakes.tasks.runner import TaskRunner
from tests.support.fakes.tasks.vault import VaultAccess
from tests.support.nomad_agent import NomadAgent
from tests.support.nomad_servers import NomadServers
from tests.support.openbao import OpenBao
from tests.support.ports import held_port
from tests.support.repository import ROOT
from tests.support.serve import shared_home
from tests.support.up import own_home

T = TypeVar("T")

PATIENCE = 60.0
"""Seconds after which a test has failed."""
SOON = 30.0
"""Seconds for the output of a command that was ended."""


class Nomad(Protocol):
    """A fake or a real one."""

    @property
    def address(self) -> str:
        """`http://127.0.0.1:port`."""


@dataclass
class Result:
    """What a command printed."""

    code: int
    stdout: str
    stderr: str

    def records(self) -> list[dict[str, Any]]:
        """Of `--json`."""
        return [json.loads(line) for line in self.stdout.splitlines() if line.startswith("{")]


@dataclass
class Cluster:
    """Its servers, and commands that use them."""

    folder: Path
    consul: FakeConsul
    vault: OpenBao
    nomad: Any
    env: dict[str, str]
    tasks: Tasks
    router_env: dict[str, str] = field(default_factory=dict)
    """Of routers, over that of all commands."""
    secured: Secured | None = None
    """With TLS."""

    async def cli(self, *arguments: str, code: int | None = 0, env: Mapping[str, str] | None = None) -> Result:
        """`modalnomad ARGUMENTS`; fails unless it ends with `code` (None: any)."""
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "modalnomad",
            *arguments,
            cwd=ROOT,
            # So that one that has to be ended says where it was.
            env={"PYTHONFAULTHANDLER": "1", **self.env, **(env or {})},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        ending = self.tasks.spawn(process.communicate(), "command")
        try:
            done, _ = await asyncio.wait([ending], timeout=PATIENCE)
        finally:
            if process.returncode is None:
                process.send_signal(signal.SIGABRT)
        async with asyncio.timeout(SOON):  # what it started may hold its output open
            out, err = await ending
        result = Result(process.returncode or 0, out.decode(), err.decode())
        assert done, f"{arguments}: not ended within {PATIENCE:g} s\n{result.stdout}\n{result.stderr}"
        if code is not None:
            assert result.code == code, f"{arguments}: {result.code}\n{result.stdout}\n{result.stderr}"
        return result

    async def logged(self, line: str, *arguments: str) -> list[str]:
        """The lines of `app logs ARGUMENTS`, as soon as this one is among them: a request is answered before what was
        printed for it lies in Nomad's files."""
        async with asyncio.timeout(PATIENCE):
            while True:
                found = [record["line"] for record in (await self.cli("app", "logs", *arguments, "--json")).records()]
                if line in found:
                    return found

    async def _told_of(self, router: Router) -> None:
        """Returns when Consul, if it is there, says that this router runs: it does not wait for that to be ready, and
        commands and other tests' deploys look there."""
        try:
            async with asyncio.timeout(PATIENCE):
                while self.consul.listens and not self._routers(router.process.pid):  # noqa: ASYNC110 - no event here
                    await asyncio.sleep(0.02)
        except TimeoutError:
            raise AssertionError(f"Consul does not say that it runs\n{await router.told_and_known()}") from None

    def _routers(self, pid: int) -> list[str]:
        keys = self.consul.store.keys
        return [key for key in keys if "/routers/" in key and f"-{pid}-" in key and keys[key].session]

    @asynccontextmanager
    async def artifacts(self) -> AsyncIterator[None]:
        """Nodes fetch their code from here, whatever becomes of routers (which need another port then). After the first
        deploy, which makes the folder."""
        bundles = ObjectArtifacts(ArtifactSettings(), Path(self.env["MODALNOMAD_HOME"]))
        server = ArtifactServer(bundles, "127.0.0.1", int(self.env["MODALNOMAD_ARTIFACTS__PORT"]))
        await server.start()
        try:
            yield
        finally:
            await server.close()

    @asynccontextmanager
    async def router(self, *arguments: str, env: Mapping[str, str] | None = None) -> AsyncIterator[Router]:
        """A running `modalnomad router`."""
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "modalnomad",
            "router",
            "--json",
            "--port",
            "0",
            "--admin-port",
            "0",
            *arguments,
            cwd=ROOT,
            env={**self.env, **self.router_env, **(env or {})},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            limit=1 << 22,
        )
        router = Router(process)
        reading = [
            self.tasks.spawn(router.read_events(), "router events"),
            self.tasks.spawn(router.read_errors(), "router errors"),
        ]
        try:
            await router.until(lambda event: event["event"] == "ready")
            await self._told_of(router)
            yield router
        finally:
            if process.returncode is None:
                process.terminate()
            try:
                async with asyncio.timeout(PATIENCE):
                    await process.wait()
            finally:
                if process.returncode is None:
                    process.kill()
                    await process.wait()
                await asyncio.wait(reading)
                await router.close()


@dataclass
class Router:
    """A running `modalnomad router --json`."""

    process: asyncio.subprocess.Process
    events: list[dict[str, Any]] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    _changed: asyncio.Condition = field(default_factory=asyncio.Condition)
    _unread: int = 2
    """Outputs that may say more: what a router says last may be read after its end is known."""
    _session: aiohttp.ClientSession | None = None

    async def read_events(self) -> None:
        """To the end of its output."""
        assert self.process.stdout is not None
        async for line in self.process.stdout:
            async with self._changed:
                self.events.append(json.loads(line))
                self._changed.notify_all()
        await self._read_whole()

    async def read_errors(self) -> None:
        """To the end of it."""
        assert self.process.stderr is not None
        async for line in self.process.stderr:
            async with self._changed:
                self.errors.append(line.decode(errors="replace"))
                self._changed.notify_all()
        await self._read_whole()

    async def _read_whole(self) -> None:
        async with self._changed:
            self._unread -= 1
            self._changed.notify_all()

    async def told(self, *words: str, after: int = 0, limit: float = PATIENCE) -> str:
        """The first line of its log, from that one on, that has all these words."""
        return await self._first(self.errors, lambda line: all(word in line for word in words), after, limit, words)

    async def until(self, wanted: Callable[[dict[str, Any]], bool], *, limit: float = PATIENCE) -> dict[str, Any]:
        """The first event of that kind, also of the past."""
        return await self._first(self.events, wanted, 0, limit, "such an event")

    async def _first(self, said: list[T], wanted: Callable[[T], bool], seen: int, limit: float, what: object) -> T:
        try:
            async with asyncio.timeout(limit), self._changed:
                while True:
                    for each in said[seen:]:
                        if wanted(each):
                            return each
                    seen = len(said)
                    if not self._unread:
                        raise AssertionError(f"the router ended: {self.process.returncode}\n{''.join(self.errors)}")
                    await self._changed.wait()
        except TimeoutError:
            raise AssertionError(f"not within {limit:g} s: {what}\n{await self.told_and_known()}") from None

    async def told_and_known(self) -> str:
        """For whoever looks for the reason of a test's failure: its log, and its pools as they are now."""
        try:
            async with asyncio.timeout(5), aiohttp.request("GET", f"{self.admin_url}/debug") as answer:
                known = await answer.text()
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            known = repr(error)
        return f"{''.join(self.errors)}\n{known}"

    @property
    def url(self) -> str:
        """`http://127.0.0.1:port` of its listener."""
        (ready,) = [event for event in self.events if event["event"] == "ready"]
        return f"http://127.0.0.1:{ready['url'].rpartition(':')[2]}"

    @property
    def admin_url(self) -> str:
        """Of its admin listener."""
        (ready,) = [event for event in self.events if event["event"] == "ready"]
        return str(ready["admin_url"])

    async def page(self, path: str) -> Any:
        """Of its admin listener, such as `/debug`."""
        async with aiohttp.request("GET", self.admin_url + path) as answer:
            return await answer.json()

    async def shows(self, path: str, holds: Callable[[Any], object]) -> Any:
        """A page of its admin listener, as soon as it is that way."""
        async with asyncio.timeout(PATIENCE):
            while not holds(found := await self.page(path)):  # noqa: ASYNC110 - a page has no event to wait for
                await asyncio.sleep(0.05)
        return found

    async def get(self, host: str, path: str = "/", **how: Any) -> tuple[int, str]:
        """Status and text of one request, with a connection of its own."""
        if self._session is None:
            self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True, limit=0))
        headers = {"Host": host, **how.pop("headers", {})}
        limit = aiohttp.ClientTimeout(total=PATIENCE)
        method = how.pop("method", "GET")
        try:
            async with self._session.request(method, self.url + path, headers=headers, timeout=limit, **how) as answer:
                return answer.status, await answer.text()
        except TimeoutError:
            known = await self.told_and_known()
            raise AssertionError(f"{host}{path}: no answer within {PATIENCE:g} s\n{known}") from None

    async def close(self) -> None:
        """End its connections."""
        if self._session is not None:
            await self._session.close()


async def leader_of(routers: Sequence[Router]) -> Router:
    """The one that may send replicas away, as soon as one may."""
    async with asyncio.timeout(PATIENCE):
        while True:
            for router in routers:
                if (await router.page("/debug"))["may_drain"]:
                    return router
            await asyncio.sleep(0.05)


def vault_stanza(vault: OpenBao) -> dict[str, Any]:
    """Of a Nomad agent."""
    return {
        "enabled": True,
        "address": vault.address,
        **({"ca_file": str(vault.ca_cert)} if vault.ca_cert else {}),
        "jwt_auth_backend_path": "jwt-nomad",
        "create_from_role": "modalnomad-main",
        "default_identity": {"aud": ["vault.io"], "ttl": "1h"},
    }


@asynccontextmanager
async def cluster(
    folder: Path,
    *,
    real: bool = False,
    acl: bool = False,
    kept: bool = False,
    environments: tuple[str, ...] = ("main",),
    plugins: Mapping[str, Any] | None = None,
    secured: Secured | None = None,
    several: bool = False,
    **settings: str,
) -> AsyncIterator[Cluster]:
    """Everything, set up. `real`: a real Nomad, with `several` servers and clients (`NomadServers`). `acl`: commands
    have a deployer's rights and routers a router's, and no others; so have Nomad's agents in Consul. `plugins`: the
    real Nomad's. `kept`: Vault outlives being stopped. `secured`: with TLS. `settings`: more environment variables of
    the commands."""
    async with AsyncExitStack() as stack:
        tls = None if secured is None else secured.listener(CONSUL_NAME)
        consul = await stack.enter_async_context(FakeConsul(acl=acl, tls=tls))
        (folder / "vault").mkdir()
        vault = stack.enter_context(OpenBao(folder / "vault", kept=kept, tls=secured is not None))
        if secured is not None and vault.ca_cert is not None:
            secured.trust_vault(vault.ca_cert)
            settings = secured.variables(vault.ca_cert) | settings
        nomad = await stack.enter_async_context(
            _several(consul, vault, acl=acl)
            if several
            else _nomad(consul, vault, real=real, acl=acl, plugins=plugins, secured=secured)
        )
        if secured is not None and secured.mutual:
            settings["MODALNOMAD_VAULT__JWKS_URL"] = await stack.enter_async_context(secured.keys(nomad.address))
        env = {
            "PATH": os.environ["PATH"],
            "HOME": str(folder),
            "LANG": "C.UTF-8",
            "MODALNOMAD_BACKEND": "hashicorp",
            "MODALNOMAD_HOME": str(own_home(folder)),
            "NOMAD_ADDR": nomad.address,
            "CONSUL_HTTP_ADDR": consul.address,
            "VAULT_ADDR": vault.address,
            "VAULT_TOKEN": vault.root_token,
            # Environments are made once for all tests: a node's store is where deploys make theirs.
            "MODALNOMAD_NOMAD__NODE_STORE": str(shared_home()),
            "MODALNOMAD_NOMAD__PYTHON": sys.executable,
            "MODALNOMAD_ARTIFACTS__PORT": str(stack.enter_context(held_port())),
            **settings,
        }
        tasks = await stack.enter_async_context(Tasks("cluster"))
        made = Cluster(folder, consul, vault, nomad, env, tasks, secured=secured)
        management = {}
        if acl:
            management["NOMAD_TOKEN"] = nomad.token if real else nomad.management
            management["CONSUL_HTTP_TOKEN"] = consul.management
        await made.cli("setup", *(word for name in environments for word in ("--env", name)), env=management)
        if acl:
            made.env |= await _tokens(made, management, "modalnomad-deployer")
            made.router_env |= await _tokens(made, management, "modalnomad-router")
        yield made


async def _tokens(made: Cluster, management: Mapping[str, str], policy: str) -> dict[str, str]:
    """With the rights of a policy that `setup` made, in each server."""
    found = {"VAULT_TOKEN": made.vault.token(policy, ttl="24h")}
    tls = made.secured.clients if made.secured is not None else True
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=tls)) as session:
        headers = {"X-Nomad-Token": management["NOMAD_TOKEN"]}
        body: dict[str, Any] = {"Name": policy, "Type": "client", "Policies": [policy]}
        async with session.post(f"{made.nomad.address}/v1/acl/token", json=body, headers=headers) as answer:
            found["NOMAD_TOKEN"] = (await answer.json())["SecretID"]
        body = {"Description": policy, "Policies": [{"Name": policy}]}
        headers = {"X-Consul-Token": management["CONSUL_HTTP_TOKEN"]}
        async with session.put(f"{made.consul.address}/v1/acl/token", json=body, headers=headers) as answer:
            found["CONSUL_HTTP_TOKEN"] = (await answer.json())["SecretID"]
    return found


def _several(consul: FakeConsul, vault: OpenBao, *, acl: bool) -> NomadServers:
    token = _agents_token(consul) if acl else ""
    return NomadServers(consul.address, acl=acl, vault=vault_stanza(vault), consul_token=token)


@asynccontextmanager
async def _nomad(
    consul: FakeConsul,
    vault: OpenBao,
    *,
    real: bool,
    acl: bool,
    plugins: Mapping[str, Any] | None,
    secured: Secured | None,
) -> AsyncIterator[Any]:
    """With one node."""
    token = _agents_token(consul) if acl else ""
    if real:
        address: Any = consul.address.removeprefix("http://")
        how: dict[str, Any] = {"consul_token": token}
        if secured is not None:
            address = secured.consul_stanza(consul.address)
            how |= {"tls": secured.authority, "mutual": secured.mutual}
        async with NomadAgent(acl=acl, consul=address, vault=vault_stanza(vault), plugins=plugins, **how) as agent:
            yield agent
        return
    folder = Path(tempfile.mkdtemp(prefix="mn-nodes-"))
    runner = TaskRunner(
        folder,
        consul=consul.address,
        consul_token=token,
        vault=VaultAccess(vault.address),
        tls=None if secured is None else secured.clients,
    )
    tls = None if secured is None else secured.listener(NOMAD_NAME)
    async with FakeNomad(acl=acl, runner=runner, tls=tls) as nomad:
        nomad.add_node(
            "one", attributes={"consul.version": "1.22.5", "vault.version": "2.7.2", "vault.accessible": "true"}
        )
        yield nomad


def _agents_token(consul: FakeConsul) -> str:
    """With the rights that Nomad's agents are to have; they run before anything is set up."""
    (policy,) = [one for one in wanted(Settings(), ()).consul_policies if one.name == "modalnomad-nomad-agent"]
    return consul.token(policy.text, policy.name)
