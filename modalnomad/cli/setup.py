"""`modalnomad setup`: what a cluster needs before Apps can be deployed on it."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Final, Literal

import typer
from rich.markup import escape

from modalnomad.cli.common import JsonOption, load_settings
from modalnomad.cli.output import emit, out
from modalnomad.model.errors import UserError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from modalnomad.hashicorp.setup.steps import Step

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
Tokens are yours to make, for who deploys and for each router that is no Nomad job, such as:
  nomad acl token create -type client -policy modalnomad-deployer
  vault token create -orphan -period 24h -policy modalnomad-deployer
  consul acl token create -policy-name modalnomad-deployer
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
    Literal["nomad", "vault", "consul"] | None,
    typer.Option("--only", help="Prepare this server alone. Vault: Nomad is asked whose the namespaces are."),
]
RotateOption = Annotated[
    bool,
    typer.Option(
        "--rotate-key", help="Only replace the platform's key; the one before it holds until it is forgotten."
    ),
]
ForgetOption = Annotated[
    bool,
    typer.Option("--forget-previous-key", help="Only forget the key before, once every App was deployed again."),
]
DryOption = Annotated[bool, typer.Option("--dry-run", help="Only look; change nothing.")]


def setup(
    env: EnvsOption = None,
    router_job: RouterJobOption = None,
    only: OnlyOption = None,
    *,
    rotate_key: RotateOption = False,
    forget_previous_key: ForgetOption = False,
    dry_run: DryOption = False,
    as_json: JsonOption = False,
) -> None:
    """Prepare Nomad, Vault (or OpenBao) and Consul: what is missing is made, the rest is left.

    Namespaces, logins, roles and policies of each environment, the store of secrets, the platform's key. It can be run
    again at any time. It needs tokens that may do this, where the servers ask for any.
    """
    from modalnomad.wiring.setup import change_key, prepare

    of_key = rotate_key or forget_previous_key
    if of_key and (env or router_job or only or (rotate_key and forget_previous_key)):
        raise UserError(
            "--rotate-key and --forget-previous-key each do one thing alone", "give one of them, and no other option"
        )
    settings = load_settings(env[0] if env else None)
    environments = tuple(dict.fromkeys(env or [settings.environment]))
    if of_key:
        steps = change_key(settings, forget=forget_previous_key, dry=dry_run)
    else:
        steps = prepare(settings, environments, router_job=router_job, only=only, dry=dry_run)
    done = asyncio.run(_run(steps, as_json))
    failed = [step for step in done if step.outcome in {"failed", "not done"}]
    if not (as_json or failed or dry_run or of_key):
        out.print(TOKENS, markup=False)
    if failed:
        raise typer.Exit(1)


async def _run(steps: AsyncIterator[Step], as_json: bool) -> list[Step]:
    done: list[Step] = []
    async for step in steps:
        told = {(before.server, before.fix) for before in done}
        done.append(step)
        if as_json:
            emit(asdict(step))
        else:
            _show(step, with_fix=bool(step.fix) and (step.server, step.fix) not in told)
    return done


def _show(step: Step, *, with_fix: bool) -> None:
    """What many steps lack, such as a token, is told under the first of them."""
    detail = f": {step.detail}" if step.detail else ""
    told = f"{escape(step.what)} [dim]{step.outcome}[/]{escape(detail)}"
    out.print(f"{MARKS[step.outcome]} {NAMES[step.server]:<{WIDTH}} {told}")
    if with_fix:
        out.print(f"  {'':<{WIDTH}} [dim]→ {escape(step.fix)}[/]")
