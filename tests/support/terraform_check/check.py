"""Every check of the Terraform files that needs neither Terraform nor a provider."""

from __future__ import annotations

from collections.abc import Iterator

from tests.support.terraform_check.arguments import arguments
from tests.support.terraform_check.habits import habits
from tests.support.terraform_check.language import labelled, language
from tests.support.terraform_check.model import Finding, Schema, Texts, modules
from tests.support.terraform_check.references import references, unused
from tests.support.terraform_check.shape import calls, declared, versions


def check(files: Texts, schema: Schema) -> list[Finding]:
    """All findings, by file and line. Raises `hcl.HclError` where a file is no HCL."""
    return sorted(set(_check(files, schema)))


def _check(files: Texts, schema: Schema) -> Iterator[Finding]:
    found = {}
    for folder, whole in modules(files).items():
        found[folder], told = labelled(whole)
        yield from told
    for module in found.values():
        yield from language(module, schema)
        yield from arguments(module, schema)
        yield from references(module, found, schema)
        yield from unused(module)
        yield from declared(module, found, schema)
        yield from calls(module, found)
        yield from versions(module, found)
        yield from habits(module, found, schema)
