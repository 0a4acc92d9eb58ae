"""A revision's environment made on every node that may run it, so that no first request waits for that."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from modalnomad.hashicorp.nomad.api import NomadApi, Shape
from modalnomad.hashicorp.nomad.lastwords import last_words
from modalnomad.hashicorp.nomad.shapes import Allocation, allocation_of, evaluation_of
from modalnomad.hashicorp.nomad.words import failure_of, placement
from modalnomad.model.errors import BackendRefused

LOOK: Final = 0.25
"""Seconds between two looks."""
LINES: Final = 5
"""Of the output of a node that failed."""

Told = Callable[[int, int], None]
"""Nodes that have it, and all of them."""


async def prewarm(api: NomadApi, body: Shape, told: Told) -> int:
    """Run the sysbatch job and take it away again. Returns on how many nodes; the caller sets a time limit. Raises
    BackendError, naming each node that failed."""
    job = body["Job"]
    namespace = str(job["Namespace"])
    evaluation = str((await api.register(body))["EvalID"])
    try:
        await _placed(api, evaluation, namespace)
        allocations = await _ended(api, str(job["ID"]), namespace, told)
        failed = [f"{each.node_name}: {await _reason(api, each)}" for each in allocations if each.client != "complete"]
    finally:
        # Purged, so that it runs again where it is asked for again. All of it has ended, or nobody waits for it.
        await api.deregister(str(job["ID"]), namespace, purge=True)
    if failed:
        raise BackendRefused(
            f"the environment could not be made on {len(failed)} of {len(allocations)} nodes:\n" + "\n".join(failed),
            "the first replica there tries it again",
        )
    return len(allocations)


async def _placed(api: NomadApi, id: str, namespace: str) -> None:
    while True:
        found = await api.evaluation(id, namespace)
        if found is not None and (evaluation := evaluation_of(found)).status != "pending":
            if evaluation.failed is not None and not int(evaluation.failed.get("NodesExhausted") or 0):
                reason = placement(evaluation.failed).reason
                raise BackendRefused(f"the environment can be made nowhere: {reason}")
            return
        await asyncio.sleep(LOOK)


async def _ended(api: NomadApi, job: str, namespace: str, told: Told) -> list[Allocation]:
    while True:
        allocations = [allocation_of(shape) for shape in (await api.allocations_of(job, namespace)).items]
        told(sum(allocation.client == "complete" for allocation in allocations), len(allocations))
        if not any(allocation.alive for allocation in allocations):
            return allocations
        await asyncio.sleep(LOOK)


async def _reason(api: NomadApi, allocation: Allocation) -> str:
    output = await last_words(api, allocation)
    failure = failure_of(allocation, output)
    return "\n".join([failure.reason, *output.splitlines()[-LINES:]])
