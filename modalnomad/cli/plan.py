"""`modalnomad plan`: what a deploy would change."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from modalnomad.cli.common import EnvOption, JsonOption, load_settings
from modalnomad.cli.output import emit, out

if TYPE_CHECKING:
    from modalnomad.deploy.collect import Reference
    from modalnomad.deploy.planning import Comparison
    from modalnomad.settings import Settings

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

    Images are compared by what the program says of them.

    Example: `modalnomad plan examples/hello.py`
    """
    from modalnomad.deploy.collect import Reference
    from modalnomad.wiring.loop import run

    settings = load_settings(env)
    comparison = run(_compare(settings, Reference.parse(reference, module=module), name))
    if as_json:
        emit(_record(comparison))
        return
    app, before = comparison.plan.app, comparison.before
    since = f"v{before.version}" if before and before.versions else "not deployed yet"
    out.print(f"[bold]{escape(app)}[/] in environment {comparison.plan.environment} ({since})")
    for difference in comparison.differences:
        colour = COLOURS[difference.sign]
        out.print(f"[{colour}]{escape(str(difference))}[/]")
    if not comparison.differences:
        out.print("= nothing changes", markup=False)
    for obstacle in comparison.obstacles:
        out.print(f"[bold red]![/] {escape(obstacle)}")


async def _compare(settings: Settings, reference: Reference, name: str | None) -> Comparison:
    from modalnomad.cli.changing import Told
    from modalnomad.deploy.planning import compare_program
    from modalnomad.wiring.deploy import open_deploy

    async with open_deploy(settings) as parts:
        return await compare_program(
            reference,
            name,
            builder=parts.builder,
            discovery=parts.discovery,
            artifacts=parts.stores.artifacts,
            report=Told(),
        )


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
        "obstacles": list(comparison.obstacles),
    }
