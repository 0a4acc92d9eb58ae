"""GPUs of what replicas run on."""

from __future__ import annotations

import asyncio
import socket
from collections import Counter

from modalnomad.embedded.gpus import Gpus
from modalnomad.model.gpus import GpuStock
from modalnomad.settings import Settings


async def gpu_stocks(settings: Settings) -> tuple[GpuStock, ...]:
    """By machine and type. Raises BackendError."""
    if settings.backend == "hashicorp":
        from modalnomad.hashicorp.nomad.gpus import gpu_stocks as of_nodes
        from modalnomad.hashicorp.nomad.mirror import LIVE_ALLOCATIONS
        from modalnomad.wiring.cluster import open_cluster

        async with open_cluster(settings) as cluster:
            nodes = await cluster.nomad.nodes()
            allocations = await cluster.nomad.allocations(filter=LIVE_ALLOCATIONS)
            return of_nodes(nodes.items, allocations.items)
    return await asyncio.to_thread(stocks_here, Gpus(settings.home))


def stocks_here(gpus: Gpus) -> tuple[GpuStock, ...]:
    """Of this machine; in use: by replicas of this home."""
    used = gpus.held()
    kinds = Counter((gpu.name, gpu.memory) for gpu in gpus.found())
    busy = Counter((gpu.name, gpu.memory) for gpu in gpus.found() if gpu.uuid in used)
    return tuple(
        GpuStock(
            node=socket.gethostname(),
            name=name,
            memory=memory,
            count=count,
            used=busy[name, memory],
            free=count - busy[name, memory],
        )
        for (name, memory), count in sorted(kinds.items())
    )
