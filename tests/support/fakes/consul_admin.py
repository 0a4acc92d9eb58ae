"""Consul's ACL endpoints: what `setup` asks of them."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any

from aiohttp import web

from tests.support.fakes.consul_acl import Acl, Rights, rules
from tests.support.fakes.consul_state import Refused

Handler = Callable[[web.Request], Any]


def add_acl_routes(acl: Acl, app: web.Application, rights: Callable[[web.Request], Rights]) -> None:
    """Policies, roles, tokens, auth methods, binding rules."""

    def guarded(policy: str, handler: Handler) -> Callable[[web.Request], Any]:
        async def answer(request: web.Request) -> web.Response:
            if not acl.enabled:
                raise Refused(401, "ACL support disabled")
            rights(request).need("acl", policy)
            return web.json_response(await handler(request))

        return answer

    def crud(
        kind: str, plural: str, table: dict[str, dict[str, Any]], key: str, fill: Callable[[Any, Any], Any]
    ) -> None:
        label = kind.replace("-", " ")

        async def create(request: web.Request) -> Any:
            wanted = await request.json()
            if key == "Name" and wanted.get("Name") in table:
                raise Refused(500, f"Invalid {label}: {wanted['Name']!r} exists")
            made = fill({}, wanted)
            made.setdefault("ID", str(uuid.uuid4()))
            table[made[key]] = made
            return made

        def found(request: web.Request) -> dict[str, Any]:
            if (one := table.get(request.match_info["id"])) is None:
                raise Refused(404, f"{label} not found")
            return one

        async def read(request: web.Request) -> Any:
            return found(request)

        async def update(request: web.Request) -> Any:
            one = found(request)
            one.update(fill(one, await request.json()))
            return one

        async def remove(request: web.Request) -> Any:
            table.pop(request.match_info["id"], None)
            return True

        async def every(request: web.Request) -> Any:
            method = request.query.get("authmethod")
            return [one for one in table.values() if method is None or one.get("AuthMethod") == method]

        app.router.add_put(f"/v1/acl/{kind}", guarded("write", create))
        app.router.add_get(f"/v1/acl/{kind}/{{id}}", guarded("read", read))
        app.router.add_put(f"/v1/acl/{kind}/{{id}}", guarded("write", update))
        app.router.add_delete(f"/v1/acl/{kind}/{{id}}", guarded("write", remove))
        app.router.add_get(f"/v1/acl/{plural}", guarded("read", every))

    def by_name(table: dict[str, dict[str, Any]]) -> Handler:
        async def read(request: web.Request) -> Any:
            for one in table.values():
                if one["Name"] == request.match_info["name"]:
                    return one
            raise Refused(404, "not found")

        return read

    app.router.add_get("/v1/acl/policy/name/{name}", guarded("read", by_name(acl.policies)))
    app.router.add_get("/v1/acl/role/name/{name}", guarded("read", by_name(acl.roles)))
    _add_tokens(acl, app, rights, guarded)
    crud("policy", "policies", acl.policies, "ID", lambda old, new: _policy(acl, old, new))
    crud("role", "roles", acl.roles, "ID", lambda old, new: _role(acl, old, new))
    crud("auth-method", "auth-methods", acl.methods, "Name", lambda old, new: {**old, **new})
    crud("binding-rule", "binding-rules", acl.bindings, "ID", lambda old, new: {**old, **new})


def _add_tokens(
    acl: Acl,
    app: web.Application,
    rights: Callable[[web.Request], Rights],
    guarded: Callable[[str, Handler], Callable[[web.Request], Any]],
) -> None:
    async def own(request: web.Request) -> web.Response:
        if not acl.enabled:
            raise Refused(401, "ACL support disabled")
        accessor = rights(request).accessor
        for token in acl.tokens.values():
            if token["AccessorID"] == accessor:
                return web.json_response(token)
        raise Refused(403, "Permission denied: anonymous token")

    async def create(request: web.Request) -> Any:
        wanted = await request.json()
        return acl.add_token(
            [one.get("ID") or one["Name"] for one in wanted.get("Policies") or ()],
            secret=wanted.get("SecretID", ""),
            roles=tuple(one.get("ID") or one["Name"] for one in wanted.get("Roles") or ()),
            description=wanted.get("Description", ""),
        )

    def found(request: web.Request) -> dict[str, Any]:
        for token in acl.tokens.values():
            if token["AccessorID"] == request.match_info["id"]:
                return token
        raise Refused(404, "Cannot find token to read")

    async def read(request: web.Request) -> Any:
        return found(request)

    async def update(request: web.Request) -> Any:
        token, wanted = found(request), await request.json()
        token["Description"] = wanted.get("Description", token["Description"])
        token["Policies"] = acl.link_policies(wanted.get("Policies") or [])
        return token

    async def remove(request: web.Request) -> Any:
        acl.tokens.pop(found(request)["SecretID"])
        return True

    async def every(request: web.Request) -> Any:
        return [{name: value for name, value in one.items() if name != "SecretID"} for one in acl.tokens.values()]

    app.router.add_get("/v1/acl/token/self", own)
    app.router.add_put("/v1/acl/token", guarded("write", create))
    app.router.add_get("/v1/acl/token/{id}", guarded("read", read))
    app.router.add_put("/v1/acl/token/{id}", guarded("write", update))
    app.router.add_delete("/v1/acl/token/{id}", guarded("write", remove))
    app.router.add_get("/v1/acl/tokens", guarded("read", every))


def _policy(acl: Acl, old: dict[str, Any], wanted: dict[str, Any]) -> dict[str, Any]:
    if old:
        rules(wanted.get("Rules", old["Rules"]))
        return {**old, **wanted, "ID": old["ID"]}
    return acl.add_policy(wanted["Name"], wanted.get("Rules", ""), description=wanted.get("Description", ""))


def _role(acl: Acl, old: dict[str, Any], wanted: dict[str, Any]) -> dict[str, Any]:
    base = {"Description": "", "Policies": [], "ServiceIdentities": [], **old}
    return {**base, **wanted, "Policies": acl.link_policies(wanted.get("Policies", base["Policies"]) or [])}
