"""Images for the docker driver, on a fake engine: what is asked of it, and what becomes of each of its answers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from modalnomad.hashicorp.docker.engine import DockerEngine, split_name
from modalnomad.hashicorp.docker.images import DockerImages
from modalnomad.model.errors import BackendRefused, BackendUnreachable, ImageBuildFailed
from modalnomad.model.manifest import Source
from modalnomad.model.recipe import INDEX, Install, OwnBase, Recipe, Run
from modalnomad.model.revision import BuiltImage
from modalnomad.settings import DockerSettings
from tests.support.fakes.docker import FakeDocker

SOURCE = Source(mode="script", entry="app.py", root="/nowhere", module="app")
BASE = "localhost/python:3.12-slim"
SECRET = "it's $HOME\nsecond line #x"
RECIPE = Recipe(
    python="3.12",
    instructions=(Install("six==1.17.0\n", verify=True), Run("make $THING", number=3)),
    variables={3: {"THING": SECRET}, INDEX: {"PIP_INDEX_URL": "https://me:pa55word@index.test/simple"}},
    hidden=frozenset({SECRET, "me:pa55word"}),
    env=(("A", "b"),),
    workdir="/srv",
)
OUT_OF_SPACE = "write /x: no space left on device"


class Bench:
    """A fake engine, and images made with it."""

    def __init__(self, engine: FakeDocker) -> None:
        self.engine = engine
        self.lines: list[str] = []
        self.heard = asyncio.Event()

    async def make(
        self, recipe: Recipe = RECIPE, *, registry: str = "registry.test/team", silence: float = 30.0
    ) -> BuiltImage:
        """One image, from a deployer's machine that knows nothing of those before."""

        async def recipes(image: object, report: object, source: Source, architecture: str) -> Recipe:
            assert architecture == "amd64"
            return recipe

        images = DockerImages(
            DockerSettings(registry=registry, base="localhost/python:{python}-slim"),
            recipes,
            DockerEngine(self.engine.environment, silence=silence),
            sdk={"__main__.py": b"pass\n"},
            environment={"HTTPS_PROXY": "http://proxy.test", "OTHER": "x"},
        )
        return await images(None, self._report, SOURCE)

    def _report(self, line: str) -> None:
        self.lines.append(line)
        self.heard.set()


@pytest_asyncio.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    async with FakeDocker(tmp_path) as engine:
        engine.images[BASE] = {"Id": "sha256:" + "a" * 64, "Config": {}}
        yield Bench(engine)


async def test_an_image_is_built_pushed_and_pinned_to_what_the_registry_calls_it(bench: Bench) -> None:
    made = await bench.make()
    (build,) = bench.engine.builds
    name = f"registry.test/team/images:{made.digest[:40]}"
    assert (build.tag, build.labels) == (name, {"modalnomad.input": made.digest})
    assert bench.engine.pushes == [name]
    assert bench.engine.registry is not None
    assert made.reference == f"registry.test/team/images@{bench.engine.registry[name]}"
    assert (made.python, made.env, made.workdir) == ("3.12", (("A", "b"),), "/srv")
    assert {build.query[key] for key in ("rm", "forcerm")} == {"True"}
    assert build.query["networkmode"] == "host"
    assert build.files[".modalnomad/install/0/requirements.txt"] == b"six==1.17.0\n"
    assert build.files[".modalnomad/sdk/__main__.py"] == b"pass\n"


async def test_where_a_push_does_not_tell_the_digest_the_registry_does(bench: Bench) -> None:
    bench.engine.containerd = True
    made = await bench.make()
    assert bench.engine.registry is not None
    assert made.reference == f"registry.test/team/images@{bench.engine.registry[bench.engine.pushes[0]]}"


