"""From an image's chain to an environment in the store: plan, resolve, define, build.

The same image again costs a few file reads: no process is started when its packages were resolved before and its
environment is in the store.
"""

from __future__ import annotations

import asyncio
import tempfile
import threading
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from modalnomad_sdk.store import (
    Child,
    DiskFull,
    ImageStore,
    Inputs,
    Masker,
    PythonMissing,
    StoreError,
    definition_digest,
)
from modalnomad_sdk.store.definition import SCHEMA

from modalnomad.deploy import apt
from modalnomad.deploy.bundle import image_mounts, inside
from modalnomad.deploy.container_plan import plan_container
from modalnomad.deploy.image_plan import ImagePlan, plan_image, step_secrets
from modalnomad.deploy.image_steps import LaterSteps, Program
from modalnomad.deploy.resolve import RESOLVED, Resolver
from modalnomad.model.errors import BackendRefused, ImageBuildFailed, ManifestInvalid, Problem, UserError
from modalnomad.model.ids import Digest
from modalnomad.model.manifest import Function, Image, Notice, SecretRef, Source
from modalnomad.model.revision import BuiltImage

T = TypeVar("T")
Report = Callable[[str], None]


def check_images(
    functions: Iterable[Function], *, containers: bool = False
) -> tuple[tuple[Problem, ...], tuple[Notice, ...]]:
    """Everything about the functions' images that can be told without resolving or building, all at once.
    `containers`: replicas run in some, and not in environments of their machine."""
    problems: dict[Problem, None] = {}
    notices: dict[Notice, None] = {}
    for function in functions:
        if containers:
            packages = plan_container(function.image).packages
            problems.update(dict.fromkeys(packages.problems))
            notices.update(dict.fromkeys(packages.notices))
            continue
        plan = plan_image(function.image)
        problems.update(dict.fromkeys([*plan.problems, *_misplaced(function.image)]))
        notices.update(dict.fromkeys(plan.notices))
    return tuple(problems), tuple(notices)


def _misplaced(image: Image | None) -> list[Problem]:
    found = []
    for mount in image_mounts(image) if image is not None else ():
        try:
            inside(mount)
        except UserError as error:
            found.append(Problem(mount.where, error.message))
    return found


Keep = Callable[[Mapping[str, Any], Inputs], None]
"""Told the definition and what building it needs, in the thread that builds and before it does: the files are there
only until it returns. What it raises ends the build."""
SecretValues = Callable[[Sequence[SecretRef]], Awaitable[Mapping[str, str]]]
"""Keys and values of all of them, later ones winning. Raises SecretMissing."""


async def step_values(image: Image | None, values: SecretValues | None) -> dict[int, Mapping[str, str]]:
    """Variables of steps with secrets, by number; what a step's own `env=` sets is not taken from them. Raises
    UserError."""
    found: dict[int, Mapping[str, str]] = {}
    for number, refs in step_secrets(image).items():
        if image is None or values is None:
            raise UserError("secrets= of an image's build steps is not available here", "use it in @app.function")
        own = image.steps[number].arguments.get("env") or {}
        found[number] = {name: value for name, value in (await values(refs)).items() if name not in own}
    return found


class Images:
    """Builds images into one store; the `ImageBuilder` of a deploy. `values` gives the values of build steps' secrets.

    What it has built is safe from `image prune` as long as it lives, replicas asleep or not: `close` lets go, as does
    the end of the process."""

    def __init__(self, store: ImageStore, values: SecretValues | None = None) -> None:
        self.store = store
        self._values = values
        self._held: set[Digest] = set()
        self._holds = ExitStack()

    async def __call__(
        self, image: Image | None, report: Report, source: Source | None = None, keep: Keep | None = None
    ) -> BuiltImage:
        """See `resolve_and_build`. `source`: of the program whose image it is."""
        program = None if source is None else Program(source=source, variables=await step_values(image, self._values))
        while True:
            built = await resolve_and_build(image, store=self.store, report=report, program=program, keep=keep)
            if built.digest in self._held:
                return built
            cancelled = threading.Event()
            try:
                await in_thread(partial(self._hold, built.digest, cancelled), cancelled)
            except StoreError:
                continue  # pruned since it was built: built again
            self._held.add(built.digest)
            return built

    def _hold(self, digest: Digest, cancelled: threading.Event) -> None:
        self._holds.enter_context(self.store.hold(digest, cancelled))

    def close(self) -> None:
        """Let go of all images."""
        self._held.clear()
        self._holds.close()


