"""`modalnomad doctor`: is this machine, or a cluster, fit to run Apps, and what to do where it is not."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import asdict
from typing import TYPE_CHECKING, Final

import typer
from rich.markup import escape

from modalnomad.cli.common import EnvOption, JsonOption, load_settings
from modalnomad.cli.output import emit, out
from modalnomad.model.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from modalnomad.kit.finding import Finding

MARKS: Final = {"ok": "[green]✓[/]", "warning": "[yellow]![/]", "problem": "[red]✗[/]"}
WIDTH: Final = 11


def doctor(env: EnvOption = None, as_json: JsonOption = False) -> None:
    """Look at this machine: the home, programs, namespaces, limits, ports, a running `up`. Changes nothing.

    With the back end hashicorp: at Nomad, Consul and Vault, the rights of the tokens, nodes and routers, and at what
    this machine needs to deploy.

    ✓ is well; ! works with a limitation; ✗ is a problem, and the exit code is 1.
    """
    findings = _findings(env)
    for finding in findings:
        if as_json:
            emit(asdict(finding))
        else:
            out.print(f"{MARKS[finding.level]} {escape(finding.check):<{WIDTH}} {escape(finding.message)}")
            if finding.fix:
                out.print(f"  {'':<{WIDTH}} [dim]→ {escape(finding.fix)}[/]")
    if any(finding.level == "problem" for finding in findings):
        raise typer.Exit(1)


def _findings(env: str | None) -> Sequence[Finding]:
    from modalnomad.kit.finding import problem

    try:
        settings = load_settings(env)
    except UserError as error:
        return [problem("settings", error.message, error.hint or "")]
    # What is wrong stands in the findings; it is not told twice.
    logging.getLogger("modalnomad").setLevel(logging.CRITICAL)
    if settings.backend == "hashicorp":
        from modalnomad.wiring.cluster_doctor import examine_with_cluster as examine
    else:
        from modalnomad.wiring.doctor import examine
    return asyncio.run(examine(settings))
