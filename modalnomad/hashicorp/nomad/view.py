"""What Nomad has → snapshots of replicas. Decides and remembers; does no I/O and takes the time as an argument.

A child is STARTING while its allocation lives (its address is known 5 ms after the dispatch, long before Nomad calls it
running), and ended by: exit 0 (GONE), failure (FAILED with its reason), its machine's loss, a place that was not found.
The last and slow secrets are told at once although the child may live on; when it does, it is STARTING again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

from modalnomad.hashicorp.nomad.shapes import Allocation, Evaluation, Job
from modalnomad.hashicorp.nomad.words import (
    exit_of,
    failure_of,
    killed_by_hand,
    lacks_devices,
    placement,
    trouble,
    waits_for_secrets,
)
from modalnomad.hashicorp.nomad.world import World
from modalnomad.model.replica import Address, Failure, PoolKey, Replica, ReplicaKey, ReplicaState
from modalnomad.render.cluster import DEPLOYER, META_REASON, META_SECRETS, META_STARTED_BY

ENDED_KEPT: Final = 75.0
"""Seconds an ended replica stays in the snapshots."""
DETAIL_LIMIT: Final = 1.0
"""Seconds the last lines of a failed replica may take; its end is told without them then."""
SECRETS_LIMIT: Final = 10.0
"""Seconds a node may wait for a replica's secrets before its start has failed."""
EVALUATION_LIMIT: Final = 2.0
"""Seconds after which a child that Nomad has not even looked at is given up."""

FAILED, GONE, STARTING = ReplicaState.FAILED, ReplicaState.GONE, ReplicaState.STARTING


@dataclass(slots=True)
class Entry:
    """One child, or one start that could not begin."""

    replica: Replica
    ended: float | None = None
    """When it was first seen ended; None: it lives."""

    @property
    def key(self) -> ReplicaKey:
        """The replica it is."""
        return self.replica.key


