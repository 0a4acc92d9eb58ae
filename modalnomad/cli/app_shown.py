"""`modalnomad app list` and `history`: what is deployed, and what was."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from modalnomad.cli.common import EnvOption, JsonOption, load_settings
from modalnomad.cli.output import emit, err, out, show_table

if TYPE_CHECKING:
    from modalnomad.model.apps import AppRecord, AppVersion
    from modalnomad.model.errors import Problem
    from modalnomad.settings import Settings

COMMIT_SHOWN = 8


def list_(
    all_environments: Annotated[bool, typer.Option("--all", "-a", help="Of all environments.")] = False,
    env: EnvOption = None,
    as_json: JsonOption = False,
) -> None:
    """All Apps of the environment, stopped ones too."""
    from modalnomad.wiring.loop import run

    settings = load_settings(env)
    environment = None if all_environments else settings.environment
    records, problems, replicas = run(_read(settings, environment))
    if as_json:
        for record in records:
            emit(_app_record(record, replicas))
    elif records:
        columns: tuple[str, ...] = ("App", "State", "Version", "Endpoints", "Replicas", "Deployed at")
        rows = [_row(record, replicas) for record in records]
        if all_environments:
            columns = ("Environment", *columns)
            rows = [(record.environment, *row) for record, row in zip(records, rows, strict=True)]
        show_table(columns, rows)
    else:
        where = "" if all_environments else f" in environment {settings.environment}"
        out.print(f"No Apps{where}.", markup=False)
    for problem in problems:
        err.print(f"Not shown: {problem}", markup=False)
    if problems:
        err.print("What serves now goes on with what it last read of them.", markup=False)


async def _read(
    settings: Settings, environment: str | None
) -> tuple[tuple[AppRecord, ...], tuple[Problem, ...], Mapping[tuple[str, str], int] | None]:
    from modalnomad.wiring.records import open_records
    from modalnomad.wiring.running import replicas_by_app

    # What cannot be read is told below, as what the list lacks; in the words of the log it would stand there twice.
    with _unlogged("modalnomad.discovery"):
        async with open_records(settings) as opened:
            records = await opened.discovery.apps(environment)
            problems = await opened.discovery.problems()
        return records, problems, await replicas_by_app(settings)


@contextmanager
def _unlogged(name: str) -> Iterator[None]:
    logger = logging.getLogger(name)
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


def _state(record: AppRecord) -> str:
    return "deployed" if record.stopped_at is None else "stopped"


def _row(record: AppRecord, replicas: Mapping[tuple[str, str], int] | None) -> tuple[str, ...]:
    count = "" if replicas is None else str(replicas.get((record.environment, record.app), 0))
    deployed_at = record.versions[-1].deployed_at if record.versions else 0.0
    return (record.app, _state(record), f"v{record.version}", str(len(record.routes)), count, when(deployed_at))


def _app_record(record: AppRecord, replicas: Mapping[tuple[str, str], int] | None) -> dict[str, object]:
    newest = record.versions[-1] if record.versions else None
    return {
        "app": record.app,
        "environment": record.environment,
        "state": _state(record),
        "version": record.version,
        "endpoints": [{"name": route.endpoint.name, "host": route.hosts[0]} for route in record.routes],
        "replicas": None if replicas is None else replicas.get((record.environment, record.app), 0),
        "deployed_at": newest.deployed_at if newest else None,
        "stopped_at": record.stopped_at,
        "overrides": sorted(record.overrides),
    }


def history(
    app: Annotated[str, typer.Argument(metavar="APP", help="Name of the App.")],
    env: EnvOption = None,
    as_json: JsonOption = False,
) -> None:
    """All versions of an App that are kept, the newest first; each can be rolled back to."""
    from modalnomad.wiring.loop import run

    settings = load_settings(env)
    record = run(_record(settings, app))
    versions = record.versions[::-1]
    if as_json:
        for version in versions:
            emit(_version_record(version, record))
        return
    columns = {"Version": 0, "Deployed at": 1, "By": 2, "Commit": 3, "Tag": 4, "Note": 5, "": 6}
    rows = [_version_row(version, record) for version in versions]
    used = [place for place in columns.values() if place < 4 or any(row[place] for row in rows)]
    names = list(columns)
    show_table([names[place] for place in used], [[row[place] for place in used] for row in rows])
    err.print(f"The newest {settings.embedded.keep_versions} versions are kept.", style="dim", markup=False)


async def _record(settings: Settings, app: str) -> AppRecord:
    from modalnomad.deploy.changing import no_such_app
    from modalnomad.wiring.records import open_records

    async with open_records(settings) as opened:
        record = await opened.discovery.app(app, settings.environment)
        if record is None:
            raise await no_such_app(opened.discovery, app, settings.environment)
        return record


def _version_row(version: AppVersion, record: AppRecord) -> tuple[str, ...]:
    state = "" if version.number != record.version else "stopped" if record.stopped_at is not None else "served"
    commit = version.commit[:COMMIT_SHOWN] + ("*" if version.dirty else "")
    by = version.deployed_by
    return (f"v{version.number}", when(version.deployed_at), by, commit, version.tag, version.note, state)


def _version_record(version: AppVersion, record: AppRecord) -> dict[str, object]:
    return {
        "app": record.app,
        "environment": record.environment,
        "version": version.number,
        "served": record.current is version,
        "deployed_at": version.deployed_at,
        "deployed_by": version.deployed_by,
        "client": version.client,
        "commit": version.commit,
        "dirty": version.dirty,
        "tag": version.tag,
        "note": version.note,
        "functions": [revision.function.tag for revision in version.revisions],
    }


def when(seconds: float) -> str:
    """Local time."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))