async def test_without_a_registry_it_stays_and_is_pinned_by_its_id(bench: Bench) -> None:
    made = await bench.make(registry="")
    assert made.reference == bench.engine.images[f"localhost/modalnomad/images:{made.digest[:40]}"]["Id"]
    assert bench.engine.pushes == []
    assert await bench.make(registry="") == made
    assert len(bench.engine.builds) == 1


async def test_an_image_that_its_registry_has_is_not_built_again_on_any_machine(bench: Bench) -> None:
    made = await bench.make()
    bench.engine.images.clear()
    assert await bench.make() == made
    assert len(bench.engine.builds) == len(bench.engine.pushes) == 1


async def test_an_image_that_its_registry_has_lost_is_pushed_again_and_not_built(bench: Bench) -> None:
    made = await bench.make()
    assert bench.engine.registry is not None
    bench.engine.registry.clear()
    assert await bench.make() == made
    assert (len(bench.engine.builds), len(bench.engine.pushes)) == (1, 2)


async def test_a_local_image_under_its_name_that_is_another_is_not_taken(bench: Bench) -> None:
    made = await bench.make(registry="")
    bench.engine.images[f"localhost/modalnomad/images:{made.digest[:40]}"]["Config"]["Labels"] = {}
    await bench.make(registry="")
    assert len(bench.engine.builds) == 2


async def test_force_build_builds_without_the_engines_cache(bench: Bench) -> None:
    await bench.make()
    await bench.make(Recipe(python="3.12", force=True))
    await bench.make(Recipe(python="3.12", force=True))
    assert [build.query["nocache"] for build in bench.engine.builds] == ["False", "True", "True"]


async def test_values_of_secrets_are_in_one_build_argument_only_and_in_no_line(bench: Bench) -> None:
    bench.engine.script.append([{"stream": f"Step 1/1 : x\n{SECRET}\nLooking in https://me:pa55word@index.test\n"}])
    made = await bench.make()
    (build,) = bench.engine.builds
    assert set(build.arguments) == {"ftp_proxy", "HTTPS_PROXY"}
    assert "second line" in build.arguments["ftp_proxy"]
    for content in [*build.files.values(), repr(RECIPE).encode(), "\n".join(bench.lines).encode()]:
        assert b"second line" not in content
        assert b"pa55word" not in content
    assert (await bench.make(Recipe(python=RECIPE.python, instructions=RECIPE.instructions, variables={3: {}}))).digest
    assert (await bench.make()).digest == made.digest


async def test_output_arrives_while_the_engine_still_builds(bench: Bench) -> None:
    gate = asyncio.Event()
    bench.engine.script.append([{"stream": "\x1b[91mfirst\x1b[0m line\n"}, gate, {"stream": "sec"}, {"stream": "ond"}])
    task = asyncio.ensure_future(bench.make())
    while "first line" not in bench.lines:
        await bench.heard.wait()
        bench.heard.clear()
    assert not task.done()
    gate.set()
    await task
    assert "second" in bench.lines


async def test_a_cancelled_build_ends_on_the_engine_too(bench: Bench) -> None:
    bench.engine.script.append([{"stream": "first\n"}, asyncio.Event()])
    task = asyncio.ensure_future(bench.make())
    await bench.engine.began.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await bench.engine.left.wait()
    assert bench.engine.pushes == []


async def test_a_command_that_fails_is_told_in_the_builders_own_words(bench: Bench) -> None:
    said = "The command '/bin/sh -c exit 7' returned a non-zero code: 7"
    bench.engine.script.append([{"stream": "oops\n"}, {"error": said, "errorDetail": {"code": 7, "message": said}}])
    with pytest.raises(ImageBuildFailed, match="exit status 7") as caught:
        await bench.make()
    assert caught.value.output == f"oops\n{said}"
    assert bench.engine.pushes == []


