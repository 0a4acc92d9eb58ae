"""An App as plain data: `modalnomad.model.manifest.Description`, which `describe` writes to a file."""

from __future__ import annotations

import base64
import os
import re
import sys
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from . import contract, notices
from .app import App
from .declarations import FunctionDeclaration, FunctionOptions, ParameterDeclaration
from .description_image import image_data
from .schedule import Cron, Period
from .secret import Secret
from .uses import unavailable_in

_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_RESERVED_KEY = re.compile(r"(?:LD|NOMAD|VAULT|MODALNOMAD)_.*|PATH", re.DOTALL)
_PACKAGE = os.path.dirname(os.path.abspath(__file__)) + os.sep


@dataclass(frozen=True)
class SourceOf:
    """Where the program was loaded from: `modalnomad.model.manifest.Source`."""

    mode: str
    entry: str
    root: str
    module: str


@dataclass
class Findings:
    """What is said beside the App: each once."""

    notices: dict[tuple[str, str, str], None] = field(default_factory=dict)
    refusals: dict[tuple[str, str, str], None] = field(default_factory=dict)
    secrets: dict[str, dict[str, str]] = field(default_factory=dict)

    def notice(self, code: str, message: str, where: str) -> None:
        """Accepted without effect, or a warning."""
        self.notices[code, message, where] = None

    def refuse(self, code: str, message: str, where: str) -> None:
        """The program cannot be deployed for this reason."""
        self.refusals[code, message, where] = None


def describe_app(app: App, source: SourceOf) -> dict[str, Any]:
    """All of a Description.

    Raises:
        InvalidError: something that only shows at deploy, as a dotenv file or local module that is not there.
    """
    from . import __version__

    findings = Findings()
    functions = [_function_data(declaration, findings) for declaration in app.declarations.values()]
    _check_local_imports(source, functions, findings)
    for note in notices.collected():
        findings.notice(note.code, note.message, note.where)
    return {
        "contract": contract.VERSION,
        "sdk_version": __version__,
        "python": f"{sys.version_info.major}.{sys.version_info.minor}",
        "app": {
            "schema_version": 1,
            "name": app.name,
            "tags": app._tags,
            "source": {"mode": source.mode, "entry": source.entry, "root": source.root, "module": source.module},
            "functions": functions,
            "entrypoints": list(app.entrypoints),
        },
        "notices": [_said(one) for one in findings.notices],
        "refusals": [_said(one) for one in findings.refusals],
        "anonymous_secrets": findings.secrets,
        "watched": _watched(source, functions),
    }


def _said(one: tuple[str, str, str]) -> dict[str, str]:
    return {"code": one[0], "message": one[1], "where": one[2]}


def _function_data(declaration: FunctionDeclaration, findings: Findings) -> dict[str, Any]:
    options = declaration.options
    _check_limits(declaration, findings)
    _check_effects(declaration, findings)
    return {
        "tag": declaration.tag,
        "where": declaration.where,
        "is_class": declaration.is_class,
        "endpoints": [
            {
                "name": endpoint.name,
                "method_name": endpoint.method_name,
                "kind": endpoint.kind,
                "where": endpoint.where,
                "method": endpoint.method,
                "label": endpoint.label,
                "custom_domains": list(endpoint.custom_domains),
                "docs": endpoint.docs,
                "requires_proxy_auth": endpoint.requires_proxy_auth,
                "port": endpoint.port,
                "port_timeout": endpoint.port_timeout,
            }
            for endpoint in declaration.endpoints
        ],
        "parameters": [_parameter_data(parameter) for parameter in declaration.parameters],
        "methods": list(declaration.methods),
        "scaling": {
            "min_containers": options.min_containers or 0,
            "max_containers": options.max_containers,
            "buffer_containers": options.buffer_containers or 0,
            "scaledown_window": 60.0 if options.scaledown_window is None else float(options.scaledown_window),
            "max_inputs": declaration.max_inputs,
            "target_inputs": declaration.target_inputs,
        },
        "timeout": float(options.timeout),
        "startup_timeout": None if options.startup_timeout is None else float(options.startup_timeout),
        "resources": {
            "cpu": options.cpu,
            "memory": options.memory,
            "gpu": list(options.gpu),
            "ephemeral_disk": options.ephemeral_disk,
        },
        "secrets": _secret_data(declaration, findings),
        "image": image_data(options.image, lambda secrets, where: _references(secrets, where, findings)),
        "schedule": _schedule_data(options),
        "retries": _retries_data(options),
        "include_source": options.include_source,
        "single_use": options.single_use_containers,
        "block_network": options.block_network,
    }


