"""Could anything run it? Nomad's scheduler is asked for a plan of one replica, which changes nothing."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final

from modalnomad.hashicorp.nomad.api import NomadApi, Shape
from modalnomad.hashicorp.nomad.gpus import gpu_stocks
from modalnomad.hashicorp.nomad.parents import Parents
from modalnomad.hashicorp.nomad.shapes import Node, node_of
from modalnomad.hashicorp.nomad.words import placement
from modalnomad.model.errors import BackendRefused, UserError
from modalnomad.model.gpus import Gpu, parse_choice
from modalnomad.model.revision import Revision
from modalnomad.ports.engine import Verdict
from modalnomad.render.nomad import one_of

_ASKED: Final = (("MemoryMB", "memory", "MiB of memory"), ("CPU", "cpu", "MHz of CPU"), ("Cores", "cores", "CPU cores"))


async def explain(api: NomadApi, parents: Parents, revision: Revision) -> Verdict:
    """As the engine port's. Raises BackendError."""
    try:
        job = one_of(await parents.body(revision))["Job"]
    except UserError as error:
        return Verdict("never", error.message)
    failed = (await api.plan(job)).get("FailedTGAllocs") or {}
    metric = next(iter(failed.values()), None)
    if metric is None:
        return Verdict("yes")
    found = placement(metric)
    gpu = revision.function.resources.gpu
    asked = (
        f" (it asks for {' or '.join(gpu)}; modalnomad gpu list shows what there is)" if "GPU" in found.reason else ""
    )
    if found.code == "unplaceable":
        return Verdict("never", found.reason + asked)
    try:
        nodes: Sequence[Shape] = (await api.nodes()).items
    except BackendRefused:  # a token without node read: what is left is what the scheduler says
        nodes = ()
    if (too_much := too_big(metric, [node_of(shape) for shape in nodes])) is not None:
        return Verdict("never", too_much)
    if nodes and gpu and (too_many := scattered(gpu, nodes)) is not None:
        return Verdict("never", too_many + asked)
    return Verdict("not_now", found.reason + asked)


def too_big(metric: Shape, nodes: list[Node]) -> str | None:
    """What it asks for that even an empty node has not. None: nothing, or it is not known."""
    pool = metric.get("NodePool") or "default"
    empty = [node.resources for node in nodes if node.pool == pool or pool == "all"]
    for asked in (metric.get("ResourcesExhausted") or {}).values():
        for name, dimension, words in _ASKED:
            wanted, most = float(asked.get(name) or 0), _largest(empty, dimension)
            if most and wanted > most:
                return f"it asks for {wanted:.0f} {words}; the largest node has {most:.0f}"
    return None


def scattered(gpu: Sequence[str], nodes: Sequence[Shape]) -> str | None:
    """Nomad counts cards of all fitting models of a node when it tells whether the node could ever run it, and then
    gives those of one model only. None: some node has enough of one."""
    choices = [parse_choice(text) for text in gpu]
    for stock in gpu_stocks(nodes, ()):
        cards = [
            Gpu("", stock.name, math.ceil(each.least) if stock.memory is None else stock.memory) for each in choices
        ]
        if any(each.count <= stock.count and each.fits(card) for each, card in zip(choices, cards, strict=True)):
            return None
    return f"no node has {choices[0].count} GPUs of one model"


def _largest(nodes: list[Mapping[str, float]], dimension: str) -> float:
    return max((node.get(dimension, 0.0) for node in nodes), default=0.0)
