"""Consul's ACL endpoints: what `setup` asks of them."""

from __future__ import annotations

import uuid
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web

from tests.support.fakes.consul_acl import Acl, Rights, rules
from tests.support.fakes.consul_state import Refused

Handler = Callable[[web.Request], Awaitable[Any]]
Table = dict[str, dict[str, Any]]
Fill = Callable[[dict[str, Any], dict[str, Any]], dict[str, Any]]
"""What is there, what is wanted → what is there then."""


def add_acl_routes(acl: Acl, app: web.Application, rights: Callable[[web.Request], Rights]) -> None:
    """Policies, roles, tokens, auth methods, binding rules."""

    def guarded(policy: str, handler: Handler) -> Handler:
        async def answer(request: web.Request) -> web.Response:
            if not acl.enabled:
                raise Refused(401, "ACL support disabled")
            rights(request).need("acl", policy)
            return web.json_response(await handler(request))

        return answer

    _Things("policy", acl.policies, lambda old, new: _policy(acl, old, new)).add(app, "policies", guarded)
    _Things("role", acl.roles, lambda old, new: _role(acl, old, new)).add(app, "roles", guarded)
    _Things("auth-method", acl.methods, _merged, key="Name").add(app, "auth-methods", guarded)
    _Things("binding-rule", acl.bindings, _merged).add(app, "binding-rules", guarded)
    _Tokens(acl, rights).add(app, guarded)


class _Things:
    """One kind, by its id or, with `key`, by its name."""

    def __init__(self, kind: str, table: Table, fill: Fill, key: str = "ID") -> None:
        self._kind = kind
        self._table = table
        self._fill = fill
        self._key = key

    def add(self, app: web.Application, plural: str, guarded: Callable[[str, Handler], Handler]) -> None:
        """To the server."""
        path = f"/v1/acl/{self._kind}"
        app.router.add_put(path, guarded("write", self.create))
        app.router.add_get(f"/v1/acl/{plural}", guarded("read", self.every))
        app.router.add_get(f"{path}/name/{{name}}", guarded("read", self.by_name))
        app.router.add_get(f"{path}/{{id}}", guarded("read", self.read))
        app.router.add_put(f"{path}/{{id}}", guarded("write", self.update))
        app.router.add_delete(f"{path}/{{id}}", guarded("write", self.remove))

    async def create(self, request: web.Request) -> Any:
        wanted = await request.json()
        if self._key == "Name" and wanted.get("Name") in self._table:
            raise Refused(500, f"Invalid {self._kind}: {wanted['Name']!r} exists")
        made = self._fill({}, wanted)
        made.setdefault("ID", str(uuid.uuid4()))
        self._table[made[self._key]] = made
        return made

    async def every(self, request: web.Request) -> Any:
        method = request.query.get("authmethod")
        return [one for one in self._table.values() if method is None or one.get("AuthMethod") == method]

    async def by_name(self, request: web.Request) -> Any:
        for one in self._table.values():
            if one["Name"] == request.match_info["name"]:
                return one
        raise self._missing()

    async def read(self, request: web.Request) -> Any:
        return self._found(request)

    async def update(self, request: web.Request) -> Any:
        one = self._found(request)
        one.update(self._fill(one, await request.json()))
        return one

    async def remove(self, request: web.Request) -> Any:
        self._table.pop(request.match_info["id"], None)
        return True

    def _found(self, request: web.Request) -> dict[str, Any]:
        if (one := self._table.get(request.match_info["id"])) is None:
            raise self._missing()
        return one

    def _missing(self) -> Refused:
        return Refused(404, f"{self._kind.replace('-', ' ')} not found")


class _Tokens:
    """By accessor id; their secrets are not listed."""

    def __init__(self, acl: Acl, rights: Callable[[web.Request], Rights]) -> None:
        self._acl = acl
        self._rights = rights

    def add(self, app: web.Application, guarded: Callable[[str, Handler], Handler]) -> None:
        """To the server."""
        app.router.add_get("/v1/acl/token/self", self.own)
        app.router.add_put("/v1/acl/token", guarded("write", self.create))
        app.router.add_get("/v1/acl/token/{id}", guarded("read", self.read))
        app.router.add_put("/v1/acl/token/{id}", guarded("write", self.update))
        app.router.add_delete("/v1/acl/token/{id}", guarded("write", self.remove))
        app.router.add_get("/v1/acl/tokens", guarded("read", self.every))

    async def own(self, request: web.Request) -> web.Response:
        if not self._acl.enabled:
            raise Refused(401, "ACL support disabled")
        accessor = self._rights(request).accessor
        for token in self._acl.tokens.values():
            if token["AccessorID"] == accessor:
                return web.json_response(token)
        raise Refused(403, "Permission denied: anonymous token")

    async def create(self, request: web.Request) -> Any:
        wanted = await request.json()
        return self._acl.add_token(
            [one.get("ID") or one["Name"] for one in wanted.get("Policies") or ()],
            secret=wanted.get("SecretID", ""),
            roles=tuple(one.get("ID") or one["Name"] for one in wanted.get("Roles") or ()),
            description=wanted.get("Description", ""),
        )

    async def read(self, request: web.Request) -> Any:
        return self._found(request)

    async def update(self, request: web.Request) -> Any:
        token, wanted = self._found(request), await request.json()
        token["Description"] = wanted.get("Description", token["Description"])
        token["Policies"] = self._acl.link_policies(wanted.get("Policies") or [])
        return token

    async def remove(self, request: web.Request) -> Any:
        self._acl.tokens.pop(self._found(request)["SecretID"])
        return True

    async def every(self, request: web.Request) -> Any:
        return [{name: value for name, value in one.items() if name != "SecretID"} for one in self._acl.tokens.values()]

    def _found(self, request: web.Request) -> dict[str, Any]:
        for token in self._acl.tokens.values():
            if token["AccessorID"] == request.match_info["id"]:
                return token
        raise Refused(404, "Cannot find token to read")


def _merged(old: dict[str, Any], wanted: dict[str, Any]) -> dict[str, Any]:
    return {**old, **wanted}


def _policy(acl: Acl, old: dict[str, Any], wanted: dict[str, Any]) -> dict[str, Any]:
    if old:
        rules(wanted.get("Rules", old["Rules"]))
        return {**old, **wanted, "ID": old["ID"]}
    return acl.add_policy(wanted["Name"], wanted.get("Rules", ""), description=wanted.get("Description", ""))


def _role(acl: Acl, old: dict[str, Any], wanted: dict[str, Any]) -> dict[str, Any]:
    base = {"Description": "", "Policies": [], "ServiceIdentities": [], **old}
    return {**base, **wanted, "Policies": acl.link_policies(wanted.get("Policies", base["Policies"]) or [])}
