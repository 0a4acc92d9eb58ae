"""`modalnomad render`: what a deploy to a cluster would register, without a server."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from modalnomad.embedded.discovery import EmbeddedDiscovery
from modalnomad.render.nomad import check_job
from tests.support.deploys import Deploys, files_below

NOWHERE = {f"{name}": "http://127.0.0.1:1" for name in ("NOMAD_ADDR", "CONSUL_HTTP_ADDR", "VAULT_ADDR")}
TWO = """
@app.cls()
class Größe:
    size: str = modal.parameter(default="ů")
    @modal.fastapi_endpoint()
    def ask(self): return self.size
"""


@pytest.fixture
def shop(tmp_path: Path) -> Deploys:
    made = Deploys(tmp_path, NOWHERE)
    made.write(more=TWO)
    return made


def task(body: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = body["Job"]["TaskGroups"][0]["Tasks"][0]
    return found


def test_one_job_for_each_function_as_a_deploy_would_have_it(shop: Deploys) -> None:
    before = files_below(shop.home)
    bodies = shop.json("render", "shop.py", "--version", "7")
    printed = json.loads(shop.run("render", "shop.py", "--version", "7").stdout)

    assert [body["Job"]["ID"] for body in bodies] == ["shop.f.r7", "shop.Größe.r7"]
    for body, again in zip(bodies, printed, strict=True):
        check_job(body)
        assert {**again["Job"], "UI": None} == {**body["Job"], "UI": None}
        assert "def f(): return" in body["Submission"]["Source"]
    # Images aside, which a deploy would make too, nothing is kept.
    new = {Path(path).relative_to(shop.home).parts[0] for path in files_below(shop.home).keys() - before.keys()}
    assert new <= {"images", "scratch.lock", "format"}
    assert not list((shop.home / "scratch").iterdir())

    shop.deploy()
    record = asyncio.run(EmbeddedDiscovery(shop.home).app("shop", "main"))
    assert record is not None
    deployed = {revision.function.tag: revision for revision in record.versions[-1].revisions}
    for body in bodies:
        revision = deployed[body["Job"]["Meta"]["function"]]
        assert body["Job"]["Meta"]["revision"] == revision.id
        assert task(body)["Artifacts"][1]["GetterOptions"] == {"checksum": f"sha256:{revision.bundle}"}
        assert task(body)["Env"]["MODALNOMAD_IMAGE"] == revision.image.digest


def test_the_first_version_unless_another_is_named(shop: Deploys) -> None:
    first, _ = shop.json("render", "shop.py", "--env", "staging", "--name", "other")

    assert (first["Job"]["ID"], first["Job"]["Namespace"]) == ("other.f.r1", "modalnomad-staging")


def test_values_written_in_the_program_are_nowhere(shop: Deploys) -> None:
    shop.write(function='secrets=[modal.Secret.from_dict({"K": "tell-nobody"})]')
    told = shop.run("render", "shop.py")

    (body,) = json.loads(told.stdout)
    assert task(body)["Env"]["MODALNOMAD_SECRET_FILES"] == "00-anonymous.json"
    assert "tell-nobody" not in told.stdout + told.stderr


@pytest.mark.parametrize(
    ("function", "arguments", "words"),
    [
        ('secrets=[modal.Secret.from_name("db", environment_name="prod")]', (), "is of environment 'prod'"),
        ('gpu=["H100:2", "A100"]', (), "the same number of cards"),
        ("", ("--name", "a b"), "App name 'a b'"),
    ],
)
def test_what_a_cluster_could_not_run_is_told(
    shop: Deploys, function: str, arguments: tuple[str, ...], words: str
) -> None:
    shop.write(function=function)
    refused = shop.run("render", "shop.py", *arguments, code=1)

    assert words in refused.stderr
    assert not refused.stdout
    assert "Traceback" not in refused.stderr


def test_artifacts_that_no_node_could_reach(tmp_path: Path) -> None:
    shop = Deploys(tmp_path, {**NOWHERE, "MODALNOMAD_ARTIFACTS__HOST": "0.0.0.0"})
    shop.write()

    assert "set artifacts.url" in shop.run("render", "shop.py", code=1).stderr
