"""Consul's logins by signed identities: auth methods of type jwt, binding rules, login and logout.

API: https://developer.hashicorp.com/consul/api-docs/acl/auth-methods, …/acl/binding-rules, …/acl#login-to-auth-method;
https://developer.hashicorp.com/consul/docs/security/acl/auth-methods/jwt. As Consul has it, an auth method that is
written again is replaced, and JWTSupportedAlgs is looked at when it is written only: a document of keys says itself how
each signs.
"""

from __future__ import annotations

import json
import re
import ssl
import time
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import aiohttp
import jwt
from aiohttp import web

from tests.support.fakes.consul_acl import NOT_FOUND, Acl
from tests.support.fakes.consul_admin import NAME, NO_CHARACTERS, Admin, Things, body, secret_of
from tests.support.fakes.consul_filter import matcher
from tests.support.fakes.consul_state import Refused

ALGORITHMS: Final = tuple(f"{kind}{size}" for kind in ("RS", "ES", "PS") for size in (256, 384, 512))
LEEWAY: Final = 60.0
"""Seconds that clocks may differ."""
LEAST, MOST = 60.0, 86400.0
"""Seconds: max_token_ttl, as servers have it unless told otherwise."""
KEY_SOURCES: Final = ("JWTValidationPubKeys", "JWKSURL", "OIDCDiscoveryURL")
SHAPES: Final = {"service": re.compile(r"[a-z0-9]([a-z0-9_-]*[a-z0-9])?"), "role": NAME, "policy": NAME}
"""Names that a rule may bind."""
WORDS: Final = {"and", "or", "not", "in", "is", "empty", "contains", "matches"}
INVALID: Final = "go-jose/go-jose/jwt: validation failed"
UNITS: Final = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}


def add_login_routes(admin: Admin) -> None:
    """To the server."""
    acl = admin.acl
    methods = _Methods(acl)
    admin.add("PUT", "auth-method", "write", methods.write)
    admin.add("GET", "auth-methods", "read", methods.every)
    admin.add("GET", "auth-method/{name}", "read", methods.read)
    admin.add("PUT", "auth-method/{name}", "write", methods.write)
    admin.add("DELETE", "auth-method/{name}", "write", methods.remove)
    Things(admin, "binding-rule", acl.bindings, lambda old, new: _rule(acl, old, new)).add("binding-rules", named=False)
    admin.add("POST", "login", "", methods.login)
    admin.add("POST", "logout", "", methods.logout)


