"""Any bytes as a head or body: never a crash, never two readings."""

from __future__ import annotations

import re

import httptools
from hypothesis import example, given
from hypothesis import strategies as st

from modalnomad.router.framing import Chunked, FramingError, encode_chunk, encode_end
from modalnomad.router.http1 import BadAnswer, RequestHead, hopeless, loose, parse_request, parse_response
from modalnomad.router.replies import Reply

PIECES = [
    b"GET", b"POST", b"HEAD", b"OPTIONS", b"TRACE", b"/", b"*", b"http://", b"app.localhost", b"/a?b=c",
    b"#f", b" HTTP/1.1", b" HTTP/1.0", b" HTTP/2.0", b"HTTP/1.1 200 OK", b"HTTP/1.0 204 ", b"Host",
    b"Content-Length", b"Transfer-Encoding", b"Connection", b"Expect", b"Upgrade", b"chunked", b"gzip",
    b"close", b"100-continue", b"websocket", b": ", b":", b" :", b"5", b"+5", b"5, 5", b"0x5", b"\r\n",
    b"\r\n", b"\n", b"\r", b" ", b"\t", b"\r\n ", b"\0", b"\x01", b"\x7f", b"\xff", b",", b";", b'"', b"@",
    b"[::1]",
]  # fmt: skip
soup = st.lists(st.sampled_from(PIECES) | st.binary(max_size=4), max_size=40).map(b"".join)

token = st.from_regex(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,12}", fullmatch=True)
value = st.from_regex(rb"[\t\x20-\x7e\x80-\xff]{0,20}", fullmatch=True)
field = st.tuples(token, value)
line = st.tuples(
    st.sampled_from([b"GET", b"POST", b"PUT", b"HEAD", b"FOO", b"TRACE"]),
    st.from_regex(rb"/[\x21-\x7e]{0,20}", fullmatch=True) | st.sampled_from([b"*", b"http://h/x", b"x", b"/\xc3"]),
    st.sampled_from([b"HTTP/1.1", b"HTTP/1.1", b"HTTP/1.0", b"HTTP/1.2"]),
).map(b" ".join)
framing = st.lists(
    st.sampled_from([
        (b"Host", b"a.localhost"), (b"Host", b"b.localhost"), (b"Content-Length", b"5"), (b"Content-Length", b"05"),
        (b"Content-Length", b"-1"), (b"Transfer-Encoding", b"chunked"), (b"Transfer-Encoding", b"identity"),
        (b"Connection", b"close, X"), (b"Connection", b"upgrade"), (b"Upgrade", b"websocket"),
        (b"Expect", b"100-continue"),
    ]),
    max_size=4,
)  # fmt: skip


def assemble(first: bytes, fields: list[tuple[bytes, bytes]]) -> bytes:
    return b"\r\n".join([first, *(b"%b: %b" % pair for pair in fields)]) + b"\r\n\r\n"


host = st.sampled_from([[(b"Host", b"a.localhost:80")]] * 3 + [[]])
heads = st.builds(
    lambda first, a, b, c: assemble(first, [*a, *b, *c]), line, host, framing, st.lists(field, max_size=4)
)


def request(head: bytes) -> RequestHead | None:
    """None: refused, in the one way a head may be refused."""
    try:
        return parse_request(head)
    except Reply as reply:
        refused = reply.answer
    assert refused.status in {400, 501, 505}
    assert refused.close
    return None


