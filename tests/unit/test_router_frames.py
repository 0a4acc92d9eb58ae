"""Counting WebSocket frames off, however they are cut into pieces."""

from __future__ import annotations

import itertools
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modalnomad.router.frames import Frames, close_frame


def frame(size: int, *, masked: bool, opcode: int = 2) -> bytes:
    flag = 0x80 if masked else 0
    if size < 126:
        head = struct.pack(">BB", 0x80 | opcode, flag | size)
    elif size < 65536:
        head = struct.pack(">BBH", 0x80 | opcode, flag | 126, size)
    else:
        head = struct.pack(">BBQ", 0x80 | opcode, flag | 127, size)
    return head + (b"mask" if masked else b"") + b"\x88" * size


@settings(max_examples=50, deadline=None)
@given(
    frames=st.lists(st.tuples(st.sampled_from([0, 1, 125, 126, 127, 300, 65535, 65536]), st.booleans()), max_size=3),
    cuts=st.lists(st.integers(0, 70_000), max_size=12),
)
def test_it_is_between_two_frames_exactly_at_their_ends(frames: list[tuple[int, bool]], cuts: list[int]) -> None:
    whole, ends = b"", {0}
    for size, masked in frames:
        whole += frame(size, masked=masked)
        ends.add(len(whole))
    places = sorted({*(cut for cut in cuts if cut < len(whole)), *ends})
    followed = Frames()
    for begin, end in itertools.pairwise(places):
        followed.follow(whole[begin:end])
        assert followed.between == (end in ends)
    assert followed.between


@pytest.mark.parametrize("masked", [False, True])
def test_nothing_follows_a_close(masked: bool) -> None:
    followed = Frames()
    followed.follow(frame(3, masked=masked))
    assert followed.between
    for byte in close_frame(1012, masked=masked):
        followed.follow(bytes([byte]))
    assert followed.closed
    assert not followed.between


def test_a_close_frame_is_what_the_standard_says() -> None:
    assert close_frame(1012, masked=False) == b"\x88\x02\x03\xf4"
    masked = close_frame(1001, masked=True)
    assert masked[:2] == b"\x88\x82"
    assert bytes(a ^ b for a, b in zip(masked[6:], masked[2:6], strict=False)) == b"\x03\xe9"


def test_a_flood_of_tiny_frames_is_not_followed() -> None:
    followed = Frames()
    followed.follow(frame(0, masked=False) * 200)
    assert followed.between
    followed.follow(frame(0, masked=False) * 300)
    assert followed.lost
    assert not followed.between
