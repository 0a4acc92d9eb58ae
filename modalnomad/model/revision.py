"""A revision: one function of one manifest with its bundle and image, immutable, named by its content's hash."""

from __future__ import annotations

import hashlib
import json
from typing import Self

from modalnomad.model.ids import DEFAULT_ENVIRONMENT, Digest, RevisionId
from modalnomad.model.manifest import Function, Model, SecretRef, Source


class BuiltImage(Model):
    """An environment every replica of a revision runs in, named by the hash of its pinned definition."""

    digest: Digest
    python: str
    """`3.11`; empty: whatever the image has that a container's was made from."""
    env: tuple[tuple[str, str], ...] = ()
    """Image.env, in order."""
    workdir: str | None = None
    reference: str | None = None
    """A container's image, pinned: `registry/name@sha256:…`. None: an environment made on the machine that runs it."""
    pack: Digest | None = None
    """Artifact that holds all that is needed to make the environment on another machine. None: there is none."""


class Revision(Model):
    """`id` follows from everything else."""

    id: RevisionId
    app: str
    environment: str = DEFAULT_ENVIRONMENT
    function: Function
    source: Source
    bundle: Digest
    image: BuiltImage
    secrets: tuple[SecretRef, ...] = ()
    """As the function declares them, environments filled in."""

    @classmethod
    def make(
        cls,
        *,
        app: str,
        environment: str,
        function: Function,
        source: Source,
        bundle: Digest,
        image: BuiltImage,
    ) -> Self:
        """Hash the content; the source's local folder is not part of it."""
        source = source.model_copy(update={"root": ""})
        secrets = tuple(s.model_copy(update={"environment": s.environment or environment}) for s in function.secrets)
        content = {
            "app": app,
            "environment": environment,
            "function": function.model_dump(
                mode="json", exclude={"where": True, "image": True, "endpoints": {"__all__": {"where"}}}
            ),
            "source": source.model_dump(mode="json"),
            "bundle": bundle,
            # The pack follows from the image's own digest.
            "image": image.model_dump(
                mode="json", exclude={"pack"} | ({"reference"} if image.reference is None else set())
            ),
            "secrets": [s.model_dump(mode="json") for s in secrets],
        }
        canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
        return cls(
            id=RevisionId(hashlib.sha256(canonical.encode()).hexdigest()[:32]),
            app=app,
            environment=environment,
            function=function,
            source=source,
            bundle=bundle,
            image=image,
            secrets=secrets,
        )
