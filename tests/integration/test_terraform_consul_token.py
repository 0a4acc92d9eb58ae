"""The token of Consul that module `router-job` writes into a variable of Nomad: on real servers, with real plug-ins."""

from __future__ import annotations

import asyncio
import subprocess
import uuid
from pathlib import Path

import pytest

from tests.support.nomad_agent import NomadAgent
from tests.support.openbao import OpenBao
from tests.support.terraform import run
from tests.support.terraform_cluster import copied, servers_given

ROOT_MODULE = """
variable "token" {{
  type      = string
  default   = null
  ephemeral = true
}}

variable "number" {{
  type = number
}}

module "router" {{
  source = "../terraform/modules/router-job"

  mount                = "secret"
  auth_mount           = "{auth_mount}"
  artifacts_store      = "/srv/artifacts"
  vault_address        = "http://127.0.0.1:8200"
  consul_login         = "variable"
  consul_token         = var.token
  consul_token_version = var.number
}}
"""
TOKEN = "b1c2d3e4-0000-4000-8000-000000000001"


@pytest.mark.slow
async def test_it_is_given_once_and_a_newer_one_that_is_not_given_leaves_it(tmp_path: Path, openbao: OpenBao) -> None:
    plugins = servers_given()
    root, auth_mount = copied(tmp_path / "checkout") / "root", f"jwt-{uuid.uuid4().hex[:8]}"
    root.mkdir()
    (root / "main.tf").write_text(ROOT_MODULE.format(auth_mount=auth_mount))
    with openbao.client() as client:
        client.sys.enable_auth_method("jwt", path=auth_mount)

    async with NomadAgent(acl=True) as agent:
        servers = {
            "NOMAD_ADDR": agent.address,
            "NOMAD_TOKEN": agent.token,
            "VAULT_ADDR": openbao.address,
            "VAULT_TOKEN": openbao.root_token,
        }

        async def terraform(*words: str, code: int = 0) -> str:
            done: subprocess.CompletedProcess[str] = await asyncio.to_thread(run, root, *words, variables=servers)
            assert done.returncode == code, done.stdout + done.stderr
            assert TOKEN not in done.stdout + done.stderr
            return done.stdout + done.stderr

        async def written() -> object:
            return (await agent.calls.get("/v1/var/nomad/jobs/modalnomad-router?namespace=modalnomad"))["Items"]

        # The job itself would need Consul.
        apply = ("apply", "-no-color", "-auto-approve", "-target=module.router.nomad_variable.consul_token")
        await terraform("init", "-no-color", *plugins)
        await terraform(*apply, "-var=number=1", f"-var=token={TOKEN}")
        assert await written() == {"consul_token": TOKEN}
        assert "No changes" in await terraform(*apply, "-var=number=1")
        # Else an empty one would take its place.
        assert "missing required Items" in await terraform(*apply, "-var=number=2", code=1)
        assert await written() == {"consul_token": TOKEN}
        assert TOKEN not in (root / "terraform.tfstate").read_text()
