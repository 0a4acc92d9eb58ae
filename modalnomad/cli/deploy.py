"""`modalnomad deploy`: a program's App becomes a new version that stays."""

from __future__ import annotations

from collections.abc import Coroutine
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer

from modalnomad.cli.common import EnvOption, JsonOption, load_settings
from modalnomad.cli.output import err
from modalnomad.deploy.strategy import Strategy

if TYPE_CHECKING:
    from modalnomad.cli.changing import Told
    from modalnomad.deploy.deployment import Deployment, Wanted
    from modalnomad.wiring.deploy_parts import DeployParts

StrategyOption = Annotated[
    Strategy,
    typer.Option(
        help="rolling: the new version is as warm as the old one before requests go to it, the old one finishes what "
        "it holds. recreate: the old replicas are ended as soon as requests go to the new ones.",
    ),
]
CheckOption = Annotated[
    bool,
    typer.Option("--check", help="Start one replica of each changed Function first; if one fails, nothing is changed."),
]
PrewarmOption = Annotated[
    bool,
    typer.Option(
        "--prewarm",
        help="Make environments on all nodes of a cluster first, so that no first request waits for that; a node where "
        "it fails is told.",
    ),
]


def deploy(
    reference: Annotated[
        str, typer.Argument(metavar="FILE", help="`file.py` or `file.py::app`; with -m, `package.module`.")
    ],
    *,
    module: Annotated[bool, typer.Option("-m", "--module", help="FILE is the dotted name of a module.")] = False,
    name: Annotated[str | None, typer.Option("--name", "-n", help="Name of the App. [default: its own]")] = None,
    tag: Annotated[str | None, typer.Option(help="A word for this version, shown by `app history`.")] = None,
    strategy: StrategyOption = Strategy.ROLLING,
    check: CheckOption = False,
    prewarm: PrewarmOption = False,
    env: EnvOption = None,
    as_json: JsonOption = False,
) -> None:
    """Deploy a program's App: it stays, served by `modalnomad up`, until it is stopped or deployed again.

    Nothing of it runs until a request comes. A version that cannot be built, or with --check be started, leaves the one
    before as it is.

    Example: `modalnomad deploy examples/hello.py --check`
    """
    from modalnomad.cli.changing import carry_out
    from modalnomad.cli.deploy_view import show_deployed
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
        strategy=strategy,
        check=check,
    )
    begin = partial(_begin, wanted=wanted, prewarm=prewarm)
    show = partial(show_deployed, as_json=as_json)
    if code := run(carry_out(settings, begin, show, prunes=True)):
        raise typer.Exit(code)


def _begin(
    parts: DeployParts, told: Told, wanted: Wanted, *, prewarm: bool
) -> tuple[Deployment, Coroutine[Any, Any, None]]:
    from modalnomad.deploy.deployment import Deployment

    if prewarm and parts.prewarm is None:
        err.print("--prewarm has no effect here: environments are made on the machine that deploys.", markup=False)
    elif prewarm:
        wanted = replace(wanted, prewarm=parts.prewarm)
    deployment = Deployment(parts.builder, parts.discovery, parts.stage, told, keep=parts.keep)
    return deployment, deployment.run(wanted)
