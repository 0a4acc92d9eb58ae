"""The `ImageBuilder` of deploys to nodes with Nomad's docker driver.

    recipe ─▶ hash of all input ─▶ in the registry (or here) under that tag? ── yes ─▶ its digest
                                        │ no
                                        ▼
              base there? ─▶ build, output as it comes ─▶ push ─▶ digest

The tag says what went in; replicas are pinned to the digest of what came out, since two builds of equal input differ.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Final, Protocol

from modalnomad_sdk.store import Masker

from modalnomad.hashicorp.docker import dockerfile
from modalnomad.hashicorp.docker.context import input_digest, write_context
from modalnomad.hashicorp.docker.dockerfile import CARRIER, Dockerfile
from modalnomad.hashicorp.docker.engine import DockerEngine, Event, Rejected, split_name
from modalnomad.hashicorp.docker.output import BuildOutput, Progress
from modalnomad.model.errors import BackendError, BackendRefused, ImageBuildFailed
from modalnomad.model.ids import Digest
from modalnomad.model.manifest import Image, Source
from modalnomad.model.recipe import OwnBase, Recipe
from modalnomad.model.revision import BuiltImage
from modalnomad.settings import DockerSettings

Report = Callable[[str], None]

LOCAL: Final = "localhost/modalnomad"
"""In front of names of images that stay here: no engine looks for them elsewhere."""
LABEL: Final = "modalnomad.input"
"""Of images made here; the value is the hash of their input. What may be removed is told by it."""
NEWEST: Final = "3.13"
"""Python of the settings' base where an image brings one of its own: only to fetch that."""
PROXIES: Final = ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy")
"""Variables of whoever deploys that commands of a build get too; builders keep them out of the image."""


class RecipeMaker(Protocol):
    """From a chain to a recipe, on this machine; `architecture` as the engine names it. Raises ManifestInvalid,
    UserError, ImageBuildFailed."""

    async def __call__(self, image: Image | None, report: Report, source: Source, architecture: str) -> Recipe: ...


