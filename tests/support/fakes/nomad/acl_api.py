"""Policies, tokens, roles and sign-in methods, as far as somebody sets them up."""

from __future__ import annotations

import re
from typing import Any, Final

from aiohttp import web

from tests.support.fakes.nomad.acl import DENIED, digest, make_token, parsed
from tests.support.fakes.nomad.checking import several
from tests.support.fakes.nomad.state import Refused, Shape, State, new_id
from tests.support.fakes.nomad.web import Ask, Page, Routes, answer, page

_DISABLED = Refused(400, "ACL support disabled")
NO_TOKEN: Final[Shape] = {
    "ExpirationTTL": "",
    "AccessorID": "acls-disabled",
    "SecretID": "",
    "Name": "ACLs disabled token",
    "Type": "client",
    "Policies": None,
    "Roles": None,
    "Global": False,
    "Hash": None,
    "CreateTime": "0001-01-01T00:00:00Z",
    "ExpirationTime": None,
    "CreateIndex": 0,
    "ModifyIndex": 0,
}
"""As it is without ACL."""


class AclApi:
    """`enabled`: else all of it answers 400, but for the token of whoever asks."""

    def __init__(self, state: State, routes: Routes, *, enabled: bool) -> None:
        self._state, self.enabled = state, enabled
        self._bootstrapped = 0
        for methods, path, handler in (
            ("PUT POST", r"/v1/acl/bootstrap", self.bootstrap),
            ("GET", r"/v1/acl/policies", self.policies),
            ("GET", r"/v1/acl/policy/(?P<name>.+)", self.policy),
            ("PUT POST", r"/v1/acl/policy/(?P<name>.+)", self.put_policy),
            ("DELETE", r"/v1/acl/policy/(?P<name>.+)", self.delete_policy),
            ("GET", r"/v1/acl/tokens", self.tokens),
            ("PUT POST", r"/v1/acl/token", self.put_token),
            ("GET", r"/v1/acl/token/self", self.own_token),
            ("GET", r"/v1/acl/token/(?P<id>[^/]+)", self.token),
            ("DELETE", r"/v1/acl/token/(?P<id>[^/]+)", self.delete_token),
            ("GET", r"/v1/acl/roles", self.roles),
            ("PUT POST", r"/v1/acl/role", self.put_role),
            ("DELETE", r"/v1/acl/role/(?P<id>[^/]+)", self.delete_role),
            ("GET", r"/v1/acl/auth-methods", self.methods),
            ("PUT POST", r"/v1/acl/auth-method", self.put_method),
            ("GET", r"/v1/acl/auth-method/(?P<name>[^/]+)", self.method),
            ("DELETE", r"/v1/acl/auth-method/(?P<name>[^/]+)", self.delete_method),
        ):
            routes.add(methods, path, handler)

    def _must(self, ask: Ask, *, manage: bool = True) -> None:
        if not self.enabled:
            raise _DISABLED
        if manage:
            ask.must_manage()

    async def bootstrap(self, ask: Ask) -> web.StreamResponse:
        """Once."""
        self._must(ask, manage=False)
        if self._bootstrapped:
            raise Refused(400, f"ACL bootstrap already done (reset index: {self._bootstrapped})")
        token = self.bootstrapped()
        return answer(ask, token, token["CreateIndex"])

    def bootstrapped(self) -> Shape:
        """The first management token."""
        with self._state.write() as change:
            token = make_token(change, {"Name": "Bootstrap Token", "Type": "management", "Global": True})
        self._bootstrapped = change.index
        return token

    # --- policies ------------------------------------------------------------------------------------------------

    def _own_policies(self, ask: Ask) -> set[str]:
        token = self._token_of(ask)
        return set((token or {}).get("Policies") or ())

    def _token_of(self, ask: Ask) -> Shape | None:
        return next((t for t in self._state.tokens.values() if t["SecretID"] == ask.secret), None)

    async def policies(self, ask: Ask) -> web.StreamResponse:
        """All for management, else those of the token."""
        self._must(ask, manage=False)
        own = self._own_policies(ask)
        items = [p for name, p in self._state.policies.items() if ask.rights.management or name in own]
        found = page(ask, items, lambda p: str(p["Name"]), lambda p: {n: v for n, v in p.items() if n != "Rules"})
        return self._listed(ask, found, "acl_policy")

    async def policy(self, ask: Ask) -> web.StreamResponse:
        """One, with its rules."""
        self._must(ask, manage=False)
        name = ask.parts["name"]
        if not ask.rights.management and name not in self._own_policies(ask):
            raise DENIED
        found = self._state.policies.get(name)
        if found is None:
            raise Refused(404, "ACL policy not found")
        return answer(ask, found | {"RulesJSON": None}, found["ModifyIndex"], read=True)

    async def put_policy(self, ask: Ask) -> web.StreamResponse:
        """Written whole."""
        self._must(ask)
        body = ask.json()
        name = ask.parts["name"]
        if body.get("Name") != name:
            raise Refused(400, "ACL policy name does not match request path")
        wrong = "" if re.fullmatch(r"[a-zA-Z0-9-]{1,128}", name) else f"invalid name '{name}'"
        try:
            parsed(str(body.get("Rules", "")))
        except ValueError as error:
            wrong = wrong or f"failed to parse rules: {error}"
        if wrong:
            raise Refused(400, f"policy 0 invalid: {several([wrong])}\n")
        acl = body.get("JobACL")
        with self._state.write() as change:
            known = self._state.policies.get(name, {"CreateIndex": change.index})
            self._state.policies[name] = {
                "CreateIndex": known["CreateIndex"],
                "Description": body.get("Description", ""),
                "Hash": digest(repr(body)),
                "JobACL": ({"Namespace": "", "JobID": "", "Group": "", "Task": ""} | acl) if acl else None,
                "ModifyIndex": change.index,
                "Name": name,
                "Rules": body["Rules"],
            }
            self._state.tables["acl_policy"] = change.index
        return answer(ask, None, change.index)

    async def delete_policy(self, ask: Ask) -> web.StreamResponse:
        """One that is not there is as good as deleted."""
        self._must(ask)
        with self._state.write() as change:
            self._state.policies.pop(ask.parts["name"], None)
            self._state.tables["acl_policy"] = change.index
        return answer(ask, None, change.index)

    # --- tokens --------------------------------------------------------------------------------------------------

    async def tokens(self, ask: Ask) -> web.StreamResponse:
        """Without their secrets."""
        self._must(ask)
        hidden = {"SecretID", "ExpirationTTL"}
        items = [t for t in self._state.tokens.values() if t["AccessorID"].startswith(ask.query("prefix"))]
        found = page(
            ask, items, lambda t: str(t["AccessorID"]), lambda t: {n: v for n, v in t.items() if n not in hidden}
        )
        return self._listed(ask, found, "acl_token")

    async def put_token(self, ask: Ask) -> web.StreamResponse:
        """A new one, with its secret."""
        self._must(ask)
        body = ask.json()
        with self._state.write() as change:
            token = make_token(change, body)
        return answer(ask, token, change.index)

    async def own_token(self, ask: Ask) -> web.StreamResponse:
        """Also without ACL."""
        if not self.enabled:
            return answer(ask, NO_TOKEN, 0, read=True)
        token = self._token_of(ask)
        if token is None and not ask.secret:
            more = {"AccessorID": "anonymous", "SecretID": "", "Name": "Anonymous Token", "Policies": ["anonymous"]}
            return answer(ask, NO_TOKEN | more, 0, read=True)
        if token is None:
            raise DENIED
        return answer(ask, token, token["ModifyIndex"], read=True)

    async def token(self, ask: Ask) -> web.StreamResponse:
        """One, with its secret: for management, or its owner."""
        self._must(ask, manage=False)
        found = self._state.tokens.get(ask.parts["id"])
        if not ask.rights.management and (found is None or found["SecretID"] != ask.secret):
            raise DENIED
        if found is None:
            raise Refused(404, "ACL token not found")
        return answer(ask, found, found["ModifyIndex"], read=True)

    async def delete_token(self, ask: Ask) -> web.StreamResponse:
        """From then on it is unknown."""
        self._must(ask)
        identifier = ask.parts["id"]
        if identifier not in self._state.tokens:
            raise Refused(400, f"Cannot delete nonexistent tokens: {identifier}")
        with self._state.write() as change:
            del self._state.tokens[identifier]
            self._state.tables["acl_token"] = change.index
        return answer(ask, None, change.index)

    # --- roles and methods ---------------------------------------------------------------------------------------

    async def roles(self, ask: Ask) -> web.StreamResponse:
        """All for management."""
        self._must(ask, manage=False)
        items = list(self._state.roles.values()) if ask.rights.management else []
        return self._listed(ask, page(ask, items, lambda r: str(r["ID"]), lambda r: r), "acl_roles")

    async def put_role(self, ask: Ask) -> web.StreamResponse:
        """A new one."""
        self._must(ask)
        body = ask.json()
        with self._state.write() as change:
            role = {
                "CreateIndex": change.index,
                "Description": body.get("Description", ""),
                "Hash": digest(repr(body)),
                "ID": new_id(),
                "ModifyIndex": change.index,
                "Name": body.get("Name", ""),
                "Policies": body.get("Policies"),
            }
            self._state.roles[str(role["ID"])] = role
            self._state.tables["acl_roles"] = change.index
        return answer(ask, role, change.index)

    async def delete_role(self, ask: Ask) -> web.StreamResponse:
        """Gone from all tokens."""
        self._must(ask)
        with self._state.write() as change:
            self._state.roles.pop(ask.parts["id"], None)
        return answer(ask, None, change.index)

    async def methods(self, ask: Ask) -> web.StreamResponse:
        """Without their configuration."""
        self._must(ask, manage=False)
        items = list(self._state.methods.values())
        hidden = {"Config", "MaxTokenTTL", "TokenLocality", "TokenNameFormat"}
        shown = page(ask, items, lambda m: str(m["Name"]), lambda m: {n: v for n, v in m.items() if n not in hidden})
        return self._listed(ask, shown, "acl_auth_methods")

    async def method(self, ask: Ask) -> web.StreamResponse:
        """One, whole."""
        self._must(ask)
        found = self._state.methods.get(ask.parts["name"])
        if found is None:
            raise Refused(404, "ACL auth-method not found")
        return answer(ask, found, found["ModifyIndex"], read=True)

    async def put_method(self, ask: Ask) -> web.StreamResponse:
        """Kept as it is: nobody signs in here."""
        self._must(ask)
        body: dict[str, Any] = ask.json()
        with self._state.write() as change:
            kept = body | {
                "CreateIndex": change.index,
                "ModifyIndex": change.index,
                "Default": bool(body.get("Default")),
            }
            self._state.methods[str(body.get("Name"))] = kept
        return answer(ask, kept, change.index)

    async def delete_method(self, ask: Ask) -> web.StreamResponse:
        """One."""
        self._must(ask)
        with self._state.write() as change:
            self._state.methods.pop(ask.parts["name"], None)
        return answer(ask, None, change.index)

    def _listed(self, ask: Ask, found: Page, table: str) -> web.Response:
        return answer(ask, found.items, max(self._state.tables[table], 1), read=True, more=found.headers)
