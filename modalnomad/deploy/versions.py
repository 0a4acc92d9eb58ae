"""Versions of a deployed App: the next one, an old one again, and what makes two of them alike. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from modalnomad.model.apps import AppRecord, AppVersion, trim
from modalnomad.model.errors import NotFound, Problem, UserError
from modalnomad.model.manifest import Endpoint, Function
from modalnomad.model.revision import Revision
from modalnomad.model.routes import Route, ScalingOverride
from modalnomad.scaling.decide import excess

TAG: Final = re.compile(r"[A-Za-z0-9._-]{1,50}")


def check_tag(tag: str) -> None:
    """Raises UserError for one that could not be told apart in a table."""
    if not TAG.fullmatch(tag):
        raise UserError(f"--tag {tag!r}: 1 to 50 letters, digits, '-', '_' and '.' are allowed")


def next_number(before: AppRecord | None) -> int:
    """Numbers are never used again, also after older versions are gone."""
    return (before.version if before else 0) + 1


def with_version(before: AppRecord | None, version: AppVersion, environment: str, app: str, *, keep: int) -> AppRecord:
    """The App's record with this version served and the newest `keep` of all kept. Overrides end with the version they
    were set on."""
    versions = trim((*(before.versions if before else ()), version), keep)
    return AppRecord(app=app, environment=environment, serial=serial_of(before) + 1, versions=versions)


def serial_of(record: AppRecord | None) -> int:
    """What a change of it expects; 0: there is none yet."""
    return record.serial if record else 0


def stopped(before: AppRecord, now: float) -> AppRecord:
    """Nothing is served, all versions are kept. Raises UserError when that is so already."""
    if before.stopped_at is not None:
        raise UserError(
            f"App {before.app} in environment {before.environment} is stopped already",
            f"bring it back with: modalnomad app rollback {before.app} v{before.version}",
        )
    return before.model_copy(update={"serial": before.serial + 1, "stopped_at": now, "overrides": {}})


def overridden(before: AppRecord, tag: str, override: ScalingOverride) -> AppRecord:
    """With a function's scaling set by hand; an empty override takes it back."""
    others = {name: present for name, present in before.overrides.items() if name != tag}
    overrides = others if override == ScalingOverride() else {**others, tag: override}
    return before.model_copy(update={"serial": before.serial + 1, "overrides": overrides})


def serves_alike(one: AppVersion, other: AppVersion) -> bool:
    """No caller could tell the two apart."""
    return {r.id for r in one.revisions} == {r.id for r in other.revisions} and _doors(one) == _doors(other)


def _doors(version: AppVersion) -> set[tuple[object, ...]]:
    return {(route.endpoint.name, route.hosts, route.revision) for route in version.routes}


def is_unchanged(before: AppRecord | None, version: AppVersion, *, tag: str | None) -> bool:
    """A deploy of it would change nothing. A tag that is given and is another one is a change; so are scaling values
    set by hand, which a deploy takes back, and an App that is stopped."""
    current = before.current if before else None
    if before is None or current is None or before.overrides:
        return False
    return serves_alike(current, version) and tag in {None, current.tag}


def earlier_version(record: AppRecord, text: str | None) -> AppVersion:
    """The version a rollback goes to: `v3`, `3`, or the one before. Of a stopped App the newest is the one before.

    Raises UserError for text that is no version, NotFound for one that is not kept, naming those that are."""
    if text is None:
        number = record.version - (1 if record.stopped_at is None else 0)
        if record.stopped_at is None and len(record.versions) < 2:
            raise NotFound(
                f"App {record.app} has no version before v{record.version}: {kept_in_words(record)}",
                "deploy the program again",
            )
    elif match := re.fullmatch(r"v?([1-9][0-9]{0,8})", text):
        number = int(match[1])
    else:
        raise UserError(f"{text!r} is no version", "write v3 or 3; modalnomad app history shows them")
    found = next((version for version in record.versions if version.number == number), None)
    if found is None:
        gone = "is not kept any more" if number < record.version else "does not exist"
        raise NotFound(
            f"version v{number} of App {record.app} {gone}: {kept_in_words(record)}",
            "choose one of these, or deploy the older program again",
        )
    return found


def kept_in_words(record: AppRecord) -> str:
    """`v3, v4 and v5 are kept`."""
    names = [f"v{version.number}" for version in record.versions]
    if len(names) == 1:
        return f"only {names[0]} is kept"
    return f"{', '.join(names[:-1])} and {names[-1]} are kept"


def taken_hosts(
    app: str, environment: str, wanted: Iterable[tuple[Endpoint, tuple[str, ...]]], others: Iterable[AppRecord]
) -> list[Problem]:
    """Hosts of these endpoints that another App serves: one problem each, naming both."""
    owner = {
        host: route
        for other in others
        if (other.app, other.environment) != (app, environment)
        for route in other.routes
        for host in route.hosts
    }
    return [
        _taken(f"{app}/{endpoint.name}", endpoint.where, host, environment, owner[host])
        for endpoint, hosts in wanted
        for host in hosts
        if host in owner
    ]


def _taken(name: str, where: str, host: str, environment: str, owner: Route) -> Problem:
    elsewhere = "" if owner.environment == environment else f" --env {owner.environment}"
    return Problem(
        where or name,
        f"{name} would take {host}, which {owner.name} in environment {owner.environment} has: give one of them "
        f"another label= or custom domain, or stop the other: modalnomad app stop {owner.app}{elsewhere}",
    )


def revision_of(record: AppRecord, name: str) -> Revision:
    """The served Function of that name, or the one an endpoint of that name belongs to. Raises NotFound."""
    for revision in record.revisions:
        if name in {revision.function.tag, *(endpoint.name for endpoint in revision.function.endpoints)}:
            return revision
    names = ", ".join(revision.function.tag for revision in record.revisions)
    raise NotFound(f"App {record.app} has no Function {name} (it has: {names})", "write APP/FUNCTION")


def merged(present: ScalingOverride, given: ScalingOverride) -> ScalingOverride:
    """Only what is given changes."""
    return present.model_copy(update=given.model_dump(exclude_none=True))


def check_scaling(function: Function, override: ScalingOverride, *, given: ScalingOverride) -> None:
    """Raises UserError for more replicas than can be kept, and for a minimum above the maximum, naming where both come
    from."""
    if why := excess(given):
        raise UserError(f"{function.tag}: {why}", "give a smaller number")
    least = _said("min_containers", function, override, given)
    most = _said("max_containers", function, override, given)
    if least[0] is not None and most[0] is not None and least[0] > most[0]:
        raise UserError(
            f"{function.tag}: at least {least[0]} replicas ({least[1]}) is more than at most {most[0]} ({most[1]})",
            "give --min and --max that go together",
        )


def _said(name: str, function: Function, override: ScalingOverride, given: ScalingOverride) -> tuple[int | None, str]:
    if getattr(given, name) is not None:
        return getattr(given, name), "as given"
    if getattr(override, name) is not None:
        return getattr(override, name), "as set by hand before"
    return getattr(function.scaling, name), "as the program says"
