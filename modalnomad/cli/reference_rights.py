"""The page of who may do what on a cluster, made from the file that `setup` and Terraform read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from modalnomad.hashicorp.setup.platform import Policy, RouterJob, Wanted, filled, platform, wanted
from modalnomad.hashicorp.setup.rights import VAULT_NEEDED
from modalnomad.settings import Settings

BEFORE = """# Who may do what on a cluster

`modalnomad setup`, or Terraform, makes these policies in Nomad, Vault (or OpenBao) and Consul. They are the least that
works: a router's token cannot register or remove a job, a task cannot read another environment's secrets, nobody who
deploys can read a value back. Tests hold that on real servers of Nomad and OpenBao, and on a stand-in for Consul.

All of it stands in one file, `modalnomad/hashicorp/setup/platform.json`, which both read. Below, with the default
settings: `${environment}` is the environment; another mount or prefix in the settings changes the paths.

Tokens are not made: they would have to be shown or stored. Make them for who deploys and for each router:

```sh
nomad acl token create -type client -name deployer -policy modalnomad-deployer
vault token create -orphan -period 24h -policy modalnomad-deployer
consul acl token create -description deployer -policy-name modalnomad-deployer
```

and give them as `NOMAD_TOKEN`, `VAULT_TOKEN` and `CONSUL_HTTP_TOKEN`, or as files (`nomad.token_file`,
`vault.token_file`, `consul.token_file`). A file of Vault's token is read again when the token in use is refused, so
whoever renews tokens may write there.

`setup` itself needs a management token of Nomad, and one of Consul with `acl = "write"`, where their ACLs are on. Where
these were just switched on there is none yet: `nomad acl bootstrap` and `consul acl bootstrap` make the first. In Vault
this policy is enough; a refusal names the path and what it lacks there.

"""

ROUTER_NAMESPACE = "modalnomad"

MEANING = """
## What these rights amount to

* Who may deploy to an environment can use its secrets: a program they deploy may print them. What they cannot do is
  read them from the server, or use those of an environment they may not deploy to. For people of one environment only,
  copy the policies of `modalnomad-deployer`: in Nomad with its namespace in place of `modalnomad-*`, in Vault with its
  name below `…/modalnomad/`, and in Consul with `read` on `modalnomad/` and `write` on `modalnomad/apps/NAME/`,
  `modalnomad/tokens/NAME/`, `modalnomad/locks/deploy-NAME-` and the keys `modalnomad/apps/_guard` and
  `modalnomad/tokens/_guard`. They see what all environments serve.
* In Consul a session belongs to a node, not to who made it: who may make them on all nodes, as the policies say, may
  end anybody's, and with it a lock. Where others keep locks in the same Consul, name the nodes whose agents routers and
  deployers ask: `session "NODE"` in place of `session_prefix ""`.
* `alloc-lifecycle` lets a router end any replica of the platform; there is no smaller right to send a signal.
* `alloc-exec` belongs to nobody here: whoever has it sees the environment of a running replica.
* Tasks of `raw_exec` without a `user` of their own run as the agent's user, mostly root: they can read each other.
* A router follows Nomad's events of each environment by itself: one stream of all namespaces would need rights in all
  of them.
