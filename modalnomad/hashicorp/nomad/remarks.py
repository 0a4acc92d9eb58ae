"""What a program may ask for and a cluster does not act on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from modalnomad.model.manifest import Function, Notice


def cluster_remarks(functions: Sequence[Function]) -> Iterator[Notice]:
    """One notice for each Function and reason."""
    for function in functions:
        if function.block_network:
            message = (
                "`block_network` has no effect on a cluster: "
                f"its replicas reach the network all the same (`{function.tag}`)"
            )
            yield Notice(code="no_effect", message=message, where=function.where)
