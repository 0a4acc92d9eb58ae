"""`modalnomad app`: what was deployed."""

from __future__ import annotations

import typer

from modalnomad.cli import app_logs

app = typer.Typer(help="Apps: what was deployed, and what became of it.", no_args_is_help=True)

app.command("logs", epilog="Example: `modalnomad app logs shop -f --function checkout`")(app_logs.logs)


@app.callback()
def _group() -> None:
    """A group also while it has one command."""
