"""Consul: does it answer and lead, and what may our token?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from modalnomad.hashicorp.checks.common import check_version
from modalnomad.hashicorp.http import HttpClient, ServerRefused
from modalnomad.kit.finding import Finding, ok, problem, warning
from modalnomad.settings import ConsulSettings

LEAST: Final = "1.16.0"
NOT_THERE: Final = 1
"""An index that no key which is not there has: writing with it changes nothing."""


async def consul_checks(http: HttpClient, settings: ConsulSettings) -> list[Finding]:
    """All of them. Raises BackendError when Consul does not answer at all."""
    leading = await http.request("GET", "/v1/status/leader", ok=(200, 500))
    agent = await http.request("GET", "/v1/agent/self", ok=(200, 403))
    version = str(agent.json().get("Config", {}).get("Version", "")) if agent.status == 200 else ""
    shown = f"Consul {version}" if version else "its version cannot be seen with this token"
    found = [
        ok("consul", f"answers at {http.server.address}, {shown}")
        if leading.status == 200 and leading.text.strip('"')
        else problem(
            "consul",
            "its servers have no leader: nothing can be read or written",
            "look at the servers' logs, and start more",
        )
    ]
    if old := check_version("consul", "Consul", version, LEAST):
        found.append(old)
    return [*found, await _acl(http, settings)]


async def _acl(http: HttpClient, settings: ConsulSettings) -> Finding:
    try:
        # 404 of a token that it does not know, and of none at all; before 1.15, 403.
        answer = await http.request("GET", "/v1/acl/token/self", ok=(200, 403, 404))
    except ServerRefused as error:
        if "ACL support disabled" not in error.text:
            raise
        return warning(
            "consul acl",
            "ACLs are off: whoever reaches Consul may change what is served",
            'acl { enabled = true  default_policy = "deny" } in its agents, `consul acl bootstrap`, `modalnomad setup`',
        )
    source = http.server.token_setting or http.server.setting
    if answer.status != 200 and http.server.headers():
        return problem("consul acl", "Consul does not know this token, or it has expired", f"it comes from {source}")
    may = await _rights(http, settings.prefix)
    who: Mapping[str, Any] = answer.json() if answer.status == 200 else {}
    # One that came by a login has roles.
    names = ", ".join(one["Name"] for kind in ("Policies", "Roles") for one in who.get(kind) or ())
    name = f"the token ({names})" if names else "the token"
    if not may["read"]:
        return problem(
            "consul acl",
            f"{name} may not read {settings.prefix}/",
            f"give a token with the policy modalnomad-deployer or modalnomad-router (`modalnomad setup`): {source}",
        )
    roles = [word for right, word in (("deploy", "deploy"), ("route", "run a router")) if may[right]]
    if not roles:
        return warning(
            "consul acl",
            f"{name} may only look: it can neither deploy nor run a router",
            f"give a token with the policy modalnomad-deployer or modalnomad-router: {source}",
        )
    return ok("consul acl", f"{name} may read what is served, {', '.join(roles)}")


async def _rights(http: HttpClient, prefix: str) -> dict[str, bool]:
    """Each probe changes nothing."""
    listed = await http.request("GET", f"/v1/kv/{prefix}/", params={"keys": True}, ok=(200, 403, 404))
    single = await http.request("GET", f"/v1/kv/{prefix}/apps/{_PROBE}", ok=(200, 403, 404))
    rights = {"read": 403 not in {listed.status, single.status}}
    for right, folder in (("deploy", "apps"), ("route", "routers")):
        path = f"/v1/kv/{prefix}/{folder}/{_PROBE}"
        answer = await http.request("PUT", path, params={"cas": NOT_THERE}, data=b"", ok=(200, 403))
        rights[right] = answer.status == 200
    return rights


_PROBE: Final = "doctor-probe"
