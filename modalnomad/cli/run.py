"""`modalnomad run`: a local entrypoint, or one Function, to its end."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from modalnomad.cli.common import EnvOption, JsonOption, load_settings

if TYPE_CHECKING:
    from modalnomad.cli.running import Wanted
    from modalnomad.settings import Settings

PASSED_ON = {"allow_interspersed_args": False, "ignore_unknown_options": False}
"""Everything behind FILE is the program's."""


def run(
    reference: Annotated[
        str,
        typer.Argument(
            metavar="FILE",
            help="`file.py`, `file.py::name` or `file.py::Class.method`; with -m, `package.module::name`.",
        ),
    ],
    arguments: Annotated[
        list[str] | None,
        typer.Argument(metavar="[ARGS]...", help="Options of the program, `--name value`; `--help` lists them."),
    ] = None,
    *,
    module: Annotated[bool, typer.Option("-m", "--module", help="FILE is the dotted name of a module.")] = False,
    name: Annotated[str | None, typer.Option("--name", "-n", help="Name of the App. [default: its own]")] = None,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Leave out what replicas write, their comings and goings, progress.")
    ] = False,
    write_result: Annotated[
        Path | None,
        typer.Option("--write-result", "-w", metavar="RESULT", help="Write the result, a str or bytes, to this file."),
    ] = None,
    env: EnvOption = None,
    as_json: JsonOption = False,
) -> None:
    """Run a local entrypoint on this machine, or a Function that is no web endpoint in its image.

    Without a name: the only local entrypoint, else the only Function. Options of `run` stand before FILE; what follows
    FILE is made from the annotations of what is run: `x: int` is `--x 3`, `fast: bool` is `--fast` or `--no-fast`.
    The result of a Function is printed. A local entrypoint calls Functions with `.remote()`, `.map()`, `.spawn()`.

    Example: `modalnomad run examples/batch.py --longest 3`
    """
    from modalnomad.cli.running import Wanted
    from modalnomad.deploy.collect import Reference, check_reference
    from modalnomad.wiring.loop import run as run_loop

    settings = load_settings(env)
    parsed = Reference.parse(reference, module=module)
    check_reference(parsed)
    wanted = Wanted(parsed, tuple(arguments or ()), name, write_result)
    if code := run_loop(_run(settings, wanted, quiet=quiet, as_json=as_json)):
        raise typer.Exit(code)


async def _run(settings: Settings, wanted: Wanted, *, quiet: bool, as_json: bool) -> int:
    """Exit code: the program's own; 130 when interrupted."""
    from modalnomad.cli.interrupts import Interrupts
    from modalnomad.cli.outlet import Outlet
    from modalnomad.cli.run_view import RunJson, RunQuiet, RunText
    from modalnomad.cli.running import Running
    from modalnomad.wiring.run import open_run

    # Whoever read our output and went away wanted it to end, as with Ctrl-C.
    with Interrupts() as interrupts, Outlet(sys.stdout.fileno(), interrupts.take) as outlet:
        view = RunJson(outlet, quiet=quiet) if as_json else RunQuiet(outlet) if quiet else RunText(outlet)
        async with open_run(settings) as parts, Running(parts, view, wanted) as running:
            if not await interrupts.race(running.run()):
                await interrupts.race(running.abort())
                return 130
            if not await interrupts.race(running.stop()):
                return 130
            return running.code
