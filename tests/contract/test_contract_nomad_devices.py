"""GPUs: how Nomad shows them, which it gives, in what order, and what it says when there are none left.

The real Nomad has no GPU: a stand-in for its device plug-in says that it has (tests/support/cards.py).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

import pytest
import pytest_asyncio

from modalnomad.hashicorp.nomad.gpus import gpu_stocks
from modalnomad.hashicorp.nomad.words import placement
from modalnomad.render.nomad_devices import devices
from tests.support.cards import Cards, NomadWithCards, Shelf, why_not
from tests.support.fakes.nomad.server import FakeNomad
from tests.support.fakes.nomad.state import TERMINAL
from tests.support.nomad_calls import Calls
from tests.support.nomads import KINDS, plain, quoted

pytestmark = pytest.mark.asyncio(loop_scope="module")

H100 = Cards("NVIDIA H100 80GB HBM3", 81_559, ("GPU-h0", "GPU-h1"))
A100 = Cards("NVIDIA A100-SXM4-40GB", 40_960, ("GPU-a0",))
L4 = Cards("NVIDIA L4", 23_034, ("GPU-l0",))
MIXED, OTHERS = "mixed", ("one", "two", "three")
"""Nodes: one with all three, and some with an A100 each."""
EMPTY = {"missing devices": 4}
LIKES_ALL = [{"LTarget": "${attr.kernel.name}", "RTarget": "linux", "Operand": "=", "Weight": 1}]


@dataclass
class World:
    """A Nomad whose nodes have GPUs."""

    calls: Calls
    shelf: Shelf
    nodes: dict[str, str]
    """Name → id."""
    fake: FakeNomad | None = None

    async def put(self, node: str, *cards: Cards) -> None:
        """A node has these from now on."""
        await self.shelf.change(self.calls, self.fake, self.nodes[node], cards)

    async def run(self, name: str, ask: list[dict[str, Any]] | None, script: str = "sleep 60", **more: Any) -> Any:
        """Node and cards it got, as `(node, model, ids)`; or the metrics of its failure."""
        made = await self.calls.put("/v1/jobs", plain(name, script, devices=ask, **more))
        evaluation = await self.calls.until(f"/v1/evaluation/{made['EvalID']}", lambda e: e["Status"] == "complete")
        if failed := evaluation.get("FailedTGAllocs"):
            return failed["replica"]
        (found,) = await self.calls.get("/v1/allocations", resources=True, filter=f'JobID == "{name}"')
        (given,) = found["AllocatedResources"]["Tasks"]["app"]["Devices"]
        assert (given["Vendor"], given["Type"]) == ("nvidia", "gpu")
        return found["NodeName"], given["Name"], sorted(given["DeviceIDs"])

    async def scores(self, name: str) -> list[dict[str, float]]:
        """Of the nodes that were weighed for a job."""
        (found,) = await self.calls.get(f"/v1/job/{quoted(name)}/allocations")
        metrics = (await self.calls.get(f"/v1/allocation/{found['ID']}"))["Metrics"]
        return [{"total": each["NormScore"], **each["Scores"]} for each in metrics["ScoreMetaData"]]

    async def end(self, *names: str) -> None:
        """Stop jobs; what they held is free."""
        for name in names:
            await self.calls.call("DELETE", f"/v1/job/{quoted(name)}")
        await self.calls.until(
            "/v1/allocations", lambda all_of: all(a["ClientStatus"] in TERMINAL for a in all_of if a["JobID"] in names)
        )


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=KINDS)
async def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    """One for all tests of this file."""
    shelf = Shelf(tmp_path_factory.mktemp("shelf"))
    had: dict[str, tuple[Cards, ...]] = {MIXED: (H100, A100, L4)} | dict.fromkeys(OTHERS, (A100,))
    async with AsyncExitStack() as stack:
        if request.param == "fake":
            fake = await stack.enter_async_context(FakeNomad())
            fake.clients.prompt = True
            calls = await stack.enter_async_context(Calls(fake.address))
            nodes = {name: fake.add_node(name, meta={"name": name}) for name in had}
            found = World(calls, shelf, nodes, fake)
        else:
            if reason := why_not():
                pytest.skip(reason)
            agent = await stack.enter_async_context(NomadWithCards(shelf, had))
            found = World(agent.calls, shelf, agent.nodes)
        for name, cards in had.items():
            await found.put(name, *cards)
        yield found


async def test_what_a_node_tells_of_its_cards(world: World) -> None:
    node = await world.calls.get(f"/v1/node/{world.nodes[MIXED]}")
    (told,) = [each for each in node["NodeResources"]["Devices"] if each["Name"] == L4.name]
    assert (told["Vendor"], told["Type"]) == ("nvidia", "gpu")
    assert told["Instances"] == [{"HealthDescription": "", "Healthy": True, "ID": "GPU-l0", "Locality": None}]
    memory = {"Bool": None, "Float": None, "Int": L4.memory, "String": None, "Unit": "MiB"}
    assert told["Attributes"]["memory"] == memory

    (listed,) = [each for each in await world.calls.get("/v1/nodes", resources=True) if each["ID"] == node["ID"]]
    stocks = {(s.name, s.memory, s.count, s.used, s.free, s.state) for s in gpu_stocks([listed], [])}
    assert stocks == {(c.name, c.memory, len(c.ids), 0, len(c.ids), "") for c in (H100, A100, L4)}


async def test_the_first_choice_that_is_free_is_given(world: World) -> None:
    """Also of the fall-back, and by the amount of memory."""
    likes = {"Affinities": LIKES_ALL}
    given = [await world.run(name, devices(["H100", "L4"]), group=likes) for name in "abcd"]
    assert [each[1] for each in given[:3]] == [H100.name, H100.name, L4.name]
    assert {*given[0][2], *given[1][2]} == set(H100.ids)
    assert given[3]["DimensionExhausted"] == {"devices: no devices match request": 1}
    assert given[3]["ConstraintFiltered"] == EMPTY | {"missing devices": 3}
    assert placement(given[3]).code == "no_capacity"
    stocks = gpu_stocks(
        await world.calls.get("/v1/nodes", resources=True), await world.calls.get("/v1/allocations", resources=True)
    )
    assert {(s.name, s.used, s.free) for s in stocks if s.used} == {
        (H100.name, 2, 0),
        (L4.name, 1, 0),
    }
    await world.end(*"abcd")

    assert (await world.run("e", devices(["A100-80GB", "H100"]), group=likes))[1] == H100.name
    assert (await world.run("f", devices(["A100-40GB"])))[1] == A100.name
    await world.end("e", "f")


@pytest.mark.parametrize(
    "ask",
    [["B200"], ["A100-80GB"], ["H100:3"], ["L4:2"]],
    ids=" ".join,
)
async def test_what_no_node_has_is_missing(world: World, ask: list[str]) -> None:
    failed = await world.run("never", devices(ask))
    assert (failed["ConstraintFiltered"], failed["DimensionExhausted"]) == (EMPTY, None)
    assert (failed["NodesEvaluated"], failed["NodesFiltered"], failed["NodesExhausted"]) == (4, 4, 0)
    assert placement(failed).reason == "no node has the GPU it asks for"
    await world.end("never")


async def test_a_number_without_a_unit_is_not_compared_with_one_that_has_one(world: World) -> None:
    ask = devices(["A100-40GB"])
    assert ask[0]["Constraints"][1]["RTarget"].endswith(" MiB")
    ask[0]["Constraints"][1]["RTarget"] = "1000"
    assert (await world.run("plain", ask))["ConstraintFiltered"] == EMPTY
    await world.end("plain")


async def test_cards_of_all_fitting_models_count_and_those_of_one_are_given(world: World) -> None:
    """So Nomad says that it waits for what will never be."""
    failed = await world.run("three", devices(["any:3"]))
    assert failed["DimensionExhausted"] == {"devices: no devices match request": 1}
    assert failed["ConstraintFiltered"] == {"missing devices": 3}
    await world.end("three")


@pytest.mark.parametrize("likes", [False, True])
async def test_how_many_nodes_are_weighed(world: World, likes: bool) -> None:
    """Two, and a preferred card on a third is not seen; all, where the job likes something of nodes."""
    group = {"Affinities": LIKES_ALL} if likes else {}
    name = f"weighed-{likes}"
    given = await world.run(name, devices(["H100", "A100"]), group=group)
    scores = await world.scores(name)
    await world.end(name)

    assert len(scores) == (4 if likes else 2)
    assert all(each["devices"] in (0, 1) and each["binpack"] > 0 for each in scores), "also of one that is not liked"
    added = 1.0 if likes else 0.0
    counted = 3 if likes else 2
    for each in scores:
        assert each["total"] == pytest.approx((each["binpack"] + each["devices"] + added) / counted)
    if likes:
        assert given[:2] == (MIXED, H100.name)


async def test_the_order_of_two_choices_counts_for_more_than_how_full_a_node_is(world: World) -> None:
    names = [f"fill-{name}" for name in OTHERS]
    for name in OTHERS:
        node = await world.calls.get(f"/v1/node/{world.nodes[name]}")
        memory = int(node["NodeResources"]["Memory"]["MemoryMB"] * 0.9)
        here = [{"LTarget": "${node.unique.id}", "RTarget": node["ID"], "Operand": "="}]
        await world.calls.put("/v1/jobs", plain(f"fill-{name}", memory=memory, constraints=here))
    await world.calls.until(
        "/v1/allocations", lambda all_of: {a["JobID"] for a in all_of if a["ClientStatus"] == "running"} >= {*names}
    )

    given = await world.run("ordered", devices(["H100", "A100"]), group={"Affinities": LIKES_ALL})
    scores = await world.scores("ordered")
    await world.end("ordered", *names)

    assert max(each["binpack"] for each in scores if not each["devices"]) > 0.4, "the others are rather full"
    assert given[:2] == (MIXED, H100.name)


@pytest.mark.parametrize("how", ["stopped", "purged", "ended"])
async def test_a_card_that_becomes_free_goes_to_who_waits(world: World, how: str) -> None:
    assert (await world.run("holder", devices(["L4"])))[2] == ["GPU-l0"]
    waiting = await world.run("waiter", devices(["L4"]), "sh -c 'echo $NVIDIA_VISIBLE_DEVICES; sleep 60'")
    assert waiting["DimensionExhausted"] == {"devices: no devices match request": 1}

    if how == "ended":
        (alloc,) = await world.calls.until("/v1/job/holder/allocations", lambda a: a[0]["ClientStatus"] == "running")
        signal = {"Task": "app", "Signal": "SIGKILL"}
        await world.calls.put(f"/v1/client/allocation/{alloc['ID']}/signal", signal)
    else:
        await world.calls.call("DELETE", "/v1/job/holder", purge=how == "purged")
    (alloc,) = await world.calls.until(
        "/v1/job/waiter/allocations", lambda all_of: all_of and all_of[0]["ClientStatus"] == "running"
    )
    said = ""
    while "GPU" not in said:
        path = f"/v1/client/fs/logs/{alloc['ID']}"
        said = (await world.calls.call("GET", path, task="app", type="stdout", plain=True)).text
        await asyncio.sleep(0.05)
    assert said == "began\nGPU-l0\n"
    for name in ("waiter", "holder"):
        await world.end(name)
        await world.calls.call("DELETE", f"/v1/job/{name}", purge=True)


async def test_who_asked_for_cards_that_were_ill_waits_on_when_they_are_well(world: World) -> None:
    """How many of a node's cards are there is not in its class, and what waits is looked at again for other classes."""
    await world.put(MIXED, H100, A100, Cards(L4.name, L4.memory, L4.ids, unhealthy=L4.ids))
    failed = await world.run("ill", devices(["L4"]))
    assert failed["ConstraintFiltered"] == EMPTY
    stocks = gpu_stocks(await world.calls.get("/v1/nodes", resources=True), ())
    assert [(s.count, s.free, s.state) for s in stocks if s.name == L4.name] == [(1, 0, "1 unhealthy")]

    await world.put(MIXED, H100, A100, L4)
    assert (await world.run("well", devices(["L4"])))[2] == ["GPU-l0"]
    assert await world.calls.get("/v1/job/ill/allocations") == []
    await world.end("well", "ill")
