"""What the decorators leave behind: declarations for the runner, handles for the program."""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import modalnomad_sdk as modal
import pytest
from modalnomad_sdk import image as image_module
from modalnomad_sdk import loading, notices, state
from modalnomad_sdk.declarations import FunctionDeclaration
from modalnomad_sdk.exception import ExecutionError, InvalidError, UnimplementedError
from modalnomad_sdk.instances import bind, make_instance
from modalnomad_sdk.secret import parse_dotenv

app = modal.App("unit")


@app.function()
@modal.fastapi_endpoint()
def square(x: int) -> int:
    return x * x


@app.function()
def plain(x: int, *, y: int = 1) -> int:
    return x + y


class Base:
    kind: str = modal.parameter(default="base")
    log: list[str]

    @modal.enter()
    def first(self) -> None:
        self.log = ["first"]

    @modal.exit()
    def last(self) -> None:
        self.log.append("last")

    @modal.method()
    def shared(self) -> str:
        return f"{self.kind} {self.log}"


@app.cls(enable_memory_snapshot=True)
@modal.concurrent(max_inputs=3)
class Server(Base):
    size: int = modal.parameter()
    note: str = modal.parameter(default="n", init=False)

    @modal.enter()
    async def third(self) -> None:
        self.log.append("third")

    @modal.enter(snap=True)
    def zeroth(self) -> None: ...

    @modal.asgi_app()
    def web(self) -> str:
        return f"{self.size} {self.shared.local()}"

    @modal.fastapi_endpoint()
    async def item(self, x: int) -> int:
        return x * self.size


@pytest.fixture(autouse=True)
def _alone() -> Iterator[None]:
    replica, failed = state._replica, list(image_module._failed)
    yield
    state._replica = replica
    image_module._failed[:] = failed


def declaration(tag: str) -> FunctionDeclaration:
    return app.declarations[tag]


def test_a_function_is_declared_as_written() -> None:
    found = declaration("square")

    assert found.target is square._call
    assert found.where.startswith("tests/unit/test_sdk_declarations.py:")
    assert [(e.name, e.kind, e.method) for e in found.endpoints] == [("square", "fastapi_endpoint", "GET")]
    assert (found.max_inputs, found.target_inputs, found.options.timeout) == (1, None, 300)


def test_a_class_is_one_declaration_with_base_classes_first() -> None:
    found = declaration("Server")

    assert found.is_class
    assert found.enters == ("zeroth", "first", "third")
    assert found.exits == ("last",)
    assert found.methods == ("shared",)
    assert [e.name for e in found.endpoints] == ["Server.web", "Server.item"]
    assert [(p.name, p.type, p.has_default) for p in found.parameters] == [
        ("kind", "str", True),
        ("size", "int", False),
    ]
    assert found.max_inputs == 3


def test_make_instance_sets_parameters_and_runs_nothing() -> None:
    made: Any = make_instance(declaration("Server"), {"size": 4})

    assert (made.size, made.kind, made.note) == (4, "base", "n")
    assert not hasattr(made, "log")
    bind(made, "first")()
    assert made.log == ["first"]
    assert asyncio.iscoroutinefunction(bind(made, "item"))
    assert asyncio.run(bind(made, "item")(5)) == 20


@pytest.mark.parametrize(
    ("given", "words"),
    [({}, "size"), ({"size": "4"}, "int"), ({"size": True}, "bool"), ({"size": 1, "other": 2}, "other")],
)
def test_parameters_that_do_not_fit_are_named(given: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidError, match=words):
        make_instance(declaration("Server"), given)


def test_local_runs_here() -> None:
    assert square.local(3) == 9
    assert plain.local(1, y=2) == 3
    server: Any = Server(size=2)  # type: ignore[call-arg]
    assert server.web.local() == "2 base ['first', 'third']"
    assert asyncio.run(server.item.local(4)) == 8
    assert server.size == 2


def test_arguments_of_an_instance_are_checked_when_it_is_used() -> None:
    wrong: Any = Server(1, other=2)  # type: ignore[call-arg]
    with pytest.raises(InvalidError, match="by name"):
        wrong.web.local()


@pytest.mark.parametrize("method", ["remote", "remote_gen", "spawn", "map", "starmap", "for_each", "spawn_map"])
def test_calls_to_other_replicas_name_the_limit(method: str) -> None:
    with pytest.raises(UnimplementedError, match=r"`plain\.local\(…\)` runs it here"):
        getattr(plain, method)(1)
    with pytest.raises(InvalidError, match=method):
        getattr(square, method)(1)
    with pytest.raises(UnimplementedError):
        asyncio.run(getattr(plain, method).aio(1))


def test_web_urls_are_known_in_a_replica() -> None:
    with pytest.raises(ExecutionError, match="modalnomad serve"):
        square.get_web_url()
    assert modal.is_local()

    state.enter_replica(None, {"square": "http://a", "Server.web": "http://b"})

    assert not modal.is_local()
    assert square.get_web_url() == "http://a"
    assert asyncio.run(square.get_web_url.aio()) == "http://a"
    server: Any = Server(size=1)  # type: ignore[call-arg]
    assert server.web.get_web_url() == "http://b"
    assert plain.get_web_url() is None


