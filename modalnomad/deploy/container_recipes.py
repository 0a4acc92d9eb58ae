"""From an image's chain to a recipe for a container: plan, resolve, put in order.

Where the Python of the base is known, all packages are pinned here, with hashes, as on the process driver; in a base
that brings its own Python pip resolves them there, beside what the base has.
"""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Mapping
from typing import Any, Final

from modalnomad_sdk.store import Child, Interpreter, Masker, StoreError

from modalnomad.deploy.bundle import source_files
from modalnomad.deploy.container_plan import ContainerPlan, plan_container
from modalnomad.deploy.image_steps import CALL_TIMEOUT
from modalnomad.deploy.images import Report, SecretValues, in_thread, step_values
from modalnomad.deploy.resolve import Resolver
from modalnomad.deploy.runtime_requirements import RUNTIME_REQUIREMENTS
from modalnomad.model.errors import ImageBuildFailed, ManifestInvalid, UserError
from modalnomad.model.manifest import Image, Source
from modalnomad.model.recipe import INDEX, Call, Install, Instruction, Recipe

PLATFORMS: Final = {"amd64": "x86_64-manylinux_2_28", "arm64": "aarch64-manylinux_2_28"}
"""What uv calls the architectures that engines have; the C library is that of Debian 10 or newer."""
USUAL: Final = {
    "PIP_INDEX_URL": ("UV_DEFAULT_INDEX", "UV_INDEX_URL", "PIP_INDEX_URL"),
    "PIP_TRUSTED_HOST": ("UV_INSECURE_HOST", "PIP_TRUSTED_HOST"),
}
"""Variables of pip in a build, and those of whoever deploys that name this machine's usual index."""
FOR_PIP: Final = {
    "--no-binary": "--no-binary",
    "--no-binary-package": "--no-binary",
    "--only-binary": "--only-binary",
    "--no-build-package": "--only-binary",
    "--config-setting": "--config-settings",
    "--allow-insecure-host": "--trusted-host",
}
"""Options of uv with a value, as pip has them. Others only matter to what is resolved."""
ALONE: Final = {
    "--no-index": "--no-index",
    "--no-build": "--only-binary=:all:",
    "--no-build-isolation": "--no-build-isolation",
}


