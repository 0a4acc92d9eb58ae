"""Header fields on their way through: whatever a client or a replica sends."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from modalnomad.router.headers import Passage, Peer, Trusted, origin, request_id, to_client, to_replica, trailers
from modalnomad.router.http1 import RequestHead, ResponseHead, parse_request, parse_response

SPECIAL = [
    b"connection", b"keep-alive", b"proxy-connection", b"te", b"transfer-encoding", b"upgrade", b"x-forwarded-for",
    b"x-forwarded-proto", b"x-forwarded-host", b"x-forwarded-port", b"forwarded", b"x-real-ip", b"x-request-id",
    b"modalnomad-ticket", b"modalnomad-client", b"modalnomad-endpoint", b"modalnomad-x", b"modalnomad_ticket",
    b"x_forwarded_for", b"x-forwarded_for", b"modal-key", b"modal-secret", b"authorization", b"cookie", b"proxy",
    b"x-a", b"x-b", b"x_request_id",
]  # fmt: skip
name = st.sampled_from(SPECIAL) | st.from_regex(rb"[a-z][a-z0-9_-]{0,10}", fullmatch=True).filter(
    lambda found: found not in {b"host", b"content-length", b"expect"}
)
value = st.sampled_from([b"close", b"x-a, x-b", b"1.2.3.4", b"trailers", b"https", b"upgrade"]) | st.from_regex(
    rb"[\x21-\x7e]([\x20-\x7e]{0,10}[\x21-\x7e])?", fullmatch=True
)
fields = st.lists(st.tuples(name, value), max_size=10)
UNTOUCHABLE = re.compile(rb"modalnomad-|x-forwarded-|forwarded$|x-real-ip$")


def head(headers: list[tuple[bytes, bytes]], *, length: int | None = 0) -> RequestHead:
    connection = frozenset(
        option.strip(b" \t").lower() for key, found in headers if key == b"connection" for option in found.split(b",")
    )
    return RequestHead(
        b"POST", b"/p?q", 1, headers, "app.localhost", b"app.localhost:80", length, True, False, connection - {b""}
    )


def passage(request: RequestHead, peer: Peer, trusted: Trusted, strip: frozenset[bytes] = frozenset()) -> Passage:
    return Passage(
        origin(request, peer, trusted), request_id(request.headers), b"t" * 64, b"f", strip, peer_trusted=peer.trusted
    )


@given(fields, st.sampled_from([None, 0, 7]), st.sampled_from([frozenset(), frozenset({b"authorization"})]))
def test_replica_gets_a_head_that_only_we_could_have_written(
    headers: list[tuple[bytes, bytes]], length: int | None, strip: frozenset[bytes]
) -> None:
    if length:
        headers = [*headers, (b"content-length", b"%d" % length)]
    request = head(headers, length=length)
    peer = Peer("203.0.113.9", 4711)
    sent = to_replica(request, passage(request, peer, Trusted(), strip))
    # It survives our own strict reading, framing included.
    read = parse_request(sent)
    assert (read.method, read.target, read.length, read.authority) == (b"POST", b"/p?q", length, b"app.localhost:80")
    found: dict[bytes, list[bytes]] = {}
    for key, text in read.headers:
        found.setdefault(key.replace(b"_", b"-"), []).append(text)
    # Of what only the platform may say, exactly ours, under any spelling a WSGI environ would fold together.
    assert {key: texts for key, texts in found.items() if UNTOUCHABLE.match(key)} == {
        b"x-forwarded-for": [b"203.0.113.9"],
        b"x-forwarded-proto": [b"http"],
        b"x-forwarded-host": [b"app.localhost:80"],
        b"modalnomad-ticket": [b"t" * 64],
        b"modalnomad-client": [b"203.0.113.9 4711"],
        b"modalnomad-endpoint": [b"f"],
    }
    assert len(found[b"x-request-id"]) == 1
    assert not found.keys() & {b"keep-alive", b"proxy-connection", b"upgrade", b"proxy", *strip}
    assert found.get(b"te", [b"trailers"]) == [b"trailers"]
    # Everything else arrives, in order, unless the client named it in Connection.
    kept = [
        (key, text)
        for key, text in headers
        if key in {b"cookie", b"x-a", b"x-b", b"modal-key"} and key not in request.connection
    ]
    assert [pair for pair in read.headers if pair[0] in {b"cookie", b"x-a", b"x-b", b"modal-key"}] == kept


addresses = st.ip_addresses(v=4).map(str) | st.sampled_from(["10.0.0.1", "10.0.0.2", "198.51.100.7"])
hops = st.lists(addresses, min_size=1, max_size=5)


@given(hops)
def test_client_is_the_last_address_no_trusted_proxy_has(chain: list[str]) -> None:
    trusted = Trusted(["10.0.0.0/8"])
    request = head([(b"x-forwarded-for", ", ".join(chain).encode())])
    found = origin(request, Peer("10.0.0.9", 1, trusted=True), trusted)
    strangers = [hop for hop in chain if not hop.startswith("10.")]
    assert found.address == (strangers[-1] if strangers else chain[0])
    assert found.port == 0
    assert found.forwarded_for == ", ".join([*chain, "10.0.0.9"]).encode()
    # The same header from anybody else says nothing.
    found = origin(request, Peer("203.0.113.9", 1), trusted)
    assert (found.address, found.forwarded_for) == ("203.0.113.9", b"203.0.113.9")


@given(st.lists(value, max_size=3))
def test_request_id_is_one_sane_token(sent: list[bytes]) -> None:
    found = request_id([(b"x-request-id", text) for text in sent])
    assert re.fullmatch(rb"[A-Za-z0-9._-]{1,128}", found)
    if len(sent) == 1 and re.fullmatch(rb"[A-Za-z0-9._-]{1,128}", sent[0]):
        assert found == sent[0]


@given(fields, st.sampled_from(["none", "length", "chunked", "close"]), st.sampled_from([0, 1]), st.booleans())
def test_client_gets_a_head_that_is_framed_once(
    headers: list[tuple[bytes, bytes]], framing: str, minor: int, close: bool
) -> None:
    response = ResponseHead(200, b"OK", headers, framing, 5, True, frozenset())  # type: ignore[arg-type]
    request = head([])
    request.minor = minor
    onward = to_client(response, request, b"id", close=close)
    read = parse_response(onward.head, b"GET")
    wanted = {"none": "close", "length": "length", "chunked": "chunked", "close": "chunked"}[framing]
    assert read.framing == (wanted if minor or wanted != "chunked" else "close")
    assert onward.chunked is (read.framing == "chunked")
    assert onward.close is (b"close" in read.connection)
    assert onward.close == (close or (minor == 0 and framing in {"chunked", "close"}))
    names = [key.lower() for key, _ in read.headers]
    assert names.count(b"x-request-id") == 1
    assert not any(key.startswith(b"modalnomad-") for key in names)
    assert not set(names) & {b"keep-alive", b"proxy-connection", b"te", b"upgrade"}


@given(fields)
def test_trailers_cannot_say_what_a_head_decides(sent: list[tuple[bytes, bytes]]) -> None:
    sent = [*sent, (b"Content-Length", b"5"), (b"Host", b"x"), (b"Transfer-Encoding", b"chunked")]
    for key, _ in trailers(sent):
        lower = key.lower().replace(b"_", b"-")
        assert not UNTOUCHABLE.match(lower)
        assert lower not in {b"content-length", b"host", b"transfer-encoding", b"connection", b"authorization"}
