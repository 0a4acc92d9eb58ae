"""A real server of objects for tests, where `versitygw` is on PATH: S3's API over a folder."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from tests.support.ports import held_port

BUCKET = "bucket"
KEY, SECRET, REGION = "key-id", "very-secret", "eu-west-1"


def missing() -> str:
    """Why there is none; empty: there is."""
    return "" if shutil.which("versitygw") else "versitygw is not on PATH"


@asynccontextmanager
async def object_server(folder: Path) -> AsyncIterator[dict[str, str]]:
    """With one empty bucket; the usual variables that lead there."""
    (folder / BUCKET).mkdir(parents=True)
    with held_port() as port:
        address = f"127.0.0.1:{port}"
        process = await asyncio.create_subprocess_exec(
            *("versitygw", "--port", address, "--region", REGION, "posix", str(folder)),
            env={"PATH": os.environ["PATH"], "ROOT_ACCESS_KEY": KEY, "ROOT_SECRET_KEY": SECRET},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        try:
            assert process.stdout is not None
            async with asyncio.timeout(20):
                while address.encode() not in (line := await process.stdout.readline()):
                    assert line, "it ended"
            yield {
                "AWS_ENDPOINT_URL": f"http://{address}",
                "AWS_ACCESS_KEY_ID": KEY,
                "AWS_SECRET_ACCESS_KEY": SECRET,
                "AWS_REGION": REGION,
            }
        finally:
            process.terminate()
            await process.communicate()
