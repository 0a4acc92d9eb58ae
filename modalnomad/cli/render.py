"""`modalnomad render`: a program as the jobs of a cluster."""

from __future__ import annotations

from typing import Annotated

import typer

from modalnomad.cli.common import EnvOption, JsonOption, load_settings
from modalnomad.cli.output import emit, json_text, out


def render(
    reference: Annotated[
        str, typer.Argument(metavar="FILE", help="`file.py` or `file.py::app`; with -m, `package.module`.")
    ],
    *,
    module: Annotated[bool, typer.Option("-m", "--module", help="FILE is the dotted name of a module.")] = False,
    name: Annotated[str | None, typer.Option("--name", "-n", help="Name of the App. [default: its own]")] = None,
    version: Annotated[
        int, typer.Option("--version", min=1, help="The App's version that the jobs are named after.")
    ] = 1,
    env: EnvOption = None,
    as_json: JsonOption = False,
) -> None:
    """Print what a deploy of the program to a cluster would register at Nomad: one job for each Function.

    Images are built on this machine, as for a deploy. No server is asked and nothing is registered: secrets are not
    looked for, and the hash of the ticket that requests carry is made of zeros.

    Example: `modalnomad render examples/hello.py`
    """
    from modalnomad.cli.changing import Told
    from modalnomad.deploy.collect import Reference
    from modalnomad.wiring.loop import run
    from modalnomad.wiring.render import render_program

    settings = load_settings(env)
    wanted = Reference.parse(reference, module=module)
    bodies = run(render_program(settings, wanted, name, version=version, report=Told()))
    if as_json:
        for body in bodies:
            emit(body)
    else:
        out.print(json_text(bodies, indent=2), markup=False)
