"""`modalnomad router`: one of the routers in front of a cluster, until it is stopped."""

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

if TYPE_CHECKING:
    from modalnomad.settings import Settings


def router(
    *,
    host: HostOption = None,
    port: PortOption = None,
    domain: DomainOption = None,
    tls_cert: TlsCertOption = None,
    tls_key: TlsKeyOption = None,
    admin_port: AdminPortOption = None,
    artifacts_port: Annotated[
        int | None,
        typer.Option(min=0, max=65535, help="Port on which nodes get bundles; 0: a free one. [default: 8702]"),
    ] = None,
    access_log: AccessLogOption = None,
    env: Annotated[
        str | None, typer.Option("--env", "-e", help="Serve the Apps of this environment only. [default: all]")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Serve what is deployed on a cluster, until Ctrl-C: wakes, routes and drains replicas that Nomad runs.

    Any number of routers may run; each serves everything. Where the servers are is said by NOMAD_ADDR, CONSUL_HTTP_ADDR
    and VAULT_ADDR or the settings file.

    Example: `modalnomad router --domain apps.example.com`
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
        artifacts={"port": artifacts_port},
    ).model_copy(update={"backend": "hashicorp"})
    if code := run(_router(settings, env, as_json=as_json)):
        raise typer.Exit(code)


async def _router(settings: Settings, environment: str | None, *, as_json: bool) -> int:
    """Exit code: 0 after an orderly end, 130 when interrupted before anything was served or a second time."""
    from modalnomad.cli.interrupts import Interrupts
    from modalnomad.cli.outlet import Outlet
    from modalnomad.cli.routing import Routing
    from modalnomad.cli.up_view import UpJson, UpText
    from modalnomad.kit.tasks import Tasks
    from modalnomad.wiring.notify import Notifier
    from modalnomad.wiring.routing import GivenUp, open_router

    notifier = Notifier()
    with Interrupts() as interrupts, Outlet(sys.stdout.fileno(), interrupts.take) as outlet:
        view = UpJson(outlet) if as_json else UpText(outlet, "replicas stay")
        try:
            async with (
                open_router(settings, environment, interrupts.race) as parts,
                Routing(parts, view) as routing,
                Tasks("notify") as tasks,
            ):
                tasks.spawn(notifier.keep_alive(), "alive")
                if not await interrupts.race(routing.start()):
                    return 130
                notifier.ready(f"Routing for {settings.nomad.address}")
                await interrupts.race(routing.watch())
                notifier.stopping("Requests are finished", settings.router.drain_timeout)
                return 0 if await interrupts.race(routing.stop()) else 130
        except GivenUp:
            return 130
