"""Scaling as it is documented: what min, max, buffer, window, target and class parameters do, seen from outside."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import pytest

from modalnomad.model.manifest import Parameter
from modalnomad.router.places import Effect
from modalnomad.router.pool import Pool
from modalnomad.settings import RouterSettings
from tests.support import raw
from tests.support.router import until
from tests.support.scaling import scaled
from tests.support.stub_replicas import make_match

BY_ROOT = (Parameter(name="root", type="str"),)


async def test_a_request_without_a_free_place_starts_one_more(tmp_path: Path) -> None:
    match = make_match()
    async with scaled(tmp_path) as platform:
        await platform.serve(match)
        assert platform.numbers(match) == []
        async with platform.held(match):
            assert platform.numbers(match) == [0]
            async with platform.held(match, 2):
                assert platform.numbers(match) == [0, 1, 2]
        assert {stub.most for stub in platform.running(match)} == {1}


async def test_replicas_fill_to_the_target_and_beyond_it_only_while_more_start(tmp_path: Path) -> None:
    match = make_match(max_inputs=4, target_inputs=2)
    async with scaled(tmp_path) as platform:
        await platform.serve(match)
        async with platform.held(match, 2):
            assert platform.numbers(match) == [0]
            platform.engine.on_start = lambda stub: None
            async with platform.held(match, 2):  # at once, on the first: nobody waits for the second to start
                (first, second) = platform.running(match)
                assert (first.running, second.running) == (4, 0)
                second.is_ready.set()
                await until(lambda: platform.load(match).ready == 2)
                async with platform.held(match, 2):
                    assert (first.running, second.running) == (4, 2)
        assert len(platform.engine.started) == 3, "six requests at two each"


async def test_never_more_than_the_maximum_and_the_rest_waits(tmp_path: Path) -> None:
    match = make_match(max_containers=2, max_inputs=2)
    async with scaled(tmp_path) as platform:
        await platform.serve(match)
        async with platform.held(match, 9, leased=4):
            assert platform.numbers(match) == [0, 1]
            assert platform.load(match).waiting == 5
        assert len(platform.engine.started) == 2
        assert {stub.most for stub in platform.running(match)} == {2}


async def test_the_minimum_runs_without_a_request_and_for_ever(tmp_path: Path) -> None:
    match = make_match(min_containers=2, scaledown_window=60)
    async with scaled(tmp_path) as platform:
        await platform.serve(match)
        await until(lambda: platform.load(match).ready == 2)
        assert set(platform.reasons(match)) == {"min_containers=2"}
        async with platform.held(match, 3):
            assert platform.numbers(match) == [0, 1, 2]
        await platform.advance(59)
        assert platform.load(match).leaving == 0
        await platform.advance(2)
        await until(lambda: platform.numbers(match) == [0, 1] and platform.load(match).leaving == 0)
        await platform.advance(3600)
        assert (platform.load(match).ready, platform.load(match).leaving) == (2, 0)


async def test_the_window_counts_from_the_end_of_the_last_request(tmp_path: Path) -> None:
    match = make_match(scaledown_window=60)
    async with scaled(tmp_path) as platform:
        await platform.serve(match)
        async with platform.held(match):
            await platform.advance(100)  # longer than the window, but at work
        await platform.advance(59)
        assert (await platform.ask(match)).status == 200
        await platform.advance(59)
        assert platform.load(match).leaving == 0
        await platform.advance(2)
        await until(lambda: platform.numbers(match) == [])
        assert len(platform.engine.started) == 1


async def test_the_highest_number_goes_first_and_one_at_a_time(tmp_path: Path) -> None:
    match = make_match(scaledown_window=60)
    async with scaled(tmp_path) as platform:
        platform.engine.obedient = False
        await platform.serve(match)
        async with platform.held(match, 3):
            pass
        stubs = {stub.key.number: stub for stub in platform.running(match)}
        await platform.advance(61)
        for number in (2, 1, 0):
            await until(lambda number=number: stubs[number].drained.is_set())
            await platform.looked()
            assert [stubs[other].drained.is_set() for other in range(number)] == [False] * number
            await platform.engine.end(stubs[number].key)


async def test_the_buffer_is_beside_the_busy_ones_and_goes_with_them(tmp_path: Path) -> None:
    match = make_match(buffer_containers=2, scaledown_window=60)
    async with scaled(tmp_path) as platform:
        await platform.serve(match)
        await platform.looked()
        assert platform.numbers(match) == [], "nobody uses it"
        async with platform.held(match):
            await until(lambda: platform.load(match).ready == 3)
            async with platform.held(match):
                await until(lambda: platform.load(match).ready == 4)
        assert platform.reasons(match)[1:3] == ["buffer_containers=2 beside 1 in use"] * 2
        for _ in range(12):  # the peak of the last window is remembered, and they go one by one
            await platform.advance(15)
        await until(lambda: platform.numbers(match) == [])


async def test_pools_of_class_parameters_have_counts_of_their_own_and_no_minimum(tmp_path: Path) -> None:
    match = make_match(parameters=BY_ROOT, max_containers=1, min_containers=3)
    async with scaled(tmp_path, settings=RouterSettings(max_pools=2)) as platform:
        await platform.serve(match)
        await platform.looked()
        assert platform.numbers(match) == []
        async with platform.held(match, 2, "/?root=a", leased=1), platform.held(match, 1, "/?root=b"):
            assert platform.numbers(match) == [0, 0]
            assert {stub.key.pool.parameters for stub in platform.running(match)} == {'{"root":"a"}', '{"root":"b"}'}
            refused = await platform.ask(match, "/?root=c")
            assert (refused.status, refused["modalnomad-error"]) == (429, "too_many_pools")
            assert refused.get("retry-after") is not None
            assert (await platform.ask(match)).status == 422
        answer = await platform.ask(match, "/?root=c")  # an idle pool makes room
        assert answer.status == 200
        await until(lambda: platform.load(match).ready == 2)


async def test_a_class_whose_parameters_have_defaults_has_one_pool_for_them(tmp_path: Path) -> None:
    match = make_match(parameters=(Parameter(name="root", type="str", has_default=True, default="a"),))
    async with scaled(tmp_path) as platform:
        await platform.serve(match)
        for path in ("/", "/?root=a", "/?other=1", "/?root=b&root=a"):
            assert (await platform.ask(match, path)).status == 200
        assert platform.load(match).pools == 1


async def test_what_the_scaler_decides_is_logged_with_its_numbers_and_told_to_the_engine(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "modalnomad.router")
    match = make_match(scaledown_window=60)
    async with scaled(tmp_path) as platform:
        await platform.serve(match)
        async with platform.held(match, 2):
            assert platform.reasons(match)[0] == "requests: 1 waiting, 0 running"
            woken_by = list(platform.engine.woken_by.values())
            assert len(set(woken_by)) == 2, "each replica names the request it was started for"
            assert all(f"(request {id})" in caplog.text for id in woken_by)
        await platform.advance(75)
        await until(lambda: platform.numbers(match) == [])
        assert "idle for 75 s" in caplog.text
        life = platform.router.activator.observer.life(match.revision.id)
        assert life is not None
        assert (life.starts, life.drains) == ({"requests": 2}, {"idle": 2})


async def test_a_route_without_revision_change_keeps_its_replicas(tmp_path: Path) -> None:
    match, other = make_match(), make_match(tag="g", host="g.localhost")
    async with scaled(tmp_path) as platform:
        await platform.serve(match)
        async with platform.held(match):
            await platform.serve(match, other)
            await platform.looked()
            assert platform.load(match).leaving == 0
            await platform.serve(other)
            await until(lambda: platform.load(match).leaving == 1)
        await until(lambda: platform.numbers(match) == [])


async def test_a_revision_without_a_route_is_served_too(tmp_path: Path) -> None:
    match, scheduled = make_match(), make_match(tag="s", min_containers=1)
    async with scaled(tmp_path) as platform:
        await platform.serve(match, unrouted=(scheduled,))
        await until(lambda: platform.load(scheduled).ready == 1)
        await platform.serve(match, unrouted=(scheduled,))
        await platform.looked()
        assert platform.load(scheduled).leaving == 0
        await platform.serve(match)
        await until(lambda: platform.numbers(scheduled) == [])


async def test_sixty_four_at_once_at_zero_are_one_wake_of_the_right_size(tmp_path: Path) -> None:
    match = make_match(max_inputs=8)
    async with scaled(tmp_path) as platform:
        await platform.serve(match)
        async with asyncio.timeout(raw.WAIT):
            answers = await asyncio.gather(*(platform.ask(match) for _ in range(64)))
        assert {answer.status for answer in answers} == {200}
        load = platform.load(match)
        assert load.wakes == 1
        assert load.starts <= 8


async def test_a_pool_nobody_uses_is_let_alone_until_something_is_due(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked_at: list[float] = []
    expire = Pool.expire

    def counted(pool: Pool, now: float, *, may_drain: bool) -> list[Effect]:
        looked_at.append(now)
        return expire(pool, now, may_drain=may_drain)

    monkeypatch.setattr(Pool, "expire", counted)
    match = make_match(scaledown_window=60)
    async with scaled(tmp_path) as platform:
        await platform.serve(match)
        assert (await platform.ask(match)).status == 200
        await until(lambda: platform.load(match).running == 0)
        await platform.looked()
        before = len(looked_at)
        await platform.advance(50)
        assert len(looked_at) == before
        assert (await platform.ask(match)).status == 200
        await until(lambda: len(looked_at) > before)
        await platform.advance(61)
        await until(lambda: platform.numbers(match) == [] and platform.load(match).leaving == 0)
        await platform.looked()
        before = len(looked_at)
        await platform.advance(50)
        assert len(looked_at) == before
        await platform.advance(200)
        assert platform.load(match).pools == 0, "forgotten"
