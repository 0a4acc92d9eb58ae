"""A cluster from the outside: programs are deployed, woken, answered, rolled back and stopped by the real commands, all
with the least rights."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.support.cluster import Cluster, cluster

pytestmark = pytest.mark.asyncio(loop_scope="module")

PROGRAM = """
import modal, os
app = modal.App("shop")

@app.function(scaledown_window=2, secrets=[modal.Secret.from_name("db"), modal.Secret.from_dict({"INLINE": "x y"})])
@modal.fastapi_endpoint()
def show():
    print("shown")
    return {"password": os.environ["PASSWORD"], "inline": os.environ["INLINE"], "version": "VERSION"}

@app.cls(scaledown_window=2)
class Model:
    name: str = modal.parameter(default="a")

    @modal.enter()
    def load(self):
        self.loaded = self.name.upper()

    @modal.fastapi_endpoint()
    def ask(self):
        return self.loaded

@app.cls(scaledown_window=2)
class Broken:
    @modal.enter()
    def load(self):
        raise RuntimeError("no model here")

    @modal.fastapi_endpoint()
    def ask(self):
        return 1
"""
HARD = "a\nb \"c\" 'd' $HOME #e %f {{ g }} žluť 🐎"


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=["fake", "real"])
async def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Cluster]:
    """One for all tests of this file."""
    if request.param == "real" and shutil.which("nomad") is None:
        pytest.skip("nomad is not on PATH")
    async with cluster(tmp_path_factory.mktemp("world"), real=request.param == "real", acl=True) as made:
        yield made


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shop(world: Cluster) -> Path:
    """Deployed, asleep."""
    file = world.folder / "shop.py"
    file.write_text(PROGRAM)
    values = world.folder / "db.json"
    values.write_text(json.dumps({"PASSWORD": HARD}))
    await world.cli("secret", "create", "db", "--from-json", str(values))
    await world.cli("deploy", str(file))
    return file


async def containers(world: Cluster, function: str) -> list[str]:
    """States of a Function's replicas."""
    found = await world.cli("container", "list", "--json")
    return [record["state"] for record in found.records() if record["function"] == function]


async def test_a_request_wakes_a_replica_which_goes_when_nobody_asks_any_more(world: Cluster, shop: Path) -> None:
    assert await containers(world, "show") == []

    async with world.router() as router:
        status, text = await router.get("shop-show.localhost")
        assert (status, json.loads(text)) == (200, {"password": HARD, "inline": "x y", "version": "VERSION"})
        await router.until(lambda e: e["event"] == "replica" and e["function"] == "show" and e["state"] == "gone")

        logs = await world.cli("app", "logs", "shop", "--function", "show", "--json")
    assert "shown" in [record["line"] for record in logs.records()]
    assert await containers(world, "show") == []


async def test_each_set_of_class_parameters_is_a_pool_of_its_own(world: Cluster, shop: Path) -> None:
    async with world.router() as router:
        answers = await asyncio.gather(
            *(router.get("shop-model-ask.localhost", f"/?name={n}") for n in ("x", "y", "x"))
        )

    assert [(status, json.loads(text)) for status, text in answers] == [(200, "X"), (200, "Y"), (200, "X")]


async def test_a_start_that_fails_is_told_at_once_and_its_output_kept(world: Cluster, shop: Path) -> None:
    async with world.router() as router:
        status, text = await router.get("shop-broken-ask.localhost")
        failed = await router.until(lambda e: e["event"] == "replica" and e["state"] == "failed")

        assert (status, json.loads(text)["code"]) == (503, "start_failed")
        assert "no model here" not in text
        assert failed["function"] == "Broken"
        logs = await world.cli("app", "logs", "shop", "--function", "Broken", "--source", "stderr", "--json")
        assert any("no model here" in record["line"] for record in logs.records())


async def test_versions_come_go_and_come_back(world: Cluster, shop: Path) -> None:
    async with world.router() as router:

        async def version() -> str:
            status, text = await router.get("shop-show.localhost")
            assert status == 200, text
            return str(json.loads(text)["version"])

        assert await version() == "VERSION"
        await asyncio.to_thread(shop.write_text, PROGRAM.replace("VERSION", "two"))
        deployed = await world.cli("deploy", str(shop), "--json")
        assert await version() == "two"
        assert [endpoint["url"].rpartition(":")[2] for endpoint in deployed.records()[0]["endpoints"]] == [
            router.url.rpartition(":")[2]
        ] * 3
        await world.cli("app", "rollback", "shop")
        assert await version() == "VERSION"
        await world.cli("app", "stop", "shop", "--yes")
        assert (await router.get("shop-show.localhost"))[0] == 404
        await world.cli("app", "rollback", "shop", "v2")
        assert await version() == "two"
