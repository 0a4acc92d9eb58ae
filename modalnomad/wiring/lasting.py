"""Background work that a process can do without for a while: what it fails with ends nothing else."""

from __future__ import annotations

import logging
from asyncio import sleep
from collections.abc import Callable, Coroutine
from time import monotonic
from typing import Any, Final

from modalnomad.model.errors import ModalNomadError

logger = logging.getLogger("modalnomad.tasks")

FIRST: Final = 1.0
LONGEST: Final = 60.0
"""Seconds before it is begun again; doubled from the first to the longest, and from the beginning again for work that
went well for as long as the longest."""


async def lasting(run: Callable[[], Coroutine[Any, Any, None]], name: str) -> None:
    """Run it, and again after a pause, logged, when it fails with anything at all or ends. Until cancelled.

    For loops beside those that serve requests: a file, an answer or a record that nobody foresaw must not end
    everybody's connections.
    """
    pause = FIRST
    while True:
        began = monotonic()
        try:
            await run()
            logger.error("the background loop %s ended by itself; again in %g s", name, pause)
        except ModalNomadError as error:
            logger.error("the background loop %s failed, again in %g s: %s", name, pause, error.message)
        except Exception:
            logger.exception("the background loop %s failed; again in %g s", name, pause)
        if monotonic() - began >= LONGEST:
            pause = FIRST
        await sleep(pause)
        pause = min(pause * 2, LONGEST)
