"""What the embedded back end says it does not act on, and how it keeps fixed ports apart."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from modalnomad.embedded import network
from modalnomad.embedded.effects import without_effect
from modalnomad.embedded.network import Network
from modalnomad.model.manifest import Endpoint, Function, Resources, Schedule


def function(tag: str = "f", **fields: Any) -> Function:
    return Function(tag=tag, where="app.py:3", endpoints=(Endpoint(name=tag, kind="asgi_app"),), **fields)


def said(*functions: Function, **unlimited: str) -> list[str]:
    notices = list(without_effect(functions, unlimited))
    assert {(notice.code, notice.where) for notice in notices} <= {("no_effect", "app.py:3")}
    return [notice.message for notice in notices]


def test_what_reserves_nothing_is_said_once_for_each_function() -> None:
    both = Resources(cpu=(1.0, None), memory=(512, None), ephemeral_disk=1000)

    first, disk, second = said(function("f", resources=both), function("g", resources=Resources(memory=(512, None))))

    assert first.startswith("`cpu` and `memory` have no effect on this machine: nothing is reserved")
    assert "`f`" in first
    assert disk.startswith("`ephemeral_disk` has no effect on this machine: ")
    assert second.startswith("`memory` has no effect on this machine: ")
    assert "`g`" in second


def test_of_limits_only_those_that_cannot_be_set_are_said() -> None:
    limited = function(resources=Resources(cpu=(1.0, 2.0), memory=(512, 1024)))

    assert said(limited) == []
    assert said(limited, memory="no group") == ["`memory` has no effect on this machine: no group (`f`)"]
    assert said(limited, memory="no group", cpu="no group", pids="no group") == [
        "`cpu` and `memory` have no effect on this machine: no group (`f`)"
    ]


def test_an_open_network_is_said() -> None:
    (closed,) = said(function(block_network=True))

    assert closed.startswith("`block_network` has no effect")


def test_of_what_is_acted_on_nothing_is_said() -> None:
    job = Function(tag="job", where="app.py:3", schedule=Schedule(kind="cron", cron="0 9 * * 1"))

    assert said(function(single_use=True, resources=Resources(gpu=("H100",)), timeout=5), job) == []


@pytest.fixture
def allowed(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """What looking finds, one answer for each look."""
    answers = [True]

    async def look() -> bool:
        return answers.pop()

    monkeypatch.setattr(network, "namespaces_allowed", look)
    return answers


async def test_namespaces_are_looked_for_once_and_when_asked(allowed: list[bool]) -> None:
    auto = Network("auto")
    assert (auto.known, allowed) == (None, [True])

    assert [await auto.mode(), await auto.mode(), auto.known] == ["namespace"] * 3
    assert [await Network("exclusive").mode(), await Network("host").mode()] == ["exclusive", "host"]


async def test_the_way_out_of_a_namespace_is_said(
    allowed: list[bool], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    auto = Network("auto")
    without = await auto.described(str(tmp_path))
    (tmp_path / "pasta").write_text("#!/bin/sh\n")
    (tmp_path / "pasta").chmod(0o755)
    monkeypatch.setattr(network, "TUNNELS", os.devnull)
    through = await auto.described(str(tmp_path))
    monkeypatch.setattr(network, "TUNNELS", str(tmp_path / "none"))
    shut = await auto.described(str(tmp_path))

    assert all("namespace of its own" in text and "127.0.0.1" in text for text in (without, through, shut))
    assert "install pasta" in without
    assert "reaches the network outside (through pasta)" in through
    assert str(tmp_path / "none") in shut


async def test_a_shared_network_is_said_with_its_reason(allowed: list[bool]) -> None:
    allowed[:] = [False]

    assert "allows no network namespaces" in await Network("auto").described(None)
    assert "the settings say so" in await Network("exclusive").described(None)
    host = await Network("host").described(None)
    assert 'network = "host"' in host
    assert "past the router" in host
