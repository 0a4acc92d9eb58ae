"""What a router says of namespaces that Nomad does not show it."""

from __future__ import annotations

import pytest

from modalnomad.hashicorp.nomad.namespaces import missing


@pytest.mark.parametrize(
    ("namespaces", "environment", "told"),
    [
        (("default", "modalnomad-main"), "main", ""),
        (("default", "modalnomad-main"), "other", "no namespace modalnomad-other: "),
        (("default", "modalnomad-other"), None, ""),
        (("default", "modalnomad"), None, "no namespace of an environment (modalnomad-…): "),
        ((), "main", "`modalnomad setup --env main`"),
        ((), None, "`modalnomad setup`"),
    ],
)
def test_what_a_router_says_of_missing_namespaces(namespaces: tuple[str, ...], environment: str, told: str) -> None:
    found = missing(namespaces, environment)
    assert told in found
    assert bool(found) == bool(told)