def _parameter_data(parameter: ParameterDeclaration) -> dict[str, Any]:
    default: Any = parameter.default
    if isinstance(default, bytes):
        default = {"bytes": base64.b64encode(default).decode()}
    return {"name": parameter.name, "type": parameter.type, "has_default": parameter.has_default, "default": default}


def _schedule_data(options: FunctionOptions) -> dict[str, Any] | None:
    schedule = options.schedule
    if isinstance(schedule, Cron):
        return {"kind": "cron", "cron": schedule.cron_string, "timezone": schedule.timezone}
    if isinstance(schedule, Period):
        return {"kind": "period", "period": {name: float(value) for name, value in schedule.parts.items()}}
    return None


def _retries_data(options: FunctionOptions) -> dict[str, Any] | None:
    return None if options.retries is None else dict(vars(options.retries))


def _secret_data(declaration: FunctionDeclaration, findings: Findings) -> list[dict[str, Any]]:
    """References, in the order in which later ones win; `env=` comes last."""
    options = declaration.options
    found = _references(options.secrets, declaration.where, findings)
    if options.env:
        found.append({"anonymous": _anonymous(options.env, declaration.where, findings)})
    return found


def _references(secrets: Collection[Secret], where: str, findings: Findings) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for secret in secrets:
        values = secret._values()
        if values is None:
            found.append(
                {
                    "name": secret.name,
                    "required_keys": list(secret.required_keys),
                    "environment": secret.environment_name,
                }
            )
        elif values:
            found.append({"anonymous": _anonymous(values, where, findings)})
    return found