@given(soup.map(lambda data: data + b"\r\n\r\n") | heads)
@example(b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n")
@example(b"\r\n\r\n")
def test_accepted_request_head_has_one_reading(head: bytes) -> None:
    """Read again by the most naive reader there is, it says the same."""
    parsed = request(head)
    if parsed is None:
        return
    assert loose(head) is None
    assert head.endswith(b"\r\n\r\n")
    lines = head[:-4].split(b"\r\n")
    naive = [(name.lower(), found.strip(b" \t")) for name, _, found in (entry.partition(b":") for entry in lines[1:])]
    assert parsed.headers == naive
    method, target, _ = lines[0].split(b" ")
    assert parsed.method == method
    assert parsed.target == target or not target.startswith(b"/")
    values = [found for name, found in naive if name == b"content-length"]
    codings = [found for name, found in naive if name == b"transfer-encoding"]
    assert len(values) + len(codings) <= 1
    assert parsed.length == (None if codings else int(values[0]) if values else 0)
    assert len([name for name, _ in naive if name == b"host"]) <= 1
    assert re.fullmatch(r"[0-9a-z._:\[\]-]*", parsed.host)
    assert not parsed.host.endswith(":")


@given(heads)
def test_accepted_request_head_means_the_same_to_llhttp(head: bytes) -> None:
    """The runner's server reads with it: what we frame one way, it must not frame another."""
    parsed = request(head)
    if parsed is None:
        return

    class Reader:
        complete = False

        def on_message_complete(self) -> None:
            self.complete = True

    reader = Reader()
    parser = httptools.HttpRequestParser(reader)
    try:
        parser.feed_data(head)
        if parsed.length is None:
            assert not reader.complete
            parser.feed_data(b"0\r\n\r\n")
        elif parsed.length:
            assert not reader.complete
            parser.feed_data(bytes(parsed.length))
    except httptools.HttpParserUpgrade:
        return
    assert reader.complete


@given(heads, st.data())
def test_a_head_that_will_be_accepted_is_never_given_up_early(head: bytes, data: st.DataObject) -> None:
    if request(head) is not None:
        cut = data.draw(st.integers(0, len(head) - 1))
        assert hopeless(head[:cut]) is None


@given(soup.map(lambda data: b"HTTP/1.1 200 OK\r\n" + data + b"\r\n\r\n"), st.sampled_from([b"GET", b"HEAD"]))
@example(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", b"HEAD")
def test_any_answer_is_read_or_refused(head: bytes, method: bytes) -> None:
    try:
        parsed = parse_response(head, method)
    except BadAnswer:
        return
    assert loose(head) is None
    assert 100 <= parsed.status <= 999
    if method == b"HEAD":
        assert parsed.framing == "none"


payloads = st.lists(st.binary(min_size=1, max_size=40), max_size=6)
trailers = st.lists(st.tuples(token, value.map(lambda found: found.strip(b" \t"))), max_size=3)


@given(payloads, trailers, st.binary(max_size=20), st.data())
def test_chunks_are_read_as_written_however_they_arrive(
    chunks: list[bytes], fields: list[tuple[bytes, bytes]], rest: bytes, data: st.DataObject
) -> None:
    wire = b"".join(map(encode_chunk, chunks)) + encode_end(fields)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(wire)), max_size=8)))
    decoder = Chunked()
    payload = b""
    for start, end in zip([0, *cuts], [*cuts, len(wire)], strict=True):
        if not decoder.done:
            payload += decoder.feed(wire[start:end])
    assert (payload, decoder.done, decoder.rest) == (b"".join(chunks), True, b"")
    assert decoder.trailers == fields
    decoder = Chunked()
    assert decoder.feed(wire + rest) == b"".join(chunks)
    assert decoder.rest == rest


crumbs = st.sampled_from([b"5", b"0", b"a", b"\r\n", b"\n", b"\r", b";x", b" ", b"hello", b"+", b"x: y"])


@given(st.lists(crumbs | st.binary(max_size=3)), st.data())
def test_any_chunks_are_read_or_refused_the_same_however_they_arrive(pieces: list[bytes], data: st.DataObject) -> None:
    wire = b"".join(pieces)

    def read(cuts: list[int]) -> tuple[bytes, bool] | None:
        decoder = Chunked()
        payload = b""
        try:
            for start, end in zip([0, *cuts], [*cuts, len(wire)], strict=True):
                if not decoder.done:
                    payload += decoder.feed(wire[start:end])
        except FramingError:
            return None
        return payload, decoder.done

    cuts = sorted(data.draw(st.lists(st.integers(0, len(wire)), max_size=5)))
    assert read(cuts) == read([])
