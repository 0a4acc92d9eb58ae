"""The engine port: what replicas write, and what must stand nowhere."""

from __future__ import annotations

import asyncio

import pytest
from modalnomad_sdk import contract

from modalnomad.model.errors import NotFound, SecretMissing
from modalnomad.model.manifest import SecretRef
from modalnomad.model.replica import LogLine, PoolKey, ReplicaKey, ReplicaState
from tests.support.engines import HELLO, Harness, program, revision_id, within

FAILED, GONE, STARTING = ReplicaState.FAILED, ReplicaState.GONE, ReplicaState.STARTING


async def lines(harness: Harness, key: ReplicaKey | None, *, follow: bool = False) -> list[LogLine]:
    """To the end; with `follow` until the replica ends."""
    return [line async for line in harness.engine.logs(key, follow=follow)]


async def test_logs_hold_the_lines_of_both_streams_in_order(harness: Harness) -> None:
    text = program(
        "return b''", "import sys\nfor n in range(3):\n    print('out', n)\n    print('err', n, file=sys.stderr)\n"
    )
    key = await harness.started(await harness.revision(text))
    followed = asyncio.ensure_future(lines(harness, key, follow=True))

    await harness.ask(key, f"{contract.DRAIN_PATH}?idle_for=0", "POST")
    seen = await within(followed)

    assert [line.text for line in seen if line.stream == "stdout"] == ["out 0", "out 1", "out 2"]
    assert [line.text for line in seen if line.stream == "stderr"] == ["err 0", "err 1", "err 2"]
    assert {(line.app, line.function, line.replica) for line in seen} == {("app", "site", str(key))}
    assert await lines(harness, None) == await lines(harness, key)


async def test_lines_written_during_a_request_carry_its_id(harness: Harness) -> None:
    text = program("print('at', path); return b''", "print('outside')\n")
    key = await harness.started(await harness.revision(text))
    await harness.ask(key, "/x", **{contract.HEADER_REQUEST_ID: "req-77"})
    await harness.engine.kill(key)

    tags = {line.text: line.request_id for line in await lines(harness, key) if line.stream == "stdout"}

    assert tags == {"outside": None, "at /x": "req-77"}


async def test_logs_of_an_unknown_replica_are_not_found(harness: Harness) -> None:
    with pytest.raises(NotFound):
        await lines(harness, ReplicaKey(PoolKey(revision_id("none")), 0, 1))


async def test_a_flood_of_output_neither_blocks_the_replica_nor_is_kept_whole(harness: Harness) -> None:
    text = program(
        """
import sys
for n in range(60_000):
    print("line", n, "x" * 80)
sys.stdout.buffer.write(b"y" * 300_000 + b"\\n\\xff\\xfe not text\\n")
print("the last line")
return b"done"
"""
    )
    key = await harness.started(await harness.revision(text))

    assert (await within(harness.ask(key))).body == b"done"
    await harness.engine.kill(key)
    kept = [line for line in await lines(harness, key) if line.stream == "stdout"]

    assert kept[-1].text == "the last line"
    assert kept[-2].text == "�� not text"
    assert len(kept) <= 10_000
    assert max(len(line.text) for line in kept) <= 64 * 1024
    assert sum(len(line.text) for line in kept if line.text.startswith("yyy")) == 300_000


async def test_values_of_secrets_stand_in_no_state_and_no_line(harness: Harness) -> None:
    await harness.secrets.create("s", harness.environment, {"TOKEN": "tell-nobody"})
    revision = await harness.revision(
        HELLO + "\nraise RuntimeError('on purpose')\n", secrets=(SecretRef(name="s", required_keys=("TOKEN",)),)
    )
    replica = await harness.until(await harness.start(revision), FAILED)

    assert "tell-nobody" not in repr(replica)
    assert "tell-nobody" not in repr(await lines(harness, None))
    assert "tell-nobody" not in repr(revision)
    with pytest.raises(SecretMissing) as missing:
        await harness.secrets.check([SecretRef(name="s", required_keys=("TOKEN", "OTHER"))], harness.environment)
    assert "tell-nobody" not in f"{missing.value} {missing.value.hint}"
