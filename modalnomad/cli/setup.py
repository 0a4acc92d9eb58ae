"""`modalnomad setup`: what a cluster needs before Apps can be deployed on it."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Final, Literal

import typer
from rich.markup import escape

from modalnomad.cli.common import JsonOption, load_settings
from modalnomad.cli.output import emit, out

if TYPE_CHECKING:
    from collections.abc import Sequence

    from modalnomad.hashicorp.setup.platform import ServerName
    from modalnomad.hashicorp.setup.steps import Step
    from modalnomad.settings import Settings

MARKS: Final = {
    "made": "[green]+[/]",
    "changed": "[green]~[/]",
    "there": "[green]✓[/]",
    "left": "[yellow]![/]",
    "would make": "[cyan]+[/]",
    "would change": "[cyan]~[/]",
    "failed": "[red]✗[/]",
    "not done": "[red]·[/]",
}
NAMES: Final = {"nomad": "Nomad", "vault": "Vault", "consul": "Consul"}
WIDTH: Final = 7

TOKENS: Final = """
Tokens are yours to make, for who deploys and for each router, such as:
  nomad acl token create -type client -policy modalnomad-router
  vault token create -orphan -period 24h -policy modalnomad-router
  consul acl token create -policy-name modalnomad-router
Rights of each: docs/operate/cluster-rights.md; what the servers' own settings must say: docs/operate/cluster.md"""

EnvsOption = Annotated[
    list[str] | None,
    typer.Option("--env", "-e", help="Environment to prepare; may be given again. [default: main]"),
]
RouterJobOption = Annotated[
    str | None,
    typer.Option(
        "--router-job",
        metavar="NAMESPACE",
        help="Prepare also for routers that run as a Nomad job, in this namespace of their own, such as modalnomad.",
        show_default=False,
    ),
]
OnlyOption = Annotated[
    Literal["nomad", "vault", "consul"] | None, typer.Option("--only", help="Prepare this server alone.")
]
DryOption = Annotated[bool, typer.Option("--dry-run", help="Only look; change nothing.")]


def setup(
    env: EnvsOption = None,
    router_job: RouterJobOption = None,
    only: OnlyOption = None,
    dry_run: DryOption = False,
    as_json: JsonOption = False,
) -> None:
    """Prepare Nomad, Vault (or OpenBao) and Consul: what is missing is made, the rest is left.

    Namespaces, logins, roles and policies of each environment, the store of secrets, the platform's key. It can be run
    again at any time. It needs tokens that may do this, where the servers ask for any.
    """
    settings = load_settings(env[0] if env else None)
    environments = tuple(dict.fromkeys(env or [settings.environment]))
    steps = asyncio.run(_run(settings, environments, router_job, only, dry_run, as_json))
    failed = [step for step in steps if step.outcome in {"failed", "not done"}]
    if not as_json and not failed and not dry_run:
        out.print(TOKENS, markup=False)
    if failed:
        raise typer.Exit(1)


async def _run(
    settings: Settings,
    environments: Sequence[str],
    router_job: str | None,
    only: ServerName | None,
    dry: bool,
    as_json: bool,
) -> list[Step]:
    from modalnomad.wiring.setup import prepare

    steps = []
    async for step in prepare(settings, environments, router_job=router_job, only=only, dry=dry):
        steps.append(step)
        if as_json:
            emit(asdict(step))
        else:
            _show(step)
    return steps


def _show(step: Step) -> None:
    detail = f": {step.detail}" if step.detail else ""
    told = f"{escape(step.what)} [dim]{step.outcome}[/]{escape(detail)}"
    out.print(f"{MARKS[step.outcome]} {NAMES[step.server]:<{WIDTH}} {told}")
    if step.fix:
        out.print(f"  {'':<{WIDTH}} [dim]→ {escape(step.fix)}[/]")
