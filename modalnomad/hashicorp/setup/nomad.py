"""Nomad: a namespace for each environment and one for routers, and ACL policies.

API: https://developer.hashicorp.com/nomad/api-docs/namespaces, https://developer.hashicorp.com/nomad/api-docs/acl/policies
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Final

from modalnomad.hashicorp.http import HttpClient, ServerRefused
from modalnomad.hashicorp.setup.platform import Policy, Wanted
from modalnomad.hashicorp.setup.steps import Done, SomebodyElses, Todo, change, create, different, ours

OFF: Final = "ACL support disabled"
NO_ACL: Final = Done(
    "left",
    "Nomad's ACLs are off: whoever reaches it may do everything",
    "to switch them on: `acl { enabled = true }` in its agents, `nomad acl bootstrap`, then this command again",
)


def nomad_todos(http: HttpClient, wanted: Wanted) -> Iterator[Todo]:
    """In order."""
    for name, description in wanted.namespaces.items():
        yield Todo(f"namespace {name}", partial(_namespace, http, name, description), name)
    if (router := wanted.router) is not None:
        makes = partial(_namespace, http, router.namespace, router.namespace_description, shared=True)
        yield Todo(f"namespace {router.namespace}", makes)
    for policy in wanted.nomad_policies:
        yield Todo(f"policy {policy.name}", partial(_policy, http, policy, None))
    if router is not None:
        yield Todo(f"policy {router.nomad_policy.name}", partial(_policy, http, router.nomad_policy, router.job_acl))


async def _namespace(http: HttpClient, name: str, description: str, dry: bool, shared: bool = False) -> Done:
    """`shared`: whoever asked named it, so it may be another's too."""
    path = f"/v1/namespace/{name}"
    answer = await http.request("GET", path, ok=(200, 404))
    if answer.status == 404:
        body = {"Name": name, "Description": description}
        return await create(dry, lambda: http.request("PUT", path, data=body))
    there = answer.json()
    found = str(there.get("Description") or "")
    if found == description:
        return Done("there")
    if ours(found, description):
        # All of it: what is left out would be taken away.
        body = there | {"Description": description}
        return await change(dry, lambda: http.request("PUT", path, data=body), "its description was different")
    shown = f"described as {found!r:.200}" if found else "without a description"
    if shared:
        return Done(
            "left",
            f"it was made for something else, {shown}",
            "who submits jobs there can replace the routers and use their rights; a namespace of their own prevents it",
        )
    raise SomebodyElses(
        f"there is another namespace of this name, {shown}: its jobs would read the secrets of the environment",
        f"when it is meant to be the environment, say so: `nomad namespace apply -description '{description}' {name}`, "
        "then this command again; else take another name (--env)",
    )


async def _policy(http: HttpClient, policy: Policy, job: Mapping[str, str] | None, dry: bool) -> Done:
    """`job`: whose identities have it."""
    path = f"/v1/acl/policy/{policy.name}"
    try:
        answer = await http.request("GET", path, ok=(200, 404))
    except ServerRefused as error:
        if OFF in error.text:
            return NO_ACL
        raise
    body = {"Name": policy.name, "Description": policy.description, "Rules": policy.text, "JobACL": job}
    if answer.status == 404:
        return await create(dry, lambda: http.request("PUT", path, data=body))
    found = answer.json()
    detail = different(
        policy, str(found.get("Description") or ""), str(found["Rules"]), f"nomad acl policy delete {policy.name}"
    )
    given = {key: value for key, value in (found.get("JobACL") or {}).items() if value}
    if not detail and given != (job or {}):
        detail = "the job it is for was different"
    return await change(dry, lambda: http.request("PUT", path, data=body), detail) if detail else Done("there")
