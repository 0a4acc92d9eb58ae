"""GPUs of a cluster from the outside: shown, planned, given to replicas, missing, in use, ill and well again.

No card here is real: nodes only say that they have some (tests/support/cards.py). A replica counts what the driver
shows, and believes what is called MIG-…, which no driver here could show.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from tests.support.cards import Cards, Shelf, why_not
from tests.support.cluster import PATIENCE, Cluster, Router, cluster
from tests.support.fakes.nomad.server import FakeNomad
from tests.support.nomad_calls import Calls
from tests.support.nomads import plain

pytestmark = pytest.mark.asyncio(loop_scope="module")

H100 = Cards("NVIDIA H100 80GB HBM3", 81_559, ("MIG-h0", "MIG-h1"))
A100 = Cards("NVIDIA A100-SXM4-40GB", 40_960, ("MIG-a0",))
L4 = Cards("NVIDIA L4", 23_034, ("GPU-l0",))
ALL = (A100, H100, L4)
HEAD = """
import asyncio, modal, os
app = modal.App("APP")

"""
FUNCTION = """
@app.function(gpu=GPU, HOW)
@modal.fastapi_endpoint()
async def NAME(until: str = ""):
    while until and not os.path.exists(until):
        await asyncio.sleep(0.02)
    return os.environ["CUDA_VISIBLE_DEVICES"]
"""
ASKS: dict[str, str | list[str]] = {
    "one": "H100",
    "both": "h100!:2",
    "first": ["A100", "H100"],
    "smaller": ["A100-80GB", "A100-40GB"],
    "blind": "L4",
}
"""Functions of the App. An idle replica of `one` stays, those of the others go after their answer."""


@dataclass
class World:
    """A cluster whose node has cards, with a router."""

    cluster: Cluster
    router: Router
    calls: Calls
    node: str
    shelf: Shelf

    async def put(self, *cards: Cards) -> None:
        """The node has these from now on."""
        fake = self.cluster.nomad if isinstance(self.cluster.nomad, FakeNomad) else None
        await self.shelf.change(self.calls, fake, self.node, cards)

    def write(self, app: str, asks: Mapping[str, str | list[str]]) -> str:
        """A program with Functions that ask for these."""
        how = {"one": "scaledown_window=60"}
        functions = (
            FUNCTION.replace("NAME", name)
            .replace("GPU", repr(gpu))
            .replace("HOW", how.get(name, "single_use_containers=True"))
            for name, gpu in asks.items()
        )
        file = self.cluster.folder / f"{app}.py"
        file.write_text(HEAD.replace("APP", app) + "\n".join(functions))
        return str(file)

    async def ask(self, name: str, path: str = "/") -> tuple[int, str, str | None]:
        """Status, the cards that it saw or the error's code, Retry-After."""
        headers = {"Host": f"cards-{name}.localhost"}
        async with aiohttp.request("GET", self.router.url + path, headers=headers) as answer:
            told = json.loads(await answer.text())
            return answer.status, told if answer.status == 200 else told["code"], answer.headers.get("Retry-After")

    async def stock(self) -> dict[str, tuple[int, int, str]]:
        """`gpu list`: model → used, free, state."""
        listed = (await self.cluster.cli("gpu", "list", "--json")).records()
        return {one["name"]: (one["used"], one["free"], one["state"]) for one in listed}

    async def idle(self) -> None:
        """No replica is left."""
        await self.calls.until(
            "/v1/allocations",
            lambda all_of: all(a["ClientStatus"] not in {"pending", "running"} for a in all_of),
            namespace="*",
        )


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=["fake", "real"])
async def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    """One for all tests of this file."""
    shelf = Shelf(tmp_path_factory.mktemp("shelf"))
    how: dict[str, Any] = {}
    if request.param == "real":
        if reason := why_not():
            pytest.skip(reason)
        how = {"real": True, "plugins": shelf.put("test", ALL)}
    async with (
        cluster(tmp_path_factory.mktemp("gpus"), **how) as made,
        Calls(made.nomad.address) as calls,
        made.router() as router,
    ):
        if isinstance(made.nomad, FakeNomad):
            made.nomad.clients.prompt = True
        (node,) = await calls.get("/v1/nodes")
        found = World(made, router, calls, node["ID"], shelf)
        await found.put(*ALL)
        await made.cli("deploy", found.write("cards", ASKS))
        yield found


