"""The end of a failed replica's output, from its machine."""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from modalnomad.hashicorp.nomad.api import NomadApi, Output
from modalnomad.hashicorp.nomad.shapes import Allocation
from modalnomad.hashicorp.nomad.view import DETAIL_LIMIT
from modalnomad.hashicorp.nomad.words import says_what_runs
from modalnomad.kit.log_lines import LineSplitter
from modalnomad.model.errors import BackendError
from modalnomad.render.cluster import TASK

logger = logging.getLogger("modalnomad.nomad")

DETAIL_LINES: Final = 100
"""Lines of output a failure carries."""
DETAIL_BYTES: Final = 64 * 1024
"""Of each stream."""


async def last_words(api: NomadApi, allocation: Allocation) -> str:
    """Its last lines, standard error's last; empty where they cannot be had in time."""
    both = await asyncio.gather(_lines(api, allocation, "stdout"), _lines(api, allocation, "stderr"))
    lines = [line for found in both for line in found]
    return "\n".join(lines[-DETAIL_LINES:])


async def _lines(api: NomadApi, allocation: Allocation, stream: Output) -> list[str]:
    try:
        data = await api.tail(allocation.id, TASK, stream, DETAIL_BYTES, limit=DETAIL_LIMIT * 0.9)
    except BackendError as error:
        logger.info("the last lines of %s: %s", allocation.id, error.message)
        return []
    splitter = LineSplitter()
    lines = [text for _, text in (*splitter.feed(data), *splitter.end()) if not says_what_runs(text)]
    return lines[1:] if len(data) >= DETAIL_BYTES else lines  # the first is only the rest of one
