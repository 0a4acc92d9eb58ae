"""`modalnomad up`: serve what is deployed in a home, and follow deploys, until it is stopped."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from modalnomad.cli.common import JsonOption, load_settings
from modalnomad.model.errors import UserError

if TYPE_CHECKING:
    from modalnomad.settings import Settings


def up(
    *,
    host: Annotated[str | None, typer.Option(help="Address to listen on. [default: 127.0.0.1]")] = None,
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Port to listen on; 0: a free one. [default: 8700]")
    ] = None,
    domain: Annotated[str | None, typer.Option(help="Last part of all host names. [default: localhost]")] = None,
    tls_cert: Annotated[Path | None, typer.Option(help="PEM file of a certificate with its chain: HTTPS.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="PEM file of the certificate's key.")] = None,
    admin_port: Annotated[
        int | None,
        typer.Option(min=0, max=65535, help="Port for metrics, health, /debug; 0: a free one. [default: 8701]"),
    ] = None,
    access_log: Annotated[
        str | None, typer.Option(metavar="FILE", help="A line of JSON for each request; `-`: standard output.")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Leave out what replicas write.")] = False,
    env: Annotated[
        str | None, typer.Option("--env", "-e", help="Serve the Apps of this environment only. [default: all]")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Serve everything that is deployed on this machine, all environments, until Ctrl-C; deploys are followed.

    Nothing runs until a request comes. One `up` serves one home (MODALNOMAD_HOME).

    Example: `modalnomad up`
    """
    from modalnomad.wiring.loop import run

    settings = load_settings(
        env,
        router={
            "host": host,
            "port": port,
            "domain": domain,
            "tls_cert": tls_cert,
            "tls_key": tls_key,
            "admin_port": admin_port,
            "access_log": access_log,
        },
    )
    if settings.backend != "embedded":
        raise UserError(
            f"`up` serves what is deployed on this machine, and the settings say backend = {settings.backend}",
            "start `modalnomad router`, which serves what the cluster has; or set MODALNOMAD_BACKEND=embedded",
        )
    if code := run(_up(settings, env, quiet=quiet, as_json=as_json)):
        raise typer.Exit(code)


async def _up(settings: Settings, environment: str | None, *, quiet: bool, as_json: bool) -> int:
    """Exit code: 0 after an orderly end, 130 when interrupted before anything was served or a second time."""
    from modalnomad.cli.interrupts import Interrupts
    from modalnomad.cli.outlet import Outlet
    from modalnomad.cli.up_view import UpJson, UpText
    from modalnomad.cli.upping import Upping
    from modalnomad.kit.tasks import Tasks
    from modalnomad.wiring.notify import Notifier
    from modalnomad.wiring.up import open_up

    notifier = Notifier()
    # Whoever read our output and went away wanted it to end, as with Ctrl-C.
    with Interrupts() as interrupts, Outlet(sys.stdout.fileno(), interrupts.take) as outlet:
        view = UpJson(outlet) if as_json else UpText(outlet)
        async with (
            open_up(settings, environment) as parts,
            Upping(parts, view, quiet=quiet) as upping,
            Tasks("notify") as tasks,
        ):
            tasks.spawn(notifier.keep_alive(), "alive")
            if not await interrupts.race(upping.start()):
                return 130
            notifier.ready(f"Serving {settings.home}")
            await interrupts.race(upping.watch())
            notifier.stopping("Requests are finished, then replicas end", parts.ending().limit)
            return 0 if await interrupts.race(upping.stop()) else 130
