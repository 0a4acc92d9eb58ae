"""How long the same image takes again: plan, resolve, define and look up, without any process. Goal: under 5 ms.

    python benchmarks/image_reuse.py [--rounds N]

Builds two images in a folder of its own first (needs uv and a package index), then asks for them again and again: in
the same process, and as the first thing a new process does.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from modalnomad_sdk.store import ImageStore

from modalnomad.deploy.images import resolve_and_build_here
from modalnomad.model.manifest import Image, ImageStep

GOAL = 5.0
"""Milliseconds."""

IMAGES = {
    "no image": None,
    "fastapi[standard]": Image(steps=(ImageStep(kind="pip_install", arguments={"packages": ["fastapi[standard]"]}),)),
}

FIRST = """
import sys, time
from pathlib import Path
from modalnomad.deploy.images import resolve_and_build_here
from modalnomad.model.manifest import Image
from modalnomad_sdk.store import ImageStore
image = Image.model_validate_json(sys.argv[2]) if sys.argv[2] else None
started = time.perf_counter()
resolve_and_build_here(image, ImageStore(Path(sys.argv[1])), lambda line: None)
print((time.perf_counter() - started) * 1000)
"""


def main() -> int:
    """Print a line per image and way; 1 when a median is over the goal."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=50)
    rounds: int = parser.parse_args().rounds
    over = False
    with tempfile.TemporaryDirectory(prefix="image-reuse-") as folder:
        for name, image in IMAGES.items():
            root = Path(folder)
            started = time.perf_counter()
            resolve_and_build_here(image, ImageStore(root), lambda line: None)
            print(f"{name:20} built in {time.perf_counter() - started:6.2f} s")
            for way, times in (
                ("same process", same(root, image, rounds)),
                ("new process", new(root, image, rounds // 5)),
            ):
                median = statistics.median(times)
                over = over or median > GOAL
                print(f"{name:20} again, {way:12}  median {median:6.2f} ms  worst {max(times):6.2f} ms")
    return int(over)


def same(root: Path, image: Image | None, rounds: int) -> list[float]:
    """Milliseconds of each round; a uv that does not exist shows that none is started."""
    times = []
    for _ in range(rounds):
        started = time.perf_counter()
        resolve_and_build_here(image, ImageStore(root, uv=Path("/nonexistent/uv")), lambda line: None)
        times.append((time.perf_counter() - started) * 1000)
    return times


def new(root: Path, image: Image | None, rounds: int) -> list[float]:
    """Milliseconds of the first call in new processes, imports not counted."""
    command = [sys.executable, "-c", FIRST, str(root), image.model_dump_json() if image is not None else ""]
    return [float(subprocess.run(command, capture_output=True, text=True, check=True).stdout) for _ in range(rounds)]


if __name__ == "__main__":
    sys.exit(main())
