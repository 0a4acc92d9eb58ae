"""`Image.run_function` and `run_commands`, from the program to the files and errors they leave, with the real uv."""

from __future__ import annotations

import tarfile
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from modalnomad_sdk.image_files import lay_image_files
from modalnomad_sdk.store import IMAGE_FILES, ImageStore
from modalnomad_sdk.store.archives import unpack

from modalnomad.deploy.bundle import make_bundle
from modalnomad.deploy.collect import Reference, collect
from modalnomad.deploy.images import Images
from modalnomad.embedded.bundles import copy_bundle
from modalnomad.model.errors import ImageBuildFailed, ManifestInvalid, UserError
from modalnomad.model.manifest import Description, SecretRef
from modalnomad.model.revision import BuiltImage

HEAD = "import modal\napp = modal.App('built')\n"
TAIL = """
@app.function(image=image)
@modal.fastapi_endpoint()
def f():
    return "an answer"
"""


class Workshop:
    """One program after the other, in one file and one store."""

    def __init__(self, folder: Path, store: ImageStore) -> None:
        self.path = folder / "prog.py"
        self.store = store
        self.lines: list[str] = []
        self.secrets: dict[str, str] = {}

    async def describe(self, body: str, tail: str = TAIL) -> Description:
        self.path.write_text(HEAD + textwrap.dedent(body) + tail, "utf-8")
        return await collect(Reference(str(self.path)))

    async def values(self, refs: Sequence[SecretRef]) -> Mapping[str, str]:
        return {key: self.secrets[key] for ref in refs for key in ref.required_keys}

    async def build(self, body: str, tail: str = TAIL) -> BuiltImage:
        description = await self.describe(body, tail)
        images = Images(self.store, self.values)
        try:
            return await images(description.app.functions[0].image, self.lines.append, description.app.source)
        finally:
            images.close()

    def files(self, built: BuiltImage) -> Path:
        path = self.store.path(built.digest)
        assert path is not None
        return path / IMAGE_FILES

    def nothing_built(self) -> bool:
        return not self.store.list() and not [e for e in self.store.root.iterdir() if e.name.startswith(".building")]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ImageStore:
    return ImageStore(tmp_path_factory.mktemp("images"))


@pytest.fixture
def shop(tmp_path: Path, store: ImageStore) -> Workshop:
    return Workshop(tmp_path, store)


@pytest.fixture
def empty(tmp_path: Path) -> Workshop:
    return Workshop(tmp_path, ImageStore(tmp_path / "images"))


DOWNLOAD = """
    import os, sys
    from pathlib import Path
    NAME = "tiny"
    def fetch(name):
        return f"weights of {name}"
    def download(times, suffix=""):
        import fastapi
        assert not modal.is_local()
        assert os.environ["WHERE"] == "here" and os.environ["PATH"].split(":")[0] == sys.prefix + "/bin"
        print("downloading", NAME)
        Path("model.txt").write_text(fetch(NAME) * times + suffix)
        (Path(__file__).parent / "cache").mkdir()
        (Path(__file__).parent / "cache" / "index").write_text("1")
    image = (
        modal.Image.debian_slim().env({"WHERE": "there"}).run_commands("echo one > data.txt")
        .run_function(download, args=[2], kwargs={"suffix": "!"}, env={"WHERE": "here"})
    )
"""


async def test_a_function_runs_in_the_finished_environment_and_what_it_writes_stays(shop: Workshop) -> None:
    built = await shop.build(DOWNLOAD)
    files = shop.files(built)
    assert (files / "model.txt").read_text() == "weights of tinyweights of tiny!"
    assert sorted(str(path.relative_to(files)) for path in files.rglob("*")) == [
        "cache",
        "cache/index",
        "data.txt",
        "model.txt",
    ], "the program itself is not part of the image"
    assert "downloading tiny" in shop.lines
    assert "downloading tiny" in shop.store.log(built.digest).read_text()


@pytest.mark.parametrize(
    ("old", "new", "same"),
    [
        ('"an answer"', '"another answer"', True),
        ("def f():", "\n\ndef f():", True),
        ("args=[2]", "args=[3]", False),
        ("downloading", "fetching", False),
        ('NAME = "tiny"', 'NAME = "huge"', False),
        ("weights of", "parts of", False),
    ],
)
async def test_what_makes_another_image(shop: Workshop, old: str, new: str, same: bool) -> None:
    first = (await shop.describe(DOWNLOAD)).app.functions[0].image
    second = (await shop.describe(DOWNLOAD.replace(old, new), TAIL.replace(old, new))).app.functions[0].image
    assert first is not None
    assert second is not None
    codes = [[step.arguments for step in image.steps] for image in (first, second)]
    assert (codes[0] == codes[1]) is same


async def test_a_function_that_raises_ends_the_build_with_its_traceback(empty: Workshop) -> None:
    with pytest.raises(ImageBuildFailed) as caught:
        await empty.build(
            """
            def broken():
                print("before")
                raise LookupError("no such model")
            image = modal.Image.debian_slim().run_function(broken)
            """
        )
    output = caught.value.output
    assert "broken()" in caught.value.message
    assert output.startswith("before\nTraceback (most recent call last):\n")
    assert '/root/prog.py"' in output.splitlines()[2]
    assert output.endswith("LookupError: no such model")
    assert "build_call" not in output
    assert empty.nothing_built()


