"""Carries out what pools ask for: starts, probes, drains, kills. Reports back what came of it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any, Protocol

from modalnomad.kit.tasks import Tasks
from modalnomad.model.errors import ModalNomadError
from modalnomad.model.replica import Address, Failure, ReplicaKey
from modalnomad.ports.engine import Starter
from modalnomad.router.channels import NoSocket
from modalnomad.router.places import Drain, Kill, Place, Start
from modalnomad.router.probe import DrainRefused, Prober

logger = logging.getLogger("modalnomad.router.actions")

KILL_PAUSE = 1.0
LONGEST_KILL_PAUSE = 30.0
"""Seconds between two tries to have the engine end a replica, when it fails; doubled from the first to the longest."""


class Heard(Protocol):
    """Where the outcomes go: the activator."""

    def heard_ready(self, key: ReplicaKey, ticket: bytes) -> None:
        """It said so itself, to this ticket."""

    def heard_ended(self, key: ReplicaKey, failure: Failure | None) -> None:
        """It is gone, or it could not be started."""

    def heard_refusal(self, key: ReplicaKey, idle_for: float) -> None:
        """It does not drain: something ran `idle_for` seconds ago."""

    def drain_due(self, key: ReplicaKey) -> Place | None:
        """Asked right before a drain is sent. None: do not."""


class Actions:
    """Owns a task for each start, probe, drain and kill under way."""

    def __init__(self, engine: Starter, prober: Prober, forget: Callable[[Address], None], heard: Heard) -> None:
        self._engine = engine
        self._prober = prober
        self._forget = forget
        self._heard = heard
        self._tasks = Tasks("activator")
        self._probes: dict[ReplicaKey, asyncio.Task[None]] = {}
        self._killing: set[ReplicaKey] = set()
        self._greeted: dict[ReplicaKey, float] = {}
        self._closed = False

    def start(self, effect: Start) -> None:
        """Have the engine start it; how that goes is told by its snapshots."""
        woken_by = f" (request {effect.request_id})" if effect.request_id else ""
        logger.info("start %s: %s%s", effect.key, effect.reason, woken_by)
        self._spawn(self._start(effect), f"start {effect.key}")

    def probe(self, place: Place) -> None:
        """Hold a `ready` request to it until it is answered or the replica ended. Once at a time."""
        if place.key not in self._probes and place.address is not None:
            task = self._spawn(self._probe(place, place.address), f"probe {place.key}")
            if task is not None:
                self._probes[place.key] = task

    def drain(self, effect: Drain) -> None:
        """Ask it to drain, if that still holds when the request is about to be sent."""
        self._spawn(self._drain(effect), f"drain {effect.key}")

    def kill(self, effect: Kill) -> None:
        """Have the engine end it."""
        logger.info("kill %s: %s", effect.key, effect.reason)
        self._end_probe(effect.key)
        self._killing.add(effect.key)
        self._spawn(self._kill(effect), f"kill {effect.key}")

    def ended(self, place: Place) -> None:
        """Free what was held for it: probe, pooled connections."""
        self._end_probe(place.key)
        self._killing.discard(place.key)
        self._greeted.pop(place.key, None)
        if place.address is not None:
            self._forget(place.address)

    def greet(self, place: Place, now: float, every: float) -> float:
        """Tell an idle replica that is kept that somebody still cares, once per `every` seconds. Returns when the next
        greeting is due."""
        last = max(self._greeted.get(place.key, 0.0), place.idle_since)
        if place.address is not None and now - last >= every:
            self._greeted[place.key] = last = now
            self._spawn(self._greet(place, place.address), f"greet {place.key}")
        return last + every

    async def close(self) -> None:
        """End all of it. Replicas stay as they are, whatever the leases still out ask for when they end."""
        self._closed = True
        await self._tasks.close()

    def _spawn(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None] | None:
        if self._closed:
            work.close()
            return None
        return self._tasks.spawn(work, name)

    def _end_probe(self, key: ReplicaKey) -> None:
        probe = self._probes.pop(key, None)
        if probe is not None:
            probe.cancel()

    async def _start(self, effect: Start) -> None:
        try:
            await self._engine.start(effect.key, effect.reason.text, request_id=effect.request_id)
        except ModalNomadError as error:
            self._heard.heard_ended(effect.key, Failure("start_failed", error.message, error.hint or ""))
        except Exception as error:
            logger.exception("the engine failed to start %s", effect.key)
            self._heard.heard_ended(effect.key, Failure("start_failed", "The engine failed.", repr(error)))

    async def _probe(self, place: Place, address: Address) -> None:
        key = place.key
        try:
            ticket = await self._prober.ready(key, address, place.ticket)
        finally:
            if self._probes.get(key) is asyncio.current_task():
                del self._probes[key]
        self._heard.heard_ready(key, ticket)

    async def _drain(self, effect: Drain) -> None:
        place = self._heard.drain_due(effect.key)
        if place is None or place.address is None:
            return
        try:
            await self._prober.drain(
                effect.key, place.address, effect.idle_for, ticket=place.ticket, force=effect.force
            )
        except DrainRefused as refusal:
            logger.info("drain %s refused: %s", effect.key, refusal)
            self._heard.heard_refusal(effect.key, refusal.idle_for)
        except NoSocket as error:  # it was not asked
            logger.warning("drain %s: %s", effect.key, error)
            self._heard.heard_refusal(effect.key, 0.0)
        except (OSError, TimeoutError) as error:
            # It may have agreed. It is not offered any more; if it does not end, it is killed when it overstays.
            place.silent = isinstance(error, TimeoutError)  # else nobody listens there any more
            logger.warning("drain %s got no answer: %s", effect.key, error)
        else:
            logger.info("drain %s: %s", effect.key, effect.reason)
            self._forget(place.address)

    async def _kill(self, effect: Kill) -> None:
        """Until the engine did, or the replica ended otherwise."""
        pause, told = KILL_PAUSE, 0
        while effect.key in self._killing:
            try:
                await self._engine.kill(effect.key)
            except Exception as error:
                said = error.message if isinstance(error, ModalNomadError) else repr(error)
                told += 1
                if told & (told - 1) == 0:  # the 1st, 2nd, 4th, 8th …
                    logger.error("kill %s failed (try %d), again in %g s: %s", effect.key, told, pause, said)
                await asyncio.sleep(pause)
                pause = min(pause * 2, LONGEST_KILL_PAUSE)
            else:
                if effect.key in self._killing:  # else it ended, and may be there once more by now
                    self._heard.heard_ended(effect.key, None)
                return

    async def _greet(self, place: Place, address: Address) -> None:
        try:
            await self._prober.greet(place.key, address, place.ticket)
        except (OSError, TimeoutError) as error:
            logger.warning("greeting %s got no answer: %s", place.key, error)
