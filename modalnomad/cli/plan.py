"""`modalnomad plan`: what a deploy would change."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from modalnomad.cli.common import EnvOption, JsonOption, load_settings
from modalnomad.cli.output import emit, out

if TYPE_CHECKING:
    from collections.abc import Sequence

    from modalnomad.deploy.collect import Reference
    from modalnomad.deploy.planning import Comparison
    from modalnomad.settings import Settings
    from modalnomad.wiring.cluster_plan import JobPlan

COLOURS = {"+": "green", "~": "yellow", "-": "red", "?": "dim"}


def plan(
    reference: Annotated[
        str, typer.Argument(metavar="FILE", help="`file.py` or `file.py::app`; with -m, `package.module`.")
    ],
    *,
    module: Annotated[bool, typer.Option("-m", "--module", help="FILE is the dotted name of a module.")] = False,
    name: Annotated[str | None, typer.Option("--name", "-n", help="Name of the App. [default: its own]")] = None,
    env: EnvOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say what a deploy of the program would change, and what would stop it; nothing is built or written.

    Images are compared by what the program says of them. On a cluster it also tells how each Function's job would
    change in Nomad and whether a node could run it, and the exit code is 1 when anything would stop the deploy.

    Example: `modalnomad plan examples/hello.py`
    """
    from modalnomad.deploy.collect import Reference
    from modalnomad.wiring.loop import run

    settings = load_settings(env)
    comparison, jobs = run(_compare(settings, Reference.parse(reference, module=module), name))
    obstacles = [*comparison.obstacles, *(f"{j.function} cannot run: {j.reason}" for j in jobs if j.answer == "never")]
    if as_json:
        emit(
            {**_record(comparison), "obstacles": obstacles, **({"jobs": [asdict(job) for job in jobs]} if jobs else {})}
        )
    else:
        _show(comparison, jobs, obstacles)
    if obstacles and settings.backend == "hashicorp":
        raise typer.Exit(1)


def _show(comparison: Comparison, jobs: Sequence[JobPlan], obstacles: Sequence[str]) -> None:
    app, before = comparison.plan.app, comparison.before
    since = f"v{before.version}" if before and before.versions else "not deployed yet"
    out.print(f"[bold]{escape(app)}[/] in environment {comparison.plan.environment} ({since})")
    for difference in comparison.differences:
        colour = COLOURS[difference.sign]
        out.print(f"[{colour}]{escape(str(difference))}[/]")
    if not comparison.differences:
        out.print("= nothing changes", markup=False)
    for job in jobs:
        _show_job(job)
    for obstacle in obstacles:
        out.print(f"[bold red]![/] {escape(obstacle)}")


def _show_job(job: JobPlan) -> None:
    if job.job and not job.registered:
        out.print(f"[green]+ Nomad job {escape(job.job)}[/]")
    elif job.changes:
        out.print(f"[yellow]~ Nomad job of {escape(job.function)}[/], beside {escape(job.job)} as it is registered:")
    for change in job.changes:
        out.print(f"    [{COLOURS[change[0]]}]{escape(change)}[/]")
    if job.guessed:
        out.print(f"  {job.function}: its image is not made yet, so what follows from it is a guess", markup=False)
    if job.answer == "not_now":
        out.print(f"  {job.function}: a replica would have to wait now: {job.reason}", markup=False)


async def _compare(
    settings: Settings, reference: Reference, name: str | None
) -> tuple[Comparison, tuple[JobPlan, ...]]:
    from modalnomad.cli.changing import Told
    from modalnomad.deploy.planning import compare_program
    from modalnomad.wiring.deploy import open_deploy

    async with open_deploy(settings) as parts:
        comparison = await compare_program(
            reference,
            name,
            builder=parts.builder,
            discovery=parts.discovery,
            artifacts=parts.stores.artifacts,
            report=Told(),
        )
    if settings.backend != "hashicorp":
        return comparison, ()
    from modalnomad.wiring.cluster_plan import plan_jobs

    return comparison, await plan_jobs(settings, comparison)


def _record(comparison: Comparison) -> dict[str, object]:
    before = comparison.before
    return {
        "app": comparison.plan.app,
        "environment": comparison.plan.environment,
        "version": before.version if before else 0,
        "changes": [
            {"sign": difference.sign, "subject": difference.subject, "words": difference.words}
            for difference in comparison.differences
        ],
    }
