"""Before anything is woken: host, credentials, rate, class parameters."""

from __future__ import annotations

import hashlib
import json

import pytest

from modalnomad.model.manifest import Parameter, ParameterType
from modalnomad.model.routes import RouteSnapshot, Token
from modalnomad.router.auth import Auth, Caller
from modalnomad.router.limits import Limits
from modalnomad.router.parameters import LIMIT, pool_key, still_valid
from modalnomad.router.replies import Answer, Reply
from modalnomad.router.table import Match, RouteTable
from tests.support.stub_replicas import make_match


def refused(call: object, *arguments: object) -> Answer:
    with pytest.raises(Reply) as caught:
        call(*arguments)  # type: ignore[operator]
    return caught.value.answer


# --- table ---


def snapshot(*matches: Match) -> RouteSnapshot:
    return RouteSnapshot(tuple(m.route for m in matches), {m.revision.id: m.revision for m in matches}, index=7)


def test_a_host_leads_to_its_route_and_any_other_to_404() -> None:
    match = make_match(host="a.localhost")
    table = RouteTable.build(snapshot(match))
    assert table.match("a.localhost") == match
    assert table.hosts() == ("a.localhost",)
    for other in ("", "b.localhost", "x.a.localhost", "localhost"):
        assert refused(table.match, other).code == "unknown_endpoint"


def test_a_bad_entry_does_not_take_the_others_with_it(caplog: pytest.LogCaptureFixture) -> None:
    good, clash, lost = make_match(), make_match(tag="g"), make_match(tag="h", host="h.localhost")
    found = RouteSnapshot((good.route, clash.route, lost.route), {m.revision.id: m.revision for m in (good, clash)})
    table = RouteTable.build(found)
    assert table.match("app-f.localhost") == good
    assert table.hosts() == ("app-f.localhost",)
    assert "both want app-f.localhost" in caplog.text
    assert "not known" in caplog.text


# --- auth ---

TOKEN = Token(id="wk-1", secret_sha256=hashlib.sha256(b"ws-s").hexdigest(), environment="main", rate=3.0)
ELSEWHERE = Token(id="wk-2", secret_sha256=hashlib.sha256(b"ws-s").hexdigest(), environment="staging")
AUTH = Auth([TOKEN, ELSEWHERE])
CLOSED = make_match(requires_proxy_auth=True)
OPEN = make_match()
PAIR = [(b"Modal-Key", b"wk-1"), (b"modal-secret", b"ws-s")]
BEARER = [(b"Authorization", b"bearer wk-1.ws-s")]


@pytest.mark.parametrize("headers", [PAIR, BEARER, [*PAIR, (b"Authorization", b"Basic eDp5")]])
def test_a_token_lets_its_caller_in(headers: list[tuple[bytes, bytes]]) -> None:
    caller = AUTH.authorize(CLOSED, headers)
    assert (caller.token_id, caller.rate) == ("wk-1", 3.0)


@pytest.mark.parametrize(
    ("headers", "status", "code"),
    [
        ([], 401, "missing_credentials"),
        (PAIR[:1], 401, "missing_credentials"),
        (PAIR[1:], 401, "missing_credentials"),
        ([(b"Authorization", b"Basic eDp5")], 401, "missing_credentials"),
        ([(b"Authorization", b"Bearer of.news")], 401, "missing_credentials"),
        ([(b"Modal-Key", b"wk-1"), (b"Modal-Secret", b"ws-x")], 401, "invalid_credentials"),
        ([(b"Modal-Key", b"wk-9"), (b"Modal-Secret", b"ws-s")], 401, "invalid_credentials"),
        ([(b"Modal-Key", b"wk-9"), (b"Modal-Secret", b"")], 401, "missing_credentials"),
        ([(b"Authorization", b"Bearer wk-1.ws-x")], 401, "invalid_credentials"),
        ([*PAIR, *PAIR], 401, "invalid_credentials"),
        ([(b"Modal-Key", b"wk-1"), (b"Modal-Secret", b"ws-x"), *BEARER], 401, "invalid_credentials"),
        ([(b"Modal-Key", b"wk-2"), (b"Modal-Secret", b"ws-s")], 403, "forbidden"),
    ],
)
def test_everybody_else_is_kept_out(headers: list[tuple[bytes, bytes]], status: int, code: str) -> None:
    answer = refused(AUTH.authorize, CLOSED, headers)
    assert (answer.status, answer.code) == (status, code)
    assert "ws-" not in answer.detail + answer.private
    assert (status == 401) == any(name == b"WWW-Authenticate" for name, _ in answer.headers)


