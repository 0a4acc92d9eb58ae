"""A real Nomad for tests, a server and a client: started for them, gone with all it ran.

async with NomadAgent(acl=True) as agent:
    await agent.calls.get("/v1/jobs")
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import aiohttp
import psutil

from tests.support.certificates import Authority
from tests.support.nomad_calls import Calls
from tests.support.ports import held_port

FAST_HEARTBEATS = {"heartbeat_grace": "4s", "min_heartbeat_ttl": "1s"}
"""A dead client is noticed within some 6 s, not 20, and one whose machine stands still for 2 s is not dead."""
START_LIMIT = 40.0
"""Seconds until its node is ready."""
PLUGIN_DIR = "TEST_GPU_PLUGIN_DIR"
"""Variable that names a folder of plug-ins that are not Nomad's own. An agent loads those it has a configuration of."""
STOP_LIMIT = 45.0
"""Seconds for its tasks to end, and again for itself. A replica that hangs has its grace period, 30 s, first."""


def nomad_program() -> str | None:
    """The path of `nomad`; None: not on this machine."""
    return shutil.which("nomad")


class NomadAgent:
    """One server and one node. Two processes: in one, the client often asks before the server can sign, and then sleeps
    half a minute.

    `address`, `token` (management; empty without ACL), `node` (its id), `calls` (a client with that token).

    `consul`: `host:port` of a Consul it registers services in, or the agent's `consul` stanza, with `consul_token`.
    `vault`: its `vault` stanza. `meta`: the client's. `client`, `server`: more of these stanzas. `plugins`:
    configurations of task drivers, by name. The agent's environment is empty but for PATH and HOME, as raw_exec hands
    it to each task. Its folder lies directly in the temporary folder: paths of task sockets are bounded.

    `tls`: who signs its certificates; all it says is HTTPS then. `mutual`: its clients have to show one too.
    """

    parts: tuple[str, ...] = ("server", "client")
    """Its processes."""
    _ports_needed = 4

    def __init__(
        self,
        *,
        acl: bool = False,
        consul: str | Mapping[str, Any] = "",
        consul_token: str = "",
        tls: Authority | None = None,
        mutual: bool = False,
        vault: Mapping[str, Any] | None = None,
        meta: Mapping[str, str] | None = None,
        client: Mapping[str, Any] | None = None,
        server: Mapping[str, Any] | None = None,
        plugins: Mapping[str, Any] | None = None,
    ) -> None:
        self.acl = acl
        self._consul = dict(consul) if isinstance(consul, Mapping) else {"address": consul or "127.0.0.1:1"}
        self._vault, self._meta, self._authority, self._mutual = vault, meta or {}, tls, mutual
        self.tls = None if tls is None else tls.client(tls.issue("test.global.nomad"))
        if consul_token:
            self._consul["token"] = consul_token
        self._client, self._server = client or {}, server or {}
        self._plugins = {"raw_exec": {"enabled": True}} | dict(plugins or {})
        self.token = self.node = ""
        self.folder = Path()
        self.ports: tuple[int, ...] = (0,)
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._open = AsyncExitStack()

    @property
    def address(self) -> str:
        """`http://127.0.0.1:<port>`, the same after a restart."""
        return f"{'https' if self.tls else 'http'}://127.0.0.1:{self.ports[0]}"

    def log(self, part: str) -> str:
        """What its `server` or `client` said since it was last started."""
        path = self.folder / f"{part}.log"
        return path.read_text(errors="replace") if path.exists() else ""

    async def __aenter__(self) -> Self:
        self.folder = Path(tempfile.mkdtemp(prefix="nomad-"))
        try:
            self.ports = tuple(self._open.enter_context(held_port()) for _ in range(self._ports_needed))
            for part in self.parts:
                (self.folder / f"{part}.json").write_text(json.dumps(self._configuration(part)))
            await self.start()
            if self.acl:
                async with Calls(self.address, tls=self.tls) as calls:
                    self.token = (await calls.put("/v1/acl/bootstrap"))["SecretID"]
            self.calls = await self._open.enter_async_context(Calls(self.address, self.token, self.tls))
            nodes = await self.calls.until("/v1/nodes", lambda found: found and found[0]["Status"] == "ready")
            self.node = nodes[0]["ID"]
        except BaseException:
            await self._away()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if len(self._processes) < len(self.parts):
                await self.start()  # what it ran ends through it
            await self._end_jobs()
        finally:
            await self._away()

    async def start(self) -> None:
        """Start its server on its own state, and its client, if they do not run; wait until its node is ready. Raises
        RuntimeError with the end of a log, TimeoutError."""
        servers, clients = ([part for part in self.parts if part.startswith(kind)] for kind in ("server", "client"))
        async with asyncio.timeout(START_LIMIT):
            for part in servers:
                self.launch(part)
            while not await self._leads():
                for part in servers:
                    await self._wait(part)
            for part in clients:
                self.launch(part)
            for part in clients:
                while "client: node registration complete" not in self.log(part):
                    await self._wait(part)

    async def _wait(self, part: str) -> None:
        if self._processes[part].poll() is not None:
            raise RuntimeError(f"nomad's {part} ended while it started:\n{self.log(part)[-2000:]}")
        await asyncio.sleep(0.02)

    def launch(self, part: str) -> None:
        """Start it, on its own state, if it does not run."""
        if part in self._processes:
            return
        program = nomad_program()
        if program is None:
            raise RuntimeError("no nomad on PATH")
        with (self.folder / f"{part}.log").open("wb") as log:
            self._processes[part] = subprocess.Popen(
                [program, "agent", "-config", str(self.folder / f"{part}.json")],
                env={"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": str(self.folder)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    async def _leads(self) -> bool:
        """Its server answers, leads, and can sign what a client asks for when it comes."""
        try:
            async with Calls(self.address, tls=self.tls) as calls:
                leader = (await calls.call("GET", "/v1/status/leader")).text
                return leader not in {"", '""'} and '"kid"' in (await calls.call("GET", "/.well-known/jwks.json")).text
        except (aiohttp.ClientError, OSError):
            return False

    async def stop(self, number: int = signal.SIGTERM) -> None:
        """End the server: no API, nothing is placed. Tasks run on under the client, which finds it again."""
        await self._stop("server", number)

    async def lose(self) -> None:
        """The client dies, its tasks run on; `start` brings it back, which then ends what the servers gave up."""
        await self._stop("client", signal.SIGKILL)

    async def _stop(self, part: str, number: int = signal.SIGTERM) -> None:
        process = self._processes.pop(part, None)
        if process is None:
            return
        process.send_signal(number)
        try:
            await asyncio.to_thread(process.wait, STOP_LIMIT)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    async def _end_jobs(self) -> None:
        """All jobs of all namespaces are stopped, their tasks have ended, and their folders are unmounted."""
        async with asyncio.timeout(STOP_LIMIT):
            while jobs := await self.calls.get("/v1/jobs", namespace="*"):
                live = [j for j in jobs if not j["Stop"]]
                for job in live:
                    path = f"/v1/job/{job['ID'].replace('/', '%2F')}"
                    await self.calls.call("DELETE", path, namespace=job["Namespace"], no_shutdown_delay=True)
                if not live and all(
                    a["ClientStatus"] in {"complete", "failed", "lost"} for a in await self._allocations()
                ):
                    break
                await asyncio.sleep(0.05)
            while mounts(self.folder):
                await self.calls.put("/v1/system/gc")
                await asyncio.sleep(0.1)

    async def _allocations(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = await self.calls.get("/v1/allocations", namespace="*")
        return found

    async def _away(self) -> None:
        await self._open.aclose()
        for part in reversed(self.parts):
            await self._stop(part)
        # Only after a failure is there anything of these left.
        for process in processes_of(self.folder):
            process.kill()
        for path in mounts(self.folder):
            await asyncio.to_thread(subprocess.run, ["umount", "-l", path], check=False, capture_output=True)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _configuration(self, part: str) -> dict[str, Any]:
        http, rpc, serf, client_http = self.ports
        configuration = self._common(part)
        if part == "server":
            own = {"rpc": rpc, "serf": serf}
            server = {"enabled": True, "bootstrap_expect": 1, "raft_multiplier": 1} | FAST_HEARTBEATS
            return configuration | {
                "ports": {"http": http} | own,
                "advertise": {"http": f"127.0.0.1:{http}"} | {name: f"127.0.0.1:{port}" for name, port in own.items()},
                "server": server | dict(self._server),
            }
        return configuration | {
            "ports": {"http": client_http},
            "advertise": {"http": f"127.0.0.1:{client_http}", "rpc": "127.0.0.1", "serf": "127.0.0.1"},
            "client": self._client_stanza([f"127.0.0.1:{rpc}"]),
        }

    def _common(self, part: str) -> dict[str, Any]:
        configuration: dict[str, Any] = {
            "name": "test",
            "data_dir": str(self.folder / part),
            "bind_addr": "127.0.0.1",
            "plugin": [{name: [{"config": [config]}]} for name, config in self._plugins.items()],
            "acl": {"enabled": self.acl},
            "consul": self._consul,
            "disable_update_check": True,
        }
        if self._vault is not None:
            configuration["vault"] = dict(self._vault)
        if self._authority is not None:
            configuration["tls"] = self._secured(part)
        if (plugin_dir := os.environ.get(PLUGIN_DIR)) and not part.startswith("server"):
            configuration["plugin_dir"] = plugin_dir
        return configuration

    def _client_stanza(self, servers: list[str]) -> dict[str, Any]:
        client: dict[str, Any] = {
            "enabled": True,
            "servers": servers,
            "network_interface": "lo",
            "options": {"fingerprint.denylist": "env_aws,env_gce,env_azure,env_digitalocean"},
            "meta": dict(self._meta),
            "gc_max_allocs": 500,
        }
        return client | dict(self._client)

    def _secured(self, part: str) -> dict[str, Any]:
        assert self._authority is not None
        pair = self._authority.issue(f"{part}.global.nomad")
        files = {"ca_file": self._authority.cert, "cert_file": pair.cert, "key_file": pair.key}
        switches = {"http": True, "rpc": True, "verify_server_hostname": True, "verify_https_client": self._mutual}
        return switches | {name: str(path) for name, path in files.items()}


def mounts(folder: Path) -> list[str]:
    """What is mounted below a folder, deepest first."""
    lines = Path("/proc/self/mounts").read_text().splitlines()
    found = [path for line in lines if (path := line.split(" ")[1]).startswith(f"{folder}/")]
    return sorted(found, reverse=True)


def processes_of(folder: Path) -> list[psutil.Process]:
    """Executors and tasks: their command or environment names the folder."""
    found = []
    for process in psutil.process_iter():
        try:
            words = [*process.cmdline(), *process.environ().values()]
        except (psutil.Error, OSError):
            continue
        if process.pid != os.getpid() and any(f"{folder}/" in word for word in words):
            found.append(process)
    return found
