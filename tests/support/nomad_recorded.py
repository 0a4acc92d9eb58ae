"""What a real Nomad 2.0.5 said of some children, event by event (tests/data/nomad_events.json): reduced to the fields
that are read, all of one node.

exit        ends with 70 at once                     mem      asks for more memory than there is
ok          ends with 0                              con      a constraint no node meets
missing     its program is not there                 gpu      a GPU where there is none
art         its artifact cannot be fetched           pool     a node pool without nodes
kill        SIGKILL through the API                  docker   a driver no node has
stop        its job is deregistered                  drain    its node is drained with a deadline, then eligible again
vault       its secret does not exist                collected   `exit` after the job was collected
tmpl        a template that cannot be parsed
"""

from __future__ import annotations

import copy
import json
from functools import cache
from typing import Any

from modalnomad.hashicorp.nomad.events import Event
from modalnomad.hashicorp.nomad.world import World
from modalnomad.model.ids import RevisionId
from modalnomad.model.replica import PoolKey, ReplicaKey
from tests.support.repository import ROOT

NAMESPACE = "modalnomad-main"


@cache
def _file() -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = json.loads((ROOT / "tests" / "data" / "nomad_events.json").read_text())
    return found


def names() -> list[str]:
    """Of all that was recorded."""
    return sorted(_file())


def recorded(name: str) -> list[Event]:
    """In the order in which they were told."""
    return [
        Event(
            topic=each["Topic"],
            kind=each["Type"],
            index=each["Index"],
            key=each["Key"],
            object=copy.deepcopy(each["Payload"][each["Topic"]]),
            deleted=bool(each["Payload"].get("Deleted")),
        )
        for each in _file()[name]
    ]


def key(name: str, number: int = 0, epoch: int = 1) -> ReplicaKey:
    """The replica that was recorded."""
    return ReplicaKey(PoolKey(RevisionId(f"rev-x.{name}")), number, epoch)


def parent(name: str, **more: Any) -> dict[str, Any]:
    """Its job."""
    return {
        "ID": f"x.{name}",
        "Namespace": NAMESPACE,
        "ParameterizedJob": True,
        "Status": "running",
        "Meta": {"revision": f"rev-x.{name}"},
        "ModifyIndex": 20,
        **more,
    }


def world_of(events: list[Event], *, asleep: str = "") -> World:
    """That heard these. `asleep`: the name whose parent it knows too."""
    world = World()
    if asleep:
        world.take_job(parent(asleep), 20)
    for event in events:
        world.hear(event)
    return world
