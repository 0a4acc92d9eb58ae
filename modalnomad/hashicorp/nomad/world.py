"""What Nomad has, as far as it was told: whole lists and events merged by raft index. Pure.

A list is a state at its index; events may come earlier, later or twice. So an object is taken only when it is newer
than what is known, what a list lacks is gone only when it was older than the list, and what was deregistered does not
come back by an older word.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Final, Generic, Protocol, TypeVar

from modalnomad.hashicorp.nomad.api import Listing, Shape
from modalnomad.hashicorp.nomad.events import Event
from modalnomad.hashicorp.nomad.shapes import (
    Allocation,
    Evaluation,
    Job,
    Node,
    allocation_of,
    evaluation_of,
    job_of,
    node_of,
)
from modalnomad.model.ids import RevisionId
from modalnomad.model.replica import PoolKey, ReplicaKey
from modalnomad.render.cluster import namespace_of

GONE_KEPT: Final = 1000
"""Deregistered objects remembered."""


class Known(Protocol):
    """Anything with an id and the raft index of its last change."""

    @property
    def id(self) -> str:
        """Unique among its kind, in its namespace."""

    @property
    def index(self) -> int:
        """Of its last change."""


T = TypeVar("T", bound=Known)


class Table(Generic[T]):
    """Objects of one kind by name."""

    def __init__(self, read: Callable[[Shape], T], name: Callable[[T], str]) -> None:
        self._read = read
        self._name = name
        self._items: dict[str, T] = {}
        self._gone: dict[str, int] = {}

    def __iter__(self) -> Iterator[T]:
        return iter(self._items.values())

    def get(self, name: str) -> T | None:
        """None: unknown, or gone."""
        return self._items.get(name)

    def take(self, shape: Shape, index: int) -> T | None:
        """As it was at `index`. None: that is no news."""
        item = self._read(shape)
        name = self._name(item)
        known = self._items.get(name)
        if (known is not None and known.index >= item.index) or self._gone.get(name, -1) >= index:
            return None
        self._items[name] = item
        return item

    def drop(self, name: str, index: int) -> None:
        """It was removed at `index`."""
        if len(self._gone) >= GONE_KEPT:
            del self._gone[next(iter(self._gone))]
        self._gone[name] = index
        self._items.pop(name, None)

    def forget(self, name: str) -> None:
        """Nobody needs it any more."""
        self._items.pop(name, None)


class World:
    """Of the namespaces that are environments, and of all nodes. Jobs are named by `job_name`.

    `home`: the environment of a revision, None: unknown. A job elsewhere that names it is not its: whoever may register
    jobs in one environment must not get the requests of another."""

    def __init__(self, home: Callable[[RevisionId], str | None] = lambda revision: None) -> None:
        self._home = home
        self._jobs: Table[Job] = Table(job_of, lambda job: job.name)
        self._nodes: Table[Node] = Table(node_of, lambda node: node.id)
        self._allocations: Table[Allocation] = Table(allocation_of, lambda allocation: allocation.id)
        self._evaluations: Table[Evaluation] = Table(evaluation_of, lambda evaluation: evaluation.id)
        self._allocations_of: dict[str, set[str]] = {}
        self._evaluations_of: dict[str, set[str]] = {}
        self._parents: dict[str, set[str]] = {}
        self._children: dict[tuple[PoolKey, int], set[str]] = {}
        self._touched: set[str] = set()

    # --- taking in -----------------------------------------------------------------------------------------------

    def hear(self, event: Event) -> None:
        """One event of the stream."""
        match event.topic:
            case "Job" if event.deleted:
                self.forget_job(job_of(event.object), event.index)
            case "Job":
                self.take_job(event.object, event.index)
            case "Allocation":
                self.take_allocation(event.object, event.index)
            case "Evaluation":
                self.take_evaluation(event.object, event.index)
            case "Node" if event.kind == "NodeDeregistration":
                self._nodes.drop(event.key, event.index)
                self._touch_all_on(event.key)
            case "Node":
                self.take_node(event.object, event.index)

    def take_job(self, shape: Shape, index: int) -> None:
        """One job, as it was at `index`."""
        if (job := self._jobs.take(shape, index)) is None:
            return
        self._touched.add(job.name)
        if job.parameterized and job.revision:
            self._parents.setdefault(job.revision, set()).add(job.name)
        if job.key is not None:
            self._children.setdefault((job.key.pool, job.key.number), set()).add(job.name)

    def take_allocation(self, shape: Shape, index: int) -> None:
        """One allocation, as it was at `index`."""
        if (taken := self._allocations.take(shape, index)) is not None:
            self._allocations_of.setdefault(job_name(taken.namespace, taken.job), set()).add(taken.id)
            self.touch(taken)

    def take_evaluation(self, shape: Shape, index: int) -> None:
        """One evaluation, as it was at `index`."""
        if (taken := self._evaluations.take(shape, index)) is not None:
            self._evaluations_of.setdefault(job_name(taken.namespace, taken.job), set()).add(taken.id)
            self._touched.add(job_name(taken.namespace, taken.job))

    def take_node(self, shape: Shape, index: int) -> None:
        """One node, as it was at `index`."""
        if (taken := self._nodes.take(shape, index)) is not None:
            self._touch_all_on(taken.id)

    def merge_jobs(self, namespace: str, listing: Listing) -> list[Job]:
        """Jobs of a namespace. Returns those that are known and not among them, though they are older than the list:
        they are gone, if all were asked for."""
        listed = {str(shape["ID"]) for shape in listing.items}
        for shape in listing.items:
            self.take_job(shape, listing.index)
        return [
            job
            for job in self._jobs
            if job.namespace == namespace and job.index <= listing.index and job.id not in listed
        ]

    def merge_nodes(self, listing: Listing) -> None:
        """All nodes."""
        listed = {str(shape["ID"]) for shape in listing.items}
        for shape in listing.items:
            self.take_node(shape, listing.index)
        for node in [node for node in self._nodes if node.id not in listed and node.index <= listing.index]:
            self._nodes.forget(node.id)
            self._touch_all_on(node.id)

    def forget_job(self, job: Job, index: int) -> None:
        """It was purged or collected, with all that belongs to it."""
        self._jobs.drop(job.name, index)
        self._touched.add(job.name)
        self._parents.get(job.revision, set()).discard(job.name)
        if job.key is not None:
            self._children.get((job.key.pool, job.key.number), set()).discard(job.name)
        for id in self._allocations_of.pop(job.name, ()):
            self._allocations.forget(id)
        for id in self._evaluations_of.pop(job.name, ()):
            self._evaluations.forget(id)

    def forget_namespace(self, namespace: str) -> None:
        """It is no environment any more."""
        for job in [job for job in self._jobs if job.namespace == namespace]:
            self.forget_job(job, job.index)

    def lives(self, namespace: str) -> bool:
        """Whether any job there is not dead."""
        return any(job.namespace == namespace and job.status != "dead" for job in self._jobs)

    def touch(self, allocation: Allocation) -> None:
        """Something else is known of it."""
        self.touch_job(job_name(allocation.namespace, allocation.job))

    def touch_job(self, name: str) -> None:
        """Something else is known of it."""
        self._touched.add(name)

    def _touch_all_on(self, node: str) -> None:
        self._touched.update(job_name(a.namespace, a.job) for a in self._allocations if a.node == node)

    # --- looking -------------------------------------------------------------------------------------------------

    def touched(self) -> set[str]:
        """Names of jobs of which anything changed since this was asked last."""
        touched, self._touched = self._touched, set()
        return touched

    def job(self, name: str) -> Job | None:
        """None: there is none any more."""
        return self._jobs.get(name)

    def jobs(self) -> Iterable[Job]:
        """All."""
        return iter(self._jobs)

    def parents(self, revision: str) -> list[Job]:
        """Jobs of a revision: the newest that is not stopped first."""
        jobs = filter(None, map(self._jobs.get, self._parents.get(revision, ())))
        found = [job for job in jobs if job.revision == revision and self._at_home(job)]  # a name may change hands
        return sorted(found, key=lambda job: (not job.stopped, job.submitted_at), reverse=True)

    def serves(self, revision: str) -> bool:
        """Whether there is a job of it, stopped or not."""
        return bool(self._parents.get(revision))

    def children(self, pool: PoolKey, number: int) -> list[Job]:
        """Of all epochs, alive or dead."""
        jobs = filter(None, map(self._jobs.get, self._children.get((pool, number), ())))
        return [job for job in jobs if self._at_home(job)]

    def _at_home(self, job: Job) -> bool:
        home = self._home(RevisionId(job.revision))
        return home is None or job.namespace == namespace_of(home)

    def child(self, key: ReplicaKey) -> Job | None:
        """The one that is this replica: the first. Of two dispatches with one token at the same time Nomad may start
        both (measured), and everybody has to mean the same one."""
        return next(iter(self.twins(key)), None)

    def twins(self, key: ReplicaKey) -> list[Job]:
        """All that were started as this replica, the one that counts first."""
        found = (job for job in self.children(key.pool, key.number) if job.key == key)
        return sorted(found, key=lambda job: (job.created, job.id))

    def allocation(self, job: Job) -> Allocation | None:
        """The newest one."""
        found = filter(None, map(self._allocations.get, self._allocations_of.get(job.name, ())))
        return max(found, key=lambda each: each.created, default=None)

    def evaluations(self, job: Job) -> list[Evaluation]:
        """Newest last."""
        found = filter(None, map(self._evaluations.get, self._evaluations_of.get(job.name, ())))
        return sorted(found, key=lambda each: (each.index, each.created))

    def node(self, id: str) -> Node | None:
        """None: unknown, or removed."""
        return self._nodes.get(id)

    def nodes(self) -> Iterable[Node]:
        """All."""
        return iter(self._nodes)


def job_name(namespace: str, id: str) -> str:
    """Ids of jobs are unique in their namespace."""
    return f"{namespace}\n{id}"