async def test_cards_are_shown_given_and_given_back(world: World) -> None:
    assert await world.stock() == {H100.name: (0, 2, ""), A100.name: (0, 1, ""), L4.name: (0, 1, "")}
    status, seen, _ = await world.ask("one")
    assert (status, seen in H100.ids) == (200, True)
    assert (await world.stock())[H100.name] == (1, 1, "")
    # The idle replica of the other makes room.
    status, seen, _ = await world.ask("both")
    assert (status, sorted(seen.split(","))) == (200, [*H100.ids])
    await world.idle()
    assert (await world.stock())[H100.name] == (0, 2, "")


async def test_choices_are_taken_in_their_order(world: World) -> None:
    assert await world.ask("first") == (200, "MIG-a0", None)
    await world.idle()
    done = world.cluster.folder / "done"
    busy = asyncio.ensure_future(world.ask("smaller", f"/?until={done}"))
    await world.calls.until(
        "/v1/allocations", lambda all_of: any(a["ClientStatus"] == "running" for a in all_of), namespace="*"
    )
    status, seen, _ = await world.ask("first")
    assert (status, seen in H100.ids) == (200, True)
    done.touch()
    assert await busy == (200, "MIG-a0", None)
    await world.idle()


async def test_a_replica_that_sees_fewer_cards_than_it_asked_for_does_not_start(world: World) -> None:
    before = len(world.router.errors)

    assert (await world.ask("blind"))[:2] == (503, "start_failed")
    await world.router.told("cards/blind: fewer GPUs are visible than were asked for", after=before)
    await world.router.told("0 are visible here (CUDA_VISIBLE_DEVICES=GPU-l0)", after=before)
    await world.idle()


async def test_what_no_node_could_ever_give_is_refused(world: World) -> None:
    asks: dict[str, str | list[str]] = {"a": "B200", "b": "A100-80GB", "c": "H100:3", "d": "any:3"}
    file = world.write("never", asks)

    planned, refused = await asyncio.gather(*(world.cluster.cli(what, file, code=1) for what in ("plan", "deploy")))

    for name, gpu in asks.items():
        what = "3 GPUs of one model" if name == "d" else "the GPU it asks for"
        reason = f"no node has {what} (it asks for {str(gpu).upper()}; modalnomad gpu list shows what there is)"
        assert f"{name} cannot run: {reason}" in planned.stdout
        assert f"{name} cannot run here: {reason}" in refused.stderr
    jobs = {job["ID"].partition(".")[0] for job in await world.calls.get("/v1/jobs", namespace="*")}
    assert "never" not in jobs


async def test_what_others_hold_is_waited_for(world: World) -> None:
    await world.calls.put("/v1/jobs", plain("other", devices=[{"Name": "nvidia/gpu/NVIDIA H100 80GB HBM3"}]))
    await world.calls.until(
        "/v1/job/other/allocations", lambda all_of: all_of and all_of[0]["ClientStatus"] == "running"
    )
    reason = "a replica would have to wait now: no node has enough left of what it asks for: GPUs"
    assert f"both: {reason}" in (await world.cluster.cli("plan", str(world.cluster.folder / "cards.py"))).stdout
    before = len(world.router.errors)

    assert await world.ask("both") == (503, "no_capacity", "1")
    await world.router.told("cards/both: no node has enough left of what it asks for: GPUs", after=before)
    await world.calls.call("DELETE", "/v1/job/other", purge=True)
    await world.calls.until(
        "/v1/allocations", lambda all_of: any(a["ClientStatus"] == "running" for a in all_of), namespace="*"
    )
    status, seen, _ = await world.ask("both")
    assert (status, sorted(seen.split(","))) == (200, [*H100.ids])
    await world.idle()


async def test_cards_that_fell_ill_are_used_when_they_are_well(world: World) -> None:
    """Nomad itself does not look again at what waits for them."""
    await world.put(A100, Cards(H100.name, H100.memory, H100.ids, unhealthy=("MIG-h1",)), L4)
    assert (await world.stock())[H100.name] == (0, 1, "1 unhealthy")
    before = len(world.router.errors)

    assert (await world.ask("both"))[:2] == (503, "unplaceable")
    await world.router.told("cards/both: no node has the GPU it asks for", after=before)
    await world.put(*ALL)
    async with asyncio.timeout(PATIENCE):
        while (answer := await world.ask("both"))[0] != 200:  # noqa: ASYNC110 - as a client would
            await asyncio.sleep(float(answer[2] or 0.1))
    assert sorted(answer[1].split(",")) == [*H100.ids]
    await world.idle()
