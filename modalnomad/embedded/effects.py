"""What a program may ask for and the embedded back end does not act on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from modalnomad.model.manifest import Function, Notice

NO_LIMITS = "the embedded back end sets no limits"


def without_effect(functions: Sequence[Function]) -> Iterator[Notice]:
    """One notice for each Function and reason."""
    for function in functions:
        if function.schedule is not None:
            yield _notice(function, ["schedule"], "the embedded back end runs nothing by itself")
        if not function.endpoints:
            continue  # it is not run at all, which is said
        resources = function.resources
        unbounded = [name for name in ("cpu", "memory", "ephemeral_disk") if getattr(resources, name) is not None]
        if unbounded:
            yield _notice(function, unbounded, NO_LIMITS)
        if function.block_network:
            yield _notice(function, ["block_network"], "its replicas reach the network all the same")


def _notice(function: Function, names: Sequence[str], reason: str) -> Notice:
    shown = [f"`{name}`" for name in names]
    said = f"{', '.join(shown[:-1])} and {shown[-1]} have" if len(shown) > 1 else f"{shown[0]} has"
    message = f"{said} no effect on this machine: {reason} (`{function.tag}`)"
    return Notice(code="no_effect", message=message, where=function.where)