async def resolve_and_build(
    image: Image | None,
    *,
    store: ImageStore,
    report: Report,
    program: Program | None = None,
    keep: Keep | None = None,
) -> BuiltImage:
    """The image's environment, built unless the store has it. `report` is told lines of progress, on this event loop.

    Raises ManifestInvalid (steps that cannot be done here), UserError (Python or Debian packages missing),
    ImageBuildFailed (`output`: the resolver's or command's words), BackendRefused (disk full). Cancelling it ends every
    process of the build and leaves nothing behind."""
    loop = asyncio.get_running_loop()
    cancelled = threading.Event()

    def tell(line: str) -> None:
        loop.call_soon_threadsafe(report, line)

    return await in_thread(lambda: resolve_and_build_here(image, store, tell, cancelled, program, keep), cancelled)


async def in_thread(work: Callable[[], T], cancelled: threading.Event) -> T:
    """What it returns or raises. When this is cancelled, `cancelled` is set and its end is awaited."""
    running = asyncio.get_running_loop().run_in_executor(None, work)
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        cancelled.set()
        while not running.done():
            try:
                await asyncio.wait([running])
            except asyncio.CancelledError:
                continue  # cancelled again; the work's processes have to end all the same
        running.exception()  # what it ended with no longer matters
        raise


def resolve_and_build_here(
    image: Image | None,
    store: ImageStore,
    report: Report,
    cancelled: threading.Event | None = None,
    program: Program | None = None,
    keep: Keep | None = None,
) -> BuiltImage:
    """The same, in the calling thread. `cancelled` may be set from another one."""
    plan = plan_image(image)
    if plan.problems:
        raise ManifestInvalid(plan.problems)
    try:
        if not plan.steps:
            return _build(plan, store, report, cancelled, keep=keep)
        with tempfile.TemporaryDirectory(prefix="modalnomad-image-", ignore_cleanup_errors=True) as scratch:
            return _build(plan, store, report, cancelled, LaterSteps(plan, Path(scratch), program), keep)
    except PythonMissing as error:
        raise UserError(error.message, error.hint) from error
    except DiskFull as error:
        raise BackendRefused(error.message, "free some space there; `modalnomad image prune` removes images") from error
    except StoreError as error:
        # Every line a build writes is progress; words of the resolver are in the error alone.
        raise ImageBuildFailed(error.message, error.output, error.hint, told=True) from error
    except OSError as error:
        raise BackendRefused(f"the image could not be built: {error}", "free some space, or mend the folder") from error


def _build(
    plan: ImagePlan,
    store: ImageStore,
    report: Report,
    cancelled: threading.Event | None,
    later: LaterSteps | None = None,
    keep: Keep | None = None,
) -> BuiltImage:
    try:
        interpreter = store.find_python(plan.python)
    except ValueError as error:
        raise UserError(str(error)) from error
    shown, reveal = plan.options.masked()
    masker = Masker(plan.options.secrets())

    def tell(line: str) -> None:
        report(masker(line))

    if missing := apt.missing(plan.apt, store.root):
        raise ManifestInvalid(*_apt_problems(missing, plan.apt))
    resolver = Resolver(store.root / RESOLVED, lambda: store.uv)
    # What the resolver says of a failure is in the error; there is no progress to tell of.
    resolved = resolver.resolve(plan, interpreter, Child(masker=masker, cancelled=cancelled), tell)
    definition: dict[str, Any] = {
        "schema": SCHEMA,
        "python": interpreter.version,
        "implementation": interpreter.implementation,
        "platform": interpreter.platform,
        "steps": [*resolved.installs, *(later.steps if later else ())],
        "sources": {"environment": shown | plan.install_environment, "arguments": plan.options.arguments},
    }
    if interpreter.threaded:
        definition["threaded"] = True
    digest = Digest(definition_digest(definition))
    if keep is not None or store.path(digest) is None:
        inputs = Inputs(
            python=Path(interpreter.executable),
            reveal=reveal,
            secrets=plan.options.secrets(),
            cancelled=cancelled,
        )
        if later is not None:
            inputs = later.add_to(inputs, after=len(resolved.installs))
        if keep is not None:
            keep(definition, inputs)
        store.build(definition, tell, inputs)
    resolver.note(resolved, digest)
    return BuiltImage(
        digest=digest,
        python=interpreter.minor,
        env=tuple(plan.environment.items()),
        workdir=None if plan.workdir is None else f"/root/{plan.workdir}".removesuffix("/."),
    )


def _apt_problems(missing: tuple[str, ...], asked: list[tuple[str, str]]) -> tuple[list[Problem], str]:
    where = dict(reversed(asked))
    problems = [
        Problem(where[name], f"Image.apt_install: the Debian package {name} is not installed on this machine")
        for name in missing
    ]
    return problems, f"install {'them' if len(missing) > 1 else 'it'}: sudo apt-get install {' '.join(missing)}"
