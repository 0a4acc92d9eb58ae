"""`python -m modalnomad_sdk.describe` on what is wrong, missing, or refused by name."""

from __future__ import annotations

import pytest

from tests.support.describe import HELLO, Describe


@pytest.mark.parametrize(
    ("code", "reference", "program", "words"),
    [
        ("file_missing", "none.py", "", ["none.py"]),
        ("file_missing", "pkg.mod", "", ["pkg.mod"]),
        ("not_python", "app.txt", "", ["app.txt"]),
        ("bad_reference", "app.py::nope", HELLO, ["nope", "`app`"]),
        ("bad_reference", "my.app.py", HELLO, ["dots"]),
        ("bad_reference", "json.py", HELLO, ["hide"]),
        ("no_app", "app.py", "x = 1\n", ["modal.App"]),
        ("no_functions", "app.py", "import modal\napp = modal.App('x')\n", ["no functions"]),
        ("many_apps", "app.py", HELLO + "other = modal.App('y')\n", ["`app`", "`other`"]),
        ("syntax_error", "app.py", HELLO + "def broken(:\n", ["app.py:10"]),
        ("module_raised", "app.py", HELLO + "1 / 0\n", ["ZeroDivisionError"]),
        ("module_raised", "app.py", "import sys\nsys.exit(3)\n", ["sys.exit(3)"]),
        ("module_raised", "app.py", "import modal\nmodal.App('x').function(nonsense=1)\n", ["nonsense"]),
        ("missing_dependency", "app.py", "import not_installed_anywhere\n" + HELLO, ["not_installed_anywhere"]),
        (
            "declaration",
            "app.py",
            HELLO.replace("app.function()", "app.function(timeout=0)"),
            ["timeout=0", "app.py:6"],
        ),
        ("declaration", "app.py", HELLO.replace("return 1", "yield 1"), ["streaming"]),
        (
            "declaration",
            "app.py",
            HELLO.replace(
                'modal.App("hello")', 'modal.App(image=modal.Image.debian_slim().add_local_python_source("z9"))'
            ),
            ["z9", "app.py:4"],
        ),
    ],
)
def test_what_is_wrong_has_a_code_and_says_where(
    code: str, reference: str, program: str, words: list[str], describe: Describe
) -> None:
    if "none" not in reference and "pkg" not in reference:
        describe.write({reference.partition("::")[0]: program})

    error = describe.error(code, reference)

    assert [word for word in words if word not in error["message"] + error["where"]] == [], error
    raised = code in {"syntax_error", "module_raised", "missing_dependency"}
    assert bool(error["traceback"]) is raised
    if raised:
        assert "modalnomad_sdk" not in error["traceback"].replace("modalnomad_sdk.describe", "")


@pytest.mark.parametrize(
    ("code", "program", "word"),
    [
        ("no_app", "import modal\ndef make():\n    return modal.App('x')\n", 'modal.App("some-name")'),
        ("no_functions", "import modal\napp = modal.App('x')\n", "@app.function()"),
    ],
)
def test_what_is_missing_is_shown(code: str, program: str, word: str, describe: Describe) -> None:
    describe.write({"app.py": program})

    assert word in describe.error(code, "app.py")["hint"]


def test_a_missing_module_is_not_a_broken_one(describe: Describe) -> None:
    describe.write({"pkg/__init__.py": "", "pkg/bad.py": "import nowhere_to_be_found\n"})

    assert "pkg.none" in describe.error("module_missing", "-m", "pkg.none")["message"]
    assert "other" in describe.error("module_missing", "-m", "other.mod")["message"]
    error = describe.error("missing_dependency", "-m", "pkg.bad")
    assert error["where"] == "pkg/bad.py:1"
    assert "image.imports()" in error["hint"]


def test_one_app_of_several_can_be_named(describe: Describe) -> None:
    second = HELLO.split("\n", 3)[3].replace("app", "two").replace("hello", "second").replace("def f", "def g")
    describe.write({"app.py": HELLO + second})

    assert describe.good("app.py::app").app.name == "hello"
    assert describe.good("app.py::two").app.name == "second"
    assert describe.good("app.py::g").app.name == "second"


def test_an_included_app_is_not_a_second_one(describe: Describe) -> None:
    program = "from part import part\n" + HELLO + "app.include(part)\n"
    describe.write({"app.py": program, "part.py": HELLO.replace("app", "part").replace("def f", "def g")})

    assert [function.tag for function in describe.good("app.py").app.functions] == ["f", "g"]


@pytest.mark.parametrize(
    ("program", "names"),
    [
        (
            HELLO.replace("app.function()", 'app.function(volumes={"/data": modal.Volume.from_name("v")})'),
            ["Volume", "/data"],
        ),
        (
            HELLO.replace(
                "app.function()", 'app.function(network_file_systems={"/d": modal.NetworkFileSystem.from_name("v")})'
            ),
            ["NetworkFileSystem"],
        ),
        (HELLO.replace("app.function()", 'app.function(proxy=modal.Proxy.from_name("p"))'), ["Proxy"]),
        (HELLO.replace("return 1", "return d['x']") + "d = modal.Dict.from_name('d')\n", ["`d`", "modal.Dict"]),
        (
            HELLO.replace("return 1", "return [q.get() for _ in 'ab']") + "q = modal.Queue.from_name('q')\n",
            ["modal.Queue"],
        ),
        (
            HELLO + "@app.server()\nclass S:\n    @modal.enter()\n    def up(self): ...\n",
            ["app.server", "modal.web_server"],
        ),
        (HELLO.replace("app.function()", "app.function(env={'PATH': 'x'})"), ["PATH", "reserved"]),
        (HELLO.replace("app.function()", "app.function(env={'a-b': 'x'})"), ["a-b"]),
    ],
    ids=["volume", "nfs", "proxy", "dict", "queue", "server", "reserved", "key"],
)
def test_what_would_change_the_program_is_refused_by_name(program: str, names: list[str], describe: Describe) -> None:
    describe.write({"app.py": program})

    refusals = describe.good("app.py").refusals

    assert len(refusals) == 1
    assert [name for name in names if name not in refusals[0].message] == [], refusals
    assert refusals[0].where.startswith("app.py:")
