"""Nomad: a namespace for each environment, and ACL policies.

API: https://developer.hashicorp.com/nomad/api-docs/namespaces, https://developer.hashicorp.com/nomad/api-docs/acl/policies
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Final

from modalnomad.hashicorp.http import HttpClient, ServerRefused
from modalnomad.hashicorp.setup.platform import Policy, Wanted
from modalnomad.hashicorp.setup.steps import Done, Todo, change, create

OFF: Final = "ACL support disabled"
NO_ACL: Final = Done(
    "left",
    "Nomad's ACLs are off: whoever reaches it may do everything",
    "to switch them on: `acl { enabled = true }` in its agents, `nomad acl bootstrap`, then this command again",
)


def nomad_todos(http: HttpClient, wanted: Wanted) -> Iterator[Todo]:
    """In order."""
    for name, description in wanted.namespaces.items():
        yield Todo(f"namespace {name}", partial(_namespace, http, name, description))
    for policy in wanted.nomad_policies:
        yield Todo(f"policy {policy.name}", partial(_policy, http, policy))


async def _namespace(http: HttpClient, name: str, description: str, dry: bool) -> Done:
    path = f"/v1/namespace/{name}"
    if (await http.request("GET", path, ok=(200, 404))).status == 200:
        return Done("there")
    body = {"Name": name, "Description": description}
    return await create(dry, lambda: http.request("PUT", path, data=body))


async def _policy(http: HttpClient, policy: Policy, dry: bool) -> Done:
    path = f"/v1/acl/policy/{policy.name}"
    try:
        answer = await http.request("GET", path, ok=(200, 404))
    except ServerRefused as error:
        if OFF in error.text:
            return NO_ACL
        raise
    body = {"Name": policy.name, "Description": policy.description, "Rules": policy.text}
    if answer.status == 404:
        return await create(dry, lambda: http.request("PUT", path, data=body))
    if policy.same(str(answer.json().get("Rules", ""))):
        return Done("there")
    return await change(dry, lambda: http.request("PUT", path, data=body), "its rules were different")
