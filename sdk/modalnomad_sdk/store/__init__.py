"""The image store: environments made by uv, one folder per definition, built once and reused by every replica.

A definition is plain data that pins everything (packages with hashes, Python, platform, later steps); its digest names
the folder. Decisions about what a chain of image steps *means* do not belong here: the platform makes definitions.
Nothing here needs more than the standard library and the `uv` program: hosts that run replicas use it without the
platform.
"""

from __future__ import annotations

from modalnomad_sdk.image_files import IMAGE_FILES, LINKED_FROM
from modalnomad_sdk.store.definition import definition_digest
from modalnomad_sdk.store.errors import BuildCancelled, BuildFailed, DiskFull, PythonMissing, StoreError, UvMissing
from modalnomad_sdk.store.images import ImageStore, Pruned, StoredImage
from modalnomad_sdk.store.inputs import Inputs
from modalnomad_sdk.store.process import Child, CommandFailed, Masker
from modalnomad_sdk.store.pythons import Interpreter, find_python
from modalnomad_sdk.store.uv import find_uv, uv_environment

__all__ = [
    "IMAGE_FILES",
    "LINKED_FROM",
    "BuildCancelled",
    "BuildFailed",
    "Child",
    "CommandFailed",
    "DiskFull",
    "ImageStore",
    "Inputs",
    "Interpreter",
    "Masker",
    "Pruned",
    "PythonMissing",
    "StoreError",
    "StoredImage",
    "UvMissing",
    "definition_digest",
    "find_python",
    "find_uv",
    "uv_environment",
]
