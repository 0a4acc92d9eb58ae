"""`modalnomad up`: serve what is deployed in a home, and follow deploys, until it is stopped."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from modalnomad.cli.common import JsonOption, load_settings
from modalnomad.cli.listening import (
    AccessLogOption,
    AdminPortOption,
    DomainOption,
    HostOption,
    PortOption,
    TlsCertOption,
    TlsKeyOption,
)
from modalnomad.model.errors import UserError

if TYPE_CHECKING:
    from modalnomad.settings import Settings


def up(
    *,
    host: HostOption = None,
    port: PortOption = None,
    domain: DomainOption = None,
    tls_cert: TlsCertOption = None,
    tls_key: TlsKeyOption = None,
    admin_port: AdminPortOption = None,
    access_log: AccessLogOption = None,
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
