"""Consul's ACL: rules, tokens, and the texts of refusals. Rules are HCL or JSON, resources by exact name or prefix."""

from __future__ import annotations

import json
import re
import uuid
from dataclasses import dataclass, field
from typing import Any

from tests.support.fakes.consul_state import Refused

LEVELS = {"deny": 0, "list": 1, "read": 2, "write": 3}
PLAIN = ("acl", "operator", "keyring", "mesh", "peering")
"""Resources without names."""
ANONYMOUS = "00000000-0000-0000-0000-000000000002"
BLOCK = re.compile(r'(\w+)\s+"([^"]*)"\s*\{([^}]*)\}')
PAIR = re.compile(r'(\w+)\s*=\s*"(\w+)"')


@dataclass(frozen=True)
class Rule:
    """`resource` `policy` on a name, or on all that begin with it."""

    resource: str
    name: str
    prefix: bool
    policy: str


def rules(text: str) -> list[Rule]:
    """Of a policy. Raises Refused."""
    if text.lstrip().startswith("{"):
        found = [
            _rule(resource, name, what["policy"])
            for resource, names in json.loads(text).items()
            if isinstance(names, dict)
            for name, what in names.items()
        ]
        return found + [_rule(one, "", value) for one, value in json.loads(text).items() if isinstance(value, str)]
    text = re.sub(r"(#|//).*", "", text)
    found = []
    for resource, name, body in BLOCK.findall(text):
        policy = dict(PAIR.findall(body)).get("policy")
        if policy is None:
            raise Refused(400, f'Failed to parse ACL rules: missing policy of {resource} "{name}"')
        found.append(_rule(resource, name, policy))
    return found + [_rule(one, "", value) for one, value in PAIR.findall(BLOCK.sub("", text))]


def _rule(resource: str, name: str, policy: str) -> Rule:
    if policy not in LEVELS:
        raise Refused(400, f'Failed to parse ACL rules: Invalid {resource} policy: "{policy}"')
    base = resource.removesuffix("_prefix")
    if base not in {"key", "service", "session", "agent", "node", "event", "query", "identity", *PLAIN}:
        raise Refused(400, f"Failed to parse ACL rules: Invalid rule: {resource}")
    return Rule(base, name, resource.endswith("_prefix") or base in PLAIN, policy)


@dataclass
class Rights:
    """Of one request. `rules` None: all."""

    accessor: str
    rules: list[Rule] | None
    default: str = "deny"
    filtered: bool = False
    """Something was left out of the answer."""

    def may(self, resource: str, policy: str, name: str) -> bool:
        """The exact rule counts before the longest prefix, and that before the default."""
        if self.rules is None:
            return True
        fitting = [
            rule
            for rule in self.rules
            if rule.resource == resource and (name.startswith(rule.name) if rule.prefix else name == rule.name)
        ]
        best = max(fitting, key=lambda rule: (not rule.prefix, len(rule.name), -LEVELS[rule.policy]), default=None)
        granted = best.policy if best else ("write" if self.default == "allow" else "deny")
        return LEVELS[granted] >= LEVELS[policy]

    def need(self, resource: str, policy: str, name: str = "") -> None:
        """Raises Refused."""
        if not self.may(resource, policy, name):
            raise self._refusal(resource, policy, name)

    def need_below(self, resource: str, policy: str, prefix: str) -> None:
        """Everything below `prefix`. Raises Refused."""
        worse = any(
            rule.resource == resource and rule.name.startswith(prefix) and LEVELS[rule.policy] < LEVELS[policy]
            for rule in self.rules or ()
        )
        if worse or not self.may(resource, policy, prefix):
            raise self._refusal(resource, policy, prefix)

    def _refusal(self, resource: str, policy: str, name: str) -> Refused:
        who = "anonymous token" if self.accessor == ANONYMOUS else f"token with AccessorID '{self.accessor}'"
        on = f' on "{name}"' if name else ""
        return Refused(403, f"Permission denied: {who} lacks permission '{resource}:{policy}'{on}")


@dataclass
class Acl:
    """Everything ACL of one cluster."""

    enabled: bool
    default: str = "deny"
    policies: dict[str, dict[str, Any]] = field(default_factory=dict)
    roles: dict[str, dict[str, Any]] = field(default_factory=dict)
    tokens: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By secret."""
    methods: dict[str, dict[str, Any]] = field(default_factory=dict)
    bindings: dict[str, dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.management = str(uuid.uuid4())
        self.add_policy("global-management", "", id="00000000-0000-0000-0000-000000000001")
        self.add_token(["global-management"], secret=self.management)

    def add_policy(self, name: str, text: str, *, id: str = "", description: str = "") -> dict[str, Any]:
        """Raises Refused."""
        rules(text)
        if any(one["Name"] == name for one in self.policies.values()):
            raise Refused(500, f'Invalid Policy: A Policy with Name "{name}" already exists')
        made = {"ID": id or str(uuid.uuid4()), "Name": name, "Description": description, "Rules": text}
        self.policies[made["ID"]] = made
        return made

    def add_token(
        self, policies: list[str], *, secret: str = "", roles: tuple[str, ...] = (), description: str = ""
    ) -> dict[str, Any]:
        """With policies and roles by name or id. Raises Refused."""
        made: dict[str, Any] = {
            "AccessorID": str(uuid.uuid4()),
            "SecretID": secret or str(uuid.uuid4()),
            "Description": description,
            "Policies": [self._link(self.policies, "Policy", one) for one in policies],
            "Roles": [self._link(self.roles, "Role", one) for one in roles],
            "Local": False,
        }
        self.tokens[made["SecretID"]] = made
        return made

    def link_policies(self, wanted: list[dict[str, str]]) -> list[dict[str, str]]:
        """`[{"Name"} or {"ID"}]` → both. Raises Refused."""
        return [self._link(self.policies, "Policy", one.get("ID") or one["Name"]) for one in wanted]

    def _link(self, table: dict[str, dict[str, Any]], kind: str, one: str) -> dict[str, str]:
        for found in table.values():
            if one in {found["ID"], found["Name"]}:
                return {"ID": found["ID"], "Name": found["Name"]}
        raise Refused(500, f"No such ACL {kind.lower()} with name or id {one!r}")

    def rights(self, secret: str) -> Rights:
        """Of who shows this secret. Raises Refused."""
        if not self.enabled:
            return Rights(ANONYMOUS, None)
        if not secret:
            return Rights(ANONYMOUS, [], self.default)
        if (token := self.tokens.get(secret)) is None:
            raise Refused(403, "ACL not found")
        linked: set[str] = {one["ID"] for one in token["Policies"]}
        for role in token["Roles"]:
            linked |= {str(one["ID"]) for one in self.roles.get(role["ID"], {}).get("Policies", ())}
        if "00000000-0000-0000-0000-000000000001" in linked:
            return Rights(str(token["AccessorID"]), None)
        found = [rule for id in linked if id in self.policies for rule in rules(self.policies[id]["Rules"])]
        return Rights(token["AccessorID"], found, self.default)
