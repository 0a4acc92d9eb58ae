"""What an Image is made of: an immutable chain of steps from a base. Nothing is read or built here."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from . import where
from .exception import InvalidError
from .secret import Secret, checked

if TYPE_CHECKING:
    from .patterns import Ignore


@dataclass(frozen=True)
class Step:
    """One build step: `kind` is the method's name, `arguments` what was given to it, without what has its default."""

    kind: str
    where: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    files: tuple[str, ...] = ()
    """Absolute local paths that the step reads."""
    secrets: tuple[Secret, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    """Variables of this step alone."""
    gpu: str | list[str] | None = None
    function: Any = None
    """Of run_function."""
    ignore: Ignore | None = None
    """Of steps that copy a folder."""
    refusal: str = ""
    """Why this step cannot be done on this platform."""


@dataclass(frozen=True)
class LocalFiles:
    """Local files that join the replica without being built into the image."""

    kind: Literal["file", "dir", "python"]
    local: str
    """Absolute path, or a module's name."""
    remote: str
    ignore: Ignore | None
    where: str


@dataclass(frozen=True)
class Recipe:
    """All of an Image."""

    base: str
    where: str
    base_arguments: Mapping[str, Any] = field(default_factory=dict)
    base_files: tuple[str, ...] = ()
    base_secrets: tuple[Secret, ...] = ()
    python_version: str | None = None
    steps: tuple[Step, ...] = ()
    mounts: tuple[LocalFiles, ...] = ()


I = TypeVar("I", bound="ImageBase")  # noqa: E741


class ImageBase:
    """Chain handling; the steps themselves are in the classes that derive from it."""

    recipe: Recipe

    def _derived(self: I, recipe: Recipe) -> I:
        made = object.__new__(type(self))
        made.recipe = recipe
        return made

    def _build(
        self: I,
        kind: str,
        arguments: Mapping[str, Any] | None = None,
        *,
        common: Common | None = None,
        **more: Any,
    ) -> I:
        """This image and one more build step. Arguments that are None, False or empty are left out."""
        from dataclasses import replace

        place = where.caller()
        if self.recipe.mounts:
            first = self.recipe.mounts[-1]
            raise InvalidError(
                f"{place}: Image.{kind} is a build step after local files that are only added at start ({first.where})"
                ": move the add_local_… call to the end of the chain, or give it copy=True"
            )
        given = {name: value for name, value in (arguments or {}).items() if value is not None and value is not False}
        given = {name: value for name, value in given.items() if value not in ("", [], (), {})}
        settings: dict[str, Any] = dict(more)
        if common is not None:
            settings["secrets"] = common.checked_secrets(place, kind)
            settings["env"] = checked(common.env or {}, place, f"Image.{kind}(env=…)")
            settings["gpu"] = common.gpu
            if common.force_build:
                given["force_build"] = True
        step = Step(kind, place, given, **settings)
        return self._derived(replace(self.recipe, steps=(*self.recipe.steps, step)))


@dataclass(frozen=True)
class Common:
    """Arguments that most build steps share."""

    env: Mapping[str, str | None] | None = None
    secrets: Collection[Secret] | None = None
    gpu: str | list[str] | None = None
    force_build: bool = False

    def checked_secrets(self, place: str, kind: str) -> tuple[Secret, ...]:
        """Raises InvalidError for what is not a Secret."""
        secrets = self.secrets or ()
        if isinstance(secrets, Secret) or not all(isinstance(secret, Secret) for secret in secrets):
            raise InvalidError(f"{place}: Image.{kind}(secrets=…) needs a list of modal.Secret")
        return tuple(secrets)


def texts(kind: str, what: str, values: Sequence[Any]) -> list[str]:
    """`*packages` and the like, each a text or a list of texts, as one list.

    Raises:
        InvalidError: something else among them.
    """
    found: list[str] = []
    for value in values:
        if isinstance(value, str):
            found.append(value)
        elif isinstance(value, (list, tuple)) and all(isinstance(item, str) for item in value):
            found.extend(value)
        else:
            raise InvalidError(f"{where.caller()}: Image.{kind}: {what} must be texts or lists of texts, not {value!r}")
    return found


def package_names(kind: str, values: Sequence[Any]) -> list[str]:
    """Package names; an option among them is refused."""
    found = texts(kind, "packages", values)
    options = [item for item in found if item.startswith("-")]
    if options:
        raise InvalidError(
            f"{where.caller()}: Image.{kind}: {', '.join(options)} is an option, not a package; options go into "
            "`extra_options` or the argument of their own"
        )
    return found


def local(path: str | Path) -> str:
    """Absolute local path."""
    return os.path.abspath(os.path.expanduser(os.fspath(path)))


def remote(path: str | PurePosixPath, kind: str) -> str:
    """A path in the replica.

    Raises:
        InvalidError: not absolute.
    """
    text = str(path)
    if not text.startswith("/"):
        raise InvalidError(
            f"{where.caller()}: Image.{kind}: the remote path {text!r} must be absolute, as in '/root/{text}'"
        )
    return text
