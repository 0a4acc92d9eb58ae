"""Servers with ACLs on and nothing prepared, and Terraform on them: what an operator begins with.

async with bare(tmp_path) as c:                  # Nomad and OpenBao real, Consul fake
    platform = Platform(c, TERRAFORM / "examples" / "full", plugins_given())
    await platform.terraform("init")
    await platform.terraform("apply", "-auto-approve")
    await platform.people()                      # c.cli is a deployer from here on
    await c.cli("deploy", "examples/hello.py")
    status, text = await platform.get("hello-greet.localhost")
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Final

import aiohttp
import pytest

from modalnomad.kit.tasks import Tasks
from tests.support import terraform
from tests.support.cluster import Cluster, vault_stanza
from tests.support.fakes.consul import FakeConsul
from tests.support.nomad_agent import NomadAgent, nomad_program
from tests.support.openbao import OpenBao
from tests.support.ports import held_port
from tests.support.repository import ROOT
from tests.support.serve import shared_home
from tests.support.up import own_home

PROGRAM: Final = Path(sys.executable).parent / "modalnomad"
FACTS: Final = "modalnomad/hashicorp/setup"
"""Where the data file is that modules read."""
LIMIT: Final = 80.0
"""Seconds: an apply lasts until routers are ready."""


@asynccontextmanager
async def bare(folder: Path, *, consul_acl: bool = True) -> AsyncIterator[Cluster]:
    """A cluster on which nobody has prepared anything; commands have no token."""
    async with AsyncExitStack() as stack:
        consul = await stack.enter_async_context(FakeConsul(acl=consul_acl))
        (folder / "vault").mkdir()
        vault = stack.enter_context(OpenBao(folder / "vault"))
        nomad = await stack.enter_async_context(
            NomadAgent(
                acl=True,
                consul=consul.address.removeprefix("http://"),
                consul_token=consul.management if consul_acl else "",
                vault=vault_stanza(vault),
            )
        )
        artifacts = stack.enter_context(held_port())
        env = {
            "PATH": os.environ["PATH"],
            "HOME": str(folder),
            "LANG": "C.UTF-8",
            "MODALNOMAD_BACKEND": "hashicorp",
            "MODALNOMAD_HOME": str(own_home(folder)),
            "NOMAD_ADDR": nomad.address,
            "CONSUL_HTTP_ADDR": consul.address,
            "VAULT_ADDR": vault.address,
            "MODALNOMAD_NOMAD__NODE_STORE": str(shared_home()),
            "MODALNOMAD_NOMAD__PYTHON": sys.executable,
            "MODALNOMAD_ARTIFACTS__PORT": str(artifacts),
            "MODALNOMAD_ARTIFACTS__STORE": str(folder / "artifacts"),
            "MODALNOMAD_ARTIFACTS__URL": f"http://127.0.0.1:{artifacts}",
            "MODALNOMAD_VAULT__MOUNT": "modalnomad",
        }
        tasks = await stack.enter_async_context(Tasks("cluster"))
        yield Cluster(folder, consul, vault, nomad, env, tasks)


def copied(folder: Path) -> Path:
    """What Terraform reads of the checkout, in a new folder: it writes beside its modules → the folder."""
    for each in ("terraform", "jobspecs", FACTS):
        shutil.copytree(ROOT / each, folder / each, ignore=shutil.ignore_patterns("__pycache__", "*.py", ".terraform*"))
    return folder


def servers_given() -> tuple[str, ...]:
    """Plug-ins for `terraform init`; the test is skipped where they, Terraform or Nomad are not there."""
    given = terraform.plugins_given()
    if nomad_program() is None:
        pytest.skip("no nomad on PATH")
    return given


class Platform:
    """One root module of the checkout, on a cluster. It runs in a copy, since Terraform writes beside it."""

    def __init__(self, cluster: Cluster, module: Path, plugins: tuple[str, ...]) -> None:
        self.cluster = cluster
        self.folder = Path(tempfile.mkdtemp(prefix="terraform-", dir=cluster.folder))
        self.module = copied(self.folder / "checkout") / module.relative_to(ROOT)
        self.state = self.module / "terraform.tfstate"
        self._plugins = plugins
        env = cluster.env
        with held_port() as port, held_port() as admin_port:  # let go at once: nothing here ends with the test
            ports = {"port": port, "admin_port": admin_port}
        self.url = f"http://127.0.0.1:{ports['port']}"
        self.admin_url = f"http://127.0.0.1:{ports['admin_port']}"
        self.variables: dict[str, Any] = {
            "nomad_address": env["NOMAD_ADDR"],
            "consul_address": env["CONSUL_HTTP_ADDR"],
            "vault_address": env["VAULT_ADDR"],
            "domain": "localhost",
            "artifacts_store": env["MODALNOMAD_ARTIFACTS__STORE"],
            "artifacts_url": env["MODALNOMAD_ARTIFACTS__URL"],
            "router": {
                "instances": 1,
                "command": str(PROGRAM),
                "artifacts_port": int(env["MODALNOMAD_ARTIFACTS__PORT"]),
                **ports,
            },
        }
        """Of the module; a test may change them between two runs."""
        if cluster.consul.acl.enabled:
            self.variables["create_consul_auth_method"] = True

    @property
    def management(self) -> dict[str, str]:
        """Tokens that may do everything, as variables of the environment."""
        c = self.cluster
        found = {"NOMAD_TOKEN": c.nomad.token, "VAULT_TOKEN": c.vault.root_token}
        return found | ({"CONSUL_HTTP_TOKEN": c.consul.management} if c.consul.acl.enabled else {})

    async def terraform(
        self, *words: str, code: int = 0, env: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """`terraform WORDS` with tokens of management, or with those in `env`; fails unless it ends with `code`."""
        command = words[:2] if words[0] == "state" else words[:1]
        options = ["-no-color"]
        if words[0] == "init":
            options += self._plugins
        if words[0] in {"plan", "apply", "destroy", "import"}:
            file = self.folder / "test.tfvars.json"
            file.write_text(json.dumps(self.variables))
            options.append(f"-var-file={file}")
        given = {"TF_DATA_DIR": str(self.folder / "terraform"), **self.management, **(env or {})}
        done = await asyncio.to_thread(
            terraform.run, self.module, *command, *options, *words[len(command) :], variables=given, limit=LIMIT
        )
        assert done.returncode == code, f"terraform {' '.join(words)}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    async def changes(self, *words: str) -> dict[str, list[str]]:
        """What a plan would do, by address: `create`, `update`, `delete`."""
        await self.terraform("plan", "-out=test.plan", *words)
        shown = json.loads((await self.terraform("show", "-json", "test.plan")).stdout)
        found = {one["address"]: one["change"]["actions"] for one in shown.get("resource_changes", ())}
        return {address: actions for address, actions in found.items() if actions not in (["no-op"], ["read"])}

    async def people(self, policy: str = "modalnomad-deployer") -> None:
        """From now on commands have tokens with the rights of this policy, made as an operator makes them."""
        c = self.cluster
        found = {"VAULT_TOKEN": c.vault.token(policy, "default", ttl="24h")}
        async with aiohttp.ClientSession() as session:
            body: dict[str, Any] = {"Name": policy, "Type": "client", "Policies": [policy]}
            headers = {"X-Nomad-Token": c.nomad.token}
            async with session.post(f"{c.nomad.address}/v1/acl/token", json=body, headers=headers) as answer:
                found["NOMAD_TOKEN"] = (await answer.json())["SecretID"]
            if c.consul.acl.enabled:
                body = {"Description": policy, "Policies": [{"Name": policy}]}
                headers = {"X-Consul-Token": c.consul.management}
                async with session.put(f"{c.consul.address}/v1/acl/token", json=body, headers=headers) as answer:
                    found["CONSUL_HTTP_TOKEN"] = (await answer.json())["SecretID"]
        c.env |= found

    async def get(self, host: str, path: str = "/") -> tuple[int, str]:
        """Status and text of one request to the routers."""
        limit = aiohttp.ClientTimeout(total=LIMIT)
        async with aiohttp.request("GET", self.url + path, headers={"Host": host}, timeout=limit) as answer:
            return answer.status, await answer.text()