class DockerImages:
    """Builds with one engine, for one registry. `sdk`: the runner's files, by path in its folder; `environment`: the
    variables of whoever deploys."""

    def __init__(
        self,
        settings: DockerSettings,
        recipes: RecipeMaker,
        engine: DockerEngine,
        *,
        sdk: Mapping[str, bytes],
        environment: Mapping[str, str],
    ) -> None:
        self._settings = settings
        self._recipes = recipes
        self._engine = engine
        self._sdk = sdk
        self._proxies = {name: environment[name] for name in PROXIES if environment.get(name)}
        self._registry = settings.registry.strip("/")
        self._architecture = ""

    async def __call__(self, image: Image | None, report: Report, source: Source) -> BuiltImage:
        """Raises as the recipes do, ImageBuildFailed (`output`: the builder's own words), BackendUnreachable and
        BackendRefused (engine, registry). Cancelled, the engine stops building."""
        self._architecture = self._architecture or await self._engine.architecture()
        recipe = await self._recipes(image, report, source, self._architecture)
        if (own := dockerfile.own_base(recipe)) is not None:
            recipe = replace(recipe, base=await self._own_base(own, recipe, report))
        made = self._dockerfile(recipe)
        digest = await asyncio.to_thread(input_digest, made, self._architecture)
        name = f"{self._registry or LOCAL}/images:{digest[:40]}"
        reference = await self._found(name, digest, recipe, report)
        if reference is None:
            await self._build(made, name, digest, recipe, report)
            reference = await self._kept(name, report)
        return BuiltImage(
            digest=digest,
            python=".".join((recipe.python or "").split(".")[:2]),
            env=recipe.env,
            workdir=recipe.workdir,
            reference=reference,
        )

    def _dockerfile(self, recipe: Recipe) -> Dockerfile:
        base = dockerfile.base_of(recipe) or self._settings.base.replace("{python}", recipe.python or NEWEST)
        python_base = self._settings.base.replace("{python}", NEWEST)
        return dockerfile.make_dockerfile(recipe, base=base, python_base=python_base, sdk=self._sdk)

    # --- what is there already ---------------------------------------------------------------------------------------

    async def _found(self, name: str, digest: Digest, recipe: Recipe, report: Report) -> str | None:
        """Its reference. A registry that does not answer is told before anything is built."""
        if self._registry:
            remote = await self._engine.remote_digest(name)
            if remote is not None and not recipe.force:
                return f"{name.rpartition(':')[0]}@{remote}"
        if recipe.force:
            return None
        local = await self._engine.image(name)
        if local is None or _labels(local).get(LABEL) != digest:
            return None
        return await self._kept(name, report)

    async def _kept(self, name: str, report: Report) -> str:
        """Pushed, where there is a registry; pinned."""
        if not self._registry:
            found = await self._engine.image(name)
            if found is None:
                raise BackendRefused(
                    f"{name} was built and is not there: something removes images from this engine",
                    "Nomad does, unless its docker driver has gc { image = false }",
                )
            return str(found["Id"])
        repository, tag = split_name(name)
        report(f"pushing {name}")
        progress = Progress(report, f"the registry of {name}")
        await self._engine.push(repository, tag or "latest", progress.take)
        # Engines that keep images in containerd's store (the usual one from 29 on) tell it in words only.
        if digest := progress.digest or await self._engine.remote_digest(name):
            return f"{repository}@{digest}"
        raise BackendRefused(f"{name} was pushed, and its registry did not say under which digest", "deploy it again")

    # --- building ----------------------------------------------------------------------------------------------------

    async def _own_base(self, own: OwnBase, recipe: Recipe, report: Report) -> str:
        """Build a Dockerfile of the user's; the name of what came out."""
        made = Dockerfile(own.dockerfile, own.context, (), arguments=own.arguments)
        digest = await asyncio.to_thread(input_digest, made)
        name = f"{LOCAL}/base:{digest[:40]}"
        known = await self._engine.image(name)
        if recipe.force or known is None or _labels(known).get(LABEL) != digest:
            report("building the Dockerfile that the image starts from")
            await self._run_build(made, name, digest, recipe, report)
        return name

    async def _build(self, made: Dockerfile, name: str, digest: Digest, recipe: Recipe, report: Report) -> None:
        for base in made.images:
            await self._have(base, report)
        report(f"building {name}")
        await self._run_build(made, name, digest, recipe, report)

    async def _have(self, base: str, report: Report) -> None:
        """A base that is here is taken as it is: asking for it by name would ask its registry first."""
        if base == "scratch" or await self._engine.image(base) is not None:
            return
        report(f"pulling {base}")
        try:
            await self._engine.pull(base, Progress(report, f"the registry of {base}").take)
        except BackendError as error:
            raise type(error)(
                f"{base}, which the image starts from, is not on this machine and could not be pulled: {error.message}",
                error.hint or "is the name right? docker.base in the settings is what Image.debian_slim starts from",
            ) from error

    async def _run_build(self, made: Dockerfile, name: str, digest: Digest, recipe: Recipe, report: Report) -> None:
        carried = dockerfile.carrier(recipe.variables)
        output = BuildOutput(report, Masker(line for text in recipe.hidden for line in text.splitlines()))
        arguments = {**self._proxies, **made.arguments} | ({CARRIER: carried} if carried else {})
        with tempfile.TemporaryFile(prefix="modalnomad-context-") as context:
            await asyncio.to_thread(write_context, made, context)
            context.seek(0)
            try:
                await self._engine.build(
                    context, output.take, tag=name, labels={LABEL: digest}, buildargs=arguments, nocache=recipe.force
                )
            except Rejected as error:
                raise ImageBuildFailed("the image could not be built", error.message) from error
        output.finish()


def _labels(image: Event) -> Mapping[str, str]:
    found: Mapping[str, str] = (image.get("Config") or {}).get("Labels") or {}
    return found