def _anonymous(values: Mapping[str, str], where: str, findings: Findings) -> str:
    import hashlib
    import json

    for key, value in values.items():
        if not _KEY.fullmatch(key) or "\0" in value:
            findings.refuse("bad_key", f"`{key}` cannot be an environment variable", where)
        elif _RESERVED_KEY.fullmatch(key):
            findings.refuse("reserved_key", f"the variable `{key}` is reserved: give it another name", where)
    canonical = json.dumps(dict(values), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    digest = hashlib.sha256(canonical.encode("utf-8", "surrogatepass")).hexdigest()
    findings.secrets[digest] = dict(values)
    return digest


def _check_limits(declaration: FunctionDeclaration, findings: Findings) -> None:
    """What would change the program's meaning."""
    options, where, tag = declaration.options, declaration.where, declaration.tag
    if declaration.is_server:
        findings.refuse(
            "server",
            f"`{tag}`: @app.server() is not available; use @app.cls() with @modal.web_server(port) on a method",
            where,
        )
    if declaration.clustered:
        findings.refuse("clustered", f"`{tag}`: @modal.clustered(…) is not available; replicas start one by one", where)
    for path, volume in options.volumes.items():
        kind = type(volume).__name__
        findings.refuse(kind.lower(), f"`{tag}` mounts a modal.{kind} at {path}, which is not available yet", where)
    for path in options.network_file_systems:
        findings.refuse(
            "networkfilesystem", f"`{tag}` mounts a modal.NetworkFileSystem at {path}, which is not available", where
        )
    if options.proxy is not None:
        findings.refuse("proxy", f"`{tag}` leaves through a modal.Proxy, which is not available", where)
    for shown in unavailable_in(declaration.target):
        findings.refuse("unavailable", f"`{tag}` uses {shown}, which is not available yet", where)
    if "<locals>" in getattr(declaration.target, "__qualname__", ""):
        findings.refuse(
            "serialized",
            f"`{tag}` is defined inside another function and serialized=True, which is not available: move it to the "
            "top level of its module",
            where,
        )


WITHOUT_EFFECT = {
    "cloud": "replicas run on the machines of this platform",
    "region": "replicas run on the machines of this platform",
    "routing_region": "requests come in at this platform's own routers",
    "nonpreemptible": "replicas are not preempted",
    "i6pn": "replicas are reached through the router only",
    "restrict_modal_access": "replicas have no rights on the platform in any case",
    "experimental_options": "they are options of the vendor's platform",
    "serialized": "the module is imported in the replica",
    "enable_memory_snapshot": "every replica imports the module and runs its `enter` methods",
}
"""Arguments of `app.function` and `app.cls` that no back end acts on, and why. What depends on the back end it says."""


def _check_effects(declaration: FunctionDeclaration, findings: Findings) -> None:
    """What is accepted and not acted on."""
    options, where, tag = declaration.options, declaration.where, declaration.tag
    for name, reason in WITHOUT_EFFECT.items():
        if getattr(options, name):
            findings.notice("no_effect", f"`{name}` has no effect here: {reason}", where)
    if declaration.is_server:
        pass
    elif not declaration.endpoints and options.schedule is None:
        findings.notice("not_web", f"`{tag}` has no web endpoint: call it with `modalnomad run`", where)
    elif declaration.methods:
        shown = ", ".join(f"`{tag}.{name}`" for name in declaration.methods)
        findings.notice("not_web", f"no web endpoint, to be called with `modalnomad run`: {shown}", where)
    if declaration.batched:
        findings.notice("no_effect", f"@modal.batched has no effect here: `{tag}` gets what its caller passes", where)


def _local_modules(source: SourceOf) -> dict[str, str]:
    """Imported modules whose files lie in the program's root, with their files; no installed packages."""
    below = source.root.rstrip(os.sep) + os.sep
    installed = (f"{os.sep}site-packages{os.sep}", f"{os.sep}dist-packages{os.sep}")
    prefixes = tuple(
        prefix.rstrip(os.sep) + os.sep
        for prefix in {sys.prefix, sys.base_prefix, sys.exec_prefix}
        if prefix.startswith(below)
    )
    found: dict[str, str] = {}
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None) if isinstance(module, ModuleType) else None
        if not isinstance(file, str) or not file.startswith(below) or file.startswith((_PACKAGE, *prefixes)):
            continue
        if not any(part in file for part in installed):
            found[name] = file
    return found


def _check_local_imports(source: SourceOf, functions: list[dict[str, Any]], findings: Findings) -> None:
    """Modules beside the program that it imports here, but that no replica would find."""
    covered = tuple(_taken(functions))
    own = source.module.partition(".")[0]
    seen: set[str] = set()
    for name, file in _local_modules(source).items():
        top = name.partition(".")[0]
        if top == own or top in seen or name.startswith("modalnomad_sdk"):
            continue
        if any(file == path or file.startswith(path.rstrip(os.sep) + os.sep) for path in covered):
            continue
        seen.add(top)
        findings.notice(
            "local_import",
            f"the program imports `{top}` from beside it, which replicas do not get by themselves: "
            f"image.add_local_python_source({top!r}) takes it along",
            os.path.relpath(file, source.root),
        )


def _taken(functions: list[dict[str, Any]]) -> Iterator[str]:
    for function in functions:
        image = function["image"] or {"mounts": [], "steps": [], "base_arguments": {}}
        for mount in image["mounts"]:
            yield mount["local"]
        for step in image["steps"]:
            yield from step["files"]


def _watched(source: SourceOf, functions: list[dict[str, Any]]) -> list[str]:
    root = Path(source.root)
    if source.mode == "script":
        own = root / source.entry
    else:
        top = source.entry.partition(".")[0]
        own = root / top if (root / top).is_dir() else root / f"{top}.py"
    inside = str(own) + os.sep
    every = {str(own), *_taken(functions)}
    every.update(file for file in _local_modules(source).values() if not file.startswith(inside))
    return sorted(every)