async def test_a_program_that_does_not_import_in_the_image(empty: Workshop) -> None:
    with pytest.raises(ImageBuildFailed) as caught:
        await empty.build(
            """
            if not modal.is_local():
                import not_in_this_image
            async def never():
                pass
            image = modal.Image.debian_slim().run_function(never)
            """
        )
    assert "No module named 'not_in_this_image'" in caught.value.output
    assert empty.nothing_built()


async def test_a_function_that_takes_too_long(empty: Workshop) -> None:
    with pytest.raises(ImageBuildFailed) as caught:
        await empty.build(
            """
            def slow():
                import time
                time.sleep(300)
            image = modal.Image.debian_slim().run_function(slow, timeout=1)
            """
        )
    assert "`slow` did not end within its timeout of 1 s" in caught.value.output
    assert empty.nothing_built()


async def test_async_functions_are_awaited(shop: Workshop) -> None:
    built = await shop.build(
        """
        async def later():
            import asyncio
            await asyncio.sleep(0)
            open("done", "w").close()
        image = modal.Image.debian_slim().workdir("inner").run_function(later)
        """
    )
    assert (shop.files(built) / "inner" / "done").exists()


@pytest.mark.parametrize(
    ("call", "words"),
    [
        ("run_function(fine, args=[object()])", "only texts, numbers"),
        ("run_function(fine, kwargs={'x': (1, 2)})", "no tuples"),
        ("run_function(fine, args=[float('nan')])", "only texts, numbers"),
        ("run_function(lambda: None)", "top level of its module"),
        ("run_function([].append)", "written with `def`"),
        ("run_function(3)", "needs a plain function"),
    ],
)
async def test_what_cannot_be_called_again_is_refused(shop: Workshop, call: str, words: str) -> None:
    with pytest.raises(UserError) as caught:
        await shop.describe(f"def fine(*a, **k): pass\nimage = modal.Image.debian_slim().{call}\n")
    assert words in caught.value.message
    assert "prog.py:4" in caught.value.message


async def test_volumes_of_a_step_are_refused(shop: Workshop) -> None:
    with pytest.raises(ManifestInvalid, match="volumes are not available while an image is built"):
        await shop.build(
            """
            def fine(): pass
            image = modal.Image.debian_slim().run_function(fine, volumes={"/x": modal.Volume.from_name("v")})
            """
        )


async def test_secrets_reach_the_step_that_names_them_and_are_never_shown(shop: Workshop) -> None:
    shop.secrets = {"TOKEN": "s3cret-value", "OTHER": "of the secret"}
    built = await shop.build(
        """
        import os
        token = modal.Secret.from_name("hub", required_keys=["TOKEN", "OTHER"])
        def login():
            print("token", os.environ["TOKEN"], "other", os.environ["OTHER"])
            open("seen", "w").write(str("TOKEN" in os.environ))
        def without():
            open("unseen", "w").write(str("TOKEN" in os.environ))
        image = (
            modal.Image.debian_slim().run_commands("echo shell $TOKEN", secrets=[token])
            .run_function(login, secrets=[token], env={"OTHER": "own"}).run_function(without)
        )
        """
    )
    files = shop.files(built)
    assert (files / "seen").read_text() == "True"
    assert (files / "unseen").read_text() == "False"
    assert "shell ****" in shop.lines
    assert "token **** other own" in shop.lines
    for path in (*files.parent.glob("*.json"), shop.store.log(built.digest)):
        assert "s3cret-value" not in path.read_text()


async def test_a_replica_finds_what_the_steps_left_and_the_bundle_over_it(shop: Workshop, tmp_path: Path) -> None:
    (tmp_path / "config.txt").write_text("raw", "utf-8")
    body = f"""
        image = (
            modal.Image.debian_slim().add_local_file({str(tmp_path / "config.txt")!r}, "/root/config.txt", copy=True)
            .run_commands("echo cooked > config.txt", "head -c 2000000 /dev/zero > big.bin", "echo old > prog.py",
                          "mkdir -p a/__pycache__ && touch a/b a/__pycache__/c.pyc && ln -s b a/link")
            .add_local_file({str(tmp_path / "config.txt")!r}, "/root/late.txt")
        )
    """
    description = await shop.describe(body)
    built = await shop.build(body)
    archive = make_bundle(description.app.source, description.app.functions, tmp_path / "bundle.tar.gz")
    unpacked, replica = tmp_path / "unpacked", tmp_path / "replica"
    unpacked.mkdir()
    with tarfile.open(archive) as tar:
        unpack(tar, unpacked)
    copy_bundle(unpacked, replica)
    lay_image_files(shop.files(built), replica)
    assert (replica / "config.txt").read_text() == "cooked\n", "as the image's last step left it"
    assert (replica / "late.txt").read_text() == "raw"
    assert (replica / "prog.py").read_text().startswith("import modal"), "the program is the bundle's"
    assert (replica / "a" / "link").resolve() == replica / "a" / "b"
    assert not (replica / "a" / "__pycache__").exists()
    assert (replica / "big.bin").samefile(shop.files(built) / "big.bin"), "large files cost nothing"
    assert not (replica / "big.bin").stat().st_mode & 0o222
    assert not (replica / "config.txt").samefile(shop.files(built) / "config.txt")
