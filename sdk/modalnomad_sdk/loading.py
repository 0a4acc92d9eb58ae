"""User code is loaded here, at deploy and in the replica alike (design §3)."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

from . import state, where
from .alias import install_alias
from .app import App
from .declarations import FunctionDeclaration
from .image import failed_imports

__all__ = [
    "AppNotFound",
    "FunctionNotFound",
    "LoadingError",
    "LookupError_",
    "ModuleBroken",
    "ModuleMissing",
    "apps_of",
    "find_declaration",
    "install_alias",
    "load_module",
]


class LoadingError(Exception):
    """Base of everything raised here."""


class ModuleMissing(LoadingError):
    """The file or module does not exist."""


class ModuleBroken(LoadingError):
    """The module exists and its import raised; `__cause__` is the user's own exception."""


class LookupError_(LoadingError):
    """The module has no such App or Function; the message lists what was found."""


class AppNotFound(LookupError_):
    """No App in the module."""


class FunctionNotFound(LookupError_):
    """No Function or Cls of this tag in any App of the module."""


def load_module(source: str, root: Path) -> ModuleType:
    """Import the user's module.

    `source` is `script:<file relative to root>` or `module:<dotted name>` (contract.ENV_SOURCE). `root` goes first on
    sys.path. A script is registered in sys.modules under its stem; a module is imported as at home.

    Raises:
        ModuleMissing: no such file or module.
        ModuleBroken: its import raised.
    """
    install_alias()
    mode, _, entry = source.partition(":")
    if mode not in {"script", "module"} or not entry:
        raise ModuleMissing(f"{source!r} is neither script:<file> nor module:<dotted name>")
    where.set_root(str(root))
    sys.path[:] = [str(root), *(p for p in sys.path if p != str(root))]
    state.set_loading(True)
    try:
        return _load_script(root / entry) if mode == "script" else _load_package_module(entry)
    finally:
        state.set_loading(False)


def _load_script(path: Path) -> ModuleType:
    if not path.is_file():
        raise ModuleMissing(f"{path} does not exist" if not path.exists() else f"{path} is not a file")
    name = path.stem
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ModuleMissing(f"{path} is not a Python file: its name must end in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException as error:
        sys.modules.pop(name, None)
        if isinstance(error, (KeyboardInterrupt, GeneratorExit)):
            raise
        raise ModuleBroken(_broken(path.name, error, script=True)) from error
    return module


def _load_package_module(name: str) -> ModuleType:
    try:
        missing = _missing_part(name)
    except BaseException as error:
        if isinstance(error, (KeyboardInterrupt, GeneratorExit)):
            raise
        raise ModuleBroken(_broken(name, error)) from error
    if missing is not None:
        where_looked = f" in {sys.path[0]}" if "." not in missing else ""
        raise ModuleMissing(f"there is no module {missing}{where_looked} (asked for: {name})")
    try:
        return importlib.import_module(name)
    except BaseException as error:
        if isinstance(error, (KeyboardInterrupt, GeneratorExit)):
            raise
        raise ModuleBroken(_broken(name, error)) from error


def _missing_part(name: str) -> str | None:
    """First part of a dotted name that does not exist. Imports the packages around it."""
    parts = name.split(".")
    for end in range(1, len(parts) + 1):
        part = ".".join(parts[:end])
        if not all(piece.isidentifier() for piece in parts[:end]):
            return part
        if end > 1 and not hasattr(sys.modules[".".join(parts[: end - 1])], "__path__"):
            return part
        if part not in sys.modules and importlib.util.find_spec(part) is None:
            return part
        if end < len(parts):
            importlib.import_module(part)
    return None


def _broken(name: str, error: BaseException, script: bool = False) -> str:
    message = f"{name} could not be imported: {type(error).__name__}: {error}"
    if script and isinstance(error, ImportError) and "relative import" in str(error):
        message += (
            ". A file that is run by its path is not part of a package, so `from . import …` has nothing to be "
            "relative to: name it as a module instead, `-m package.module`"
        )
    for failure in failed_imports():
        message += f". Earlier, under `with image.imports()` at {failure.where}: {failure.error!r}"
    return message


def apps_of(module: ModuleType) -> dict[str, App]:
    """Apps among the module's globals, by the first name that each has there."""
    found: dict[str, App] = {}
    for name, value in vars(module).items():
        if isinstance(value, App) and not any(value is app for app in found.values()):
            found[name] = value
    return found


def find_declaration(module: ModuleType, tag: str, app_name: str | None) -> FunctionDeclaration:
    """The Function or Cls `tag` of the App called `app_name` (or of an App without a name).

    Raises:
        LookupError_: AppNotFound or FunctionNotFound, listing what there is.
        ModuleBroken: an import under `with image.imports()` failed, and this Function runs in that image.
    """
    apps = list(apps_of(module).values())
    if not apps:
        raise AppNotFound(f"{module.__name__} defines no modal.App")
    named = [app for app in apps if app.name == app_name]
    unnamed = [app for app in apps if app.name is None]
    for app in [*named, *unnamed, *apps]:
        declaration = app.declarations.get(tag)
        if declaration is not None:
            _raise_failed_import(declaration)
            return declaration
    tags = sorted({known for app in apps for known in app.declarations})
    raise FunctionNotFound(f"{module.__name__} has no Function {tag}; it has: {', '.join(tags) or 'none'}")


def _raise_failed_import(declaration: FunctionDeclaration) -> None:
    for failure in failed_imports():
        if failure.image is declaration.options.image:
            raise ModuleBroken(
                f"an import under `with image.imports()` at {failure.where} failed: {failure.error!r}"
            ) from failure.error


def split_root(path: str) -> tuple[Path, str]:
    """(folder, file name) of a script."""
    absolute = Path(os.path.abspath(path))
    return absolute.parent, absolute.name
