"""Records of Apps as deploys write them, made from a few numbers."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from modalnomad.model.apps import AppRecord, AppVersion
from modalnomad.model.ids import Digest
from modalnomad.model.manifest import Endpoint, Function, Scaling, SecretRef, Source
from modalnomad.model.revision import BuiltImage, Revision
from modalnomad.model.routes import Route


def digest(text: str) -> Digest:
    """64 hex digits that follow from the text."""
    return Digest(hashlib.sha256(text.encode()).hexdigest())


def version(
    app: str,
    number: int,
    *,
    environment: str = "main",
    functions: int = 3,
    bundle: Digest | None = None,
    image: Digest | None = None,
    secrets: Sequence[SecretRef] = (),
    deployed_at: float = 1.0,
) -> AppVersion:
    """A version whose functions `f0`, `f1`, … each have an endpoint of their own."""
    routes, revisions = [], []
    for index in range(functions):
        endpoint = Endpoint(name=f"f{index}", kind="asgi_app", where=f"app.py:{index}")
        revision = Revision.make(
            app=app,
            environment=environment,
            function=Function(
                tag=f"f{index}",
                endpoints=(endpoint,),
                timeout=number,
                scaling=Scaling(max_containers=number),
                secrets=tuple(secrets),
            ),
            source=Source(mode="script", entry="app.py", root="/r", module="app"),
            bundle=bundle or digest(f"{app} {number}"),
            image=BuiltImage(digest=image or digest("image"), python="3.11", env=(("A", "1"),)),
        )
        host = f"{app}-f{index}.localhost"
        routes.append(Route(hosts=(host,), environment=environment, app=app, endpoint=endpoint, revision=revision.id))
        revisions.append(revision)
    return AppVersion(
        number=number,
        routes=tuple(routes),
        revisions=tuple(revisions),
        deployed_at=deployed_at,
        deployed_by="me@here",
        commit="c" * 40,
    )


def app_record(app: str, *versions: AppVersion, environment: str = "main", serial: int = 1) -> AppRecord:
    """Its record; without versions, of one."""
    return AppRecord(
        app=app,
        environment=environment,
        serial=serial,
        versions=versions or (version(app, 1, environment=environment),),
    )
