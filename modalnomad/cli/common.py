"""Options and set-up that all commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError

from modalnomad.model.errors import UserError
from modalnomad.model.ids import ENVIRONMENT_NAME
from modalnomad.settings import Settings, config_file

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, one object a line.")]
EnvOption = Annotated[
    str | None,
    typer.Option("--env", "-e", help="Environment: a namespace for Apps, secrets and tokens. [default: main]"),
]


def load_settings(environment: str | None = None, **groups: dict[str, Any]) -> Settings:
    """Flags over environment variables over the settings file. `groups`: fields of a group given as flags, None: not
    given. Raises UserError."""
    flags: dict[str, Any] = {name: given for name, fields in groups.items() if (given := _given(fields))}
    if environment is not None:
        flags["environment"] = environment
    try:
        settings = Settings(**flags)
    except ValidationError as error:
        raise settings_error(error) from None
    except (OSError, ValueError) as error:
        raise UserError(f"the settings in {config_file()} cannot be read: {error}", "correct the file") from error
    if not ENVIRONMENT_NAME.fullmatch(settings.environment):
        raise UserError(
            f"{settings.environment!r} is no environment name", "a-z, 0-9 and '-', at most 63, not starting with '-'"
        )
    return settings.model_copy(update={"home": Path(settings.home).expanduser().absolute()})


def _given(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


def settings_error(error: ValidationError) -> UserError:
    """Every wrong setting with the rule it breaks."""
    lines = []
    for problem in error.errors():
        path = [str(part) for part in problem["loc"]]
        rule = "there is no such setting" if problem["type"] == "extra_forbidden" else problem["msg"]
        lines.append(f"{'.'.join(path)} (MODALNOMAD_{'__'.join(path).upper()}) = {problem['input']!r}: {rule}")
    return UserError(
        "wrong settings:\n" + "\n".join(lines),
        f"they come from flags, environment variables or {config_file()}; docs/configuration.md has all of them",
    )