class _Methods:
    def __init__(self, acl: Acl) -> None:
        self._acl = acl
        self._keys: dict[tuple[str, int], list[jwt.PyJWK]] = {}
        """By name and version of the method, as each was last read."""

    async def write(self, request: web.Request) -> Any:
        wanted = await body(request, "authMethod")
        name = request.match_info.get("name") or wanted.get("Name", "")
        if wanted.get("Name", name) != name:
            raise Refused(400, "AuthMethod Name in URL and payload do not match")
        if not name:
            raise Refused(500, "Invalid Auth Method: no Name is set")
        if not NAME.fullmatch(name):
            raise Refused(500, f"Invalid Auth Method: {NO_CHARACTERS}")
        old = self._acl.methods.get(name, {})
        kind = wanted.get("Type") or old.get("Type", "")
        if old and old["Type"] != kind:
            raise Refused(500, "the Type field of an Auth Method is immutable")
        if kind != "jwt":
            raise Refused(500, "Invalid Auth Method: Type should be one of: [aws-iam jwt kubernetes]")
        fields = {name: wanted[name] for name in ("DisplayName", "Description", "TokenLocality") if wanted.get(name)}
        life = _life(wanted.get("MaxTokenTTL") or "0s")
        await self._check(wanted.get("Config") or {})
        made = {"Name": name, "Type": kind, **fields, **life, "Config": wanted.get("Config") or {}}
        self._acl.methods[name] = self._acl.stamp(made | ({"CreateIndex": old["CreateIndex"]} if old else {}))
        return self._acl.methods[name]

    async def _check(self, config: dict[str, Any]) -> None:
        try:
            if sum(bool(config.get(source)) for source in KEY_SOURCES) != 1:
                raise ValueError(
                    f"exactly one of '{KEY_SOURCES[0]}', '{KEY_SOURCES[1]}', or '{KEY_SOURCES[2]}' "
                    'must be set for type "jwt"'
                )
            if config.get("JWKSURL"):
                try:
                    await _fetch(config)
                except ValueError as error:
                    raise ValueError(f"error checking JWKSURL: {error}") from None
            elif config.get("JWKSCACert"):
                raise ValueError("'JWKSCACert' should not be set unless 'JWKSURL' is set")
            for algorithm in config.get("JWTSupportedAlgs") or ():
                if algorithm not in ALGORITHMS:
                    raise ValueError(f"Invalid supported algorithm: {algorithm}")
        except ValueError as error:
            raise Refused(500, f"Invalid Auth Method: {error}") from None

    async def every(self, request: web.Request) -> Any:
        return [{name: value for name, value in one.items() if name != "Config"} for one in self._acl.methods.values()]

    async def read(self, request: web.Request) -> Any:
        if (found := self._acl.methods.get(request.match_info["name"])) is None:
            raise Refused(404, f"Requested auth method does not exist: {NOT_FOUND}")
        return found

    async def remove(self, request: web.Request) -> Any:
        name = request.match_info["name"]
        if self._acl.methods.pop(name, None) is None:
            raise Refused(404, "Cannot find auth method to delete")
        for table in (self._acl.bindings, self._acl.tokens):
            for id in [id for id, one in table.items() if one.get("AuthMethod") == name]:
                del table[id]
        return True

    async def login(self, request: web.Request) -> Any:
        wanted = await body(request, "failed to decode request body:")
        method = self._acl.methods.get(name := wanted.get("AuthMethod", ""))
        if method is None:
            raise Refused(403, f'{NOT_FOUND}: auth method "{name}" not found')
        if not wanted.get("BearerToken"):
            raise Refused(500, "missing jwt")
        values = _values(method["Config"], await self._claims(method, wanted["BearerToken"]))
        bound = self._bound(name, values)
        if not any(bound.values()):
            raise Refused(403, "Permission denied")
        meta = json.dumps(wanted.get("Meta") or {}, sort_keys=True, separators=(",", ":"))
        description = "token created via login" + (f": {meta}" if wanted.get("Meta") else "")
        more: dict[str, Any] = {"Local": method.get("TokenLocality") != "global", "AuthMethod": name}
        if method.get("MaxTokenTTL"):
            end = datetime.now(UTC) + timedelta(seconds=_seconds(method["MaxTokenTTL"]))
            more["ExpirationTime"] = end.isoformat()
        if bound["service"]:
            more["ServiceIdentities"] = [{"ServiceName": one} for one in bound["service"]]
        roles = tuple(bound["role"])
        return self._acl.shown(self._acl.add_token(bound["policy"], roles=roles, description=description, **more))

    def _bound(self, name: str, values: dict[str, Any]) -> dict[str, list[str]]:
        """Names by type, of all rules that fit. Roles and policies that are not there are left out."""
        bound: dict[str, list[str]] = {kind: [] for kind in SHAPES}
        there = {"role": self._acl.roles, "policy": self._acl.policies}
        for rule in self._acl.bindings.values():
            if rule["AuthMethod"] != name or not matcher(rule["Selector"])(values):
                continue
            kind, bind = rule["BindType"], _interpolated(rule["BindName"], values["value"])
            if not SHAPES[kind].fullmatch(bind):
                raise Refused(500, f'invalid bind name: "{bind}"')
            if kind not in there or any(one["Name"] == bind for one in there[kind].values()):
                bound[kind].append(bind)
        return bound

    async def logout(self, request: web.Request) -> Any:
        token = self._acl.token(secret_of(request))
        if token is None:
            raise Refused(401, "Supplied token does not exist")
        if not token.get("AuthMethod"):
            raise Refused(403, "Permission denied")
        del self._acl.tokens[token["SecretID"]]
        return True

    async def _claims(self, method: dict[str, Any], token: str) -> dict[str, Any]:
        """What is signed. Raises Refused."""
        config = method["Config"]
        version = (method["Name"], method["ModifyIndex"])
        try:
            found = _verified(token, self._keys.get(version, []))
            if found is None:
                self._keys[version] = await _fetch(config)
                found = _verified(token, self._keys[version])
            if found is None:
                raise ValueError("failed to verify id token signature")
        except ValueError as error:
            raise Refused(500, f"error verifying token: {error}") from None
        now = time.time()
        wrong = ""
        if found.get("exp", now) < now - LEEWAY:
            wrong = f"{INVALID}, token is expired (exp)"
        elif max(found.get("nbf", 0), found.get("iat", 0)) > now + LEEWAY:
            wrong = f"{INVALID}, token not valid yet (nbf)"
        elif config.get("BoundIssuer") and found.get("iss") != config["BoundIssuer"]:
            wrong = f"{INVALID}, invalid issuer claim (iss)"
        audiences = [found["aud"]] if isinstance(found.get("aud"), str) else found.get("aud") or []
        allowed = config.get("BoundAudiences") or []
        if not wrong and audiences and not allowed:
            wrong = "audience claim found in JWT but no audiences are bound"
        elif not wrong and allowed and not set(allowed) & set(audiences):
            wrong = "aud claim does not match any bound audience"
        if wrong:
            raise Refused(500, f"error validating claims: {wrong}")
        return found