@pytest.mark.parametrize(
    ("event", "kind", "words"),
    [
        ({"error": OUT_OF_SPACE, "errorDetail": {"message": OUT_OF_SPACE}}, BackendRefused, "no space left"),
        ({"error": "the --mount option requires BuildKit."}, ImageBuildFailed, "requires BuildKit"),
    ],
)
async def test_other_ends_of_a_build(
    bench: Bench, event: dict[str, str], kind: type[BackendRefused | ImageBuildFailed], words: str
) -> None:
    bench.engine.script.append([event])
    with pytest.raises(kind, match=words) as caught:
        await bench.make()
    assert caught.value.hint


async def test_a_dockerfile_that_cannot_be_read(bench: Bench) -> None:
    bench.engine.refuses = "dockerfile parse error line 3: unknown instruction: NONSENSE"
    with pytest.raises(ImageBuildFailed) as caught:
        await bench.make()
    assert "NONSENSE" in caught.value.output


async def test_a_registry_that_does_not_answer_is_told_before_anything_is_built(bench: Bench) -> None:
    bench.engine.registry = None
    with pytest.raises(BackendUnreachable, match=r"registry of registry\.test/team/images.*connection refused"):
        await bench.make()
    assert bench.engine.builds == []


async def test_a_registry_that_lets_nobody_push(bench: Bench) -> None:
    bench.engine.push_error = "denied: requested access to the resource is denied"
    with pytest.raises(BackendRefused, match="denied") as caught:
        await bench.make()
    assert "docker login" in str(caught.value.hint)


async def test_a_base_that_is_absent_is_pulled_first(bench: Bench) -> None:
    assert bench.engine.registry is not None
    del bench.engine.images[BASE]
    bench.engine.registry[BASE] = "sha256:" + "c" * 64
    await bench.make()
    assert bench.engine.pulls == [BASE]
    assert bench.engine.images[BASE]


async def test_a_base_that_is_nowhere_is_named(bench: Bench) -> None:
    bench.engine.images.clear()
    with pytest.raises(BackendRefused, match=f"{BASE}, which the image starts from.*manifest unknown") as caught:
        await bench.make()
    assert "docker.base" in str(caught.value.hint)
    assert bench.engine.builds == []


async def test_a_pull_that_says_nothing_ends(bench: Bench) -> None:
    bench.engine.images.clear()
    bench.engine.silent = True
    with pytest.raises(BackendUnreachable, match="said nothing for"):
        await bench.make(silence=0.05)
    await bench.engine.left.wait()


async def test_a_dockerfile_of_the_users_is_built_first_and_started_from(bench: Bench, tmp_path: Path) -> None:
    (tmp_path / "data").write_text("x")
    own = OwnBase("FROM scratch\nCOPY data /\n", {"data": tmp_path / "data"}, {"WHO": "me"})
    made = await bench.make(Recipe(base=own))
    first, second = bench.engine.builds
    assert (first.dockerfile, first.files["data"], first.arguments["WHO"]) == (own.dockerfile, b"x", "me")
    assert second.dockerfile.startswith(f"FROM {first.tag}\nUSER root\n")
    assert made.python == ""
    await bench.make(Recipe(base=own, instructions=(Run("true"),)))
    assert len(bench.engine.builds) == 3  # the base is taken as it is


async def test_without_an_engine_it_says_which_one_is_wanted(tmp_path: Path) -> None:
    with pytest.raises(BackendUnreachable, match="does not answer") as caught:
        await DockerEngine({"DOCKER_HOST": f"unix://{tmp_path}/nobody.sock"}).architecture()
    assert "DOCKER_HOST" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("python", ("python", "latest")),
        ("python:3.12-slim", ("python", "3.12-slim")),
        ("registry.test:5000/a/b", ("registry.test:5000/a/b", "latest")),
        ("registry.test:5000/a/b:1", ("registry.test:5000/a/b", "1")),
        ("a/b@sha256:12", ("a/b", "sha256:12")),
    ],
)
def test_names_of_images(name: str, parts: tuple[str, str]) -> None:
    assert split_name(name) == parts