class Recipes:
    """Makes them. `environment`: variables of whoever deploys. `values`: of build steps' secrets."""

    def __init__(
        self, resolver: Resolver, *, environment: Mapping[str, str], values: SecretValues | None = None
    ) -> None:
        self._resolver = resolver
        self._environment = environment
        self._values = values

    async def __call__(self, image: Image | None, report: Report, source: Source, architecture: str) -> Recipe:
        """Raises ManifestInvalid (steps that cannot be done here), UserError, ImageBuildFailed (the resolver's words).
        Cancelled, no process of it is left."""
        variables = await step_values(image, self._values)
        loop, cancelled = asyncio.get_running_loop(), threading.Event()

        def tell(line: str) -> None:
            loop.call_soon_threadsafe(report, line)

        def work() -> Recipe:
            return self._made(image, tell, source, architecture, variables, cancelled)

        return await in_thread(work, cancelled)

    def _made(
        self,
        image: Image | None,
        report: Report,
        source: Source,
        architecture: str,
        variables: Mapping[int, Mapping[str, str]],
        cancelled: threading.Event,
    ) -> Recipe:
        plan = plan_container(image)
        packages = plan.packages
        if packages.problems:
            raise ManifestInvalid(packages.problems)
        if plan.base is None:
            packages.python = packages.python or f"{sys.version_info[0]}.{sys.version_info[1]}"
        index = self._index(plan)
        hidden = packages.options.secrets() | {v for values in variables.values() for v in values.values()}
        if packages.python is None:
            installs = [self._unpinned(plan)]
        else:
            child = Child(masker=Masker(hidden), cancelled=cancelled)
            installs = self._pinned(plan, packages.python, architecture, child, report)
        described = [_described(step, source) for step in (*plan.before, *installs, *plan.after)]
        return Recipe(
            base=plan.base,
            python=packages.python,
            setup=plan.setup,
            instructions=tuple(described),
            context=plan.context,
            arguments=plan.arguments,
            source=dict(source_files(source)) if plan.calls else {},
            variables=variables if not index else {**variables, INDEX: index},
            hidden=frozenset(hidden),
            env=tuple(packages.environment.items()),
            workdir=plan.workdir,
            force=packages.force,
        )

    def _pinned(
        self, plan: ContainerPlan, python: str, architecture: str, child: Child, report: Report
    ) -> list[Install]:
        if architecture not in PLATFORMS:
            raise UserError(
                f"packages cannot be chosen for the architecture {architecture!r} of the Docker engine",
                f"use an engine of one of {', '.join(PLATFORMS)}",
            )
        platform = PLATFORMS[architecture]
        version = python.removesuffix("t")
        target = Interpreter(sys.executable, version, "cpython", platform, threaded=python.endswith("t"))
        resolver = self._resolver.aimed(("--python-version", version, "--python-platform", platform))
        try:
            resolved = resolver.resolve(plan.packages, target, child, report)
        except StoreError as error:
            raise ImageBuildFailed(error.message, error.output, error.hint) from error
        return [
            Install(step["requirements"], options=_options(plan), verify=step["verify"]) for step in resolved.installs
        ]

    def _unpinned(self, plan: ContainerPlan) -> Install:
        packages = plan.packages
        if packages.projects:
            raise UserError(
                "Image.uv_sync needs to know which Python the image has",
                'let the image bring one: add_python="3.12", or start from debian_slim',
            )
        if packages.without_deps:
            raise UserError(
                "packages without their dependencies (--no-deps) need to know which Python the image has",
                'let the image bring one: add_python="3.12", or use run_commands("pip install --no-deps …")',
            )
        shown, _ = packages.options.masked()
        # Where packages come from is part of what they are, where no hash says it.
        lines = [f"# {name}={value}" for name, value in sorted(shown.items())]
        lines += [line for line in packages.requirements if line not in RUNTIME_REQUIREMENTS]
        content = "\n".join([*lines, *RUNTIME_REQUIREMENTS]) + "\n"
        constraints = "".join(f"{line}\n" for line in packages.constraints)
        return Install(content, constraints, _options(plan), dependencies=True)

    def _index(self, plan: ContainerPlan) -> dict[str, str]:
        """Pip's variables: they may hold credentials, and do not stand in the image."""
        options = plan.packages.options
        if local := [place for place in options.find_links if "://" not in place]:
            raise UserError(
                f"find_links={local[0]!r} is a folder of this machine, which a container's build has not",
                "add the files with add_local_dir(copy=True) and install them with run_commands",
            )
        found = {
            name: value
            for name, theirs in USUAL.items()
            if (value := next((self._environment[their] for their in theirs if self._environment.get(their)), ""))
        }
        found |= plan.packages.install_environment
        if options.indexes:
            found["PIP_EXTRA_INDEX_URL"] = " ".join(options.indexes)
        if options.find_links:
            found["PIP_FIND_LINKS"] = " ".join(options.find_links)
        if options.prerelease:
            found["PIP_PRE"] = "1"
        return found


def _options(plan: ContainerPlan) -> tuple[str, ...]:
    """uv's, for pip."""
    found: list[str] = []
    words = list(plan.packages.options.arguments)
    while words:
        word = words.pop(0)
        if word in FOR_PIP and words:
            found.append(f"{FOR_PIP[word]}={words.pop(0)}")
        elif word in ALONE:
            found.append(ALONE[word])
        elif words and not words[0].startswith("--"):
            words.pop(0)
    return tuple(found)


def _described(step: Instruction, source: Source) -> Instruction:
    """A call, as the SDK's runner reads it (see `image_steps`)."""
    if not isinstance(step, Call):
        return step
    given = step.call
    module = given["module"]
    call: dict[str, Any] = {
        "source": f"{source.mode}:{source.entry}" if module == source.module else f"module:{module}",
        "function": given["function"],
        "args": given.get("args", []),
        "kwargs": given.get("kwargs", {}),
        "code": given["code"],
        "timeout": float(given.get("timeout", CALL_TIMEOUT)),
    }
    return Call(call, step.environment, step.number)