async def _fetch(config: dict[str, Any]) -> list[jwt.PyJWK]:
    """The keys of a method. Raises ValueError."""
    url, ca = config["JWKSURL"], config.get("JWKSCACert")
    try:
        tls = ssl.create_default_context(cadata=ca) if ca else True
        async with aiohttp.ClientSession() as http, http.get(url, ssl=tls) as answer:
            text = await answer.text()
    except (OSError, TimeoutError, aiohttp.ClientError) as error:
        raise ValueError(f'fetching keys oidc: get keys failed Get "{url}": {error}') from None
    if answer.status != 200:
        raise ValueError(f"fetching keys oidc: get keys failed: {answer.status} {answer.reason} {text}")
    try:
        return list(jwt.PyJWKSet.from_dict(json.loads(text)).keys)
    except (ValueError, AttributeError, jwt.PyJWTError) as error:
        raise ValueError(f"fetching keys oidc: failed to decode keys: {error} {text}") from None


def _verified(token: str, keys: list[jwt.PyJWK]) -> dict[str, Any] | None:
    """Its claims when one of the keys signed it. Raises ValueError."""
    try:
        header = jwt.get_unverified_header(token)
    except jwt.PyJWTError:
        raise ValueError("oidc: malformed jwt: compact JWS format must have three parts") from None
    for key in keys:
        if header.get("kid") not in {None, key.key_id}:
            continue
        try:
            off = {"verify_exp": False, "verify_nbf": False, "verify_iat": False, "verify_aud": False}
            found: dict[str, Any] = jwt.decode(token, key, algorithms=[*ALGORITHMS, "EdDSA"], options=off)  # type: ignore[arg-type]
        except jwt.PyJWTError:
            continue
        return found
    return None


def _values(config: dict[str, Any], claims: dict[str, Any]) -> dict[str, Any]:
    """What selectors see."""
    plain, lists = config.get("ClaimMappings") or {}, config.get("ListClaimMappings") or {}
    return {
        "value": {target: _stringified(claims[source]) for source, target in plain.items() if source in claims},
        "list": {target: [str(one) for one in claims.get(source) or ()] for source, target in lists.items()},
    }


def _stringified(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _interpolated(name: str, values: dict[str, str]) -> str:
    return re.sub(r"\$\{value\.([^}]+)\}", lambda found: values.get(found[1], ""), name)


def _rule(acl: Acl, old: dict[str, Any], wanted: dict[str, Any]) -> dict[str, Any]:
    method = wanted.get("AuthMethod") or old.get("AuthMethod", "")
    if old and method != old["AuthMethod"]:
        raise Refused(500, "the AuthMethod field of an Binding Rule is immutable")
    if not method:
        raise Refused(500, "Invalid Binding Rule: no AuthMethod is set")
    if method not in acl.methods:
        raise Refused(500, f'cannot find auth method with name "{method}"')
    kind, name, selector = (wanted.get(field) or "" for field in ("BindType", "BindName", "Selector"))
    _check_selector(selector)
    for field, value in (("BindType", kind), ("BindName", name)):
        if not value:
            raise Refused(500, f"Invalid Binding Rule: no {field} is set")
    if kind not in SHAPES:
        raise Refused(500, f'Invalid Binding Rule: unknown BindType "{kind}"')
    fake = dict.fromkeys((acl.methods[method]["Config"].get("ClaimMappings") or {}).values(), "fake")
    if not SHAPES[kind].fullmatch(_interpolated(name, fake)):
        raise Refused(500, f'Invalid Binding Rule: invalid bind name: "{name}"')
    fields = {"AuthMethod": method, "Selector": selector, "BindType": kind, "BindName": name}
    return {"Description": wanted.get("Description", ""), **fields}


def _check_selector(selector: str) -> None:
    without_texts = re.sub(r'"(?:[^"\\]|\\.)*"|`[^`]*`', "", selector)
    for word in re.findall(r"[A-Za-z_][\w.]*", without_texts):
        if word not in WORDS and word.split(".")[0] not in {"value", "list"}:
            raise Refused(500, f'invalid Binding Rule: Selector is invalid: Selector "{word}" is not valid')
    try:
        matcher(selector)
    except Refused as refusal:
        raise Refused(500, f"invalid Binding Rule: Selector is invalid: {refusal.text}") from None


def _life(text: str) -> dict[str, str]:
    """MaxTokenTTL, where there is one. Raises Refused."""
    seconds = _seconds(text)
    if seconds and not LEAST <= seconds <= MOST:
        worse, limit = ("less", LEAST) if seconds < LEAST else ("more", MOST)
        raise Refused(500, f"MaxTokenTTL {_duration(seconds)} cannot be {worse} than {_duration(limit)}")
    return {"MaxTokenTTL": _duration(seconds)} if seconds else {}


def _seconds(text: str) -> float:
    return sum(float(number) * UNITS[unit] for number, unit in re.findall(r"([\d.]+)(ms|h|m|s)", text))


def _duration(seconds: float) -> str:
    """As Go shows it: `1h0m0s`."""
    minutes, rest = divmod(seconds, 60)
    hours, minutes = divmod(int(minutes), 60)
    shown = f"{hours}h" if hours else ""
    return shown + (f"{minutes}m" if hours or minutes else "") + f"{rest:g}s"