def test_the_platforms_credentials_never_reach_the_app() -> None:
    ours, theirs = frozenset({b"modal-key", b"modal-secret"}), [(b"Authorization", b"Bearer theirs")]
    assert AUTH.authorize(CLOSED, PAIR + theirs).strip == ours
    assert AUTH.authorize(CLOSED, BEARER).strip == ours | {b"authorization"}
    assert AUTH.authorize(CLOSED, PAIR + BEARER).strip == ours | {b"authorization"}
    assert AUTH.authorize(OPEN, theirs).strip == ours
    assert AUTH.authorize(OPEN, [(b"Authorization", b"Bearer wk-1.ws-unknown")]).strip == ours | {b"authorization"}
    assert AUTH.authorize(OPEN, BEARER).strip == ours | {b"authorization"}
    assert AUTH.authorize(OPEN, [(b"Modal-Secret", b"ws-mistyped")]).strip == ours


def test_a_deleted_token_is_out_at_once() -> None:
    auth = Auth([TOKEN])
    auth.authorize(CLOSED, PAIR)
    auth.replace([])
    assert refused(auth.authorize, CLOSED, PAIR).code == "invalid_credentials"


# --- limits ---


def admitted(limits: Limits, now: float, *, match: Match = OPEN, caller: Caller | None = None) -> int:
    for count in range(100_000):
        try:
            limits.admit(match, caller or Caller(), now)
        except Reply:
            answer = refused(limits.admit, match, caller or Caller(), now)
            assert answer.code == "rate_limited"
            assert (answer.retry_after or 0) > 0
            return count
    raise AssertionError("no limit")


def test_a_burst_then_the_rate() -> None:
    limits = Limits(200, 5)
    assert admitted(limits, 50.0) == 1000
    assert admitted(limits, 50.0) == 0
    assert admitted(limits, 51.0) == 200
    assert admitted(limits, 1000.0) == 1000


def test_retry_after_is_when_one_more_is_let_in() -> None:
    limits = Limits(0.1, 5)
    limits.admit(OPEN, Caller(), 100.0)
    wait = refused(limits.admit, OPEN, Caller(), 101.0).retry_after
    assert wait is not None
    assert wait == pytest.approx(9.0)
    limits.admit(OPEN, Caller(), 101.0 + wait)


def test_an_endpoint_may_have_a_rate_of_its_own_beside_the_environments() -> None:
    other = make_match(tag="g")
    limits = Limits(10, 1, rates={"app/f": 2, "staging/app/f": 3, "app/missing": 1})
    assert admitted(limits, 1.0) == 2
    assert admitted(limits, 1.0, match=other) == 8, "what its own rate refused costs the environment nothing"
    assert admitted(limits, 1.0, match=make_match(environment="staging")) == 3
    assert admitted(limits, 1.0, caller=Caller("wk-1", 50.0), match=other) == 50
    assert admitted(limits, 2.0, caller=Caller("wk-1", 50.0)) == 2, "a token's rate is beside it too"
    assert admitted(Limits(0, 1, rates={"app/f": 2}), 1.0) == 2
    assert admitted(Limits(5, 1, rates={"app/f": 0}), 1.0) == 5


def test_environments_and_tokens_with_a_rate_have_buckets_of_their_own() -> None:
    limits = Limits(1, 1)
    assert admitted(limits, 1.0) == 1
    assert admitted(limits, 1.0, match=make_match(environment="staging")) == 1
    assert admitted(limits, 1.0, caller=Caller("wk-1", 3.0)) == 3
    assert admitted(limits, 1.0, caller=Caller("wk-2", 4.0)) == 4
    assert admitted(limits, 1.0, caller=Caller("wk-3", None)) == 0


