"""`modalnomad up --json` as a child process, and Apps put into its home without `modalnomad deploy`.

    home = own_home(tmp_path)                 # records of its own, images shared with all tests
    store(home, "examples/hello.py")          # what a deploy without a running `up` leaves
    with up(home) as u:
        httpx.get(u.url("hello"))             # by the endpoint's name; `u.host_url(...)`: through the one listener
        store(home, "examples/other.py")
        u.wait_event("endpoint", name="other")

What is said of `Serve` holds: every call waits for a value with a deadline.
"""

from __future__ import annotations

import asyncio
import getpass
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from modalnomad_sdk.store import ImageStore

from modalnomad.deploy.build import Builder, Candidate
from modalnomad.deploy.bundle import pack
from modalnomad.deploy.collect import Collector, Reference
from modalnomad.deploy.hosts import Naming
from modalnomad.deploy.images import Images
from modalnomad.deploy.report import Silent
from modalnomad.embedded.artifacts import EmbeddedArtifacts
from modalnomad.embedded.discovery import EmbeddedDiscovery
from modalnomad.embedded.engine import EmbeddedEngine
from modalnomad.embedded.secrets import EmbeddedSecrets
from modalnomad.model.apps import AppRecord, AppVersion
from modalnomad.model.revision import Revision
from modalnomad.ports.discovery import PublishApp
from modalnomad.ports.engine import Verdict
from modalnomad.settings import EmbeddedSettings, ScalingSettings
from tests.support.serve import Serve, shared_home


class Up(Serve):
    """A running `modalnomad up --json`."""

    def __init__(
        self,
        arguments: Sequence[str] = (),
        *,
        home: Path,
        env: Mapping[str, str] | None = None,
        ready_timeout: float = 60,
    ) -> None:
        given = [argument.partition("=")[0] for argument in arguments]
        ports = [word for option in ("--port", "--admin-port") if option not in given for word in (option, "0")]
        super().__init__([*ports, *arguments], home=home, env=env, ready_timeout=ready_timeout, command="up")

    @property
    def port(self) -> int:
        """Of the listener that all endpoints share."""
        (ready,) = [event for event in self.events if event["event"] == "ready"]
        return int(ready["url"].rpartition(":")[2])


def up(home: Path, *arguments: str, env: Mapping[str, str] | None = None, ready_timeout: float = 60) -> Up:
    """`with up(home) as u:`. Without `--port`, `--admin-port` it takes free ones."""
    return Up(arguments, home=home, env=env, ready_timeout=ready_timeout)


def own_home(folder: Path) -> Path:
    """A MODALNOMAD_HOME of the test's own below `folder`, whose images are those of the shared home."""
    home = folder / "home"
    home.mkdir(mode=0o700, exist_ok=True)
    images = shared_home() / "images"
    images.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not (home / "images").exists():
        (home / "images").symlink_to(images)
    return home


def home_with(folder: Path, program: str) -> Path:
    """The same with one App in it, whose program is `shop.py` in `folder`."""
    home = own_home(folder)
    file = folder / "shop.py"
    file.write_text(program)
    store(home, file)
    return home


class _NoEngine(EmbeddedEngine):
    """Prepares nothing: records are only written."""

    async def prepare(self, revision: Revision) -> None:
        return

    async def explain(self, revision: Revision) -> Verdict:
        return Verdict("yes")


def build(home: Path, program: str | Path, *, environment: str = "main", name: str | None = None) -> Candidate:
    """The program's revisions with bundle and image, as a deploy makes them; nothing is published."""
    return asyncio.run(_build(home, program, environment, name))


async def _build(home: Path, program: str | Path, environment: str, name: str | None) -> Candidate:
    secrets, artifacts = EmbeddedSecrets(home), EmbeddedArtifacts(home)
    store = ImageStore(home / "images")
    engine = _NoEngine(
        home=home,
        settings=EmbeddedSettings(),
        scaling=ScalingSettings(),
        secrets=secrets,
        images=store,
        artifacts=artifacts,
        platform_key=b"k" * 32,
    )
    builder = Builder(
        engine=engine,
        secrets=secrets,
        images=Images(store, lambda refs: secrets.resolve(refs, environment)),
        bundles=lambda description, functions: pack(description, functions, artifacts),
        naming=Naming(environment=environment),
        ephemeral=False,
    )
    collector = Collector(Reference.parse(str(program)))
    try:
        description = await collector.collect(lambda line: None)
    finally:
        await collector.close()
    return await builder.build(description, builder.plan(description, name), Silent())


def store(home: Path, program: str | Path, *, environment: str = "main", name: str | None = None) -> AppRecord:
    """Deploy without `up`: a new version of the program's App in the records."""
    return publish(home, build(home, program, environment=environment, name=name))


def publish(home: Path, candidate: Candidate) -> AppRecord:
    """A new version of its App."""

    async def write() -> AppRecord:
        discovery = EmbeddedDiscovery(home)
        plan = candidate.plan
        before = await discovery.app(plan.app, plan.environment)
        number, serial = (before.version, before.serial) if before else (0, 0)
        version: AppVersion = plan.version(candidate.revisions, number + 1).model_copy(
            update={"deployed_at": time.time(), "deployed_by": getpass.getuser()}
        )
        record = AppRecord(
            app=plan.app,
            environment=plan.environment,
            serial=serial + 1,
            versions=(*(before.versions if before else ()), version),
        )
        await discovery.publish(PublishApp(record, serial))
        return record

    return asyncio.run(write())


def stop_app(home: Path, app: str, environment: str = "main") -> AppRecord:
    """`modalnomad app stop`, in the records."""

    async def write() -> AppRecord:
        discovery = EmbeddedDiscovery(home)
        before = await discovery.app(app, environment)
        assert before is not None
        record = before.model_copy(update={"serial": before.serial + 1, "stopped_at": time.time()})
        await discovery.publish(PublishApp(record, before.serial))
        return record

    return asyncio.run(write())
