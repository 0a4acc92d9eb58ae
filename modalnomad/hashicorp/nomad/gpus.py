"""GPUs of a cluster: what nodes have (device plug-in `nomad-device-nvidia`), less what allocations hold. Pure.

Shapes: https://developer.hashicorp.com/nomad/api-docs/nodes, https://developer.hashicorp.com/nomad/api-docs/allocations
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from modalnomad.hashicorp.nomad.api import Shape
from modalnomad.hashicorp.nomad.shapes import GPU, node_of
from modalnomad.model.gpus import MIB, GpuStock

UNITS: Final = {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40, "kB": 10**3, "MB": 10**6, "GB": 10**9}


def gpu_stocks(nodes: Iterable[Shape], allocations: Iterable[Shape]) -> tuple[GpuStock, ...]:
    """By node and type. `allocations`: those that live, with `AllocatedResources`."""
    held = {(str(allocation.get("NodeID")), id) for allocation in allocations for id in _held(allocation)}
    found = [stock for node in nodes for stock in _of_node(node, held)]
    return tuple(sorted(found, key=lambda stock: (stock.node, stock.name)))


def _held(allocation: Shape) -> Iterator[str]:
    for task in ((allocation.get("AllocatedResources") or {}).get("Tasks") or {}).values():
        for device in task.get("Devices") or ():
            if device.get("Type") == GPU:
                yield from map(str, device.get("DeviceIDs") or ())


def _of_node(shape: Shape, held: set[tuple[str, str]]) -> Iterator[GpuStock]:
    node = node_of(shape)
    ready = node.status == "ready" and node.eligible and not node.draining
    for device in (shape.get("NodeResources") or {}).get("Devices") or ():
        if device.get("Type") != GPU:
            continue
        instances = device.get("Instances") or ()
        used = {str(each.get("ID")) for each in instances if (node.id, str(each.get("ID"))) in held}
        ill = [each for each in instances if not each.get("Healthy")]
        free = [each for each in instances if each.get("Healthy") and str(each.get("ID")) not in used]
        state = node.status if node.status != "ready" else "draining" if node.draining else "takes no work"
        yield GpuStock(
            node=node.name,
            name=str(device.get("Name")),
            memory=_mebibytes((device.get("Attributes") or {}).get("memory")),
            count=len(instances),
            used=len(used),
            free=len(free) if ready else 0,
            state=(f"{len(ill)} unhealthy" if ill else "") if ready else state,
        )


def _mebibytes(attribute: Any) -> int | None:
    """Of an attribute with a unit: `{"Int": 81559, "Float": null, "Unit": "MiB", …}`."""
    if not isinstance(attribute, Mapping):
        return None
    number = next((attribute[kind] for kind in ("Int", "Float") if attribute.get(kind) is not None), None)
    unit = UNITS.get(str(attribute.get("Unit") or "MiB"))
    return None if number is None or unit is None else round(float(number) * unit / MIB)
