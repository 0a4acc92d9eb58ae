"""`modalnomad app`: what was deployed."""

from __future__ import annotations

import typer

from modalnomad.cli import app_changes, app_logs, app_shown

app = typer.Typer(help="Apps: what was deployed, and what became of it.", no_args_is_help=True)

app.command("list", epilog="Example: `modalnomad app list --env staging`")(app_shown.list_)
app.command("history", epilog="Example: `modalnomad app history shop`")(app_shown.history)
app.command("rollback", epilog="Example: `modalnomad app rollback shop v3`")(app_changes.rollback)
app.command("stop", epilog="Example: `modalnomad app stop shop -y`")(app_changes.stop)
app.command("scale", epilog="Example: `modalnomad app scale shop/checkout --min 1 --max 8`")(app_changes.scale)
app.command("logs", epilog="Example: `modalnomad app logs shop -f --function checkout`")(app_logs.logs)
