"""`modalnomad secret`: create, list, delete. Values go in and are never shown again."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from modalnomad.cli.common import EnvOption, JsonOption, load_settings
from modalnomad.cli.dotenv import parse_dotenv
from modalnomad.cli.output import emit, out, show_table
from modalnomad.model.apps import users_of
from modalnomad.model.errors import BackendError, NotFound, UserError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from modalnomad.model.apps import AppRecord
    from modalnomad.ports.secrets import SecretInfo
    from modalnomad.wiring.records import Records

app = typer.Typer(help="Secrets: named sets of environment variables for Functions.", no_args_is_help=True)


@app.command(
    epilog="Example: `modalnomad secret create my-web-auth-token AUTH_TOKEN=-` asks for the value without showing it."
)
def create(
    name: Annotated[str, typer.Argument(help="Name, as in `modal.Secret.from_name(NAME)`.")],
    pairs: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE...", help="Values; `KEY=-` reads the value from standard input."),
    ] = None,
    *,
    from_dotenv: Annotated[Path | None, typer.Option(help="Also take the KEY=VALUE lines of this file.")] = None,
    from_json: Annotated[Path | None, typer.Option(help="Also take this file's JSON object of strings.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a secret of this name.")] = False,
    env: EnvOption = None,
    as_json: JsonOption = False,
) -> None:
    """Create a secret, or with --force replace one.

    On a cluster a router then replaces running replicas that were started with the old values, one at a time.
    """
    from modalnomad.wiring.records import with_records

    settings = load_settings(env)
    values = _from_files(from_dotenv, from_json) | _from_arguments(pairs or [])
    if not values:
        raise UserError("no values given", f"modalnomad secret create {name} KEY=VALUE")
    info, users = asyncio.run(
        with_records(settings, lambda records: _create(records, name, settings.environment, values, force=force))
    )
    follows = settings.backend == "hashicorp" and info.version > 1
    if as_json:
        record = {"name": info.name, "environment": info.environment, "keys": info.keys, "version": info.version}
        emit({**record, "used_by": [user.app for user in users]} if follows and users is not None else record)
    else:
        out.print(f"Secret {info.name} holds {', '.join(info.keys)} (environment {info.environment}).", markup=False)
        out.print(f'Use it: secrets=[modal.Secret.from_name("{info.name}")]', markup=False)
        if follows:
            out.print(_followers(users, settings.vault.rotation), markup=False)


async def _create(
    records: Records, name: str, environment: str, values: Mapping[str, str], *, force: bool
) -> tuple[SecretInfo, tuple[AppRecord, ...] | None]:
    """With the Apps that are served and use it; None: that cannot be told now, which does not undo what was written."""
    info = await records.secrets.create(name, environment, values, replace=force)
    try:
        return info, users_of(name, environment, await records.discovery.apps())
    except BackendError:
        return info, None


def _followers(users: tuple[AppRecord, ...] | None, rotation: float) -> str:
    """What becomes of running replicas. `rotation`: seconds between two looks of a router; 0: it does not look."""
    if users is None:
        return "Which Apps use it cannot be told now: Consul does not answer."
    if not users:
        return "No App that is served uses it."
    apps = ", ".join(f"{user.app} (environment {user.environment})" for user in users)
    if not rotation:
        return f"Used by {apps}: running replicas keep the old values (vault.rotation = 0), new ones get these."
    return f"Used by {apps}: within {rotation:g} s a router begins to replace their running replicas, one at a time."


@app.command("list", epilog="Example: `modalnomad secret list --env staging`")
def list_(env: EnvOption = None, as_json: JsonOption = False) -> None:
    """Names and keys of all secrets of the environment; no values."""
    from modalnomad.wiring.records import with_records

    settings = load_settings(env)
    infos = asyncio.run(with_records(settings, lambda records: records.secrets.list(settings.environment)))
    if as_json:
        for info in infos:
            emit(
                {
                    "name": info.name,
                    "environment": info.environment,
                    "keys": info.keys,
                    "version": info.version,
                    "created_at": info.created_at,
                    "updated_at": info.updated_at,
                }
            )
    elif infos:
        rows = ((info.name, ", ".join(info.keys), str(info.version), _when(info.updated_at)) for info in infos)
        show_table(("Name", "Keys", "Version", "Updated"), rows)
    else:
        out.print(f"No secrets in environment {settings.environment}.", markup=False)


@app.command(epilog="Example: `modalnomad secret delete my-web-auth-token`")
def delete(
    name: Annotated[str, typer.Argument(help="Name of the secret.")],
    *,
    allow_missing: Annotated[bool, typer.Option("--allow-missing", help="No error when there is none.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Also when Apps that are served use it.")] = False,
    env: EnvOption = None,
    as_json: JsonOption = False,
) -> None:
    """Delete a secret. Running replicas keep the values they were started with; new ones of Apps that use it cannot
    start any more, so it is refused as long as an App that is served uses it, unless --yes is given."""
    from modalnomad.wiring.records import with_records

    settings = load_settings(env)
    existed = asyncio.run(
        with_records(
            settings,
            lambda records: _delete(records, name, settings.environment, allow_missing=allow_missing, yes=yes),
        )
    )
    if as_json:
        emit({"deleted": name if existed else None, "environment": settings.environment})
    elif existed:
        out.print(f"Secret {name} is deleted (environment {settings.environment}).", markup=False)
    else:
        out.print(f"There is no secret {name} in environment {settings.environment}.", markup=False)


async def _delete(records: Records, name: str, environment: str, *, allow_missing: bool, yes: bool) -> bool:
    """Whether there was one."""
    if not yes and (users := users_of(name, environment, await records.discovery.apps())):
        apps = ", ".join(f"{user.app} (environment {user.environment})" for user in users)
        raise UserError(
            f"secret {name} of environment {environment} is used by what is served: {apps}",
            f"without it their replicas no longer start: stop or change them first, or give it new values with "
            f"`modalnomad secret create {name} … --force`, or add --yes to delete it all the same",
        )
    try:
        await records.secrets.delete(name, environment)
    except NotFound:
        if not allow_missing:
            raise
        return False
    return True


def _from_arguments(pairs: list[str]) -> dict[str, str]:
    """KEY=VALUE; nothing of a malformed argument is repeated, as it may be a value."""
    values: dict[str, str] = {}
    for position, pair in enumerate(pairs, 1):
        key, separator, value = pair.partition("=")
        if not separator or not key:
            raise UserError(f"value {position} is not of the form KEY=VALUE", "write KEY=VALUE, or KEY=- to be asked")
        if key in values:
            raise UserError(f"{key} is given twice", "give each key once")
        values[key] = value
    asked = [key for key, value in values.items() if value == "-"]
    if len(asked) > 1 and not sys.stdin.isatty():
        raise UserError(
            f"only one value can be read from standard input, not {len(asked)}", "use --from-json or --from-dotenv"
        )
    return values | {key: _read_value(key) for key in asked}


def _read_value(key: str) -> str:
    """One line from a terminal without showing it, everything from a pipe (without a final newline)."""
    if sys.stdin.isatty():
        return str(typer.prompt(key, hide_input=True))
    return sys.stdin.read().removesuffix("\n").removesuffix("\r")


def _from_files(dotenv: Path | None, json_file: Path | None) -> dict[str, str]:
    values: dict[str, str] = {}
    if dotenv is not None:
        values |= parse_dotenv(_text(dotenv), str(dotenv))
    if json_file is not None:
        try:
            content = json.loads(_text(json_file))
        except ValueError as error:
            # The decoder's own message quotes nothing of the document; its position is enough to find the place.
            position = f"line {error.lineno}" if isinstance(error, json.JSONDecodeError) else "the file"
            raise UserError(f"{json_file} is not JSON ({position})", "it must hold one object of strings") from None
        if not isinstance(content, dict) or not all(isinstance(value, str) for value in content.values()):
            raise UserError(f"{json_file} does not hold one JSON object of strings", 'for example {"KEY": "VALUE"}')
        values |= content
    return values


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except UnicodeDecodeError:
        raise UserError(f"{path} is not UTF-8 text") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}", "check the path") from error


def _when(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))
