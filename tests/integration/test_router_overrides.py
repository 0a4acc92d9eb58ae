"""Scaling changed by hand while it runs: `modalnomad app scale`, as far as the router goes."""

from __future__ import annotations

from pathlib import Path

from modalnomad.model.manifest import Parameter
from modalnomad.model.routes import ScalingOverride
from tests.support.router import until
from tests.support.scaling import scaled
from tests.support.stub_replicas import make_match


async def test_a_raised_minimum_starts_replicas_and_a_removed_one_lets_them_go(tmp_path: Path) -> None:
    match = make_match(scaledown_window=60)
    async with scaled(tmp_path) as platform:
        await platform.serve(match)
        assert platform.load(match).pools == 0
        await platform.serve(match, overrides={match.revision.id: ScalingOverride(min_containers=2)})
        await until(lambda: platform.load(match).ready == 2)
        assert set(platform.reasons(match)) == {"min_containers=2"}
        await platform.advance(600)
        assert platform.load(match).leaving == 0
        await platform.serve(match)
        await until(lambda: platform.numbers(match) == [])


async def test_a_lowered_maximum_lets_the_surplus_finish_and_take_nothing_more(tmp_path: Path) -> None:
    match = make_match(scaledown_window=60)
    async with scaled(tmp_path) as platform:
        await platform.serve(match)
        async with platform.held(match, 3):
            await platform.serve(match, overrides={match.revision.id: ScalingOverride(max_containers=1)})
            await until(lambda: platform.load(match).leaving == 2)
            assert platform.load(match).running == 3, "what runs is finished"
            async with platform.held(match, 2, leased=0):
                await platform.looked()
                assert platform.numbers(match) == [0, 1, 2]
        await until(lambda: platform.numbers(match) == [0])
        assert len(platform.engine.started) == 3
        assert {stub.most for stub in platform.engine.stubs.values()} == {1}


async def test_a_lowered_maximum_ends_idle_replicas_at_once(tmp_path: Path) -> None:
    match = make_match(scaledown_window=3600)
    async with scaled(tmp_path) as platform:
        await platform.serve(match)
        async with platform.held(match, 3):
            pass
        await platform.serve(match, overrides={match.revision.id: ScalingOverride(max_containers=1)})
        await until(lambda: platform.numbers(match) == [0])
        await platform.serve(match)
        async with platform.held(match, 3):
            assert len(platform.numbers(match)) == 3, "taken back: as the program declares it"


async def test_a_raised_maximum_serves_those_who_wait_at_once(tmp_path: Path) -> None:
    match = make_match(max_containers=1)
    async with scaled(tmp_path) as platform:
        await platform.serve(match)
        async with platform.held(match, 4, leased=1):
            await platform.serve(match, overrides={match.revision.id: ScalingOverride(max_containers=3)})
            await until(lambda: platform.load(match).running == 3)
            assert platform.load(match).waiting == 1


async def test_the_window_and_the_buffer_change_for_replicas_that_run(tmp_path: Path) -> None:
    match = make_match(scaledown_window=60)
    override = {match.revision.id: ScalingOverride(scaledown_window=600, buffer_containers=1)}
    async with scaled(tmp_path) as platform:
        await platform.serve(match)
        async with platform.held(match):
            await platform.serve(match, overrides=override)
            await until(lambda: platform.load(match).ready == 2)
        await platform.advance(300)
        assert platform.load(match).leaving == 0
        await platform.serve(match, overrides={match.revision.id: ScalingOverride(scaledown_window=10)})
        await until(lambda: platform.numbers(match) == [])


async def test_a_longer_window_makes_no_orphans(tmp_path: Path) -> None:
    """The replica knows the window it was started with, and drains itself when nobody talks to it for much longer."""
    match = make_match(scaledown_window=60)
    async with scaled(tmp_path) as platform:
        await platform.serve(match, overrides={match.revision.id: ScalingOverride(scaledown_window=3600)})
        assert (await platform.ask(match)).status == 200
        (stub,) = platform.running(match)
        greetings = [call for call in stub.asked if call[1] == "/.modalnomad/ready"]
        for more in range(1, 4):
            await platform.advance(61)
            await until(
                lambda more=more: (
                    len([call for call in stub.asked if call[1] == "/.modalnomad/ready"]) == len(greetings) + more
                )
            )
        assert platform.load(match).leaving == 0


async def test_an_override_of_a_class_holds_for_each_pool_of_parameters(tmp_path: Path) -> None:
    match = make_match(parameters=(Parameter(name="root", type="str"),))
    override = {match.revision.id: ScalingOverride(min_containers=2, max_containers=1)}
    async with scaled(tmp_path) as platform:
        await platform.serve(match)
        async with platform.held(match, 2, "/?root=a"), platform.held(match, 1, "/?root=b"):
            await platform.serve(match, overrides=override)
            await until(lambda: platform.load(match).leaving == 1)
            async with platform.held(match, 1, "/?root=b", leased=0):
                assert platform.load(match).starts == 3
        await until(lambda: platform.numbers(match) == [0, 0])
        await platform.advance(61)
        await until(lambda: platform.numbers(match) == [])


async def test_an_override_belongs_to_its_revision(tmp_path: Path) -> None:
    old, new = make_match(version=1), make_match(version=2)
    async with scaled(tmp_path) as platform:
        await platform.serve(old, overrides={old.revision.id: ScalingOverride(min_containers=1)})
        await until(lambda: platform.load(old).ready == 1)
        await platform.serve(new)
        await until(lambda: platform.numbers(old) == [])
        assert (platform.load(new).pools, platform.load(old).ready) == (0, 0)