class View:
    """`look` after anything changed, and when `due` comes. `now` is a monotonic clock's. `last_words`: a failed
    replica's end waits for its last lines; without, it is told at once, which is right for whoever looks only once."""

    def __init__(
        self, *, ended_kept: float = ENDED_KEPT, secrets_limit: float = SECRETS_LIMIT, last_words: bool = True
    ) -> None:
        self._kept = ended_kept
        self._secrets_limit = secrets_limit
        self._last_words = last_words
        self._open: dict[str, Entry] = {}
        """By job: those that live, ended lately, or vanished lately."""
        self._past: dict[tuple[PoolKey, int], tuple[str, Replica]] = {}
        """The highest epoch of each place that ended longer ago, while Nomad lists it."""
        self._refused: dict[ReplicaKey, Entry] = {}
        self._details: dict[str, str] = {}
        self._asked: dict[str, float] = {}
        self._first_seen: dict[str, float] = {}
        self._doubting: set[str] = set()
        self._sure: set[str] = set()
        self._replicas: dict[ReplicaKey, Entry] = {}
        self._wall = 0.0
        self.killed: set[ReplicaKey] = set()
        """Those we were asked to end."""
        self.leaving: Mapping[ReplicaKey, str] = {}
        """Why some should be replaced, for other reasons than their machine."""
        self.due: float | None = None
        """When to look again though nothing changed."""
        self.wanted: list[Allocation] = []
        """Failed ones whose last lines are wanted: `tell` them."""
        self.twins: set[ReplicaKey] = set()
        """Replicas that were started twice: all but `World.child` are to be ended, by whoever asked for them."""
        self.doubted: list[Job] = []
        """Those that nothing was heard of for too long: read them again, then say `read`."""

    def tell(self, allocation: str, output: str) -> None:
        """The last lines of an allocation; empty: they cannot be had."""
        self._details[allocation] = output

    def read(self, job: str, *, done: bool) -> None:
        """A doubted one was read again, so that what is known of it is true; or it could not be."""
        self._doubting.discard(job)
        if done:
            self._sure.add(job)

    def refuse(self, replica: Replica, now: float) -> None:
        """A start that did not even begin."""
        self._refused[replica.key] = Entry(replica, now)

    def recall(self, key: ReplicaKey, now: float) -> None:
        """Somebody asked for it who did not know that it ended: it is shown again."""
        for place, (name, past) in list(self._past.items()):
            if past.key == key:
                del self._past[place]
                self._open[name] = Entry(past, now)

    def get(self, key: ReplicaKey) -> Replica | None:
        """As it was in the last look."""
        entry = self._replicas.get(key)
        return entry.replica if entry is not None else None

    def look(self, world: World, now: float, wall: float) -> tuple[Replica, ...]:
        """The snapshot. `wall`: Unix time."""
        self._wall = wall
        self.due, self.wanted, self.doubted = None, [], []
        for name in self._open.keys() | world.touched():
            self._judge_one(world, name, now)
        self._refused = {key: e for key, e in self._refused.items() if e.ended is not None and self._remember(e, now)}
        found: dict[ReplicaKey, Entry] = dict(self._refused)
        for entry in self._open.values():
            other = found.get(entry.key)
            if other is None or other.ended is not None:
                found[entry.key] = entry
        self._replicas = found
        past = (replica for _, replica in self._past.values() if world.serves(replica.key.pool.revision))
        shown = [entry.replica for entry in found.values()]
        shown += [replica for replica in past if replica.key not in found]
        return tuple(sorted(shown, key=lambda replica: (replica.started_at, replica.key.number, replica.key.epoch)))

    def _remember(self, entry: Entry, now: float) -> bool:
        """Whether an ended one is still shown, and when no more."""
        until = (now if entry.ended is None else entry.ended) + self._kept
        if now < until:
            self._wake(until)
        return now < until

    def _wake(self, at: float) -> None:
        self.due = at if self.due is None else min(self.due, at)

    def _judge_one(self, world: World, name: str, now: float) -> None:
        job, known = world.job(name), self._open.get(name)
        if job is None or job.key is None:
            self._vanished(name, known, now)
            return
        if world.child(job.key) != job:
            self._is_twin(name, job.key)
            return
        allocation = world.allocation(job)
        replica = self._judge(world, job, allocation, now)
        if replica.state is STARTING:
            self._open[name] = Entry(replica)
            return
        ended = known.ended if known is not None else None
        if ended is None:
            # Seen for the first time long after: as old as it is. Else it ends now, whatever other clocks say.
            before = 0.0 if known is not None or allocation is None else self._wall - allocation.modified_at
            ended = now - max(0.0, before)
        entry = Entry(replica, ended)
        if self._remember(entry, now):
            self._open[name] = entry
            return
        self._settle(name, replica)
        if allocation is not None:
            self._details.pop(allocation.id, None)
            self._asked.pop(allocation.id, None)

    def _is_twin(self, name: str, key: ReplicaKey) -> None:
        """Started beside the one that counts: never shown."""
        self._open.pop(name, None)
        self.twins.add(key)

    def _vanished(self, name: str, known: Entry | None, now: float) -> None:
        """Nomad has no such child any more."""
        self._first_seen.pop(name, None)
        self._sure.discard(name)
        if known is None:
            for place in [place for place, (other, _) in self._past.items() if other == name]:
                del self._past[place]
            return
        if known.ended is None:
            known = Entry(replace(known.replica, state=GONE, address=None, failure=None), now)
        if self._remember(known, now):
            self._open[name] = known
        else:
            del self._open[name]
            self.killed.discard(known.key)

    def _settle(self, name: str, replica: Replica) -> None:
        self._open.pop(name, None)
        self._first_seen.pop(name, None)
        self._sure.discard(name)
        self.killed.discard(replica.key)
        place = (replica.key.pool, replica.key.number)
        known = self._past.get(place)
        if known is None or known[1].key.epoch <= replica.key.epoch:
            self._past[place] = (name, replica)

    # --- one child -----------------------------------------------------------------------------------------------

    def _judge(self, world: World, job: Job, allocation: Allocation | None, now: float) -> Replica:
        assert job.key is not None
        replica = Replica(
            job.key,
            STARTING,
            started_at=job.submitted_at,
            reason=job.meta.get(META_REASON, ""),
            leaving=self.leaving.get(job.key, ""),
            staged=job.meta.get(META_STARTED_BY, "").startswith(DEPLOYER),
        )
        if allocation is None:
            return self._unplaced(world, job, replica, now)
        node = world.node(allocation.node)
        if node is not None and node.draining:
            replica = replace(replica, leaving=f"its machine {node.name} is being drained")
        elif allocation.desired != "run":
            replica = replace(replica, leaving="Nomad ends it")
        if allocation.client in {"lost", "unknown"} or (allocation.alive and node is not None and node.lost):
            reason = f"its machine {allocation.node_name} is lost: Nomad hears nothing of it"
            return replace(replica, state=FAILED, failure=Failure("replica_gone", reason), leaving="")
        replica = replace(replica, address=allocation.address)
        if allocation.alive:
            return self._alive(job, allocation, replica, now)
        replica = replace(replica, leaving="")
        if allocation.client == "complete" or job.key in self.killed or killed_by_hand(allocation):
            return replace(replica, state=GONE, address=None)
        if exit_of(allocation) is not None and allocation.id not in self._details and self._ask(allocation, now):
            return replica
        failure = failure_of(allocation, self._details.get(allocation.id, ""))
        return replace(replica, state=FAILED, address=None, failure=failure)

    def _alive(self, job: Job, allocation: Allocation, replica: Replica, now: float) -> Replica:
        if allocation.client == "pending" and (words := trouble(allocation)) is not None:
            return replace(replica, state=FAILED, address=None, failure=Failure("start_failed", words))
        waits = bool(job.meta.get(META_SECRETS)) and waits_for_secrets(allocation)
        if waits and self._overdue(job, self._secrets_limit, now):
            reason = f"{allocation.node_name} has waited for its secrets for {self._secrets_limit:g} s"
            return replace(replica, state=FAILED, address=None, failure=Failure("start_failed", reason))
        return replica

    def _overdue(self, job: Job, limit: float, now: float) -> bool:
        """Whether it has been as it is for so long, by our own clock, and by Nomad's word: an event may be lost."""
        until = self._first_seen.setdefault(job.name, now) + limit
        if now < until:
            self._wake(until)
        elif job.name not in self._sure and job.name not in self._doubting:
            self._doubting.add(job.name)
            self.doubted.append(job)
        return now >= until and job.name in self._sure

    def _ask(self, allocation: Allocation, now: float) -> bool:
        """Whether its last lines may still come."""
        if not self._last_words or self._wall - allocation.modified_at > self._kept:
            return False
        until = self._asked.get(allocation.id)
        if until is None:
            until = self._asked[allocation.id] = now + DETAIL_LIMIT
            self.wanted.append(allocation)
        if now < until:
            self._wake(until)
        return now < until

    def _unplaced(self, world: World, job: Job, replica: Replica, now: float) -> Replica:
        evaluations = world.evaluations(job)
        if job.stopped or job.status == "dead":
            return replace(replica, state=GONE)
        if (why := unplaced(evaluations)) is not None:
            return replace(replica, state=FAILED, failure=why)
        if not evaluations and self._overdue(job, EVALUATION_LIMIT, now):
            reason = "Nomad took the dispatch and did nothing about it"
            return replace(replica, state=FAILED, failure=Failure("start_failed", reason))
        return replica


