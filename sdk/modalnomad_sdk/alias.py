"""`import modal` means this SDK: in `describe` and in replicas, also where the vendor's package is installed."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from importlib.abc import Loader, MetaPathFinder
else:
    # The real base classes add nothing that is used, and cost a replica 5 ms of start-up.
    Loader = MetaPathFinder = object

PACKAGE = __package__ or "modalnomad_sdk"
NAME = "modal"

# Submodules that programs import, and the module of this SDK that has their names.
SUBMODULES = {
    "app": "app",
    "cloud_bucket_mount": "storage",
    "cls": "cls",
    "dict": "storage",
    "exception": "exception",
    "experimental": "experimental",
    "file_pattern_matcher": "patterns",
    "functions": "functions",
    "gpu": "gpu",
    "image": "image",
    "network_file_system": "storage",
    "output": "process",
    "partial_function": "decorators",
    "proxy": "storage",
    "queue": "storage",
    "retries": "retries",
    "sandbox": "sandbox",
    "schedule": "schedule",
    "secret": "secret",
    "volume": "storage",
}


class _Alias(Loader):
    """Puts the SDK's own module in place of the empty one that the import system made."""

    def __init__(self, target: str) -> None:
        self.target = target

    def create_module(self, spec: ModuleSpec) -> None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        spec = module.__spec__
        assert spec is not None
        sys.modules[spec.name] = importlib.import_module(self.target)


class _Finder(MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if not fullname.startswith(NAME + "."):
            return None
        name = fullname[len(NAME) + 1 :]
        if name not in SUBMODULES:
            known = ", ".join(sorted(SUBMODULES))
            raise ModuleNotFoundError(
                f"modalnomad has no module `{fullname}`. Of the submodules of `modal` it has: {known}; everything "
                "public is on `modal` itself",
                name=fullname,
            )
        return ModuleSpec(fullname, _Alias(f"{PACKAGE}.{SUBMODULES[name]}"))


def install_alias() -> None:
    """From here on `import modal` gives this SDK. Idempotent; call it before user code is imported."""
    sdk = sys.modules[PACKAGE]
    if sys.modules.get(NAME) is not sdk:
        for loaded in [name for name in sys.modules if name == NAME or name.startswith(NAME + ".")]:
            del sys.modules[loaded]
        sys.modules[NAME] = sdk
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())
