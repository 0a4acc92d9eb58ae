"""The uv program: where it is and what environment it gets."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

from modalnomad_sdk.store.errors import UvMissing

# What would point uv or the interpreters it asks at somebody else's environment, or keep bytecode from being written.
_REMOVED = (
    "PYTHONDONTWRITEBYTECODE",
    "PYTHONPATH",
    "PYTHONHOME",
    "PYTHONSTARTUP",
    "PYTHONOPTIMIZE",
    "VIRTUAL_ENV",
    "CONDA_PREFIX",
    "UV_PROJECT_ENVIRONMENT",
    "UV_SYSTEM_PYTHON",
    "UV_PYTHON",
    "UV_REQUIRE_HASHES",
    "UV_COMPILE_BYTECODE",
)

_SYSTEM_CERTIFICATES = ("/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem")


def find_uv() -> Path:
    """Beside this interpreter, else on PATH. Raises UvMissing."""
    beside = Path(sys.executable).parent / "uv"
    if os.access(beside, os.X_OK):
        return beside
    if found := shutil.which("uv"):
        return Path(found)
    raise UvMissing("the uv program was not found", hint="install it beside modalnomad: python -m pip install uv")


def uv_environment(more: Mapping[str, str] | None = None) -> dict[str, str]:
    """This process's environment for a uv child: never downloads a Python, writes bytecode, plain output."""
    environment = {key: value for key, value in os.environ.items() if key not in _REMOVED}
    environment.update(UV_PYTHON_DOWNLOADS="never", UV_NO_PROGRESS="1", NO_COLOR="1")
    if any(os.path.exists(bundle) for bundle in _SYSTEM_CERTIFICATES):
        # Where a company signs for the package index, its certificate is in the system's store and nowhere else.
        environment.setdefault("UV_SYSTEM_CERTS", "1")
    environment.update(more or {})
    return environment
