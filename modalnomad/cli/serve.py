"""`modalnomad serve`: run programs here and now, reloaded as they are edited, gone with Ctrl-C."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from modalnomad.cli.common import EnvOption, JsonOption, load_settings
from modalnomad.model.errors import UserError

if TYPE_CHECKING:
    from modalnomad.deploy.collect import Reference
    from modalnomad.settings import Settings


def serve(
    references: Annotated[
        list[str], typer.Argument(metavar="FILE...", help="`file.py` or `file.py::app`; with -m, `package.module`.")
    ],
    *,
    module: Annotated[bool, typer.Option("-m", "--module", help="FILE is the dotted name of a module.")] = False,
    name: Annotated[str | None, typer.Option("--name", "-n", help="Name of the App. [default: its own]")] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on. [default: 127.0.0.1]")] = None,
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Port to listen on; 0: a free one. [default: 0]")
    ] = None,
    domain: Annotated[str | None, typer.Option(help="Last part of all host names. [default: localhost]")] = None,
    tls_cert: Annotated[Path | None, typer.Option(help="PEM file of a certificate with its chain: HTTPS.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="PEM file of the certificate's key.")] = None,
    env: EnvOption = None,
    as_json: JsonOption = False,
) -> None:
    """Serve programs on this machine until Ctrl-C; every edit is live as soon as it is ready.

    Each web function gets a URL. Nothing runs until the first request comes.

    Example: `modalnomad serve examples/hello.py`
    """
    from modalnomad.deploy.collect import Reference
    from modalnomad.wiring.loop import run

    if name is not None and len(references) > 1:
        raise UserError("--name goes with one program only", "leave it out, or serve the programs one by one")
    settings = load_settings(
        env, router={"host": host, "port": port, "domain": domain, "tls_cert": tls_cert, "tls_key": tls_key}
    )
    parsed = [Reference.parse(text, module=module) for text in references]
    if code := run(_serve(settings, parsed, name, as_json=as_json)):
        raise typer.Exit(code)


async def _serve(settings: Settings, references: Sequence[Reference], name: str | None, *, as_json: bool) -> int:
    """Exit code: 0 after an orderly end, 130 when interrupted before anything was served or a second time."""
    from modalnomad.cli.interrupts import Interrupts
    from modalnomad.cli.outlet import Outlet
    from modalnomad.cli.serve_json import JsonView
    from modalnomad.cli.serve_text import TextView
    from modalnomad.cli.serving import Serving
    from modalnomad.wiring.serve import open_serve

    # Whoever read our output and went away wanted it to end, as with Ctrl-C.
    with Interrupts() as interrupts, Outlet(sys.stdout.fileno(), interrupts.take) as outlet:
        view = JsonView(outlet) if as_json else TextView(outlet)
        async with open_serve(settings) as parts, Serving(parts, view) as serving:
            if not await interrupts.race(serving.start(references, name)):
                return 130
            await interrupts.race(serving.watch())
            return 0 if await interrupts.race(serving.stop()) else 130
