"""The relay's reading of request heads."""

from __future__ import annotations

import pytest
from modalnomad_sdk.runner.heads import LIMIT, BadHead, parse

HEAD = b"POST /a?b=c HTTP/1.1\r\nHost: x\r\nModalnomad-Ticket: t\r\nX-Odd:  v \r\nConnection: keep-alive\r\n\r\nbody"


def test_a_head_and_what_follows() -> None:
    found = parse(HEAD)
    assert found is not None
    head, rest = found
    assert (head.method, head.path, head.query, rest) == ("POST", "/a", b"b=c", b"body")
    assert head.get(b"modalnomad-ticket") == b"t"
    assert head.get(b"x-odd") == b"v"
    assert head.get(b"absent") == b""


def test_what_the_user_gets() -> None:
    found = parse(HEAD)
    assert found is not None
    assert found[0].for_user() == b"POST /a?b=c HTTP/1.1\r\nHost: x\r\nX-Odd:  v \r\nConnection: close\r\n\r\n"


def test_an_upgrade_stays_one() -> None:
    raw = b"GET / HTTP/1.1\r\nUpgrade: websocket\r\nConnection: keep-alive, Upgrade\r\n\r\n"
    found = parse(raw)
    assert found is not None
    assert found[0].is_upgrade
    assert found[0].for_user() == raw


@pytest.mark.parametrize("end", range(1, len(HEAD) - 4, 7))
def test_half_a_head_is_waited_for(end: int) -> None:
    assert parse(HEAD[:end]) is None


@pytest.mark.parametrize(
    "raw",
    [
        b"GET / HTTP/1.1\nHost: x\r\n\r\n",
        b"GET  / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/3\r\n\r\n",
        b"GET /\x00 HTTP/1.1\r\n\r\n",
        b"G{T / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nName : v\r\n\r\n",
        b"GET / HTTP/1.1\r\n folded\r\n\r\n",
        b"GET / HTTP/1.1\r\nA: b\nC: d\r\n\r\n",
        b"GET / HTTP/1.1\r\nno colon\r\n\r\n",
        b"x" * (LIMIT + 1),
    ],
)
def test_anything_unusual_is_refused(raw: bytes) -> None:
    with pytest.raises(BadHead):
        parse(raw)
