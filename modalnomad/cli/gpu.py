"""`modalnomad gpu`: which GPUs there are, and which are free."""

from __future__ import annotations

from dataclasses import asdict

import typer

from modalnomad.cli.common import EnvOption, JsonOption, load_settings
from modalnomad.cli.output import emit, out, show_table

app = typer.Typer(help="GPUs of this machine, or of a cluster's nodes.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """One command more may come."""


@app.command("list", epilog="Example: `modalnomad gpu list --json`")
def list_(env: EnvOption = None, as_json: JsonOption = False) -> None:
    """Types, free and used, by machine.

    Used are those that replicas hold: of this home, or on a cluster of all namespaces the token may see. `gpu="H100"`
    in a program takes a card with that word in its name. GPUs belong to no environment: --env makes no difference.
    """
    from modalnomad.wiring.gpus import gpu_stocks
    from modalnomad.wiring.loop import run

    settings = load_settings(env)
    found = run(gpu_stocks(settings))
    if as_json:
        for stock in found:
            emit(asdict(stock))
    elif found:
        rows = [
            (
                stock.node,
                stock.name,
                "" if stock.memory is None else f"{stock.memory / 1024:.0f} GiB",
                str(stock.count),
                str(stock.used),
                str(stock.free),
                stock.state,
            )
            for stock in found
        ]
        show_table(("Machine", "GPU", "Memory", "Count", "Used", "Free", "State"), rows)
    elif settings.backend == "hashicorp":
        out.print("No node has a GPU: Nomad finds them by its plug-in nomad-device-nvidia.")
    else:
        out.print("This machine has no GPU, or no driver for it.")
