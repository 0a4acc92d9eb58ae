"""A job is held against the schema before it is sent anywhere."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, Final

from modalnomad.render.nomad_schema import (
    BODY,
    DRIVERS,
    TASK,
    Block,
    Flag,
    Kind,
    Many,
    Text,
    Texts,
    Whole,
)

META_REFERENCE: Final = re.compile(r"\$\{NOMAD_META_([^}]*)\}")


def check_job(body: Mapping[str, Any]) -> None:
    """Every key is known, every value of its kind, nothing missing, and what refers to something else finds it.

    Raises:
        ValueError: names everything that is wrong, with its path.
    """
    problems = list(_problems(BODY, body, ""))
    if not problems:
        problems = list(_references(body["Job"]))
    if problems:
        raise ValueError("the rendered job is not right: " + "; ".join(problems))


def _problems(kind: Kind, value: object, path: str) -> Iterator[str]:
    match kind:
        case Block():
            yield from _block(kind, value, path)
        case Many():
            if not isinstance(value, list):
                yield f"{path} is {value!r}: it must be a list"
                return
            if len(value) < kind.least:
                yield f"{path} is empty"
            for number, each in enumerate(value):
                yield from _problems(kind.of, each, f"{path}[{number}]")
        case Texts():
            if not isinstance(value, dict):
                yield f"{path} is {value!r}: it must be an object"
                return
            for name, each in value.items():
                if not (isinstance(name, str) and re.fullmatch(kind.keys, name)):
                    yield f"{path} has the key {name!r}, which must match {kind.keys}"
                if not isinstance(each, str):
                    yield f"{path}.{name} is {each!r}: it must be a text"
        case Text():
            if not (isinstance(value, str) and re.fullmatch(kind.pattern, value)):
                yield f"{path} is {value!r}: it must be {kind.what}"
        case Flag():
            if not isinstance(value, bool):
                yield f"{path} is {value!r}: it must be true or false"
        case Whole():
            if isinstance(value, bool) or not isinstance(value, int) or not kind.least <= value <= kind.most:
                yield f"{path} is {value!r}: it must be a whole number from {kind.least}"


def _block(kind: Block, value: object, path: str) -> Iterator[str]:
    if not isinstance(value, dict):
        yield f"{path or 'the body'} is {value!r}: it must be an object"
        return
    keys = kind.keys
    if kind is TASK and (config := DRIVERS.get(str(value.get("Driver")))) is not None:
        keys = {**keys, "Config": config}
    for name, each in value.items():
        where = f"{path}.{name}" if path else str(name)
        if name not in keys:
            yield f"{where} is no key of Nomad's that is known here"
        else:
            yield from _problems(keys[name], each, where)
    for name in sorted(kind.required - value.keys()):
        yield f"{path}.{name} is missing" if path else f"{name} is missing"


def _references(job: Mapping[str, Any]) -> Iterator[str]:
    """Nomad itself takes all of these, and fails when a task starts."""
    parameterized = job.get("ParameterizedJob")
    if parameterized is not None and job["Type"] != "batch":
        yield f"ParameterizedJob in a job of type {job['Type']}"
    given = {*job.get("Meta", {}), *(parameterized or {}).get("MetaOptional", ())}
    given |= {*(parameterized or {}).get("MetaRequired", ())}
    for group in job["TaskGroups"]:
        networks = group.get("Networks", ())
        ports = [p for n in networks for kind in ("DynamicPorts", "ReservedPorts") for p in n.get(kind, ())]
        labels = Counter(port["Label"] for port in ports)
        yield from (f"port {label} is there {count} times" for label, count in labels.items() if count > 1)
        for service in group.get("Services", ()):
            if service["PortLabel"] not in labels:
                yield f"service {service['Name']} has the port {service['PortLabel']}, which the group has not"
        for task in group["Tasks"]:
            files = Counter(template["DestPath"] for template in task.get("Templates", ()))
            yield from (f"two templates make {path}" for path, count in files.items() if count > 1)
            if files and "Vault" not in task:
                yield f"task {task['Name']} has templates and no Vault block"
        if parameterized is not None:
            wanted = set(META_REFERENCE.findall(repr(group)))
            yield from (f"${{NOMAD_META_{name}}} is in no Meta" for name in sorted(wanted - given))
