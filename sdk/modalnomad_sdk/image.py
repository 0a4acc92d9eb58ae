"""Image: what a Function's replicas run in, as a lazy immutable chain."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

from . import state, where
from .exception import InvalidError
from .image_base import Common, LocalFiles, Recipe, local, remote, texts
from .image_install import InstallSteps
from .notices import note
from .patterns import NON_PYTHON_FILES, Ignore
from .secret import Secret
from .unavailable import Missing

if TYPE_CHECKING:
    from .process import Client

P = ParamSpec("P")
T = TypeVar("T")
_COMMANDS = "Images are built by `modalnomad serve` and `deploy`"


class _AutoIgnore:
    def __repr__(self) -> str:
        return "AUTO_DOCKERIGNORE"


AUTO_DOCKERIGNORE: Any = _AutoIgnore()
"""Default of `ignore=`: the .dockerignore beside the Dockerfile or in the context, where there is one."""


@dataclass(frozen=True)
class FailedImport:
    """An exception under `with image.imports()`."""

    image: Image
    error: BaseException
    where: str


_failed: list[FailedImport] = []


def failed_imports() -> tuple[FailedImport, ...]:
    """What went wrong under `with image.imports()` so far."""
    return tuple(_failed)


class Image(InstallSteps):
    """Made by one of the constructors (`Image.debian_slim()` …), then refined step by step.

    Each call returns a new Image; nothing is installed before a deploy.
    """

    def __init__(self, recipe: Recipe | None = None) -> None:
        if recipe is None:
            raise InvalidError(f"{where.caller()}: Image() has no meaning; start with modal.Image.debian_slim()")
        self.recipe = recipe

    @staticmethod
    def debian_slim(python_version: str | None = None, force_build: bool = False) -> Image:
        """A plain Python, of the version this program is deployed with unless one is named."""
        return _base("debian_slim", python_version, force_build=force_build)

    @staticmethod
    def micromamba(python_version: str | None = None, force_build: bool = False) -> Image:
        """A conda environment. Refused at deploy."""
        return _base("micromamba", python_version, force_build=force_build)

    @staticmethod
    def from_registry(
        tag: str,
        secret: Secret | None = None,
        *,
        setup_dockerfile_commands: Sequence[str] = [],
        force_build: bool = False,
        add_python: str | None = None,
    ) -> Image:
        """A container image. Needs the docker driver."""
        return _registry("from_registry", tag, secret, setup_dockerfile_commands, add_python, force_build)

    @staticmethod
    def from_aws_ecr(
        tag: str,
        secret: Secret | None = None,
        *,
        setup_dockerfile_commands: Sequence[str] = [],
        force_build: bool = False,
        add_python: str | None = None,
    ) -> Image:
        """A container image of AWS ECR. Needs the docker driver."""
        return _registry("from_aws_ecr", tag, secret, setup_dockerfile_commands, add_python, force_build)

    @staticmethod
    def from_gcp_artifact_registry(
        tag: str,
        secret: Secret | None = None,
        *,
        setup_dockerfile_commands: Sequence[str] = [],
        force_build: bool = False,
        add_python: str | None = None,
    ) -> Image:
        """A container image of Google's Artifact Registry. Needs the docker driver."""
        return _registry("from_gcp_artifact_registry", tag, secret, setup_dockerfile_commands, add_python, force_build)

    @staticmethod
    def from_dockerfile(
        path: str | Path,
        *,
        force_build: bool = False,
        context_dir: Path | str | None = None,
        ignore: Ignore = AUTO_DOCKERIGNORE,
        build_args: Mapping[str, str] = {},
        registry_secret: Secret | None = None,
        secrets: Collection[Secret] | None = None,
        env: Mapping[str, str | None] | None = None,
        gpu: str | None = None,
        add_python: str | None = None,
    ) -> Image:
        """The image that a Dockerfile builds. Needs the docker driver."""
        made = _base(
            "from_dockerfile",
            None,
            force_build=force_build,
            path=local(path),
            context_dir=local(context_dir) if context_dir is not None else None,
            build_args=dict(build_args),
            add_python=add_python,
        )
        every = (*Common(env, secrets).checked_secrets(where.caller(), "from_dockerfile"),)
        every += (registry_secret,) if registry_secret is not None else ()
        return made._derived(replace(made.recipe, base_files=(local(path),), base_secrets=every))

    @staticmethod
    def from_scratch(force_build: bool = False) -> Image:
        """An empty container image. Needs the docker driver."""
        return _base("from_scratch", None, force_build=force_build)

    @staticmethod
    def from_name(name: str, *, environment_name: str | None = None, client: Client | None = None) -> Image:
        """A published image. Refused at deploy."""
        return _base("from_name", None, name=name, environment_name=environment_name)

    @classmethod
    def from_id(cls, image_id: str, client: Client | None = None) -> Image:
        """An image by its id. Refused at deploy."""
        return _base("from_id", None, image_id=image_id)

    def run_commands(
        self,
        *commands: str | list[str],
        env: Mapping[str, str | None] | None = None,
        secrets: Collection[Secret] | None = None,
        volumes: Mapping[str | PurePosixPath, Any] | None = None,
        gpu: str | None = None,
        force_build: bool = False,
    ) -> Image:
        """Shell commands, run while the image is built."""
        found = texts("run_commands", "commands", commands)
        if not found:
            return self
        refusal = "volumes are not available while an image is built" if volumes else ""
        return self._build(
            "run_commands", {"commands": found}, common=Common(env, secrets, gpu, force_build), refusal=refusal
        )

    def dockerfile_commands(
        self,
        *dockerfile_commands: str | list[str],
        context_files: Mapping[str, str] = {},
        env: Mapping[str, str | None] | None = None,
        secrets: Collection[Secret] | None = None,
        gpu: str | None = None,
        context_dir: Path | str | None = None,
        force_build: bool = False,
        ignore: Ignore = AUTO_DOCKERIGNORE,
        build_args: Mapping[str, str] = {},
    ) -> Image:
        """Lines of a Dockerfile. Needs the docker driver."""
        found = texts("dockerfile_commands", "commands", dockerfile_commands)
        if not found:
            return self
        arguments = {
            "commands": found,
            "context_dir": local(context_dir) if context_dir is not None else None,
            "build_args": dict(build_args),
            "context_files": {name: local(path) for name, path in context_files.items()},
        }
        files = tuple(local(path) for path in context_files.values())
        return self._build("dockerfile_commands", arguments, common=Common(env, secrets, gpu, force_build), files=files)

    def run_function(
        self,
        raw_f: Callable[..., Any],
        *,
        env: Mapping[str, str | None] | None = None,
        secrets: Collection[Secret] | None = None,
        volumes: Mapping[str | PurePosixPath, Any] = {},
        network_file_systems: Mapping[str | PurePosixPath, Any] = {},
        gpu: str | list[str] | None = None,
        cpu: float | None = None,
        memory: int | None = None,
        timeout: int = 60 * 60,
        cloud: str | None = None,
        region: str | Sequence[str] | None = None,
        force_build: bool = False,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] = {},
        include_source: bool = True,
    ) -> Image:
        """Run a function of the program while the image is built; its source is part of the image's identity."""
        if not callable(raw_f):
            raise InvalidError(f"{where.caller()}: Image.run_function needs a plain function, not {raw_f!r}")
        for name, given in (("cpu", cpu), ("memory", memory), ("cloud", cloud), ("region", region)):
            if given is not None:
                note("no_effect", f"Image.run_function: `{name}` has no effect here", where.caller())
        refusal = "volumes are not available while an image is built" if volumes or network_file_systems else ""
        arguments = {"args": list(args), "kwargs": dict(kwargs), "timeout": timeout}
        return self._build(
            "run_function",
            arguments,
            common=Common(env, secrets, gpu, force_build),
            function=raw_f,
            refusal=refusal,
        )

    def env(self, vars: dict[str, str]) -> Image:
        """Environment variables of the image."""
        if not all(isinstance(key, str) and isinstance(value, str) for key, value in vars.items()):
            raise InvalidError(f"{where.caller()}: Image.env needs texts as keys and values")
        return self._build("env", {"vars": dict(vars)})

    def workdir(self, path: str | PurePosixPath) -> Image:
        """Working directory of the user's code."""
        return self._build("workdir", {"path": str(path)})

    def entrypoint(self, entrypoint_commands: list[str]) -> Image:
        """ENTRYPOINT of a container image. Has no effect on the process driver."""
        return self._build("entrypoint", {"commands": _list("entrypoint", entrypoint_commands)})

    def shell(self, shell_commands: list[str]) -> Image:
        """SHELL of a container image: what later commands run in."""
        return self._build("shell", {"commands": _list("shell", shell_commands)})

    def cmd(self, cmd: list[str]) -> Image:
        """CMD of a container image. Has no effect on Functions."""
        return self._build("cmd", {"commands": _list("cmd", cmd)})

    def add_local_file(self, local_path: str | Path, remote_path: str, *, copy: bool = False) -> Image:
        """Take a local file along: at start, or with `copy` into the image."""
        target = remote(remote_path, "add_local_file")
        if target.endswith("/"):
            target += Path(local_path).name
        return self._add(LocalFiles("file", local(local_path), target, None, where.caller()), copy)

    def add_local_dir(
        self,
        local_path: str | Path,
        remote_path: str,
        *,
        copy: bool = False,
        ignore: Sequence[str] | Callable[[Path], bool] = [],  # noqa: B006 - never changed
    ) -> Image:
        """Take a local folder along: at start, or with `copy` into the image. `ignore`: patterns or a predicate."""
        target = remote(remote_path, "add_local_dir")
        return self._add(LocalFiles("dir", local(local_path), target, ignore, where.caller()), copy)

    def add_local_python_source(self, *modules: str, copy: bool = False, ignore: Ignore = NON_PYTHON_FILES) -> Image:
        """Take local modules or packages along, so that they can be imported."""
        image = self
        for module in modules:
            if not isinstance(module, str):
                raise InvalidError(
                    f"{where.caller()}: Image.add_local_python_source needs names of modules, not {module!r}"
                )
            target = f"/root/{module.replace('.', '/')}"
            image = image._add(LocalFiles("python", module, target, ignore, where.caller()), copy)
        return image

    def _add(self, files: LocalFiles, copy: bool) -> Image:
        if not copy:
            return self._derived(replace(self.recipe, mounts=(*self.recipe.mounts, files)))
        kind = {"file": "add_local_file", "dir": "add_local_dir", "python": "add_local_python_source"}[files.kind]
        arguments = {"local": files.local, "remote": files.remote}
        paths = () if files.kind == "python" else (files.local,)
        return self._build(kind, arguments, files=paths, ignore=files.ignore)

    @contextmanager
    def imports(self) -> Iterator[None]:
        """Imports that only work in this image: what is missing elsewhere is passed over.

        In a replica of a Function that runs in exactly this Image the error counts, once the Function is looked up.
        """
        place = where.caller()
        try:
            yield
        except Exception as error:
            _failed.append(FailedImport(self, error, place))
            if state.replica() is None and not isinstance(error, ImportError):
                note(
                    "imports", f"an {type(error).__name__} under `with image.imports()` was passed over: {error}", place
                )

    def pipe(self, func: Callable[Concatenate[Image, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """`func(image, …)`, for steps that several images share."""
        return func(self, *args, **kwargs)

    def hydrate(self, client: Client | None = None) -> Image:
        """Nothing to do here: images are built at deploy."""
        return self

    build = Missing("Image.build", _COMMANDS)
    client = Missing("Image.client", _COMMANDS)
    get_dashboard_url = Missing("Image.get_dashboard_url", _COMMANDS)
    logs = Missing("Image.logs", _COMMANDS)
    object_id = Missing("Image.object_id", _COMMANDS)
    publish = Missing("Image.publish", _COMMANDS)

    def __repr__(self) -> str:
        return f"modal.Image({'.'.join([self.recipe.base, *(step.kind for step in self.recipe.steps)])})"


def _list(kind: str, commands: Any) -> list[str]:
    if not isinstance(commands, list) or not all(isinstance(item, str) for item in commands):
        raise InvalidError(f"{where.caller()}: Image.{kind} needs a list of texts, not {commands!r}")
    return list(commands)


def _base(base: str, python_version: str | None, **arguments: Any) -> Image:
    if python_version is not None and not isinstance(python_version, str):
        raise InvalidError(
            f'{where.caller()}: Image.{base}(python_version={python_version!r}): a text is needed, as in "3.12"'
        )
    given = {name: value for name, value in arguments.items() if value not in (None, False, [], {}, "")}
    return Image(Recipe(base, where.caller(), given, python_version=python_version))


def _registry(
    base: str, tag: str, secret: Secret | None, commands: Sequence[str], add_python: str | None, force_build: bool
) -> Image:
    made = _base(
        base,
        add_python,
        tag=tag,
        setup_dockerfile_commands=list(commands),
        add_python=add_python,
        force_build=force_build,
    )
    return made._derived(replace(made.recipe, base_secrets=(secret,) if secret is not None else ()))
