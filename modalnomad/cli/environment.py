"""`modalnomad environment`: the namespaces of Apps, secrets and tokens."""

from __future__ import annotations

from dataclasses import asdict

import typer

from modalnomad.cli.common import EnvOption, JsonOption, load_settings
from modalnomad.cli.output import emit, show_table

app = typer.Typer(help="Environments: namespaces of Apps, secrets and tokens.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Keeps `list` a command of its own, however few there are."""


@app.command("list", epilog="Example: `modalnomad environment list`")
def list_(env: EnvOption = None, as_json: JsonOption = False) -> None:
    """Every environment of this home that holds something, and `main`.

    None needs to be created: `--env NAME` of any command names a new one.
    """
    from modalnomad.wiring.loop import run
    from modalnomad.wiring.records import environments

    settings = load_settings(env)
    found = run(environments(settings))
    if as_json:
        for each in found:
            emit({**asdict(each), "current": each.name == settings.environment})
        return
    rows = (
        (
            each.name,
            str(each.apps) + (f" ({each.stopped} stopped)" if each.stopped else ""),
            str(each.secrets),
            str(each.tokens),
            "this one" if each.name == settings.environment else "",
        )
        for each in found
    )
    show_table(("Environment", "Apps", "Secrets", "Tokens", ""), rows)
