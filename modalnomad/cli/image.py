"""`modalnomad image`: the environments replicas run in."""

from __future__ import annotations

import asyncio
import time
from typing import Annotated

import typer

from modalnomad.cli.common import EnvOption, JsonOption, load_settings
from modalnomad.cli.output import emit, out, show_table

app = typer.Typer(help="Images: the environments that were built on this machine.", no_args_is_help=True)


@app.command("list", epilog="Example: `modalnomad image list`")
def list_(env: EnvOption = None, as_json: JsonOption = False) -> None:
    """Every image with its size, last used first. Images belong to all environments."""
    from modalnomad.embedded.store import translated
    from modalnomad.wiring.home import image_store

    store = image_store(load_settings(env))
    with translated(f"look at the images in {store.root}"):
        images = store.list()
    if as_json:
        for image in images:
            emit(
                {
                    "digest": image.digest,
                    "python": image.python,
                    "packages": image.packages,
                    "size": image.size,
                    "created": image.created,
                    "last_used": image.last_used,
                    "in_use": image.in_use,
                }
            )
    elif images:
        rows = (
            (
                image.digest[:12],
                image.python,
                str(len(image.packages)),
                size(image.size),
                _when(image.last_used),
                "in use" if image.in_use else "",
            )
            for image in images
        )
        show_table(("Image", "Python", "Packages", "Size", "Last used", ""), rows)
    else:
        out.print("No images yet; serve builds what a program needs.")


@app.command(epilog="Example: `modalnomad image prune --unused-for 7`")
def prune(
    unused_for: Annotated[float, typer.Option(min=0, help="Keep images used within this many days.")] = 0,
    env: EnvOption = None,
    as_json: JsonOption = False,
) -> None:
    """Remove images that no kept version of any App needs and nothing runs from; they are built again when needed."""
    from modalnomad.deploy.image_admin import prune_images
    from modalnomad.wiring.home import image_store
    from modalnomad.wiring.records import with_records

    settings = load_settings(env)
    store, unused = image_store(settings), unused_for * 86400
    pruned = asyncio.run(
        with_records(settings, lambda records: prune_images(store, records.discovery, unused_for=unused))
    )
    if as_json:
        emit({"removed": pruned.removed, "busy": pruned.busy, "freed": pruned.freed})
        return
    out.print(f"{len(pruned.removed)} removed, {size(pruned.freed)} freed.")
    if pruned.busy:
        out.print(f"{len(pruned.busy)} kept: in use.")


def size(count: float) -> str:
    """Bytes for people: `314 MB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if count >= 10 or unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def _when(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))