"""


def rights_page() -> str:
    """Every policy with each right and what it is for."""
    needed = wanted(Settings(), ["environment"], ROUTER_NAMESPACE)
    lines = [BEFORE.rstrip(), "", *_of_setup(needed), ""]
    for server, policies in (
        ("Nomad", needed.nomad_policies),
        ("Vault or OpenBao", needed.vault_policies[:-1]),
        ("Consul", needed.consul_policies),
    ):
        lines += [f"## {server}", ""]
        for policy in policies:
            lines += [*_policy(policy, policy.name), ""]
        if server.startswith("Vault"):
            lines += [*_tasks(needed), ""]
    assert needed.router is not None
    lines += [*_router(needed, needed.router), ""]
    return "\n".join(lines).rstrip() + "\n" + MEANING


def _of_setup(needed: Wanted) -> Iterator[str]:
    """The policy of who sets up, as Vault takes it."""
    yield "```hcl"
    for path, allowed in filled(VAULT_NEEDED, {"mount": needed.mount, "auth_mount": needed.auth_mount}).items():
        listed = ", ".join(f'"{one}"' for one in allowed.split(", "))
        yield f'path "{path}" {{ capabilities = [{listed}] }}'
    yield "```"


def _router(needed: Wanted, router: RouterJob) -> Iterator[str]:
    """Who a job of routers is, without a token."""
    selector = router.consul_binding_rule["selector"].replace(" == ", " = ").replace("value.", "")
    policy, login = router.nomad_policy.name, f"auth/{needed.auth_mount}"
    in_consul = (
        f"auth method `{router.consul_auth_method['name']}` where there is none, role `{router.consul_role['name']}`"
    )
    yield from (
        "## Routers that run as a job of Nomad",
        "",
        f"They hold no token: each server knows the job `{router.name}` in the namespace `{router.namespace}` by the",
        f"identity Nomad signs for it. `modalnomad setup --router-job {router.namespace}` makes what that needs, and",
        "so does Terraform.",
        "",
        "| in | what is made | that gives |",
        "|---|---|---|",
        f"| Nomad | policy `{policy}` with a job ACL on that namespace and job | the rights of `modalnomad-router` |",
        f"| Vault or OpenBao | role `{router.vault_role}` at `{login}`, bound to that namespace and job "
        f"| {_named(router.vault_role_fields['token_policies'])} |",
        f"| Consul | {in_consul}, a binding rule for `{selector}` | {_named(router.consul_role['policies'])} |",
        "",
        "Whoever may submit jobs in that namespace, or run commands in its allocations, can become a router; whoever",
        "may read files of its allocations (`read-fs`) has the platform's key, which a router keeps in its home. So it",
        "is none of the environments, and `setup` says so when it was there before.",
    )


def _named(policies: Iterable[str]) -> str:
    return ", ".join(f"the policy `{name}`" for name in policies)


def _policy(policy: Policy, name: str) -> Iterator[str]:
    what = policy.description.removeprefix("modalnomad: ")
    yield from (f"### `{name}`", "", f"{what[0].upper()}{what[1:]}.", "", "| on | right | for |", "|---|---|---|")
    for on, right, why in _rights(policy):
        yield f"| {on} | {right} | {why} |"


def _rights(policy: Policy) -> Iterator[tuple[str, str, str]]:
    for kind, names in policy.rules.items():
        if "policy" in names:
            yield f"{kind}s", names["policy"], _why(policy, f"{kind}: {names['policy']}")
            continue
        for name, granted in names.items():
            on = f"`{name}`" if kind == "path" else f"{kind} `{name}`" if name else f"{kind}, all"
            if kind == "namespace":
                for capability in granted["capabilities"]:
                    yield on, capability, _why(policy, capability)
            elif "capabilities" in granted:
                yield on, ", ".join(granted["capabilities"]), _why(policy, name)
            else:
                right = granted["policy"]
                keys = (f"{kind} {name}: {right}", f"{kind}: {right}")
                yield on, right, _why(policy, *keys)


def _why(policy: Policy, *keys: str) -> str:
    """The first that is there. Raises KeyError: a right without a reason."""
    return policy.why[next((key for key in keys if key in policy.why), keys[0])]


def _tasks(needed: Wanted) -> Iterator[str]:
    raw = platform()
    names = {"mount": needed.mount}
    policy = Policy(**filled(raw["vault_environment_policy"], names))
    yield from _policy(policy, policy.name)
    role: Mapping[str, object] = filled(raw["vault_role"], names)
    claims = ", ".join(f"`{claim}` = `{value}`" for claim, value in dict(role["bound_claims"]).items())  # type: ignore[call-overload]
    yield from (
        "",
        f"Tasks log in at `auth/{needed.auth_mount}` with the role `{role['name']}` and the identity that Nomad signed",
        f"for them; it must say {claims}: the namespace the job runs in.",
    )
