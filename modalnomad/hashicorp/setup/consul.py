"""Consul: ACL policies on the platform's keys and services; for routers that run as a job, a login by the identities
that Nomad signs. The keys themselves need no making.

API: https://developer.hashicorp.com/consul/api-docs/acl/policies, …/acl/roles, …/acl/auth-methods, …/acl/binding-rules;
the login: https://developer.hashicorp.com/nomad/docs/secure/acl/consul
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final

from modalnomad.hashicorp.http import HttpClient, ServerRefused
from modalnomad.hashicorp.setup.jwks import believes, signer_of, unreadable
from modalnomad.hashicorp.setup.platform import Policy, Wanted
from modalnomad.hashicorp.setup.steps import Done, Todo, change, create, different

OFF: Final = "ACL support disabled"
NO_ACL: Final = Done(
    "left",
    "Consul's ACLs are off: whoever reaches it may do everything",
    "to switch them on: `acl { enabled = true }` in its agents, `consul acl bootstrap`, then this command again",
)
MORE_RIGHTS: Final = ("ServiceIdentities", "NodeIdentities", "TemplatedPolicies")
"""What else a role may give."""
ANOTHER: Final = "consul.auth_method, and task_auth_method of Nomad's agents"
"""Which auth method it is."""

Object = Mapping[str, Any]
"""As Consul's API has it."""


def consul_todos(http: HttpClient, wanted: Wanted, *, url_is_set: bool, nomad_ca: Path | None) -> Iterator[Todo]:
    """In order. `url_is_set`: vault.jwks_url was given, so it counts against what is there. `nomad_ca`: of what signed
    Nomad's certificate, for Consul to read its keys."""
    for policy in wanted.consul_policies:
        yield Todo(f"policy {policy.name}", partial(_unless_off, partial(_policy, http, policy)))
    if (router := wanted.router) is not None:
        method, role, rule = router.consul_auth_method, router.consul_role, router.consul_binding_rule
        login = partial(_auth_method, http, method, url_is_set, nomad_ca)
        yield Todo(f"auth method {method['name']}", partial(_unless_off, login))
        yield Todo(f"role {role['name']}", partial(_unless_off, partial(_role, http, role)))
        binds = partial(_binding_rule, http, str(method["name"]), rule)
        yield Todo(f"binding rule of {method['name']} to {rule['bind_name']}", partial(_unless_off, binds))


async def _unless_off(do: partial[Any], dry: bool) -> Done:
    try:
        done: Done = await do(dry)
    except ServerRefused as error:
        if OFF in error.text:
            return NO_ACL
        raise
    return done


async def _policy(http: HttpClient, policy: Policy, dry: bool) -> Done:
    found = await _named(http, "policies", policy.name)
    body = {"Name": policy.name, "Description": policy.description, "Rules": policy.text}
    if found is None:
        return await create(dry, lambda: http.request("PUT", "/v1/acl/policy", data=body))
    path = f"/v1/acl/policy/{found['ID']}"
    whole = (await http.request("GET", path)).json()
    remove = f"consul acl policy delete -name {policy.name}"
    detail = different(policy, str(whole.get("Description") or ""), str(whole.get("Rules") or ""), remove)
    return await change(dry, lambda: http.request("PUT", path, data=body), detail) if detail else Done("there")


async def _auth_method(http: HttpClient, wanted: Object, url_is_set: bool, nomad_ca: Path | None, dry: bool) -> Done:
    """One that is there serves others too, and Consul replaces it without asking: it is left as it is."""
    url = str(wanted["config"]["JWKSURL"])
    ca = await signer_of(url, nomad_ca)
    answer = await http.request("GET", f"/v1/acl/auth-method/{wanted['name']}", ok=(200, 404))
    if answer.status == 200:
        wrong = _unfit(wanted, answer.json(), url_is_set, ca)
        if wrong:
            return Done("left", wrong, f"correct it, or take another one: {ANOTHER}")
        return Done("there", f"from {answer.json()['Config'].get('JWKSURL') or 'other keys than a URL'}")
    config = dict(wanted["config"])
    if ca is not None:
        config["JWKSCACert"] = ca
    body = {"Name": wanted["name"], "Type": wanted["type"], "Description": wanted["description"], "Config": config}
    return await create(dry, lambda: _make_auth_method(http, body, url), f"from {url}")


