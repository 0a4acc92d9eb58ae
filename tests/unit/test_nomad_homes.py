"""A revision belongs to one environment: jobs elsewhere that name it get none of its requests."""

from __future__ import annotations

from typing import Any

from modalnomad.hashicorp.nomad.view import View
from modalnomad.hashicorp.nomad.world import World
from modalnomad.model.ids import RevisionId
from modalnomad.model.replica import PoolKey, ReplicaKey
from modalnomad.render.nomad import dispatch_body

REVISION = RevisionId("a1" * 16)
KEY = ReplicaKey(PoolKey(REVISION, ""), 0, 1)
CHILD = dispatch_body(KEY, reason="")["Meta"]


def job(id: str, environment: str, index: int, **more: Any) -> dict[str, Any]:
    meta = {"revision": REVISION, **more.pop("meta", {})}
    times = {"CreateIndex": index, "ModifyIndex": index, "SubmitTime": index * 10**9}
    return {"ID": id, "Namespace": f"modalnomad-{environment}", "Status": "running", "Meta": meta, **times, **more}


def told(world: World, environment: str, index: int) -> None:
    """A parent and a replica of it that lives."""
    world.take_job(job("p", environment, index, ParameterizedJob={"Payload": "optional"}), index)
    world.take_job(job("p/dispatch-1", environment, index, ParentID="p", meta=CHILD), index)
    ports = {"Shared": {"Ports": [{"Label": "http", "HostIP": environment, "Value": 9}]}}
    state = {"ClientStatus": "running", "NodeID": "n", "AllocatedResources": ports}
    common = {"Namespace": f"modalnomad-{environment}", "CreateIndex": index, "ModifyIndex": index}
    world.take_allocation({**common, **state, "ID": f"a-{environment}", "JobID": "p/dispatch-1"}, index)


def addresses(world: World) -> list[str]:
    return [getattr(replica.address, "host", "") for replica in View().look(world, 0, 0)]


def test_a_job_of_another_environment_is_not_its() -> None:
    world = World(lambda revision: "prod" if revision == REVISION else None)
    told(world, "dev", 5)
    assert (world.parents(REVISION), world.child(KEY), addresses(world)) == ([], None, [])

    told(world, "prod", 6)
    told(world, "dev", 7)

    assert [parent.namespace for parent in world.parents(REVISION)] == ["modalnomad-prod"]
    assert [child.namespace for child in world.twins(KEY)] == ["modalnomad-prod"]
    assert addresses(world) == ["prod"]


def test_what_belongs_nowhere_yet_is_believed() -> None:
    """A version that is being deployed is in no record."""
    world = World()
    told(world, "dev", 5)

    assert addresses(world) == ["dev"]


def test_it_is_no_longer_believed_once_its_environment_is_known() -> None:
    homes: dict[str, str] = {}
    world, view = World(homes.get), View()
    told(world, "dev", 5)
    assert len(view.look(world, 0, 0)) == 1

    homes[REVISION] = "prod"

    assert not [each for each in view.look(world, 1, 1) if each.address is not None and each.failure is None]
