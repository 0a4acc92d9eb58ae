"""A program as Nomad's jobs, without a server: what a deploy to a cluster would register."""

from __future__ import annotations

import time
from typing import Any, Final

from modalnomad.deploy.build import make_revisions, plan_program
from modalnomad.deploy.bundle import pack
from modalnomad.deploy.collect import Reference, collect
from modalnomad.deploy.images import Images
from modalnomad.deploy.origin import deployer
from modalnomad.deploy.report import Report
from modalnomad.deploy.scratch import scratch_folder
from modalnomad.hashicorp.artifacts import ObjectArtifacts, nodes_url
from modalnomad.hashicorp.sdk_archive import sdk_archive
from modalnomad.render.nomad import Rendering, parent_job
from modalnomad.settings import ArtifactSettings, Settings
from modalnomad.wiring.building import naming_of
from modalnomad.wiring.cluster import web_urls
from modalnomad.wiring.cluster_images import cluster_images, in_containers
from modalnomad.wiring.home import home_of, image_store
from modalnomad.wiring.program_text import program_text
from modalnomad.wiring.scratch import scratch_in

NO_TICKET: Final = "0" * 64
"""In place of the tickets' hashes: the platform's key is the cluster's."""


async def render_program(
    settings: Settings, reference: Reference, name: str | None, *, version: int, report: Report
) -> tuple[dict[str, Any], ...]:
    """One body to register for each Function, as they would be in the App's version `version`.

    Images are built on this machine and stay there; bundle and packs are made, hashed and gone. No server is asked, so
    neither secrets nor nodes are looked at; a container's image is pushed, since only its registry can say its digest.
    Raises UserError for the program's problems, BackendError otherwise.
    """
    home = home_of(settings)
    url = nodes_url(settings.artifacts)
    images = Images(image_store(settings))
    try:
        with scratch_in(home), scratch_folder("modalnomad-render-") as folder:
            artifacts = ObjectArtifacts(ArtifactSettings(store=str(folder)), home)
            description = await collect(reference, on_output=report.output)
            plan = plan_program(
                description, naming_of(settings), ephemeral=False, name=name, containers=in_containers(settings)
            )
            for notice in plan.notices:
                report.notice(plan.app, notice)
            revisions = await make_revisions(
                description,
                plan,
                report,
                images=cluster_images(settings, images, artifacts),
                bundles=lambda description, functions: pack(description, functions, artifacts),
            )
            sdk = await sdk_archive(artifacts)
            texts = [await program_text(artifacts, revision) for revision in revisions]
    finally:
        images.close()
    deployed_at, deployed_by = time.time(), deployer()
    return tuple(
        parent_job(
            revision,
            Rendering(
                nomad=settings.nomad,
                vault=settings.vault,
                artifacts_url=url,
                orphan_factor=settings.scaling.orphan_factor,
                sdk=sdk,
                ticket_sha256=NO_TICKET,
                web_urls=web_urls(settings, revision),
                version=version,
                deployed_at=deployed_at,
                deployed_by=deployed_by,
                source=text,
            ),
        )
        for revision, text in zip(revisions, texts, strict=True)
    )
