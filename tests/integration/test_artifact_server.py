"""What nodes of a cluster get from a router's artifact server, on a real socket."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from modalnomad.hashicorp import artifact_server
from modalnomad.hashicorp.artifact_server import ArtifactServer
from modalnomad.hashicorp.artifacts import ObjectArtifacts
from modalnomad.model.errors import BackendConflict, BackendRefused
from modalnomad.model.ids import Digest
from modalnomad.settings import ArtifactSettings

SIZE = 5_000_000
UNKNOWN = "0" * 64


async def exchange(port: int, data: bytes) -> bytes:
    """All that comes back."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(data)
    answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    return answer


class Served:
    """A server with one artifact."""

    def __init__(self, artifacts: ObjectArtifacts, server: ArtifactServer, digest: Digest) -> None:
        self.artifacts, self.server, self.digest = artifacts, server, digest
        self.url = f"http://127.0.0.1:{server.port}"


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    artifacts = ObjectArtifacts(ArtifactSettings(), tmp_path / "home")
    (tmp_path / "file").write_bytes(os.urandom(SIZE))
    digest = await artifacts.put(tmp_path / "file")
    server = ArtifactServer(artifacts, "127.0.0.1", 0)
    await server.start()
    yield Served(artifacts, server, digest)
    await server.close()


@pytest.mark.parametrize("ending", ["", ".tar.gz"])
async def test_an_artifact_is_read_by_its_digest(served: Served, ending: str) -> None:
    async with (
        aiohttp.ClientSession() as client,
        client.get(f"{served.url}/artifacts/{served.digest}{ending}") as response,
    ):
        assert response.status == 200
        assert response.headers["Content-Length"] == str(SIZE)
        assert "immutable" in response.headers["Cache-Control"]
        assert hashlib.sha256(await response.read()).hexdigest() == served.digest


async def test_head_tells_the_length_and_nothing_more(served: Served) -> None:
    async with aiohttp.ClientSession() as client, client.head(f"{served.url}/artifacts/{served.digest}") as response:
        assert (response.status, response.headers["Content-Length"]) == (200, str(SIZE))
        assert await response.read() == b""


@pytest.mark.parametrize(
    "target",
    [
        "/",
        "/artifacts",
        "/artifacts/",
        f"/artifacts/{UNKNOWN}",
        "/artifacts/{digest}/",
        "/artifacts/{digest}.zip",
        "/artifacts/{digest}?x=1",
        "/artifacts//{digest}",
        "/artifacts/../artifacts/{digest}",
        "/artifacts/%2e%2e/artifacts/{digest}",
        "/artifacts/../../../../etc/passwd",
        "/artifacts/%2Fetc%2Fpasswd",
    ],
)
async def test_nothing_else_is_there(served: Served, target: str) -> None:
    """As the bytes of a request: clients tidy up such paths before they send them."""
    target = target.replace("{digest}", served.digest)
    answer = await exchange(
        served.server.port, f"GET {target} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n".encode()
    )

    assert answer.startswith(b"HTTP/1.1 404 "), answer[:100]
    assert b"application/problem+json" in answer


async def test_names_are_exact(served: Served) -> None:
    async with (
        aiohttp.ClientSession() as client,
        client.get(f"{served.url}/artifacts/{served.digest.upper()}") as response,
    ):
        assert response.status == 404


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
async def test_nothing_can_be_changed(served: Served, method: str) -> None:
    async with (
        aiohttp.ClientSession() as client,
        client.request(method, f"{served.url}/artifacts/{served.digest}") as response,
    ):
        assert response.status == 405


async def test_an_artifact_that_goes_away_is_not_found(served: Served) -> None:
    await served.artifacts.prune(())

    async with aiohttp.ClientSession() as client, client.get(f"{served.url}/artifacts/{served.digest}") as response:
        assert response.status == 404
        assert "deploy the App again" in (await response.json(content_type=None))["detail"]


class Breaking:
    """Content that cannot be read to its end."""

    async def size(self, digest: Digest) -> int:
        return 1000

    async def read(self, digest: Digest) -> AsyncIterator[bytes]:
        yield b"x" * 10
        raise OSError("the disk reports an error")


class Failing(Breaking):
    async def size(self, digest: Digest) -> int:
        raise BackendRefused("the bucket at https://bucket.example does not answer")


async def test_content_that_breaks_off_is_never_taken_for_whole() -> None:
    server = ArtifactServer(Breaking(), "127.0.0.1", 0)
    await server.start()
    async with aiohttp.ClientSession() as client:
        with pytest.raises(aiohttp.ClientPayloadError):
            async with client.get(f"http://127.0.0.1:{server.port}/artifacts/{UNKNOWN}") as response:
                await response.read()
    await server.close()


async def test_a_store_that_does_not_answer_is_503_and_says_nothing_of_it() -> None:
    server = ArtifactServer(Failing(), "127.0.0.1", 0)
    await server.start()
    async with (
        aiohttp.ClientSession() as client,
        client.get(f"http://127.0.0.1:{server.port}/artifacts/{UNKNOWN}") as response,
    ):
        assert response.status == 503
        assert "bucket" not in await response.text()
    await server.close()


async def test_a_taken_port_is_said(served: Served) -> None:
    other = ArtifactServer(served.artifacts, "127.0.0.1", served.server.port)

    with pytest.raises(BackendConflict, match=str(served.server.port)):
        await other.start()

    await other.close()


async def test_closing_ends_it(served: Served) -> None:
    port = served.server.port

    await served.server.close()

    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", port)


@pytest.mark.parametrize(
    "said", ["", "GET /artif", "GET / HTTP/1.1\r\nHost: a\r\n\r\n"], ids=["silent", "half", "after"]
)
async def test_idle_connections_do_not_take_the_routers_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str
) -> None:
    monkeypatch.setattr(artifact_server, "IDLE", 0.2)
    server = ArtifactServer(ObjectArtifacts(ArtifactSettings(), tmp_path), "127.0.0.1", 0)
    await server.start()
    try:
        async with asyncio.timeout(20):
            answer = await exchange(server.port, said.encode())
    finally:
        await server.close()
    assert answer.startswith(b"HTTP/1.1 404 ") or not said.endswith("\n")
