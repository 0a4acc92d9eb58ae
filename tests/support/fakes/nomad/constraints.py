"""Constraints and affinities: what they look at, and how they compare."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any, Final

from tests.support.fakes.nomad.state import Shape

_UNITS: Final[dict[str, tuple[str, float]]] = (
    {f"{prefix}iB{rate}": (f"B{rate}", 1024.0**n) for rate in ("", "/s") for n, prefix in enumerate("KMGTPE", 1)}
    | {f"{prefix}B{rate}": (f"B{rate}", 1000.0**n) for rate in ("", "/s") for n, prefix in enumerate("kMGTPE", 1)}
    | {"KB": ("B", 1e3), "KB/s": ("B/s", 1e3), "MHz": ("Hz", 1e6), "GHz": ("Hz", 1e9)}
    | {"mW": ("W", 1e-3), "W": ("W", 1.0), "kW": ("W", 1e3), "MW": ("W", 1e6), "GW": ("W", 1e9)}
)
"""Unit: its base, and how many of that it is."""


def node_value(target: str, node: Shape) -> str | None:
    """What a target is on a node; a literal is itself. None: the node has no such thing."""
    match = re.fullmatch(r"\$\{(.*)\}", target or "")
    if match is None:
        return target or ""
    name = match.group(1)
    fixed = {
        "node.unique.id": node["ID"],
        "node.unique.name": node["Name"],
        "node.datacenter": node["Datacenter"],
        "node.class": node["NodeClass"],
        "node.pool": node["NodePool"],
        "node.region": "global",
    }
    if name in fixed:
        return str(fixed[name])
    for prefix, table in (("attr.", node["Attributes"]), ("meta.", node["Meta"])):
        if name.startswith(prefix):
            value = table.get(name.removeprefix(prefix))
            return None if value is None else str(value)
    return None


def escapes(constraint: Mapping[str, Any]) -> bool:
    """It may differ between nodes of one class."""
    return any("unique." in str(constraint.get(side) or "") for side in ("LTarget", "RTarget"))


def named(constraint: Mapping[str, Any]) -> str:
    """As metrics name it."""
    return f"{constraint.get('LTarget', '')} {constraint.get('Operand', '=')} {constraint.get('RTarget') or ''}"


def holds(constraint: Mapping[str, Any], node: Shape) -> bool:
    """On a node."""
    left = node_value(constraint.get("LTarget") or "", node)
    right = node_value(constraint.get("RTarget") or "", node)
    return compare(constraint.get("Operand") or "=", left, right)


def compare(operand: str, left: str | None, right: str | None) -> bool:
    """Texts, as `checkConstraint` of the scheduler does."""
    match operand:
        case "is_set":
            return left is not None
        case "is_not_set":
            return left is None
        case "!=" | "not":
            return left != right
        case "distinct_hosts" | "distinct_property":
            return True
    if left is None or right is None:
        return False
    match operand:
        case "=" | "==" | "is":
            return left == right
        case "<" | "<=" | ">" | ">=":
            return _ordered(operand, left, right)
        case "regexp":
            return re.search(right, left) is not None
        case "version" | "semver":
            return _version(left, right)
        case "set_contains" | "set_contains_all":
            return set(_set(right)) <= set(_set(left))
        case "set_contains_any":
            return bool(set(_set(right)) & set(_set(left)))
    return False


def _set(text: str) -> list[str]:
    return [part.strip() for part in text.split(",")]


def _ordered(operand: str, left: Any, right: Any) -> bool:
    if isinstance(left, str) and isinstance(right, str):
        with contextlib.suppress(ValueError):
            left, right = float(left), float(right)
    return bool({"<": left < right, "<=": left <= right, ">": left > right, ">=": left >= right}[operand])


def _version(text: str, wanted: str) -> bool:
    have = _parsed(text)
    if have is None:
        return False
    for part in _set(wanted):
        match = re.fullmatch(r"(>=|<=|!=|~>|=|>|<)?\s*(.+)", part)
        limit = _parsed(match.group(2)) if match else None
        if match is None or limit is None:
            return False
        sign = match.group(1) or "="
        if sign == "~>":
            count = max(match.group(2).count("."), 1)
            if have < limit or have[0][:count] != limit[0][:count]:
                return False
        elif sign in {"=", "!="}:
            if (have == limit) != (sign == "="):
                return False
        elif not _ordered(sign, have, limit):
            return False
    return True


def _parsed(text: str) -> tuple[tuple[int, ...], bool, tuple[str, ...]] | None:
    match = re.fullmatch(r"v?(\d+(?:\.\d+)*)(?:-([0-9A-Za-z.~-]+))?(?:\+.*)?", text.strip())
    if match is None:
        return None
    numbers = [int(part) for part in match.group(1).split(".")]
    numbers += [0] * (3 - len(numbers))
    return tuple(numbers), match.group(2) is None, tuple((match.group(2) or "").split("."))


# --- devices -----------------------------------------------------------------------------------------------------


def device_matches(ask: Mapping[str, Any], group: Shape) -> bool:
    """Name (`type`, `vendor/type` or `vendor/type/model`) and constraints of an ask hold for a group of devices."""
    parts = str(ask["Name"]).split("/", 2)
    own = [group["Vendor"], group["Type"], group["Name"]]
    wanted = parts == [group["Type"]] if len(parts) == 1 else parts == own[: len(parts)]
    return wanted and all(device_holds(constraint, group) for constraint in ask.get("Constraints") or ())


def device_holds(constraint: Mapping[str, Any], group: Shape) -> bool:
    """A constraint or affinity of an ask."""
    operand = constraint.get("Operand") or "="
    left = _device_value(constraint.get("LTarget") or "", group)
    right = _device_value(constraint.get("RTarget") or "", group)
    if operand not in {"=", "==", "is", "!=", "not", "<", "<=", ">", ">="} or left is None or right is None:
        return compare(operand, _text(left), _text(right))
    (one, base), (other, other_base) = left, right
    if base != other_base or isinstance(one, str) != isinstance(other, str):
        return operand in {"!=", "not"}
    if operand in {"=", "==", "is", "!=", "not"}:
        return bool(one == other) != (operand in {"!=", "not"})
    return _ordered(operand, one, other)


def _text(value: tuple[Any, str] | None) -> str | None:
    return None if value is None else str(value[0])


def _device_value(target: str, group: Shape) -> tuple[Any, str] | None:
    """The value in its base unit, and that unit."""
    match = re.fullmatch(r"\$\{device\.(.*)\}", target)
    if match is None:
        return _literal(target)
    name = match.group(1)
    fixed = {"model": group["Name"], "vendor": group["Vendor"], "type": group["Type"]}
    if name in fixed:
        return fixed[name], ""
    if name == "ids":
        return ",".join(instance["ID"] for instance in group["Instances"]), ""
    value = (group["Attributes"] or {}).get(name.removeprefix("attr."))
    if value is None:
        return None
    if value.get("String") is not None:
        return value["String"], ""
    number = next(value[kind] for kind in ("Int", "Float", "Bool") if value.get(kind) is not None)
    base, factor = _UNITS.get(value.get("Unit") or "", (value.get("Unit") or "", 1.0))
    return number * factor, base


def _literal(text: str) -> tuple[Any, str]:
    match = re.fullmatch(r"\s*(-?\d+(?:\.\d+)?)\s*([A-Za-z/]*)\s*", text)
    if match is None or (match.group(2) and match.group(2) not in _UNITS):
        return ({"true": True, "false": False}.get(text.strip(), text.strip()), "")
    base, factor = _UNITS.get(match.group(2), ("", 1.0))
    return float(match.group(1)) * factor, base


def computed_class(node: Shape) -> str:
    """Nodes of one class are alike to every constraint that names nothing unique."""

    def common(table: Mapping[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in table.items() if not name.startswith("unique.")}

    devices = [(d["Vendor"], d["Type"], d["Name"], d["Attributes"]) for d in node["NodeResources"]["Devices"] or ()]
    alike = [
        node["Datacenter"],
        node["NodeClass"],
        node["NodePool"],
        common(node["Attributes"]),
        common(node["Meta"]),
        devices,
    ]
    digest = hashlib.sha256(json.dumps(alike, sort_keys=True).encode()).digest()
    return f"v1:{int.from_bytes(digest[:8], 'big')}"