def test_no_rate_is_no_limit() -> None:
    for _ in range(5000):
        Limits(0, 5).admit(OPEN, Caller(), 1.0)


def test_memory_is_bounded_and_a_spent_bucket_outlives_the_full_ones() -> None:
    limits = Limits(1, 1, capacity=10)
    limits.admit(OPEN, Caller("spent", 0.01), 1.0)
    for number in range(100):
        limits.admit(OPEN, Caller(f"wk-{number}", 1.0), 10.0 + 0.5 * number)
    assert len(limits) <= 10
    assert refused(limits.admit, OPEN, Caller("spent", 0.01), 60.0).code == "rate_limited"


# --- parameters ---


def key_of(query: bytes, *parameters: Parameter) -> dict[str, object]:
    return json.loads(pool_key(make_match(parameters=parameters), query).parameters)  # type: ignore[no-any-return]


def parameter(kind: ParameterType, name: str = "p") -> Parameter:
    return Parameter(name=name, type=kind)


def test_without_parameters_there_is_one_pool() -> None:
    assert pool_key(OPEN, b"p=1&q=2").parameters == ""


@pytest.mark.parametrize(
    ("kind", "raw", "value"),
    [
        ("str", b"a+b%20c%C3%A9", "a b cé"),
        ("str", b"", ""),
        ("str", b"%2F", "/"),
        ("int", b"-007", -7),
        ("int", b"9223372036854775807", 2**63 - 1),
        ("bool", b"True", True),
        ("bool", b"0", False),
        ("bytes", b"%FF%00", {"bytes": "/wA="}),
    ],
)
def test_values_are_decoded_and_converted(kind: ParameterType, raw: bytes, value: object) -> None:
    assert key_of(b"x=1&p=" + raw + b"&y", parameter(kind)) == {"p": value}


@pytest.mark.parametrize(
    ("kind", "raw"),
    [
        ("int", b""),
        ("int", b"1.5"),
        ("int", b"%2B1"),
        ("int", b"1_0"),
        ("int", b"9223372036854775808"),
        ("int", "٣".encode()),
        ("bool", b"yes"),
        ("bool", b""),
        ("str", b"%FF"),
    ],
)
def test_mistyped_values_are_named(kind: ParameterType, raw: bytes) -> None:
    answer = refused(pool_key, make_match(parameters=(parameter(kind, "who"),)), b"who=" + raw)
    assert (answer.status, answer.code) == (422, "bad_parameter")
    assert "'who'" in answer.detail
    assert kind in answer.detail


def test_a_missing_parameter_is_named() -> None:
    answer = refused(pool_key, make_match(parameters=(parameter("str", "who"),)), b"whom=x")
    assert "'who'" in answer.detail
    assert "missing" in answer.detail


def test_defaults_are_filled_in_so_that_saying_them_is_the_same() -> None:
    root = Parameter(name="root", type="str", has_default=True, default=".")
    depth = Parameter(name="depth", type="int", has_default=True, default=2)
    match = make_match(parameters=(root, depth))
    assert pool_key(match, b"") == pool_key(match, b"depth=2&root=.") == pool_key(match, b"root=%2E&other=1")
    assert pool_key(match, b"root=a&root=b") == pool_key(match, b"root=b")
    assert pool_key(match, b"root=a") != pool_key(match, b"root=b")


def test_values_have_a_limit_together() -> None:
    match = make_match(parameters=(parameter("str"),))
    pool_key(match, b"p=" + b"x" * (LIMIT - 100))
    assert refused(pool_key, match, b"p=" + b"x" * LIMIT).code == "bad_parameter"


def test_a_new_revision_keeps_parameters_that_still_fit() -> None:
    old = make_match(parameters=(parameter("str"),))
    key = pool_key(old, b"p=x")
    same, other = make_match(version=2, parameters=(parameter("str"),)), make_match(parameters=(parameter("int"),))
    moved = still_valid(key, same)
    assert moved is not None
    assert (moved.revision, moved.parameters) == (same.revision.id, key.parameters)
    assert still_valid(key, other) is None
    assert still_valid(key, OPEN) is None
    assert still_valid(key, make_match(parameters=(parameter("str"), parameter("int", "q")))) is None
