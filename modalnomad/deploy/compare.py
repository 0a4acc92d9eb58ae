"""Compare: what a deploy would change, in words. Pure; no value of a secret and of an environment variable is said.

+ something new    ~ something else than before    - something that goes    ? known only when it is deployed
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from modalnomad.deploy.hosts import Named
from modalnomad.deploy.plan import Plan
from modalnomad.model.apps import AppRecord, AppVersion
from modalnomad.model.manifest import Endpoint, Function, Image, ImageStep, Schedule, SecretRef
from modalnomad.model.routes import Route

Sign = Literal["+", "~", "-", "?"]

SECONDS: Final = frozenset({"timeout", "startup_timeout", "scaledown_window"})
MEBIBYTES: Final = frozenset({"memory", "ephemeral_disk"})
FILES_SHOWN: Final = 5
USERINFO: Final = re.compile(r"//[^/@\s]*@")
"""Credentials in the URL of a package."""


@dataclass(frozen=True, slots=True)
class Difference:
    """One line: `~ function f: timeout 300 s → 60 s`."""

    sign: Sign
    subject: str
    """`function f`, `endpoint Server.files`, `code`, `App`."""
    words: str = ""

    def __str__(self) -> str:
        return f"{self.sign} {self.subject}" + (f": {self.words}" if self.words else "")


@dataclass(frozen=True, slots=True)
class CodeChange:
    """Paths in the bundle."""

    added: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()

    @classmethod
    def between(cls, old: Mapping[str, str], new: Mapping[str, str]) -> CodeChange:
        """Of two bundles: path → digest of the content."""
        return cls(
            added=tuple(sorted(new.keys() - old.keys())),
            changed=tuple(sorted(path for path in new.keys() & old.keys() if new[path] != old[path])),
            removed=tuple(sorted(old.keys() - new.keys())),
        )

    def __bool__(self) -> bool:
        return bool(self.added or self.changed or self.removed)

    def __str__(self) -> str:
        parts = (("changed", self.changed), ("added", self.added), ("removed", self.removed))
        return "; ".join(f"{_count(paths)} {what} ({_listed(paths)})" for what, paths in parts if paths)


def compare(
    plan: Plan, before: AppRecord | None, code: CodeChange | None, newer: Mapping[str, Sequence[str]] | None = None
) -> tuple[Difference, ...]:
    """Of the program and what is deployed. `code`: None when the old source is not there any more. `newer`: function →
    files its image takes in that were written since the last deploy. Empty: nothing changes."""
    old = before.versions[-1] if before and before.versions else None
    if before is None or old is None:
        return tuple(_all_new(plan))
    found: list[Difference] = []
    if before.stopped_at is not None:
        found.append(Difference("~", "App", f"it is stopped since v{old.number} and is served again"))
    found += _endpoints({named.endpoint.name: named for named in plan.named}, old)
    found += _functions(plan, old)
    if code is None:
        found.append(Difference("?", "code", f"the source of v{old.number} is not in this home any more"))
    elif code:
        found.append(Difference("~", "code", str(code)))
    for tag, files in (newer or {}).items():
        found.append(Difference("?", f"function {tag}", f"image: written since v{old.number}: {_listed(files)}"))
    for tag, override in before.overrides.items():
        values = ", ".join(f"{name} {value:g}" for name, value in override.model_dump(exclude_none=True).items())
        found.append(Difference("~", f"function {tag}", f"scaling set by hand is taken back ({values})"))
    return tuple(found)


def _all_new(plan: Plan) -> Iterator[Difference]:
    for named in plan.named:
        yield Difference("+", f"endpoint {named.endpoint.name}", _at(named))
    for function in plan.functions:
        yield Difference("+", f"function {function.tag}", _schedule_words(function))


def _at(named: Named) -> str:
    return ", ".join(named.hosts) + (" (a token is needed)" if named.endpoint.requires_proxy_auth else "")


def _schedule_words(function: Function) -> str:
    return "" if function.schedule is None else f"it runs {schedule_in_words(function.schedule)}"


# --- endpoints -------------------------------------------------------------------------------------------------


def _endpoints(new: Mapping[str, Named], old: AppVersion) -> Iterator[Difference]:
    known = {route.endpoint.name: route for route in old.routes}
    for name, named in new.items():
        if name not in known:
            yield Difference("+", f"endpoint {name}", _at(named))
        elif words := "; ".join(_endpoint_words(known[name], named)):
            yield Difference("~", f"endpoint {name}", words)
    for name, route in known.items():
        if name not in new:
            yield Difference("-", f"endpoint {name}", f"{', '.join(route.hosts)} is not served any more")


def _endpoint_words(route: Route, named: Named) -> Iterator[str]:
    if route.hosts[0] != named.hosts[0]:
        yield f"{route.hosts[0]} → {named.hosts[0]}"
    yield from _gained_and_lost("custom domain", route.hosts[1:], named.hosts[1:])
    was, now = _endpoint_fields(route.endpoint), _endpoint_fields(named.endpoint)
    if was["requires_proxy_auth"] != now["requires_proxy_auth"]:
        yield (
            "a token is needed now" if now["requires_proxy_auth"] else "no token is needed any more: open to everybody"
        )
    yield from _changes(was, now, skip={"requires_proxy_auth", "label", "custom_domains"})


def _endpoint_fields(endpoint: Endpoint) -> dict[str, Any]:
    return endpoint.model_dump(mode="json", exclude={"where", "name"})


# --- functions -------------------------------------------------------------------------------------------------


def _functions(plan: Plan, old: AppVersion) -> Iterator[Difference]:
    known = {revision.function.tag: revision.function for revision in old.revisions}
    new = {function.tag: function for function in plan.functions}
    for tag, function in new.items():
        if tag not in known:
            yield Difference("+", f"function {tag}", _schedule_words(function))
        elif words := "; ".join(_function_words(known[tag], function)):
            yield Difference("~", f"function {tag}", words)
    for tag in known:
        if tag not in new:
            yield Difference("-", f"function {tag}")


def _function_words(old: Function, new: Function) -> Iterator[str]:
    if old.schedule != new.schedule:
        was, now = (schedule_in_words(one.schedule) if one.schedule else "never" for one in (old, new))
        yield f"runs {now} (before: {was})"
    skip = {"where", "image", "endpoints", "secrets", "schedule", "tag"}
    yield from _changes(old.model_dump(mode="json", exclude=skip), new.model_dump(mode="json", exclude=skip))
    yield from _gained_and_lost("secret", _names(old.secrets), _names(new.secrets))
    if words := "; ".join(_image_words(old.image, new.image)):
        yield f"image: {words}"


def _names(refs: Iterable[SecretRef]) -> tuple[str, ...]:
    return tuple(ref.name or f"from the program ({(ref.anonymous or '')[:8]})" for ref in refs)


# --- images ----------------------------------------------------------------------------------------------------


def _image_words(old: Image | None, new: Image | None) -> Iterator[str]:
    if old is None or new is None:
        if old is not new:
            yield "one of its own now" if old is None else "none of its own any more"
        return
    yield from _changes(
        {"base": old.base, "arguments of the base": old.base_arguments, "Python": old.python_version},
        {"base": new.base, "arguments of the base": new.base_arguments, "Python": new.python_version},
        hidden={"arguments of the base"},
    )
    packages = tuple(_gained_and_lost("package", _packages(old), _packages(new)))
    yield from packages
    was, now = _other_steps(old), _other_steps(new)
    if was != now:
        kinds = dict.fromkeys(kind for kind, *_ in (*was, *now) if _of(kind, was) != _of(kind, now))
        told = {step.kind for image in (old, new) for step in image.steps if _listed_packages(step)} if packages else {}
        if untold := [kind for kind in kinds if kind not in told]:
            yield f"step {', '.join(untold)} changed"
        elif not packages:
            yield "the order of its steps changed"
    if _mounts(old) != _mounts(new):
        yield "local files it takes along changed"


def _packages(image: Image) -> tuple[str, ...]:
    return tuple(USERINFO.sub("//***@", str(package)) for step in image.steps for package in _listed_packages(step))


def _listed_packages(step: ImageStep) -> Sequence[Any]:
    found = step.arguments.get("packages")
    return found if isinstance(found, list) else ()


def _other_steps(image: Image) -> tuple[tuple[str, str, tuple[str, ...]], ...]:
    return tuple(
        (step.kind, repr({k: v for k, v in sorted(step.arguments.items()) if k != "packages"}), step.files)
        for step in image.steps
    )


def _of(kind: str, steps: Iterable[tuple[str, str, tuple[str, ...]]]) -> list[tuple[str, str, tuple[str, ...]]]:
    return [step for step in steps if step[0] == kind]


def _mounts(image: Image) -> tuple[tuple[str, str, tuple[str, ...]], ...]:
    return tuple((mount.kind, mount.remote, mount.ignore) for mount in image.mounts)


def schedule_in_words(schedule: Schedule) -> str:
    """`at "0 9 * * *" (Europe/Berlin)`, `every 1 hour 30 minutes`."""
    if schedule.kind == "cron":
        return f'at "{schedule.cron}" ({schedule.timezone})'
    parts = [(amount, unit) for unit, amount in schedule.period.items() if amount]
    return "every " + " ".join(
        f"{amount:g} {unit.removesuffix('s') if amount == 1 else unit}" for amount, unit in parts
    )


# --- words -----------------------------------------------------------------------------------------------------


def _changes(
    old: Mapping[str, Any], new: Mapping[str, Any], *, skip: Iterable[str] = (), hidden: Iterable[str] = ()
) -> Iterator[str]:
    """`timeout 300 s → 60 s` for each leaf that differs; nested mappings by their inner names."""
    was, now = dict(_leaves(old)), dict(_leaves(new))
    for name in dict.fromkeys((*was, *now)):
        if name in skip or was.get(name) == now.get(name):
            continue
        if name in hidden:
            yield f"{name} changed"
        else:
            yield f"{name} {_value(name, was.get(name))} → {_value(name, now.get(name))}"


def _leaves(value: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, inner in value.items():
        if isinstance(inner, dict) and name in {"scaling", "resources"}:
            yield from _leaves(inner)
        else:
            yield name, inner


def _value(name: str, value: Any) -> str:
    if value is None or value == [] or value == {}:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return _listed([_value(name, one) for one in value if one is not None])
    if isinstance(value, dict):
        return ", ".join(f"{key} {_value(key, one)}" for key, one in value.items() if one is not None)
    unit = " s" if name in SECONDS else " MiB" if name in MEBIBYTES else ""
    return f"{value:g}{unit}" if isinstance(value, int | float) else str(value)


def _gained_and_lost(what: str, old: Sequence[str], new: Sequence[str]) -> Iterator[str]:
    """`packages +numpy -pandas`."""
    gained = [f"+{one}" for one in dict.fromkeys(new) if one not in old]
    lost = [f"-{one}" for one in dict.fromkeys(old) if one not in new]
    if gained or lost:
        yield f"{what}{'s' if len(gained) + len(lost) > 1 else ''} {' '.join((*gained, *lost))}"


def _count(paths: Sequence[str]) -> str:
    return "1 file" if len(paths) == 1 else f"{len(paths)} files"


def _listed(paths: Sequence[str]) -> str:
    more = f" and {len(paths) - FILES_SHOWN} more" if len(paths) > FILES_SHOWN else ""
    return ", ".join(paths[:FILES_SHOWN]) + more
