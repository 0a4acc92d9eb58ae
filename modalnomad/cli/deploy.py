"""`modalnomad deploy`: a program's App becomes a new version that stays."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated

import typer

from modalnomad.cli.common import EnvOption, JsonOption, load_settings

if TYPE_CHECKING:
    from modalnomad.deploy.apply import Strategy
    from modalnomad.deploy.deployment import Wanted
    from modalnomad.settings import Settings

StrategyOption = Annotated[
    str,
    typer.Option(
        metavar="rolling|recreate",
        help="rolling: the new version is as warm as the old one before requests go to it, the old one finishes what "
        "it holds. recreate: the old replicas are ended as soon as requests go to the new ones.",
    ),
]
CheckOption = Annotated[
    bool,
    typer.Option("--check", help="Start one replica of each changed Function first; if one fails, nothing is changed."),
]


def deploy(
    reference: Annotated[
        str, typer.Argument(metavar="FILE", help="`file.py` or `file.py::app`; with -m, `package.module`.")
    ],
    *,
    module: Annotated[bool, typer.Option("-m", "--module", help="FILE is the dotted name of a module.")] = False,
    name: Annotated[str | None, typer.Option("--name", "-n", help="Name of the App. [default: its own]")] = None,
    tag: Annotated[str | None, typer.Option(help="A word for this version, shown by `app history`.")] = None,
    strategy: StrategyOption = "rolling",
    check: CheckOption = False,
    env: EnvOption = None,
    as_json: JsonOption = False,
) -> None:
    """Deploy a program's App: it stays, served by `modalnomad up`, until it is stopped or deployed again.

    Nothing of it runs until a request comes. A version that cannot be built, or with --check be started, leaves the one
    before as it is.

    Example: `modalnomad deploy examples/hello.py --check`
    """
    from modalnomad.deploy.collect import Reference
    from modalnomad.deploy.deployment import Wanted
    from modalnomad.deploy.versions import check_tag
    from modalnomad.wiring.loop import run

    if tag is not None:
        check_tag(tag)
    settings = load_settings(env)
    wanted = Wanted(
        reference=Reference.parse(reference, module=module),
        name=name,
        tag=tag,
        strategy=parse_strategy(strategy),
        check=check,
    )
    if code := run(_deploy(settings, wanted, as_json=as_json)):
        raise typer.Exit(code)


def parse_strategy(text: str) -> Strategy:
    """Wrong ones are wrong usage."""
    from modalnomad.deploy.apply import Strategy

    try:
        return Strategy(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not one of rolling, recreate", param_hint="--strategy") from None


async def _deploy(settings: Settings, wanted: Wanted, *, as_json: bool) -> int:
    """Exit code."""
    from modalnomad.cli.deploy_view import Told, show_deployed
    from modalnomad.cli.interrupts import Interrupts
    from modalnomad.deploy.deployment import Deployment
    from modalnomad.wiring.deploy import open_deploy

    begun = time.monotonic()
    told = Told()
    with Interrupts() as interrupts:
        async with open_deploy(settings) as parts:
            deployment = Deployment(
                parts.builder, parts.discovery, parts.stage, told, keep=settings.embedded.keep_versions
            )
            if not await interrupts.race(deployment.run(wanted)):
                told.interrupted(deployment)
                return 130
            assert deployment.deployed is not None
            show_deployed(deployment.deployed, parts, told, seconds=time.monotonic() - begun, as_json=as_json)
    return 0
