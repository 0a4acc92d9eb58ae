"""Who may come in: proxy-auth tokens (design §5).

A caller shows `Modal-Key: wk-…` with `Modal-Secret: ws-…`, or `Authorization: Bearer wk-….ws-…`. What was the
platform's credential never reaches the app:

* `Modal-Key` and `Modal-Secret` are the platform's own names, so both are always taken away, on public routes too, and
  whether or not they were right (a mistyped secret is nearly one).
* `Authorization` belongs to the app, so it is taken away only when something in it has the form of a token of this
  platform, right or wrong. On a public route too: a client that sends its token everywhere must not hand it to the
  author of a public endpoint. When the header stands there twice (which RFC 9110, 5.3 forbids), all of it goes.

Who shows two different credentials is nobody: 401.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from modalnomad.model.routes import Token
from modalnomad.router.replies import Reply
from modalnomad.router.table import Match

KEY = b"modal-key"
SECRET = b"modal-secret"
AUTHORIZATION = b"authorization"

_OWN = frozenset({KEY, SECRET})
_OWN_AND_BEARER = frozenset({KEY, SECRET, AUTHORIZATION})
_LENGTHS = frozenset({len(KEY), len(SECRET), len(AUTHORIZATION)})
_TOKEN = re.compile(rb"(?<![A-Za-z0-9_-])wk-[A-Za-z0-9_-]*\.ws-")
"""What an Authorization that is ours holds, whatever else stands around it. Takes linear time: no run holds a start."""
_NOBODY = "0" * 64
_CHALLENGE = ((b"WWW-Authenticate", b'Bearer realm="modalnomad"'),)
_CHALLENGE_INVALID = ((b"WWW-Authenticate", b'Bearer realm="modalnomad", error="invalid_token"'),)


@dataclass(frozen=True, slots=True)
class Caller:
    """Who sent a request. `strip`: lower-case names of headers that are not passed on."""

    token_id: str | None = None
    rate: float | None = None
    """Requests per second the token may make; None: the environment's."""
    strip: frozenset[bytes] = _OWN


_PUBLIC = Caller()
_PUBLIC_BEARER = Caller(strip=_OWN_AND_BEARER)


@dataclass(frozen=True, slots=True)
class _Shown:
    """Credentials found in a head. `pair`: in Modal-Key and Modal-Secret; `bearer`: in Authorization."""

    pair: tuple[bytes, bytes] | None
    bearer: tuple[bytes, bytes] | None
    half: bool
    """One of Modal-Key and Modal-Secret without the other."""
    ambiguous: bool
    """One of the three headers stands there twice, or two different tokens do."""
    strip: frozenset[bytes]


class Auth:
    """Holds the tokens' hashes; `replace` swaps them whole."""

    def __init__(self, tokens: Iterable[Token] = ()) -> None:
        self._tokens: dict[bytes, Token] = {}
        self.replace(tokens)

    def replace(self, tokens: Iterable[Token]) -> None:
        """From now on these and no others are valid."""
        self._tokens = {token.id.encode(): token for token in tokens}

    def authorize(self, match: Match, headers: Sequence[tuple[bytes, bytes]]) -> Caller:
        """Raises Reply 401 `missing_credentials`, 401 `invalid_credentials` or 403 `forbidden`. No credential stands in
        any of them."""
        shown = _read(headers)
        if not match.route.endpoint.requires_proxy_auth:
            return _PUBLIC if shown is None or shown.strip is _OWN else _PUBLIC_BEARER
        if shown is None:
            raise _missing(half=False)
        if shown.ambiguous:
            raise _invalid("A credential header stands there more than once, or two different tokens were sent.")
        credentials = shown.pair or shown.bearer
        if credentials is None:
            raise _missing(half=shown.half)
        token = self._valid(*credentials)
        if token is None:
            raise _invalid("The token is unknown or its secret is wrong.")
        if token.environment != match.route.environment:
            raise Reply(403, "forbidden", "The token is valid, but for another environment than this endpoint's.")
        return Caller(token.id, token.rate, shown.strip)

    def _valid(self, key: bytes, secret: bytes) -> Token | None:
        """The same work whether the id is known or not, so that time tells nothing."""
        token = self._tokens.get(key)
        digest = hashlib.sha256(secret).hexdigest()
        same = hmac.compare_digest(digest, _NOBODY if token is None else token.secret_sha256)
        return token if same else None


def _read(headers: Sequence[tuple[bytes, bytes]]) -> _Shown | None:
    """None: nothing that could be a credential."""
    found: dict[bytes, bytes] = {}
    twice = ours = False
    for name, value in headers:
        if len(name) in _LENGTHS and (lower := name.lower()) in _OWN_AND_BEARER:
            twice = twice or lower in found
            ours = ours or (lower == AUTHORIZATION and _TOKEN.search(value) is not None)
            found[lower] = value
    if not found:
        return None
    key, secret = found.get(KEY), found.get(SECRET)
    pair = (key.strip(), secret.strip()) if key and secret else None
    bearer = _bearer(found[AUTHORIZATION]) if AUTHORIZATION in found else None
    return _Shown(
        pair=pair,
        bearer=bearer,
        half=(key is None) != (secret is None),
        ambiguous=twice or (pair is not None and bearer is not None and pair != bearer),
        strip=_OWN_AND_BEARER if ours else _OWN,
    )


def _bearer(value: bytes) -> tuple[bytes, bytes] | None:
    """`Bearer wk-….ws-…` (RFC 6750, 2.1; the scheme in any case); None: it is somebody else's Authorization."""
    scheme, _, credentials = value.strip().partition(b" ")
    if scheme.lower() != b"bearer":
        return None
    key, dot, secret = credentials.strip().partition(b".")
    return (key, secret) if dot and key.startswith(b"wk-") and secret.startswith(b"ws-") else None


def _missing(*, half: bool) -> Reply:
    found = "Only one of Modal-Key and Modal-Secret was sent." if half else "No credentials were sent."
    ways = "Send Modal-Key and Modal-Secret, or Authorization: Bearer <key>.<secret>."
    return Reply(401, "missing_credentials", f"{found} {ways}", headers=_CHALLENGE)


def _invalid(found: str) -> Reply:
    return Reply(401, "invalid_credentials", found, headers=_CHALLENGE_INVALID)