def test_the_last_of_two_functions_with_a_name_wins() -> None:
    notices.collect()
    twice = modal.App("twice")
    twice.function(name="f")(modal.asgi_app()(test_web_urls_are_known_in_a_replica))
    twice.function(name="f")(modal.wsgi_app()(test_web_urls_are_known_in_a_replica))

    assert [e.kind for e in twice.declarations["f"].endpoints] == ["wsgi_app"]
    assert [note.code for note in notices.collected()] == ["duplicate"]


def test_app_defaults_come_before_a_functions_own() -> None:
    image, mine = modal.Image.debian_slim(), modal.Image.debian_slim().pip_install("x")
    first, second = modal.Secret.from_name("a"), modal.Secret.from_name("b")
    base = modal.App("base", image=image, secrets=[first], include_source=False)
    base.function(secrets=[second])(bare)
    base.function(image=mine, name="other", include_source=True)(bare)

    one, other = base.declarations["bare"].options, base.declarations["other"].options
    assert (one.image, one.secrets, one.include_source) == (image, (first, second), False)
    assert (other.image, other.secrets, other.include_source) == (mine, (first,), True)


def bare() -> None: ...


def test_images_are_immutable_chains() -> None:
    base = modal.Image.debian_slim("3.12")
    one = base.pip_install("a", ["b", "c"], pre=True)
    two = base.env({"X": "1"}).run_commands("true", ["false"])

    assert base.recipe.steps == ()
    assert [(s.kind, dict(s.arguments)) for s in one.recipe.steps] == [
        ("pip_install", {"packages": ["a", "b", "c"], "pre": True})
    ]
    assert [s.kind for s in two.recipe.steps] == ["env", "run_commands"]
    assert base.pipe(lambda image, name: image.apt_install(name), "curl").recipe.steps[0].kind == "apt_install"
    assert base.pip_install() is base


def test_no_value_of_a_secret_is_shown() -> None:
    secret = modal.Secret.from_dict({"TOKEN": "s3cr3t", "GONE": None})

    assert secret._values() == {"TOKEN": "s3cr3t"}
    assert "s3cr3t" not in repr(secret)
    with pytest.raises(InvalidError) as caught:
        modal.Secret.from_dict({"TOKEN": 31337})  # type: ignore[dict-item]
    assert "31337" not in str(caught.value)


def test_unavailable_objects_can_be_declared_but_not_used() -> None:
    for declared in (modal.Volume.from_name("v"), modal.Dict.from_name("d"), modal.Queue.from_name("q")):
        assert "from_name" not in repr(declared)
    with pytest.raises(UnimplementedError, match=r"modal\.Dict\.put"):
        modal.Dict.from_name("d").put("a", 1)
    with pytest.raises(UnimplementedError, match=r"modal\.Dict"):
        modal.Dict.from_name("d")["a"]
    with pytest.raises(UnimplementedError, match=r"modal\.Sandbox\.create"):
        modal.Sandbox.create("ls")
    with pytest.raises(UnimplementedError, match=r"modal\.forward"), modal.forward(8000):
        pass
    with pytest.raises(AttributeError):
        modal.Volume.from_name("v").nonsense()


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("A=1", {"A": "1"}),
        (" export A = b c  # d", {"A": "b c"}),
        ("A='x # y'", {"A": "x # y"}),
        ('A="x\\ny\\"z"', {"A": 'x\ny"z'}),
        ("A=\nB=2\r\n", {"A": "", "B": "2"}),
        ("# A=1\n\nno assignment\nB=a#b", {"B": "a#b"}),
        ('A="two\nlines"\nB=1', {"A": "two\nlines", "B": "1"}),
    ],
)
def test_dotenv_lines(text: str, values: dict[str, str]) -> None:
    assert parse_dotenv(text) == values


def test_imports_fail_only_where_the_image_is_used() -> None:
    module: Any = type(loading)("program")
    mine, other = modal.Image.debian_slim(), modal.Image.debian_slim()
    module.app = modal.App("p")
    module.app.function(image=mine)(bare)
    module.app.function(image=other, name="other")(bare)

    with mine.imports():
        importlib.import_module("nothing_of_this_name")

    assert loading.find_declaration(module, "other", "p").tag == "other"
    with pytest.raises(loading.ModuleBroken, match="nothing_of_this_name") as caught:
        loading.find_declaration(module, "bare", "p")
    assert isinstance(caught.value.__cause__, ModuleNotFoundError)


def test_what_is_not_found_lists_what_is() -> None:
    module: Any = type(loading)("program")
    with pytest.raises(loading.AppNotFound):
        loading.find_declaration(module, "f", None)
    module.app = app
    with pytest.raises(loading.FunctionNotFound, match=r"nope; it has: Server, plain, square"):
        loading.find_declaration(module, "nope", "unit")
    assert loading.find_declaration(module, "plain", "unnamed-app").tag == "plain"


def test_missing_files_are_told_from_broken_ones(tmp_path: Path) -> None:
    with pytest.raises(loading.ModuleMissing, match="neither"):
        loading.load_module("nonsense", tmp_path)


def test_all_public_names_are_there_and_sorted() -> None:
    names = modal.__all__
    assert names == [*sorted(n for n in names if n[0].isupper()), *sorted(n for n in names if not n[0].isupper())]
    assert {*modal._HOME, *modal._MODULES - {"exception", "gpu"}} == set(names)
    for name in names:
        assert getattr(modal, name) is not None