def _unfit(wanted: Object, found: Object, url_is_set: bool, ca: str | None) -> str:
    """Why identities of routers cannot log in with the method that is there; empty: they can."""
    if found.get("Type") != wanted["type"]:
        return f"it is of type {found.get('Type')}, not {wanted['type']}"
    config: Object = found.get("Config") or {}
    needs: Object = wanted["config"]
    url = config.get("JWKSURL")
    if url and url_is_set and url != needs["JWKSURL"]:
        return f"it has its keys from {url}, not from {needs['JWKSURL']}"
    if url == needs["JWKSURL"] and not believes(config.get("JWKSCACert"), ca):
        return f"it believes others than who signed {url} (nomad.ca_cert)"
    audiences = config.get("BoundAudiences") or []
    if not set(needs["BoundAudiences"]) & set(audiences):
        return f"it takes identities for {', '.join(audiences) or 'nobody'}, not for {needs['BoundAudiences'][0]}"
    mapped = config.get("ClaimMappings") or {}
    lacking = [claim for claim, name in needs["ClaimMappings"].items() if mapped.get(claim) != name]
    if lacking:
        return f"its ClaimMappings lack {', '.join(lacking)}"
    return ""


async def _make_auth_method(http: HttpClient, body: Object, url: str) -> None:
    try:
        await http.request("PUT", "/v1/acl/auth-method", data=body)
    except ServerRefused as error:
        if "JWKS" not in error.text:
            raise
        raise unreadable("Consul", url, error, body["Config"].get("JWKSCACert")) from error


async def _role(http: HttpClient, wanted: Object, dry: bool) -> Done:
    found = await _named(http, "roles", wanted["name"])
    body = {
        "Name": wanted["name"],
        "Description": wanted["description"],
        "Policies": [{"Name": name} for name in wanted["policies"]],
    }
    if found is None:
        return await create(dry, lambda: http.request("PUT", "/v1/acl/role", data=body))
    differs = [name for name in MORE_RIGHTS if found.get(name)]
    if {str(one["Name"]) for one in found.get("Policies") or ()} != set(wanted["policies"]):
        differs.insert(0, "Policies")
    if found.get("Description", "") != wanted["description"]:
        differs.append("Description")
    if not differs:
        return Done("there")
    path = f"/v1/acl/role/{found['ID']}"
    return await change(dry, lambda: http.request("PUT", path, data=body), f"different: {', '.join(differs)}")


async def _binding_rule(http: HttpClient, method: str, wanted: Object, dry: bool) -> Done:
    """They have no names: ours are those with our description."""
    listed = (await http.request("GET", "/v1/acl/binding-rules", params={"authmethod": method})).json() or ()
    names = {"Description": "description", "BindType": "bind_type", "BindName": "bind_name", "Selector": "selector"}
    body = {"AuthMethod": method} | {field: wanted[name] for field, name in names.items()}
    ours = [one for one in listed if one.get("Description") == wanted["description"]]
    if not ours:
        return await create(dry, lambda: http.request("PUT", "/v1/acl/binding-rule", data=body))
    # There are two where both `setup` and Terraform made one.
    wrong = {str(one["ID"]): [name for name, value in body.items() if one.get(name, "") != value] for one in ours}

    async def set_right() -> None:
        for id, fields in wrong.items():
            if fields:
                await http.request("PUT", f"/v1/acl/binding-rule/{id}", data=body)

    differs = sorted({name for fields in wrong.values() for name in fields})
    return await change(dry, set_right, f"different: {', '.join(differs)}") if differs else Done("there")


async def _named(http: HttpClient, plural: str, name: str) -> Object | None:
    """By list: what a name that does not exist is answered with differs between releases."""
    listed = (await http.request("GET", f"/v1/acl/{plural}")).json() or ()
    return next((one for one in listed if one["Name"] == name), None)
