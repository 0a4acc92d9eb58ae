"""Which paths a replica might take for the platform's own."""

from __future__ import annotations

import pytest

from modalnomad.router.app import is_private

PRIVATE = [
    b"/.modalnomad/ready", b"/.modalnomad/", b"/.modalnomad", b"/.MODALNOMAD/ready", b"//.modalnomad/ready",
    b"/%2emodalnomad/ready", b"/%2Emodalnomad%2Fready", b"/.%6dodalnomad/drain", b"/./.modalnomad/ready",
    b"/x/../.modalnomad/ready", b"/x/%2e%2e/.modalnomad/ready", b"/\\.modalnomad/ready", b"/../.modalnomad/ready",
]  # fmt: skip
PUBLIC = [
    b"/",
    b"/modalnomad/ready",
    b"/x/.modalnomad/ready",
    b"/.modalnomadx",
    b"/.well-known/x",
    b"*",
    b"/a.b",
    b"/%",
]


@pytest.mark.parametrize("path", PRIVATE)
def test_private(path: bytes) -> None:
    assert is_private(path)


@pytest.mark.parametrize("path", PUBLIC)
def test_public(path: bytes) -> None:
    assert not is_private(path)
