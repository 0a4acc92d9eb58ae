"""Programs and commands that cannot be served: one message with what was found and what to do, exit status 1 or 2."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.leftovers import mentioning, wait_gone
from tests.support.serve import run_command, serve

HEAD = "import modal\n\napp = modal.App('sample')\n\n"
WEB = "@app.function({})\n@modal.fastapi_endpoint({})\ndef {}():\n    return 1\n\n"


def web(name: str = "f", function: str = "", endpoint: str = "") -> str:
    return WEB.format(function, endpoint, name)


@dataclass(frozen=True)
class Refused:
    """A program, and words its message must have."""

    source: str
    says: tuple[str, ...]


PROGRAMS = {
    "syntax error": Refused(HEAD + "def f(:\n", ("sample.py", "line 5", "def f(:")),
    "raises": Refused(HEAD + "{}['absent']\n", ("KeyError: 'absent'", "sample.py", "line 5")),
    "exits": Refused(HEAD + "import sys\nsys.exit(3)\n", ("sample.py", "SystemExit")),
    "missing dependency": Refused(
        "import no_such_thing_at_all\n" + HEAD + web(), ("no_such_thing_at_all", "imports()")
    ),
    "no App": Refused("import modal\n", ("App", "sample.py")),
    "two Apps": Refused(HEAD + "other = modal.App('b')\n" + web(), ("app", "other", "sample.py::")),
    "no functions": Refused(HEAD, ("sample", "function")),
    "only other functions": Refused(HEAD + "@app.function()\ndef f():\n    pass\n", ("web",)),
    "label clash": Refused(
        HEAD + web("f", "", "label='same'") + web("g", "", "label='same'"), ("same", "f", "g", "sample.py:")
    ),
    "bad label": Refused(HEAD + web("f", "", "label='Not good!'"), ("Not good!", "sample.py:", "a-z")),
    "unknown secret": Refused(
        HEAD + web("f", "secrets=[modal.Secret.from_name('no-such-secret')]"), ("no-such-secret", "secret create")
    ),
    "volume": Refused(
        HEAD + "v = modal.Volume.from_name('data')\n" + web("f", "volumes={'/data': v}"), ("Volume", "sample.py:")
    ),
    "registry image": Refused(
        HEAD + web("f", "image=modal.Image.from_registry('python:3.11')"), ("from_registry", "docker")
    ),
    "unknown package": Refused(
        HEAD + web("f", "image=modal.Image.debian_slim().pip_install('no-such-package-abc==9.9.9')"),
        ("no-such-package-abc",),
    ),
    "conflict": Refused(
        HEAD + web("f", "image=modal.Image.debian_slim().pip_install('starlette==0.20.0', 'fastapi==0.115.0')"),
        ("starlette", "fastapi"),
    ),
    "unknown python": Refused(HEAD + web("f", "image=modal.Image.debian_slim(python_version='3.4')"), ("3.4",)),
    "gpu": Refused(HEAD + web("f", "gpu='H100'"), ("H100",)),
    "misuse": Refused(
        HEAD + "@modal.fastapi_endpoint()\n@app.function()\ndef f():\n    pass\n", ("sample.py:5", "order")
    ),
    "async app": Refused(
        HEAD + "@app.function()\n@modal.asgi_app()\nasync def f():\n    pass\n", ("async", "sample.py:")
    ),
    "bad parameter": Refused(
        HEAD + "@app.cls()\nclass C:\n    x: float = modal.parameter()\n"
        "    @modal.fastapi_endpoint()\n    def f(self):\n        pass\n",
        ("float", "sample.py:"),
    ),
    "min over max": Refused(HEAD + web("f", "min_containers=3, max_containers=2"), ("3", "2", "sample.py:")),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_that_cannot_be_served(name: str, tmp_path: Path) -> None:
    program = tmp_path / "sample.py"
    program.write_text(PROGRAMS[name].source)

    refused = run_command("serve", str(program), timeout=120)

    said = refused.stdout + refused.stderr
    assert refused.returncode == 1, said
    for words in PROGRAMS[name].says:
        assert words in said, said
    assert "modalnomad/" not in said, "no traceback of the platform's own"
    wait_gone(mentioning(str(tmp_path)))


def test_a_file_that_does_not_exist(tmp_path: Path) -> None:
    refused = run_command("serve", str(tmp_path / "absent.py"))

    assert refused.returncode == 1
    assert "absent.py" in refused.stderr
    assert "Traceback" not in refused.stderr


@pytest.mark.parametrize(
    ("name", "content"), [("notes.txt", b"hello"), ("page.py", b"\x89PNG\r\n\x1a\n\0\0"), ("d.py", None)]
)
def test_a_file_that_is_not_python(name: str, content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / name
    if content is None:
        path.mkdir()
    else:
        path.write_bytes(content)

    refused = run_command("serve", str(path))

    assert refused.returncode == 1
    assert name in refused.stderr
    assert "modalnomad/" not in refused.stderr


def test_a_module_that_does_not_exist_is_told_apart_from_one_that_is_broken(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("import modal\nimport also_absent\n")

    missing = run_command("serve", "-m", "not_there", cwd=tmp_path)
    broken = run_command("serve", "-m", "broken", cwd=tmp_path)

    assert (missing.returncode, broken.returncode) == (1, 1)
    assert "not_there" in missing.stderr
    assert "also_absent" in broken.stderr
    assert "not_there" not in broken.stderr


def test_an_app_that_the_file_does_not_have(tmp_path: Path) -> None:
    (tmp_path / "sample.py").write_text(HEAD + web())

    refused = run_command("serve", "sample.py::nothing", cwd=tmp_path)

    assert refused.returncode == 1
    assert "nothing" in refused.stderr
    assert "app" in refused.stderr


def test_a_missing_key_is_named_before_anything_starts(tmp_path: Path) -> None:
    created = run_command("secret", "create", "half-a-secret", "GIVEN=not-to-be-shown", "--force")
    assert created.returncode == 0, created.stderr
    program = tmp_path / "sample.py"
    keys = "secrets=[modal.Secret.from_name('half-a-secret', required_keys=['GIVEN', 'LACKING'])]"
    program.write_text(HEAD + web("f", keys))

    refused = run_command("serve", str(program))

    assert refused.returncode == 1
    assert "LACKING" in refused.stderr
    assert "half-a-secret" in refused.stderr
    assert "not-to-be-shown" not in refused.stdout + refused.stderr


def test_a_port_that_somebody_else_holds(tmp_path: Path) -> None:
    program = tmp_path / "sample.py"
    program.write_text(HEAD + web())
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]

        refused = run_command("serve", str(program), env={"MODALNOMAD_ROUTER__PORT": str(port)})

    assert refused.returncode == 1
    assert str(port) in refused.stderr
    assert "Traceback" not in refused.stderr


def test_wrong_settings_are_all_named() -> None:
    wrong = {"MODALNOMAD_ROUTER__QUEUE_LIMIT": "many", "MODALNOMAD_SCALING__INTERVAL": "-1"}

    refused = run_command("serve", "absent.py", env=wrong)

    assert refused.returncode == 1
    assert "MODALNOMAD_ROUTER__QUEUE_LIMIT" in refused.stderr
    assert "MODALNOMAD_SCALING__INTERVAL" in refused.stderr


def test_wrong_usage_has_a_status_of_its_own() -> None:
    assert run_command("serve").returncode == 2
    assert run_command("serve", "--no-such-option", "x.py").returncode == 2
    assert run_command("no-such-command").returncode == 2


def test_a_function_named_twice_warns_and_the_last_one_serves(tmp_path: Path) -> None:
    import httpx

    program = tmp_path / "sample.py"
    program.write_text(HEAD + web() + web().replace("return 1", "return 2"))

    with serve(program) as s:
        assert httpx.get(s.url("f"), trust_env=False, timeout=60).json() == 2
    said = s.output()

    assert "'f'" in said or "f " in said
    assert "twice" in said or "already" in said or "overwrit" in said or "last" in said
