"""Policies and tokens: what a request may do, decided as Nomad's ACL does."""

from __future__ import annotations

import base64
import datetime
import fnmatch
import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from tests.support.fakes.identity import Signer
from tests.support.fakes.nomad.state import Refused, Shape, State, Write, new_id

DENIED: Final = Refused(403, "Permission denied")
_READ: Final = frozenset(
    {"list-jobs", "parse-job", "read-job", "read-job-scaling", "list-scaling-policies", "read-scaling-policy"}
)
_SCALE: Final = frozenset({"list-scaling-policies", "read-job-scaling", "read-scaling-policy", "scale-job"})
_WRITE: Final = (
    _READ
    | _SCALE
    | {
        "submit-job",
        "dispatch-job",
        "read-logs",
        "read-fs",
        "alloc-exec",
        "alloc-lifecycle",
        "submit-recommendation",
    }
)
CAPABILITIES: Final = _WRITE | {
    "deny",
    "alloc-node-exec",
    "register-job",
    "revert-job",
    "deregister-job",
    "purge-job",
    "evaluate-job",
    "plan-job",
    "tag-job-version",
    "csi-list-volume",
    "csi-mount-volume",
    "csi-read-volume",
    "csi-register-plugin",
    "csi-write-volume",
    "host-volume-create",
    "host-volume-delete",
    "host-volume-read",
    "host-volume-register",
    "host-volume-write",
    "sentinel-override",
}
_SHORT: Final = {"read": _READ, "write": _WRITE, "scale": _SCALE, "deny": frozenset({"deny"}), "": frozenset[str]()}
_COARSE: Final = ("agent", "node", "operator", "quota", "plugin", "host_volume", "node_pool")
_TOKEN: Final = re.compile(r'\s*(?:#[^\n]*|//[^\n]*|(?P<text>"[^"]*")|(?P<word>[\w-]+)|(?P<sign>[{}\[\]=,:]))')


@dataclass(frozen=True)
class Rights:
    """What a token may do. `management`: all of it."""

    namespaces: tuple[tuple[str, frozenset[str]], ...] = ()
    """Pattern, capabilities."""
    coarse: Mapping[str, str] | None = None
    """`node`: `read`."""
    management: bool = False

    def can(self, capability: str, namespace: str) -> bool:
        """In a namespace; `*`: in any."""
        if self.management:
            return True
        if namespace == "*":
            return any(capability in own for _, own in self.namespaces)
        return capability in self._own(namespace)

    def can_literally(self, capability: str, namespace: str) -> bool:
        """As `can`, but `*` needs a policy for `*` itself (the event stream)."""
        return self.management or capability in self._own(namespace)

    def _own(self, namespace: str) -> frozenset[str]:
        """The most exact pattern decides."""
        fit = [(pattern, own) for pattern, own in self.namespaces if fnmatch.fnmatchcase(namespace, pattern)]
        if not fit:
            return frozenset()
        closest = max(fit, key=lambda each: (each[0] == namespace, len(each[0].replace("*", ""))))[0]
        merged = frozenset[str]().union(*(own for pattern, own in fit if pattern == closest))
        return frozenset() if "deny" in merged else merged

    def may_read(self, what: str) -> bool:
        """`node`, `agent`, `operator`."""
        return self.management or (self.coarse or {}).get(what, "") in {"read", "write"}

    def may_write(self, what: str) -> bool:
        """See `may_read`."""
        return self.management or (self.coarse or {}).get(what, "") == "write"

    def sees(self, namespace: str) -> bool:
        """Any right in it, but denial."""
        return self.management or bool(self._own(namespace))


MANAGEMENT: Final = Rights(management=True)


def parsed(rules: str) -> Rights:
    """Policy rules in HCL, or as JSON. Raises ValueError."""
    namespaces: list[tuple[str, frozenset[str]]] = []
    coarse: dict[str, str] = {}
    for kind, label, body in _blocks_of_json(rules) if rules.lstrip().startswith("{") else _blocks(rules):
        if kind == "namespace":
            own = _SHORT.get(str(body.get("policy", "")))
            if own is None:
                raise ValueError(f"Invalid namespace policy: {body.get('policy')}")
            listed = frozenset(body.get("capabilities") or ())
            if unknown := sorted(listed - CAPABILITIES):
                raise ValueError(f"Invalid namespace capability '{unknown[0]}'")
            namespaces.append((label, own | listed))
        elif kind in _COARSE:
            coarse[kind] = str(body.get("policy", ""))
        else:
            raise ValueError(f"Failed to parse ACL Policy: invalid key {kind}")
    return Rights(tuple(namespaces), coarse)


def _blocks_of_json(rules: str) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """Namespaces by name, the rest as one block of each kind."""
    for kind, content in json.loads(rules).items():
        if kind == "namespace":
            yield from ((kind, label, body) for label, body in content.items())
        else:
            yield kind, "", content


