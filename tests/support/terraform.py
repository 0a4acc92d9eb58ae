"""Runs Terraform for tests: never asks a network, writes nothing into the checkout, takes nothing of the user's set-up.

    run(folder, "fmt", "-check")                     # a `CompletedProcess`, with text
    run(folder, "init", *plugins_given(), data=tmp)  # `.terraform` lies in `data`

Plug-ins of the providers are taken from a folder laid out as Terraform's file system mirrors are: the one that
`TF_CLI_CONFIG_FILE` names, else one of those that Terraform itself looks into."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

import pytest

from tests.support.repository import ROOT

TERRAFORM: Final = ROOT / "terraform"
PROVIDERS: Final = ("consul", "nomad", "vault")
LIMIT: Final = 60.0
"""Seconds a run may take."""

needs_terraform = pytest.mark.skipif(shutil.which("terraform") is None, reason="terraform is not on this machine")


def run(
    folder: Path,
    *words: str,
    data: Path | None = None,
    variables: Mapping[str, str] | None = None,
    limit: float = LIMIT,
) -> subprocess.CompletedProcess[str]:
    """Run in a folder. `data`: where its `.terraform` lies, outside the checkout; `variables`: of the environment."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TF_")}
    own = {"CHECKPOINT_DISABLE": "1", "TF_IN_AUTOMATION": "1", "TF_INPUT": "0", "TF_CLI_CONFIG_FILE": os.devnull}
    if data is not None:
        own["TF_DATA_DIR"] = str(data)
    return subprocess.run(
        ["terraform", *words],
        cwd=folder,
        env={**kept, **own, **(variables or {})},
        capture_output=True,
        text=True,
        timeout=limit,
        check=False,
    )


def mirrors() -> Iterator[Path]:
    """Folders that may hold plug-ins."""
    config = Path(os.environ.get("TF_CLI_CONFIG_FILE", os.devnull))
    if config.is_file():
        # An older HCL than that of modules: python-hcl2 refuses the quoted names of `dev_overrides`.
        yield from map(
            Path, re.findall(r'\bfilesystem_mirror\s*\{[^}]*?\bpath\s*=\s*"([^"]+)"', config.read_text("utf-8"))
        )
    yield Path.home() / ".terraform.d" / "plugins"
    yield Path("/usr/local/share/terraform/plugins")


def plugins() -> Path | None:
    """The first folder that has a plug-in of each provider, `None` where there is none."""
    complete = (folder for folder in mirrors() if all(any(folder.glob(f"*/hashicorp/{p}/*/*/*")) for p in PROVIDERS))
    return next(complete, None)


def plugins_given() -> tuple[str, ...]:
    """For `terraform init`; the test is skipped where a plug-in or Terraform itself is not there."""
    if shutil.which("terraform") is None:
        pytest.skip("terraform is not on this machine")
    if (folder := plugins()) is None:
        pytest.skip("Terraform's plug-ins for nomad, vault and consul are not on this machine")
    return (f"-plugin-dir={folder}",)
