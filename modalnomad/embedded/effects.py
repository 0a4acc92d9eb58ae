"""What a program may ask for and the embedded back end does not act on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from modalnomad.model.manifest import Function, Notice

RESERVES_NOTHING = "nothing is reserved here; a limit is the second of two values, as in memory=(512, 1024)"
NO_QUOTA = "the embedded back end sets no disk quota"


def without_effect(functions: Sequence[Function], unlimited: Mapping[str, str]) -> Iterator[Notice]:
    """One notice for each Function and reason. `unlimited`: of `cpu` and `memory` those that cannot be limited on this
    machine, and why."""
    for function in functions:
        pairs = {"cpu": function.resources.cpu, "memory": function.resources.memory}
        if requests := [name for name, pair in pairs.items() if pair is not None and not pair[1]]:
            yield _notice(function, requests, RESERVES_NOTHING)
        limits = [name for name, pair in pairs.items() if pair is not None and pair[1] and name in unlimited]
        if limits:
            yield _notice(function, limits, unlimited[limits[0]])
        if function.resources.ephemeral_disk is not None:
            yield _notice(function, ["ephemeral_disk"], NO_QUOTA)
        if function.block_network:
            yield _notice(function, ["block_network"], "its replicas reach the network all the same")


def _notice(function: Function, names: Sequence[str], reason: str) -> Notice:
    shown = [f"`{name}`" for name in names]
    said = f"{', '.join(shown[:-1])} and {shown[-1]} have" if len(shown) > 1 else f"{shown[0]} has"
    message = f"{said} no effect on this machine: {reason} (`{function.tag}`)"
    return Notice(code="no_effect", message=message, where=function.where)
