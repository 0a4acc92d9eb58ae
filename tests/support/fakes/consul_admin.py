"""Consul's ACL endpoints: policies, roles, tokens, the first token.

API: https://developer.hashicorp.com/consul/api-docs/acl, …/acl/policies, …/acl/roles, …/acl/tokens. What is not there
is answered as since 1.15: https://github.com/hashicorp/consul/blob/main/CHANGELOG.md (GH-16105).
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web

from tests.support.fakes.consul_acl import MANAGEMENT, NOT_FOUND, Acl, Rights, Table, rules
from tests.support.fakes.consul_state import Refused

Handler = Callable[[web.Request], Awaitable[Any]]
Who = Callable[[web.Request], Rights]
Fill = Callable[[dict[str, Any], dict[str, Any]], dict[str, Any]]
"""What is there, what is wanted → what is there then."""

NAME = re.compile(r"[A-Za-z0-9_-]{1,128}")
NO_CHARACTERS = "invalid Name. Only alphanumeric characters, '-' and '_' are allowed"
HIDDEN = "<hidden>"


class Admin:
    """Adds ACL endpoints: each needs a right on `acl`."""

    def __init__(self, acl: Acl, app: web.Application, rights: Who) -> None:
        self.acl = acl
        self.rights = rights
        self._app = app

    def add(self, method: str, path: str, policy: str, handler: Handler) -> None:
        """`policy` empty: for everybody."""

        async def answer(request: web.Request) -> web.Response:
            if not self.acl.enabled:
                raise Refused(401, "ACL support disabled")
            if policy:
                self.rights(request).need("acl", policy)
            answer = web.json_response(await handler(request))
            if method == "GET":
                answer.headers.update(
                    {"X-Consul-Index": str(self.acl.index), "X-Consul-KnownLeader": "true", "X-Consul-LastContact": "0"}
                )
            return answer

        self._app.router.add_route(method, f"/v1/acl/{path}", answer)


def add_acl_routes(admin: Admin) -> None:
    """Policies, roles, tokens, bootstrap."""
    acl = admin.acl

    async def bootstrap(request: web.Request) -> Any:
        if acl.bootstrapped:
            raise Refused(403, f"Permission denied: ACL bootstrap no longer allowed (reset index: {acl.index})")
        made = acl.bootstrap()
        return {"ID": made["SecretID"], **acl.shown(made)}

    admin.add("PUT", "bootstrap", "", bootstrap)
    Things(admin, "policy", acl.policies, lambda old, new: _policy(acl, old, new)).add("policies")
    Things(admin, "role", acl.roles, lambda old, new: _role(acl, old, new)).add("roles")
    _Tokens(admin).add()


class Things:
    """One kind, by its id. `told`: what Consul calls it in its errors."""

    def __init__(self, admin: Admin, kind: str, table: Table, fill: Fill) -> None:
        self._admin = admin
        self._acl = admin.acl
        self._kind = kind
        self._told = kind.replace("-", " ")
        self._table = table
        self._fill = fill

    def add(self, plural: str, named: bool = True) -> None:
        """To the server. `named`: found by name too."""
        self._admin.add("PUT", self._kind, "write", self.create)
        self._admin.add("GET", plural, "read", self.every)
        if named:
            self._admin.add("GET", f"{self._kind}/name/{{name}}", "read", self.by_name)
        self._admin.add("GET", f"{self._kind}/{{id}}", "read", self.read)
        self._admin.add("PUT", f"{self._kind}/{{id}}", "write", self.update)
        self._admin.add("DELETE", f"{self._kind}/{{id}}", "write", self.remove)

    async def create(self, request: web.Request) -> Any:
        wanted = await body(request, self._told)
        if wanted.get("ID"):
            raise Refused(400, f"Cannot specify the ID when creating a new {self._told}")
        return self._keep(str(uuid.uuid4()), self._fill({}, wanted))

    async def every(self, request: web.Request) -> Any:
        method = request.query.get("authmethod")
        found = [self._acl.shown(one) for one in self._table.values() if method in {None, "", one.get("AuthMethod")}]
        # Lists have policies without their rules.
        return [{name: value for name, value in one.items() if name != "Rules"} for one in found]

    async def by_name(self, request: web.Request) -> Any:
        for one in self._table.values():
            if one["Name"] == request.match_info["name"]:
                return self._acl.shown(one)
        raise self._missing()

    async def read(self, request: web.Request) -> Any:
        return self._acl.shown(self._found(request))

    async def update(self, request: web.Request) -> Any:
        wanted, id = await body(request, self._told), request.match_info["id"]
        if wanted.get("ID", id) not in {"", id}:
            raise Refused(400, f"{self._told.capitalize()} ID in URL and payload do not match")
        if (old := self._table.get(id)) is None:
            raise Refused(500, f"cannot find {self._told} {id}")
        return self._keep(id, {"CreateIndex": old["CreateIndex"], **self._fill(old, wanted)})

    async def remove(self, request: web.Request) -> Any:
        if request.match_info["id"] == MANAGEMENT:
            raise Refused(500, "Delete operation not permitted on the builtin global-management policy")
        if self._table.pop(request.match_info["id"], None) is None:
            raise Refused(404, f"Cannot find {self._told} to delete")
        return True

    def _keep(self, id: str, fields: dict[str, Any]) -> dict[str, Any]:
        self._table[id] = self._acl.stamp({"ID": id, **fields})
        return self._acl.shown(self._table[id])

    def _found(self, request: web.Request) -> dict[str, Any]:
        id = request.match_info["id"]
        if len(id) != 36:
            raise Refused(500, f"failed acl {self._told} lookup: index error: UUID must be 36 characters")
        if (one := self._table.get(id)) is None:
            raise self._missing()
        return one

    def _missing(self) -> Refused:
        return Refused(404, f"Requested {self._told} does not exist: {NOT_FOUND}")


class _Tokens:
    """By accessor id; their secrets are not listed."""

    def __init__(self, admin: Admin) -> None:
        self._admin = admin
        self._acl = admin.acl

    def add(self) -> None:
        """To the server."""
        self._admin.add("GET", "token/self", "", self.own)
        self._admin.add("PUT", "token", "write", self.create)
        self._admin.add("GET", "token/{id}", "read", self.read)
        self._admin.add("PUT", "token/{id}", "write", self.update)
        self._admin.add("DELETE", "token/{id}", "write", self.remove)
        self._admin.add("GET", "tokens", "read", self.every)

    async def own(self, request: web.Request) -> Any:
        if (token := self._acl.token(secret_of(request))) is None:
            raise Refused(404, "Supplied token does not exist")
        return self._acl.shown(token)

    async def create(self, request: web.Request) -> Any:
        wanted = await body(request, "token")
        if wanted.get("AuthMethod"):
            raise Refused(500, "AuthMethod field is disallowed outside of Login")
        made = self._acl.add_token(
            [one.get("ID") or one["Name"] for one in wanted.get("Policies") or ()],
            secret=wanted.get("SecretID", ""),
            roles=tuple(one.get("ID") or one["Name"] for one in wanted.get("Roles") or ()),
            description=wanted.get("Description", ""),
        )
        return self._acl.shown(made)

    async def read(self, request: web.Request) -> Any:
        shown = self._acl.shown(self._found(request, f"Requested token does not exist: {NOT_FOUND}"))
        return shown if self._admin.rights(request).may("acl", "write", "") else {**shown, "SecretID": HIDDEN}

    async def update(self, request: web.Request) -> Any:
        token = self._found(request, f'Cannot find token "{request.match_info["id"]}"', 500)
        wanted = await body(request, "token")
        token["Description"] = wanted.get("Description", token["Description"])
        token["Policies"] = self._acl.linked("policy", wanted.get("Policies"))
        token["Roles"] = self._acl.linked("role", wanted.get("Roles"))
        return self._acl.shown(token)

    async def remove(self, request: web.Request) -> Any:
        self._acl.tokens.pop(self._found(request, "Cannot find token to delete")["SecretID"])
        return True

    async def every(self, request: web.Request) -> Any:
        method = request.query.get("authmethod", "")
        found = [one for one in self._acl.tokens.values() if method in {"", one.get("AuthMethod")}]
        return [{**self._acl.shown(one), "SecretID": HIDDEN} for one in found]

    def _found(self, request: web.Request, text: str, status: int = 404) -> dict[str, Any]:
        for token in self._acl.tokens.values():
            if token["AccessorID"] == request.match_info["id"]:
                return token
        raise Refused(status, text)


def secret_of(request: web.Request) -> str:
    """The token that is shown; empty: none."""
    bearer = request.headers.get("Authorization", "").removeprefix("Bearer ")
    return request.headers.get("X-Consul-Token") or bearer or request.query.get("token", "")


async def body(request: web.Request, told: str) -> dict[str, Any]:
    """The object that was sent. Raises Refused."""
    try:
        found: dict[str, Any] = json.loads(await request.read())
    except ValueError as error:
        raise Refused(400, f"{told.capitalize()} decoding failed: {error}") from None
    return found


def check_name(kind: str, wanted: dict[str, Any], old: dict[str, Any], table: Table) -> str:
    """The name it is to have. Raises Refused."""
    name = str(wanted.get("Name") or "")
    if not name:
        raise Refused(500, f"Invalid {kind}: no Name is set")
    if not NAME.fullmatch(name):
        raise Refused(500, f"Invalid {kind}: {NO_CHARACTERS}")
    if name != old.get("Name") and any(one["Name"] == name for one in table.values()):
        raise Refused(500, f'Invalid {kind}: A {kind} with Name "{name}" already exists')
    return name


def _policy(acl: Acl, old: dict[str, Any], wanted: dict[str, Any]) -> dict[str, Any]:
    name = check_name("Policy", wanted, old, acl.policies)
    rules(wanted.get("Rules", ""))
    return {"Name": name, "Description": wanted.get("Description", ""), "Rules": wanted.get("Rules", "")}


def _role(acl: Acl, old: dict[str, Any], wanted: dict[str, Any]) -> dict[str, Any]:
    fields = {
        "Name": check_name("Role", wanted, old, acl.roles),
        "Description": wanted.get("Description", ""),
        "Policies": acl.linked("policy", wanted.get("Policies")),
    }
    more = ("ServiceIdentities", "NodeIdentities", "TemplatedPolicies")
    return fields | {name: wanted[name] for name in more if wanted.get(name)}
