"""Which images have a warm template: started when it will pay, restarted when it dies, ended when nobody uses it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from modalnomad.embedded.limits import Limits
from modalnomad.embedded.template import Template
from modalnomad.kit.tasks import Tasks
from modalnomad.model.revision import Revision
from modalnomad.render.process import template_spec

logger = logging.getLogger("modalnomad.engine")

START_AFTER: Final = 2.0
"""Seconds after the first start of a replica of an image: its cold start shall not compete with the template's."""
BACKOFF: Final = 1.0
"""Seconds before a template that died is started again; doubled by each further death."""
BACKOFF_MAX: Final = 300.0
HEALTHY: Final = 60.0
"""Seconds of life after which earlier deaths are forgotten."""


@dataclass(slots=True)
class _Slot:
    """One image's template, present or to come."""

    revision: Revision
    image: Path
    used: float = field(default_factory=time.monotonic)
    template: Template | None = None


class Templates:
    """At most one per image environment. Their tasks are `tasks`' to end."""

    def __init__(
        self,
        tasks: Tasks,
        *,
        folder: Path,
        runner: Path,
        inherited: Mapping[str, str],
        idle: float,
        limits: Limits,
        start_after: float = START_AFTER,
    ) -> None:
        self._tasks = tasks
        self._folder = folder
        self._runner = runner
        self._inherited = inherited
        self._idle = idle
        self._limits = limits
        self._groups = 0
        self._start_after = start_after
        self._slots: dict[Path, _Slot] = {}

    def ready(self, image: Path) -> Template | None:
        """The image's template when it can take a start now."""
        slot = self._slots.get(image)
        template = slot.template if slot is not None else None
        return template if template is not None and template.ready else None

    def used(self, revision: Revision, image: Path) -> None:
        """A replica of this image was started, whichever way: a template would have helped, or has."""
        if (slot := self._slots.get(image)) is not None:
            slot.used = time.monotonic()
            return
        slot = self._slots[image] = _Slot(revision, image)
        self._tasks.spawn(self._keep(slot), f"template of {image.name[:12]}")

    async def _keep(self, slot: _Slot) -> None:
        try:
            await asyncio.sleep(self._start_after)
            pause = BACKOFF
            while self._left(slot) != 0:
                began = time.monotonic()
                reason = await self._live(slot)
                if not reason:
                    return
                pause = BACKOFF if time.monotonic() - began > HEALTHY else pause
                logger.warning(
                    "the template of image %s ended (%s); replicas start without one, and it is started again in %g s",
                    slot.image.name[:12],
                    reason,
                    pause,
                )
                await asyncio.sleep(pause)
                pause = min(BACKOFF_MAX, 2 * pause)
        finally:
            del self._slots[slot.image]

    async def _live(self, slot: _Slot) -> str:
        """From its start to its end. Why it ended; empty: it was not used any more."""
        try:
            self._folder.mkdir(mode=0o700, exist_ok=True)
            template = Template.spawn(
                template_spec(
                    slot.revision,
                    image=slot.image,
                    runner=self._runner,
                    folder=self._folder,
                    inherited=self._inherited,
                )
            )
        except OSError as error:
            return f"it cannot be started: {error}"
        try:
            if not await template.warm():
                return f"it did not get ready: {template.last_words or 'no word'}"
            slot.template = template
            slot.used = time.monotonic()
            logger.debug("the template of image %s is warm", slot.image.name[:12])
            while (left := self._left(slot)) != 0:
                if template.group is None:
                    await self._provide(template)
                if template.ended.is_set():
                    return template.last_words or "killed?"
                with suppress(TimeoutError):
                    async with asyncio.timeout(left):
                        await template.news()
            return ""
        finally:
            slot.template = None
            await template.close()

    async def _provide(self, template: Template) -> None:
        """A group for the next replica to wait in, where there are limits."""
        self._groups += 1
        group = await asyncio.to_thread(self._limits.make, f"t{self._groups}")
        if group is not None:
            template.provide(group)

    def _left(self, slot: _Slot) -> float | None:
        """Seconds until it is idle too long; None: never."""
        if not self._idle:
            return None
        return max(0.0, slot.used + self._idle - time.monotonic())
