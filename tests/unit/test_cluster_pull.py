"""A container's image is on all nodes before a deploy leads requests to it."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from modalnomad.model.errors import BackendRefused
from modalnomad.model.revision import Revision
from modalnomad.wiring import cluster_stage
from modalnomad.wiring.cluster_stage import ClusterStage
from tests.support.rendered import revision

PINNED = "registry.test/images@sha256:" + "a" * 64


class Engine:
    """Notes what it is asked for."""

    def __init__(self) -> None:
        self.prepared: list[str] = []
        self.pulled: list[str] = []
        self.failure: BackendRefused | None = None
        self.hangs = False

    async def prepare(self, revision: Revision) -> None:
        self.prepared.append(revision.function.tag)

    async def prewarm(self, revision: Revision) -> int:
        self.pulled.append(revision.function.tag)
        await (asyncio.Event().wait() if self.hangs else asyncio.sleep(0))
        if self.failure is not None:
            raise self.failure
        return 1


def stage_of(engine: Engine) -> ClusterStage:
    return ClusterStage(cast(Any, None), cast(Any, engine))


async def test_functions_with_one_image_have_it_pulled_once() -> None:
    engine = Engine()
    stage = stage_of(engine)
    both = [revision(reference=PINNED), revision(reference=PINNED, tag="other")]
    await asyncio.gather(*(stage.prepare(each) for each in both))
    await stage.prepare(both[0])
    assert sorted(engine.prepared) == ["other", "resize", "resize"]
    assert len(engine.pulled) == 1


async def test_environments_that_nodes_make_are_not_made_ahead_unasked() -> None:
    engine = Engine()
    await stage_of(engine).prepare(revision())
    assert (engine.prepared, engine.pulled) == (["resize"], [])


async def test_a_node_that_cannot_pull_ends_the_deploy_and_is_named() -> None:
    engine = Engine()
    engine.failure = BackendRefused("on 1 of 2 nodes:\nnode-b: manifest unknown")
    stage = stage_of(engine)
    with pytest.raises(BackendRefused, match=r"(?s)shop/resize is not on every node.*node-b: manifest unknown"):
        await stage.prepare(revision(reference=PINNED))
    engine.failure = None
    await stage.prepare(revision(reference=PINNED))
    assert engine.pulled == ["resize", "resize"]


async def test_a_pull_that_never_ends_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine()
    engine.hangs = True
    monkeypatch.setattr(cluster_stage, "PULLED_WITHIN", 0.01)
    with pytest.raises(BackendRefused, match="not on every node within"):
        await stage_of(engine).prepare(revision(reference=PINNED))
