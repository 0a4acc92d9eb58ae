"""What every discovery decides alike: which change of a record is allowed, and the snapshot that records make. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from modalnomad.model.apps import AppRecord
from modalnomad.model.errors import BackendConflict, NotFound, UserError
from modalnomad.model.ids import ENVIRONMENT_NAME, NAME, env_flag
from modalnomad.model.routes import RouteSnapshot, Token
from modalnomad.ports.discovery import PublishApp

TOKEN_ID: Final = re.compile(r"[A-Za-z0-9_-]{1,128}")


def check_change(change: PublishApp, present: AppRecord | None, others: Iterable[AppRecord]) -> None:
    """Raises BackendConflict unless the record's serial is the expected one, and no host it serves is served by
    another App."""
    record = change.record
    check_serial(record.app, record.environment, present.serial if present else 0, change.expected)
    if record.serial != change.expected + 1:
        raise ValueError(f"serial {record.serial} does not follow {change.expected}")
    wanted = {host: route for route in record.routes for host in route.hosts}
    for other in others:
        if (other.app, other.environment) == (record.app, record.environment):
            continue
        for route in other.routes:
            if taken := next((host for host in route.hosts if host in wanted), None):
                raise BackendConflict(
                    f"{wanted[taken].name} wants the host {taken}, which {route.name} in environment "
                    f"{other.environment} has",
                    "give one of them another label= or custom domain, or stop the other App: "
                    f"modalnomad app stop {other.app}" + env_flag(other.environment),
                )


def check_serial(app: str, environment: str, found: int, expected: int) -> None:
    """Raises BackendConflict."""
    if found != expected:
        raise BackendConflict(
            f"App {app} in environment {environment} was changed by somebody else meanwhile "
            f"(found serial {found}, expected {expected})",
            f"look at it with `modalnomad app history {app}{env_flag(environment)}`, then try again",
        )


def check_app(name: str) -> str:
    """The name of an App. Raises UserError."""
    if not NAME.fullmatch(name):
        raise UserError(f"{name!r} is not the name of an App", "a name is 1 to 64 of A-Z, a-z, 0-9, _, . and -")
    return name


def check_environment(name: str) -> str:
    """The name of an environment. Raises UserError."""
    if not ENVIRONMENT_NAME.fullmatch(name):
        raise UserError(
            f"{name!r} is not the name of an environment",
            "a name is 1 to 63 of a-z, 0-9 and -, beginning with a letter or digit",
        )
    return name


def check_token_id(id: str) -> str:
    """The id of a token. Raises NotFound."""
    if not TOKEN_ID.fullmatch(id):
        raise NotFound(f"{id!r} is not the id of a token", "see what there is with: modalnomad token list")
    return id


def no_app(app: str, environment: str) -> NotFound:
    """What withdrawing an unknown App raises."""
    return NotFound(f"there is no App {app} in environment {environment}")


def no_token(id: str, environment: str) -> NotFound:
    """What deleting an unknown token raises."""
    return NotFound(
        f"there is no token {id} in environment {environment}", "see what there is with: modalnomad token list"
    )


def snapshot_of(apps: Iterable[AppRecord], tokens: Iterable[Token], index: int) -> RouteSnapshot:
    """Everything routers serve of these records."""
    apps = tuple(apps)
    return RouteSnapshot(
        routes=tuple(route for app in apps for route in app.routes),
        revisions={revision.id: revision for app in apps for revision in app.revisions},
        tokens=tuple(tokens),
        overrides={id: override for app in apps for id, override in app.overridden.items()},
        deployed_at={
            revision.id: app.current.deployed_at for app in apps if app.current for revision in app.current.revisions
        },
        serials={(app.environment, app.app): app.serial for app in apps},
        index=index,
    )