def unplaced(evaluations: list[Evaluation]) -> Failure | None:
    """Why a child without an allocation has none. None: it may get one any moment. `evaluations`: newest last."""
    for evaluation in reversed(evaluations):
        if evaluation.failed is not None and evaluation.status in {"complete", "blocked"}:
            found = placement(evaluation.failed)
            return Failure(found.code, found.reason)
        if evaluation.status in {"failed", "canceled", "cancelled"}:
            return Failure("start_failed", f"Nomad gave up placing it: {evaluation.description or evaluation.status}")
    return None


def blocked(world: World, key: ReplicaKey) -> Failure | None:
    """Why another child of the same place waits for room, which nobody can cancel: it would be one too many. None: none
    does."""
    for job in world.children(key.pool, key.number):
        if job.key != key and not job.stopped and job.status != "dead" and world.allocation(job) is None:
            evaluations = world.evaluations(job)
            failure = unplaced(evaluations)
            if failure is None or failure.code not in {"no_capacity", "unplaceable"}:
                continue
            if failure.code == "no_capacity" or not _passed_over(world, evaluations):
                return failure
    return None


def _passed_over(world: World, evaluations: list[Evaluation]) -> bool:
    """Whether it may wait for good. Nomad looks again when a node of a class comes that it did not refuse; how many of
    a node's GPUs are there, and well, is not in its class (measured: 2.0.5). So a change of a node that has some is
    worth another child (nobody can cancel those before it); should both get a place, the younger one stays."""
    refused = [each.index for each in evaluations if lacks_devices(each.failed)]
    return bool(refused) and any(node.resources.get("gpus") and node.index > max(refused) for node in world.nodes())


def with_registrations(replicas: tuple[Replica, ...], registered: Mapping[ReplicaKey, Address]) -> tuple[Replica, ...]:
    """While Nomad cannot be read: those that only Consul knows, too. What Nomad last said of the others stands,
    whatever their checks say."""
    known = {replica.key for replica in replicas}
    others = (Replica(key, STARTING, address) for key, address in registered.items() if key not in known)
    return (*replicas, *others)
