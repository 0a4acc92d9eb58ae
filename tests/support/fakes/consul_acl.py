"""Consul's ACL: rules, tokens, and the texts of refusals. Rules are HCL or JSON, resources by exact name or prefix."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import uuid
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from tests.support.fakes.consul_state import Refused

LEVELS = {"deny": 0, "list": 1, "read": 2, "write": 3}
PLAIN = ("acl", "operator", "keyring", "mesh", "peering")
"""Resources without names."""
ANONYMOUS = "00000000-0000-0000-0000-000000000002"
MANAGEMENT = "00000000-0000-0000-0000-000000000001"
"""The policy that may do everything."""
NOT_FOUND = "ACL not found"
NOT_BOOTSTRAPPED = "ACL system must be bootstrapped before making any requests that require authorization"
BLOCK = re.compile(r'(\w+)\s+"([^"]*)"\s*\{([^}]*)\}')
PAIR = re.compile(r'(\w+)\s*=\s*"(\w+)"')

Table = dict[str, dict[str, Any]]


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
        nobody = self.accessor == ANONYMOUS
        who = "anonymous token" if nobody else f"token with AccessorID '{self.accessor}'"
        on = f' on "{name}"' if name else ""
        more = ". The anonymous token is used implicitly when a request does not specify a token." if nobody else ""
        return Refused(403, f"Permission denied: {who} lacks permission '{resource}:{policy}'{on}{more}")


@dataclass
class Acl:
    """Everything ACL of one cluster. `bootstrapped`: false until somebody asks for the first token."""

    enabled: bool
    default: str = "deny"
    bootstrapped: bool = True
    policies: Table = field(default_factory=dict)
    roles: Table = field(default_factory=dict)
    tokens: Table = field(default_factory=dict)
    """By secret."""
    methods: Table = field(default_factory=dict)
    """By name."""
    bindings: Table = field(default_factory=dict)
    index: int = 10

    def __post_init__(self) -> None:
        self.add_policy("global-management", 'acl = "write"', id=MANAGEMENT)
        self.management = self.bootstrap()["SecretID"] if self.bootstrapped else ""

    def bootstrap(self) -> dict[str, Any]:
        """The first token."""
        self.bootstrapped = True
        made = self.add_token([MANAGEMENT], description="Bootstrap Token (Global Management)")
        self.management = made["SecretID"]
        return made

    def stamp(self, thing: dict[str, Any]) -> dict[str, Any]:
        """It was written now."""
        self.index += 1
        return {"CreateIndex": self.index, **thing, "ModifyIndex": self.index}

    def add_policy(self, name: str, text: str, *, id: str = "", description: str = "") -> dict[str, Any]:
        """Raises Refused."""
        rules(text)
        if any(one["Name"] == name for one in self.policies.values()):
            raise Refused(500, f'Invalid Policy: A Policy with Name "{name}" already exists')
        fields = {"ID": id or str(uuid.uuid4()), "Name": name, "Description": description, "Rules": text}
        made = self.stamp(fields)
        self.policies[made["ID"]] = made
        return made

    def add_token(
        self, policies: list[str], *, secret: str = "", roles: tuple[str, ...] = (), description: str = "", **more: Any
    ) -> dict[str, Any]:
        """With policies and roles by name or id. `more`: further fields. Raises Refused."""
        fields: dict[str, Any] = {
            "AccessorID": str(uuid.uuid4()),
            "SecretID": secret or str(uuid.uuid4()),
            "Description": description,
            "Policies": self.linked("policy", [{"Name": one} for one in policies]),
            "Roles": self.linked("role", [{"Name": one} for one in roles]),
            "Local": False,
            "CreateTime": datetime.now(UTC).isoformat(),
            **more,
        }
        made = self.stamp(fields)
        self.tokens[made["SecretID"]] = made
        return made

    def linked(self, kind: str, wanted: list[dict[str, str]] | None) -> list[dict[str, str]]:
        """`[{"Name"} or {"ID"}]` → both, of policies or roles. Raises Refused."""
        table = self.policies if kind == "policy" else self.roles
        found = []
        for one in wanted or ():
            by = "ID" if one.get("ID") else "Name"
            asked = one.get("ID") or one.get("Name", "")
            there = next((t for t in table.values() if asked in {t["ID"], t["Name"]}), None)
            if there is None:
                raise Refused(500, f'No such ACL {kind} with {"ID" if by == "ID" else "name"} "{asked}"')
            found.append({"ID": there["ID"], "Name": there["Name"]})
        return found

    def shown(self, thing: dict[str, Any]) -> dict[str, Any]:
        """As the API shows it: links under their names of now, without those that lead nowhere."""
        tables = {"Policies": self.policies, "Roles": self.roles}
        links = {
            name: [{"ID": one["ID"], "Name": table[one["ID"]]["Name"]} for one in thing[name] if one["ID"] in table]
            for name, table in tables.items()
            if name in thing
        }
        whole = {**thing, **links}
        if "BindType" not in thing:
            whole["Hash"] = base64.b64encode(hashlib.sha256(repr(sorted(whole.items())).encode()).digest()).decode()
        return whole

    def token(self, secret: str) -> dict[str, Any] | None:
        """None: unknown, or its time is over."""
        found = self.tokens.get(secret)
        if (
            found is not None
            and (end := found.get("ExpirationTime"))
            and datetime.fromisoformat(end) < datetime.now(UTC)
        ):
            del self.tokens[secret]
            return None
        return found

    def rights(self, secret: str) -> Rights:
        """Of who shows this secret. Raises Refused."""
        if not self.enabled:
            return Rights(ANONYMOUS, None)
        if not secret:
            return Rights(ANONYMOUS, [], self.default)
        if (token := self.token(secret)) is None:
            raise Refused(403, NOT_FOUND if self.bootstrapped else f"{NOT_BOOTSTRAPPED}: {NOT_FOUND}")
        holders = [token, *(self.roles[one["ID"]] for one in token["Roles"] if one["ID"] in self.roles)]
        linked = {one["ID"] for holder in holders for one in holder.get("Policies") or ()}
        if MANAGEMENT in linked:
            return Rights(str(token["AccessorID"]), None)
        found = [rule for id in linked if id in self.policies for rule in rules(self.policies[id]["Rules"])]
        for holder in holders:
            for one in holder.get("ServiceIdentities") or ():
                found += _of_service(one["ServiceName"])
            for one in holder.get("NodeIdentities") or ():
                found += [Rule("node", one["NodeName"], False, "write"), Rule("service", "", True, "read")]
        return Rights(token["AccessorID"], found, self.default)


def _of_service(name: str) -> list[Rule]:
    """https://developer.hashicorp.com/consul/docs/security/acl/acl-roles#service-identities"""
    own = [Rule("service", one, False, "write") for one in (name, f"{name}-sidecar-proxy")]
    return [*own, Rule("service", "", True, "read"), Rule("node", "", True, "read")]