def _blocks(rules: str) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    tokens = [str(m.group(m.lastgroup)) for m in _TOKEN.finditer(rules) if m.lastgroup]
    while tokens:
        kind = tokens.pop(0).strip('"')
        label = tokens.pop(0).strip('"') if tokens and tokens[0].startswith('"') else "default"
        yield kind, label, _body(tokens)


def _body(tokens: list[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    try:
        if tokens.pop(0) != "{":
            raise ValueError("Failed to parse ACL Policy: expected {")
        while (name := tokens.pop(0)) != "}":
            if tokens[0] == "{" or tokens[0].startswith('"'):  # variables { … }: no request here needs them
                while tokens[0] != "{":
                    tokens.pop(0)
                _body(tokens)
                continue
            if tokens.pop(0) != "=":
                raise ValueError(f"Failed to parse ACL Policy: expected = after {name}")
            value = tokens.pop(0)
            if value != "[":
                found[name] = value.strip('"')
                continue
            listed = []
            while (item := tokens.pop(0)) != "]":
                if item != ",":
                    listed.append(item.strip('"'))
            found[name] = listed
    except IndexError:
        raise ValueError("Failed to parse ACL Policy: object expected closing RBRACE got: EOF") from None
    return found


def rights_of(state: State, secret: str, signer: Signer) -> Rights:
    """Of the token of a request; none: anonymous. Raises Refused: nobody's token. `signer`: of workload identities."""
    if not secret:
        policy = state.policies.get("anonymous")
        return parsed(policy["Rules"]) if policy else Rights()
    if secret.count(".") == 2:
        return _all([parsed(policy["Rules"]) for policy in policies_of_identity(state, secret, signer)])
    token = next((token for token in state.tokens.values() if token["SecretID"] == secret), None)
    if token is None or (token["ExpirationTime"] and token["ExpirationTime"] <= _now()):
        raise DENIED
    if token["Type"] == "management":
        return MANAGEMENT
    names = list(token["Policies"] or ())
    for role in token["Roles"] or ():
        known = state.roles.get(role.get("ID", ""))
        names += [policy["Name"] for policy in (known or {}).get("Policies") or ()]
    return _all([parsed(state.policies[name]["Rules"]) for name in names if name in state.policies])


def policies_of_identity(state: State, identity: str, signer: Signer) -> list[Shape]:
    """What a workload may that shows its signed identity: policies say of which job's. It ends with its allocation.
    Raises Refused."""
    try:
        claims = signer.verified(identity)
        alloc = state.allocations[claims["nomad_allocation_id"]]
    except (ValueError, KeyError):
        raise DENIED from None
    if alloc["ClientStatus"] in {"complete", "failed", "lost"}:
        raise DENIED
    # A child's are its parent's.
    where = {"Namespace": alloc["Namespace"], "JobID": alloc["Job"].get("ParentID") or alloc["JobID"]}
    where |= {"Group": alloc["TaskGroup"], "Task": claims.get("nomad_task")}
    return [policy for policy in state.policies.values() if (acl := policy["JobACL"]) and _fits(acl, where)]


def _fits(acl: Mapping[str, str], where: Mapping[str, Any]) -> bool:
    """The first level that is left out takes all below it."""
    for level in ("Namespace", "JobID", "Group", "Task"):
        if not acl.get(level):
            return True
        if acl[level] != where[level]:
            return False
    return True


def _all(found: list[Rights]) -> Rights:
    coarse: dict[str, str] = {}
    for rights in found:
        coarse |= {name: level for name, level in (rights.coarse or {}).items() if coarse.get(name) != "write"}
    return Rights(tuple(each for rights in found for each in rights.namespaces), coarse)


def make_token(change: Write, body: Mapping[str, Any]) -> Shape:
    """As `PUT /v1/acl/token` answers; kept. Raises Refused."""
    kind = body.get("Type") or "client"
    problem = ""
    if kind not in {"client", "management"}:
        problem = "token type must be client or management"
    elif kind == "client" and not body.get("Policies") and not body.get("Roles"):
        problem = "client token missing policies or roles"
    elif kind == "management" and body.get("Policies"):
        problem = "management token cannot be associated with policies or roles"
    if problem:
        raise Refused(400, f"token 0 invalid: 1 error occurred:\n\t* {problem}\n\n")
    seconds = int(body.get("ExpirationTTL") or 0) / 1e9 if not isinstance(body.get("ExpirationTTL"), str) else 0.0
    token = {
        "ExpirationTTL": "",
        "AccessorID": new_id(),
        "SecretID": new_id(),
        "Name": body.get("Name", ""),
        "Type": kind,
        "Policies": body.get("Policies") or None,
        "Roles": body.get("Roles") or None,
        "Global": bool(body.get("Global")),
        "Hash": digest(repr(body)),
        "CreateTime": _now(),
        "ExpirationTime": _now(seconds) if seconds else None,
        "CreateIndex": change.index,
        "ModifyIndex": change.index,
    }
    change.state.tokens[token["AccessorID"]] = token
    change.state.tables["acl_token"] = change.index
    return token


def digest(text: str) -> str:
    """As `Hash` fields look."""
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _now(seconds: float = 0.0) -> str:
    at = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=seconds)
    return at.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
