"""The reference pages in `docs/`, made from the commands and the settings themselves.

`scripts/docs` writes them (`python -m modalnomad.cli.reference FOLDER`), a test compares."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer
from pydantic import BaseModel

from modalnomad.cli.main import app
from modalnomad.cli.reference_errors import errors_page
from modalnomad.cli.reference_rights import rights_page
from modalnomad.cli.reference_watching import access_log_page, metrics_page
from modalnomad.settings import Settings

MADE = "<!-- Made by scripts/docs from the code; change it there. -->\n"
PAGES = (
    "cli.md",
    "configuration.md",
    "errors.md",
    "operate/metrics.md",
    "operate/access-log.md",
    "operate/cluster-rights.md",
)


def pages() -> dict[str, str]:
    """File name → content."""
    return {
        "cli.md": cli_page(),
        "configuration.md": configuration_page(),
        "errors.md": MADE + errors_page(),
        "operate/metrics.md": MADE + metrics_page(),
        "operate/access-log.md": MADE + access_log_page(),
        "operate/cluster-rights.md": MADE + rights_page(),
    }


def cli_page() -> str:
    """Every command with its arguments and options."""
    root: Any = typer.main.get_command(app)
    lines = [
        MADE,
        "# Command line",
        "",
        "Exit codes: 0 done; 1 the program's or the machine's problem, told in one message and a hint; 2 wrong usage; "
        "130 interrupted before there was anything to stop in order.",
        "",
        "Options of `modalnomad` itself:",
        "",
        *parameters(root),
    ]
    for path, command in commands(root, "modalnomad"):
        lines += ["", f"## {path}", "", *(text(command.help)), ""]
        lines += [f"    {path} {' '.join(usage(command))}".rstrip(), ""]
        lines += parameters(command)
        if command.epilog:
            lines += ["", *text(command.epilog)]
    return "\n".join(lines).rstrip() + "\n"


def commands(group: Any, path: str) -> Iterator[tuple[str, Any]]:
    """All commands that do something, in the order they are shown."""
    for name, command in group.commands.items():
        if command.hidden:
            continue
        if hasattr(command, "commands"):
            yield from commands(command, f"{path} {name}")
        else:
            yield f"{path} {name}", command


def usage(command: Any) -> list[str]:
    """Words after the command."""
    arguments = [parameter.metavar or parameter.name.upper() for parameter in command.params if is_argument(parameter)]
    return ["[OPTIONS]", *arguments]


def is_argument(parameter: Any) -> bool:
    """Not an option."""
    return bool(parameter.param_type_name == "argument")


def parameters(command: Any) -> list[str]:
    """A table of arguments and options."""
    rows = []
    for parameter in command.params:
        if getattr(parameter, "hidden", False):
            continue
        if is_argument(parameter):
            name = f"`{parameter.metavar or parameter.name.upper()}`"
        else:
            names = ", ".join(f"`{option}`" for option in (*parameter.opts, *parameter.secondary_opts))
            name = names if parameter.is_flag else f"{names} `{kind(parameter)}`"
        rows.append(f"| {name} | {' '.join(text(parameter.help))} |")
    return ["| argument or option | meaning |", "|---|---|", *rows] if rows else []


def kind(parameter: Any) -> str:
    """What an option takes, as a word."""
    return str(parameter.metavar or parameter.bare_type()).upper().replace(" RANGE", "")


def text(raw: str | None) -> list[str]:
    """Lines of a help text, without what is meant for the terminal only."""
    return inspect.cleandoc(raw or "").replace("\b", "").splitlines()


def configuration_page() -> str:
    """Every setting with its variable, default and meaning."""
    lines = [
        MADE,
        "# Configuration",
        "",
        "Settings come from the settings file, over it from environment variables, over those from flags. The file is",
        "`$MODALNOMAD_CONFIG`, else `modalnomad/config.toml` in the configuration folder (`$XDG_CONFIG_HOME`, else",
        "`~/.config`):",
        "",
        "```toml",
        'environment = "staging"',
        "",
        "[router]",
        "port = 8080",
        "```",
        "",
        "A token in a variable (`NOMAD_TOKEN` and its like) counts more than a `token_file` that the file names.",
        "",
        "The state of the embedded back end lies under `$MODALNOMAD_HOME`, else `modalnomad` in the data folder",
        "(`$XDG_DATA_HOME`, else `~/.local/share`).",
        "",
        "## General",
        "",
        *table(Settings, "MODALNOMAD_"),
    ]
    for name, field in Settings.model_fields.items():
        group = field.annotation
        if isinstance(group, type) and issubclass(group, BaseModel):
            lines += ["", f"## [{name}]", "", *text(group.__doc__), "", *table(group, f"MODALNOMAD_{name.upper()}__")]
    return "\n".join(lines).rstrip() + "\n"


def table(group: type[BaseModel], prefix: str) -> list[str]:
    """One row per field that is not a group."""
    rows = []
    for name, field in group.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            continue
        default = "see above" if field.default_factory is not None else shown(field.default)
        meaning = " ".join((field.description or "").split())
        rows.append(f"| `{name}` | `{prefix}{name.upper()}` | {default} | {meaning} |")
    return ["| field | variable | default | meaning |", "|---|---|---|---|", *rows]


def shown(default: Any) -> str:
    """A default as it is written in the file."""
    if default == ():
        return "`[]`"
    if isinstance(default, str):
        return f'`"{default}"`'
    return f"`{default:g}`" if isinstance(default, float) else f"`{default}`"


def main(folder: str) -> None:
    """Write the pages."""
    for name, content in pages().items():
        page = Path(folder, name)
        page.parent.mkdir(exist_ok=True)
        page.write_text(content, "utf-8")


if __name__ == "__main__":
    main(sys.argv[1])
