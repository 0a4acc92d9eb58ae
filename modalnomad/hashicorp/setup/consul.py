"""Consul: ACL policies on the platform's keys and services. The keys themselves need no making.

API: https://developer.hashicorp.com/consul/api-docs/acl/policies
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
    "Consul's ACLs are off: whoever reaches it may do everything",
    "to switch them on: `acl { enabled = true }` in its agents, `consul acl bootstrap`, then this command again",
)


def consul_todos(http: HttpClient, wanted: Wanted) -> Iterator[Todo]:
    """In order."""
    for policy in wanted.consul_policies:
        yield Todo(f"policy {policy.name}", partial(_policy, http, policy))


async def _policy(http: HttpClient, policy: Policy, dry: bool) -> Done:
    try:
        # By list: what a name that does not exist is answered with differs between releases.
        listed = (await http.request("GET", "/v1/acl/policies")).json() or ()
    except ServerRefused as error:
        if OFF in error.text:
            return NO_ACL
        raise
    body = {"Name": policy.name, "Description": policy.description, "Rules": policy.text}
    found = next((str(one["ID"]) for one in listed if one["Name"] == policy.name), None)
    if found is None:
        return await create(dry, lambda: http.request("PUT", "/v1/acl/policy", data=body))
    path = f"/v1/acl/policy/{found}"
    if policy.same(str((await http.request("GET", path)).json().get("Rules", ""))):
        return Done("there")
    return await change(dry, lambda: http.request("PUT", path, data=body), "its rules were different")
