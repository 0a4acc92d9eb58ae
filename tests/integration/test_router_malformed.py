"""Heads that are not HTTP/1.1, or that two readers could read differently: refused, and the connection closed."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time

import pytest

from modalnomad.settings import RouterSettings
from tests.support import raw
from tests.support.router import served

H = b"Host: app.localhost\r\n"

SMUGGLING = {
    "length and chunked": b"POST / HTTP/1.1\r\n"
    + H
    + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunked and length": b"POST / HTTP/1.1\r\n"
    + H
    + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
    "two lengths": b"POST / HTTP/1.1\r\n" + H + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello!",
    "the same length twice": b"POST / HTTP/1.1\r\n" + H + b"Content-Length: 5\r\nContent-Length: 5\r\n\r\nhello",
    "list of lengths": b"POST / HTTP/1.1\r\n" + H + b"Content-Length: 5, 5\r\n\r\nhello",
    "signed length": b"POST / HTTP/1.1\r\n" + H + b"Content-Length: +5\r\n\r\nhello",
    "negative length": b"POST / HTTP/1.1\r\n" + H + b"Content-Length: -5\r\n\r\nhello",
    "hexadecimal length": b"POST / HTTP/1.1\r\n" + H + b"Content-Length: 0x5\r\n\r\nhello",
    "empty length": b"POST / HTTP/1.1\r\n" + H + b"Content-Length:\r\n\r\n",
    "underscore in length": b"POST / HTTP/1.1\r\n" + H + b"Content-Length: 1_0\r\n\r\n0123456789",
    "length past 64 bits": b"POST / HTTP/1.1\r\n" + H + b"Content-Length: 99999999999999999999\r\n\r\n",
    "chunked in HTTP/1.0": b"POST / HTTP/1.0\r\n" + H + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "unknown coding": b"POST / HTTP/1.1\r\n" + H + b"Transfer-Encoding: gzip\r\n\r\n",
    "coding before chunked": b"POST / HTTP/1.1\r\n" + H + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "chunked twice": b"POST / HTTP/1.1\r\n" + H + b"Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
    "two codings": b"POST / HTTP/1.1\r\n" + H + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n",
    "almost chunked": b"POST / HTTP/1.1\r\n" + H + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "quoted chunked": b"POST / HTTP/1.1\r\n" + H + b'Transfer-Encoding: "chunked"\r\n\r\n0\r\n\r\n',
    "vertical tab before chunked": b"POST / HTTP/1.1\r\n" + H + b"Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
    "space before colon": b"POST / HTTP/1.1\r\n" + H + b"Content-Length : 5\r\n\r\nhello",
    "tab before colon": b"POST / HTTP/1.1\r\n" + H + b"Transfer-Encoding\t: chunked\r\n\r\n0\r\n\r\n",
    "bare LF in head": b"GET / HTTP/1.1\r\n" + H + b"X: a\nContent-Length: 5\r\n\r\nhello",
    "bare LF everywhere": b"GET / HTTP/1.1\nHost: app.localhost\n\n",
    "bare CR in head": b"GET / HTTP/1.1\r\n" + H + b"X: a\rContent-Length: 5\r\n\r\n",
    "folded line": b"GET / HTTP/1.1\r\n" + H + b"X: a\r\n b\r\n\r\n",
    "line folded with a tab": b"GET / HTTP/1.1\r\n" + H + b"X: a\r\n\tContent-Length: 5\r\n\r\n",
    "folded first line": b"GET / HTTP/1.1\r\n Host: a\r\n" + H + b"\r\n",
    "NUL in a value": b"GET / HTTP/1.1\r\n" + H + b"X: a\x00b\r\n\r\n",
    "NUL in a name": b"GET / HTTP/1.1\r\n" + H + b"X\x00: a\r\n\r\n",
    "control byte": b"GET / HTTP/1.1\r\n" + H + b"X: a\x01b\r\n\r\n",
    "delete byte": b"GET / HTTP/1.1\r\n" + H + b"X: a\x7fb\r\n\r\n",
    "no Host": b"GET / HTTP/1.1\r\n\r\n",
    "two Hosts": b"GET / HTTP/1.1\r\n" + H + H + b"\r\n",
    "two Hosts in HTTP/1.0": b"GET / HTTP/1.0\r\n" + H + H + b"\r\n",
    "empty Host": b"GET / HTTP/1.1\r\nHost:\r\n\r\n",
    "Host with a path": b"GET / HTTP/1.1\r\nHost: app.localhost/x\r\n\r\n",
    "Host with a user": b"GET / HTTP/1.1\r\nHost: me@app.localhost\r\n\r\n",
    "list of Hosts": b"GET / HTTP/1.1\r\nHost: app.localhost, other\r\n\r\n",
    "Host with a bad port": b"GET / HTTP/1.1\r\nHost: app.localhost:80a\r\n\r\n",
    "no name": b"GET / HTTP/1.1\r\n" + H + b": a\r\n\r\n",
    "no colon": b"GET / HTTP/1.1\r\n" + H + b"X\r\n\r\n",
    "space in a name": b"GET / HTTP/1.1\r\n" + H + b"X Y: a\r\n\r\n",
    "byte over 127 in a name": b"GET / HTTP/1.1\r\n" + H + b"X\xc3: a\r\n\r\n",
    "byte over 127 in the target": b"GET /\xc3\xbc HTTP/1.1\r\n" + H + b"\r\n",
    "space in the target": b"GET /a b HTTP/1.1\r\n" + H + b"\r\n",
    "fragment in the target": b"GET /a#b HTTP/1.1\r\n" + H + b"\r\n",
    "target without slash": b"GET a HTTP/1.1\r\n" + H + b"\r\n",
    "asterisk with GET": b"GET * HTTP/1.1\r\n" + H + b"\r\n",
    "user in an absolute target": b"GET http://me@app.localhost/ HTTP/1.1\r\n" + H + b"\r\n",
    "other scheme": b"GET ftp://app.localhost/ HTTP/1.1\r\n" + H + b"\r\n",
    "two spaces": b"GET  / HTTP/1.1\r\n" + H + b"\r\n",
    "tab for a space": b"GET\t/ HTTP/1.1\r\n" + H + b"\r\n",
    "space behind the version": b"GET / HTTP/1.1 \r\n" + H + b"\r\n",
    "lower-case protocol": b"GET / http/1.1\r\n" + H + b"\r\n",
    "no version": b"GET /\r\n\r\n",
    "long version": b"GET / HTTP/1.10\r\n" + H + b"\r\n",
    "TLS on a plain port": bytes.fromhex("16030100a5010000a10303"),
}


@pytest.mark.parametrize("head", SMUGGLING.values(), ids=SMUGGLING.keys())
async def test_malformed_head_is_refused_and_closed(head: bytes) -> None:
    async with (
        raw.replica(raw.polite) as backend,
        served(backend.address) as router,
        raw.client(router.port) as client,
    ):
        answer = await client.request(head)
        assert answer.status == 400, answer
        assert answer["modalnomad-error"] == "bad_request"
        assert answer["connection"] == "close"
        assert json.loads(answer.body)["code"] == "bad_request"
        # Whatever is behind a head that could not be read is never read as a request.
        with contextlib.suppress(ConnectionError):  # two seconds later it has hung up
            await client.send(raw.get())
        assert await client.at_end() == b""
        assert backend.requests == []


@pytest.mark.parametrize("split", range(1, len(SMUGGLING["bare LF everywhere"])))
async def test_malformed_head_in_two_pieces(split: int) -> None:
    head = SMUGGLING["bare LF everywhere"]
    async with served() as router, raw.client(router.port) as client:
        await client.send(head[:split])
        await asyncio.sleep(0)
        answer = await client.request(head[split:])
        assert answer.status == 400


BROKEN_BODIES = {
    "size is no number": b"xyz\r\nhello\r\n",
    "size is signed": b"+5\r\nhello\r\n0\r\n\r\n",
    "size with 0x": b"0x5\r\nhello\r\n0\r\n\r\n",
    "size behind a space": b" 5\r\nhello\r\n0\r\n\r\n",
    "space behind the size": b"5 \r\nhello\r\n0\r\n\r\n",
    "empty size": b"\r\nhello\r\n0\r\n\r\n",
    "huge size": b"ffffffffffffffffff\r\nhello\r\n",
    "size ends with a bare LF": b"5\nhello\r\n0\r\n\r\n",
    "bare CR in an extension": b"5;a\rb\r\nhello\r\n0\r\n\r\n",
    "NUL in an extension": b"5;a\0\r\nhello\r\n0\r\n\r\n",
    "chunk is longer than its size": b"5\r\nhello!\r\n0\r\n\r\n",
    "bare LF behind a chunk": b"5\r\nhello\n0\r\n\r\n",
    "endless extension": b"5;" + b"a" * 3000,
    "bad trailer": b"0\r\nnot a trailer\r\n\r\n",
    "folded trailer": b"0\r\nX: a\r\n b\r\n\r\n",
    "too many trailers": b"0\r\n"
    + b"X: "
    + b"a" * 6000
    + b"\r\nY: "
    + b"a" * 6000
    + b"\r\nZ: "
    + b"a" * 6000
    + b"\r\n\r\n",
}


@pytest.mark.parametrize("waiting", [False, True])
@pytest.mark.parametrize("body", BROKEN_BODIES.values(), ids=BROKEN_BODIES.keys())
async def test_malformed_chunks_are_refused_while_waiting_and_while_running(body: bytes, waiting: bool) -> None:
    async with (
        raw.replica(raw.waits) as backend,
        served(backend.address) as router,
        raw.client(router.port) as client,
    ):
        if waiting:
            router.activator.ready.clear()
        await client.send(b"POST / HTTP/1.1\r\n" + H + b"Transfer-Encoding: chunked\r\n\r\n")
        if not waiting:
            async with asyncio.timeout(raw.WAIT):
                await backend.arrived.wait()
        answer = await client.request(body)
        assert answer.status == 400
        assert await client.at_end() == b""
        await router.quiet()


async def test_body_cut_short_by_the_client() -> None:
    async with (
        raw.replica(raw.waits) as backend,
        served(backend.address) as router,
        raw.client(router.port) as client,
    ):
        await client.send(b"POST / HTTP/1.1\r\n" + H + b"Content-Length: 10\r\n\r\nhalf")
        client.writer.write_eof()
        assert (await client.response()).status == 400
        assert await client.at_end() == b""
        await router.quiet()


OTHERS = {
    "CONNECT": (b"CONNECT app.localhost:443 HTTP/1.1\r\n" + H + b"\r\n", 501, "not_implemented"),
    "TRACE": (b"TRACE / HTTP/1.1\r\n" + H + b"\r\n", 501, "not_implemented"),
    "unknown method": (b"FROBNICATE / HTTP/1.1\r\n" + H + b"\r\n", 501, "not_implemented"),
    "HTTP/2 preface": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505, "version_not_supported"),
    "HTTP/1.2": (b"GET / HTTP/1.2\r\n" + H + b"\r\n", 505, "version_not_supported"),
    "HTTP/0.9": (b"GET / HTTP/0.9\r\n" + H + b"\r\n", 505, "version_not_supported"),
    "long target": (b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\n" + H + b"\r\n", 414, "target_too_long"),
    "endless target": (b"GET /" + b"a" * 70_000, 414, "target_too_long"),
    "large header": (b"GET / HTTP/1.1\r\n" + H + b"X: " + b"a" * 70_000 + b"\r\n\r\n", 431, "head_too_large"),
    "many headers": (b"GET / HTTP/1.1\r\n" + H + b"X: a\r\n" * 15_000 + b"\r\n", 431, "head_too_large"),
}


@pytest.mark.parametrize(("head", "status", "code"), OTHERS.values(), ids=OTHERS.keys())
async def test_other_refusals_of_a_head(head: bytes, status: int, code: str) -> None:
    async with (
        raw.replica(raw.polite) as backend,
        served(backend.address) as router,
        raw.client(router.port) as client,
    ):
        answer = await client.request(head)
        assert (answer.status, answer["modalnomad-error"]) == (status, code)
        assert await client.at_end() == b""
        assert backend.requests == []


async def test_half_a_head_and_then_silence() -> None:
    settings = RouterSettings(head_timeout=0.2)
    async with served(settings=settings) as router, raw.client(router.port) as client:
        answer = await client.request(b"GET / HTTP/1.1\r\nHost: app.loc")
        assert (answer.status, answer["modalnomad-error"]) == (408, "head_timeout")
        assert await client.at_end() == b""


async def test_dripping_head_is_timed_from_its_first_byte() -> None:
    settings = RouterSettings(head_timeout=0.3)
    async with served(settings=settings) as router, raw.client(router.port) as client:
        dripping = asyncio.ensure_future(drip(client))
        answer = await client.response()
        assert answer.status == 408
        dripping.cancel()
        await asyncio.gather(dripping, return_exceptions=True)


async def drip(client: raw.Client) -> None:
    for byte in raw.get("/" + "a" * 1000):
        await client.send(bytes([byte]))
        await asyncio.sleep(0.02)


async def test_idle_connection_is_closed_without_a_word() -> None:
    settings = RouterSettings(idle_timeout=0.2)
    async with (
        raw.replica(raw.polite) as backend,
        served(backend.address, settings=settings) as router,
        raw.client(router.port) as client,
    ):
        assert (await client.request(raw.get())).status == 200
        assert await client.at_end() == b""


WELL_FORMED = {
    "absolute target": (b"GET http://app.localhost/a?b HTTP/1.1\r\nHost: other\r\n\r\n", "GET /a?b HTTP/1.1"),
    "absolute target without path": (b"GET http://APP.localhost HTTP/1.1\r\n" + H + b"\r\n", "GET / HTTP/1.1"),
    "absolute target with query only": (b"GET http://app.localhost?q HTTP/1.1\r\n" + H + b"\r\n", "GET /?q HTTP/1.1"),
    "OPTIONS *": (b"OPTIONS * HTTP/1.1\r\n" + H + b"\r\n", "OPTIONS * HTTP/1.1"),
    "odd but legal target": (b"GET /%zz//../?a=[]|{}\"<>\\^` HTTP/1.1\r\n" + H + b"\r\n",
                             "GET /%zz//../?a=[]|{}\"<>\\^` HTTP/1.1"),
    "trailing dot and port": (b"GET / HTTP/1.1\r\nHost: App.LocalHost.:1234\r\n\r\n", "GET / HTTP/1.1"),
    "empty line before": (b"\r\nGET / HTTP/1.1\r\n" + H + b"\r\n", "GET / HTTP/1.1"),
    "empty value": (b"GET / HTTP/1.1\r\nX:\r\n" + H + b"\r\n", "GET / HTTP/1.1"),
    "HTTP/1.0": (b"GET / HTTP/1.0\r\n" + H + b"\r\n", "GET / HTTP/1.1"),
    "PATCH": (b"PATCH / HTTP/1.1\r\n" + H + b"\r\n", "PATCH / HTTP/1.1"),
    "chunked in capitals": (b"POST / HTTP/1.1\r\n" + H + b"Transfer-Encoding: Chunked\r\n\r\n0\r\n\r\n",
                            "POST / HTTP/1.1"),
}  # fmt: skip


@pytest.mark.parametrize(("head", "line"), WELL_FORMED.values(), ids=WELL_FORMED.keys())
async def test_legal_oddities_pass(head: bytes, line: str) -> None:
    async with (
        raw.replica(raw.polite) as backend,
        served(backend.address) as router,
        raw.client(router.port) as client,
    ):
        answer = await client.request(head)
        assert answer.status == 200
        assert backend.requests[0].line == line


@pytest.mark.parametrize("step", [1, 7])
async def test_head_and_body_in_pieces(step: int) -> None:
    request = (
        b"POST /x HTTP/1.1\r\n"
        + H
        + b"Transfer-Encoding: chunked\r\n\r\n3;e=1\r\nabc\r\nA\r\n0123456789\r\n0\r\nT: 1\r\n\r\n"
    )
    async with (
        raw.replica(raw.polite) as backend,
        served(backend.address) as router,
        raw.client(router.port) as client,
    ):
        for start in range(0, len(request), step):
            await client.send(request[start : start + step])
            await asyncio.sleep(0)
        assert (await client.response()).body == b"abc0123456789"


async def test_empty_lines_in_bulk_hold_nobody_up() -> None:
    async with raw.replica(raw.polite) as backend, served(backend.address) as router, raw.client(router.port) as client:
        begun = time.process_time()
        client.writer.write(b"\r\n" * 2_000_000 + raw.get())
        assert (await client.response()).status == 200
        assert time.process_time() - begun < 5, "of its own time, however much passes on a busy machine"
