"""`python -m modalnomad_sdk.describe` as the platform runs it: a process, a file, an exit code."""

from __future__ import annotations

import json
import os
import stat
import time

import pytest

from modalnomad.model.manifest import Description
from tests.support import guides
from tests.support.describe import HELLO, Describe
from tests.support.interpreters import oldest_python
from tests.support.repository import SDK


@pytest.mark.guides
@pytest.mark.parametrize("program", guides.ALL, ids=lambda program: program.name)
def test_every_program_of_the_guides_describes(program: guides.Program, describe: Describe) -> None:
    if not guides.PROGRAMS.is_dir():
        pytest.skip(f"the guides' programs are not beside this checkout ({guides.PROGRAMS})")
    path = program.write(describe.folder)

    found = describe.good(str(path))

    endpoints = [endpoint.name for function in found.app.functions for endpoint in function.endpoints]
    assert program.endpoint in endpoints
    assert found.refusals == ()
    assert found.watched == (str(path),)
    assert found.anonymous_secrets == {}


FULL = """
import modal

image = modal.Image.debian_slim(python_version="3.12").pip_install("boto3", extra_options="--no-deps").env({"A": "1"})
app = modal.App("full", image=image, tags={"team": "x"}, secrets=[modal.Secret.from_name("base")])

@app.cls(cpu=(1, 2.5), memory=512, gpu=["h100:2", "A100"], min_containers=1, max_containers=4, buffer_containers=2,
         scaledown_window=30, timeout=60, startup_timeout=90, secrets=[modal.Secret.from_dict({"K": "v"})],
         env={"E": "2"}, region="eu", block_network=True, single_use_containers=True)
@modal.concurrent(max_inputs=10, target_inputs=5)
class Server:
    root: str = modal.parameter(default=".")
    blob: bytes = modal.parameter(default=b"\\x00")
    n: int = modal.parameter()

    @modal.enter()
    def up(self): ...

    @modal.method()
    def call(self): ...

    @modal.web_server(8000, startup_timeout=9, label="files", custom_domains=["x.example"], requires_proxy_auth=True)
    def files(self): ...

    @modal.fastapi_endpoint(method="post", docs=True)
    def item(self, x: int): ...

@app.function(schedule=modal.Cron("0 9 * * 1"))
def job(): ...

@app.local_entrypoint()
def main(): ...
"""


@pytest.fixture
def full(describe: Describe) -> Description:
    """Everything declared at once."""
    describe.write({"app.py": FULL})
    return describe.good("app.py")


def test_the_app_and_its_source(full: Description, describe: Describe) -> None:
    app = full.app
    assert (app.name, app.tags, app.entrypoints) == ("full", {"team": "x"}, ("main",))
    assert app.source.model_dump() == {
        "mode": "script",
        "entry": "app.py",
        "root": str(describe.folder),
        "module": "app",
    }


def test_endpoints_and_parameters(full: Description) -> None:
    server = full.app.functions[0]
    assert (server.tag, server.is_class, server.methods) == ("Server", True, ("call",))
    assert server.where == "app.py:7"
    files, item = server.endpoints
    assert (files.name, files.kind, files.port, files.port_timeout) == ("Server.files", "web_server", 8000, 9.0)
    assert (files.label, files.custom_domains, files.requires_proxy_auth) == ("files", ("x.example",), True)
    assert (item.kind, item.method, item.docs, item.method_name) == ("fastapi_endpoint", "POST", True, "item")
    assert [(p.name, p.type, p.has_default, p.default) for p in server.parameters] == [
        ("root", "str", True, "."),
        ("blob", "bytes", True, {"bytes": "AA=="}),
        ("n", "int", False, None),
    ]


def test_options_images_and_secrets(full: Description) -> None:
    server, job = full.app.functions
    assert server.scaling.model_dump() == {
        "min_containers": 1,
        "max_containers": 4,
        "buffer_containers": 2,
        "scaledown_window": 30.0,
        "max_inputs": 10,
        "target_inputs": 5,
    }
    assert (server.timeout, server.startup_timeout, server.block_network, server.single_use) == (60, 90, True, True)
    assert (server.resources.cpu, server.resources.memory) == ((1.0, 2.5), (512, None))
    assert server.resources.gpu == ("H100:2", "A100")
    assert server.image is not None
    assert (server.image.base, server.image.python_version) == ("debian_slim", "3.12")
    assert [(step.kind, step.arguments) for step in server.image.steps] == [
        ("pip_install", {"packages": ["boto3"], "extra_options": "--no-deps"}),
        ("env", {"vars": {"A": "1"}}),
    ]
    named, own, env = server.secrets
    assert named.name == "base"
    assert [full.anonymous_secrets[str(one.anonymous)] for one in (own, env)] == [{"K": "v"}, {"E": "2"}]
    assert job.schedule is not None
    assert (job.schedule.kind, job.schedule.cron) == ("cron", "0 9 * * 1")


def test_what_has_no_effect_is_said(full: Description) -> None:
    said = [notice.message.split(" ")[0] for notice in full.notices if notice.code == "no_effect"]

    assert said == ["`region`"]
    (server,) = (notice for notice in full.notices if notice.code == "not_web")
    assert "`Server.call`" in server.message


def test_the_file_is_private_and_secrets_stand_in_one_place_only(describe: Describe) -> None:
    program = HELLO.replace("app.function()", 'app.function(env={"TOKEN": "s3cr3t-value"})')
    describe.write({"app.py": program})

    answer = describe.run("app.py")

    assert stat.S_IMODE(describe.out.stat().st_mode) == 0o600
    assert list(answer.pop("anonymous_secrets").values()) == [{"TOKEN": "s3cr3t-value"}]
    assert "s3cr3t-value" not in json.dumps(answer) + describe.output


def test_dotenv_values_become_an_anonymous_secret(describe: Describe) -> None:
    describe.write(
        {
            "app.py": HELLO.replace("app.function()", "app.function(secrets=[modal.Secret.from_dotenv()])"),
            ".env": "# comment\nexport A=1\nB = 'two words' # more\nC=\"x\\ny\"\nD=\n",
        }
    )

    found = describe.good("app.py")

    assert list(found.anonymous_secrets.values()) == [{"A": "1", "B": "two words", "C": "x\ny", "D": ""}]


def test_what_user_code_prints_is_its_own(describe: Describe) -> None:
    describe.write({"app.py": "print('hello from the module')\n" + HELLO})

    describe.good("app.py")

    assert "hello from the module" in describe.output


def test_threads_left_behind_do_not_hold_it(describe: Describe) -> None:
    describe.write({"app.py": "import threading\nthreading.Thread(target=threading.Event().wait).start()\n" + HELLO})
    began = time.monotonic()

    describe.good("app.py")

    assert time.monotonic() - began < 30


def test_the_vendors_package_does_not_get_in_the_way(describe: Describe) -> None:
    vendor = {
        "modal/__init__.py": "raise RuntimeError('the other one')\n",
        "modal/exception.py": "",
        "modal/extra.py": "",
    }
    for name, text in vendor.items():
        path = describe.folder.parent / "site" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    describe.environment = {"PYTHONPATH": str(describe.folder.parent / "site")}
    describe.write(
        {
            "app.py": "import modal.exception\nfrom modal.exception import InvalidError\nfrom modal import Image\n"
            + HELLO,
            "other.py": HELLO + "\nimport modal.extra\n",
        }
    )

    describe.good("app.py")
    error = describe.error("declaration", "other.py")

    assert "modalnomad has no module `modal.extra`" in error["message"]
    assert error["where"] == "other.py:11"


def test_module_mode_with_relative_imports(describe: Describe) -> None:
    describe.write(
        {
            "pkg/__init__.py": "",
            "pkg/sub/__init__.py": "",
            "pkg/sub/main.py": "from ..common import app\nfrom . import more\n",
            "pkg/sub/more.py": "",
            "pkg/common.py": HELLO,
            "beside.py": "",
        }
    )

    found = describe.good("-m", "pkg.sub.main")

    assert found.app.source.model_dump() == {
        "mode": "module",
        "entry": "pkg.sub.main",
        "root": str(describe.folder),
        "module": "pkg.sub.main",
    }
    assert found.app.functions[0].where == "pkg/common.py:6"
    assert found.watched == (str(describe.folder / "pkg"),)


def test_a_relative_import_in_a_script_points_to_the_module_form(describe: Describe) -> None:
    describe.write({"app.py": "from . import other\n" + HELLO, "other.py": ""})

    assert "-m package.module" in describe.error("module_raised", "app.py")["message"]


def test_local_imports_are_watched_and_said(describe: Describe) -> None:
    taken = 'app = modal.App("hello", image=modal.Image.debian_slim().add_local_python_source("taken"))'
    describe.write(
        {
            "app.py": "import helpers, taken\n" + HELLO.replace('app = modal.App("hello")', taken),
            "helpers.py": "import deeper\n",
            "deeper/__init__.py": "",
            "taken/__init__.py": "",
        }
    )

    found = describe.good("app.py")

    names = [os.path.relpath(path, describe.folder) for path in found.watched]
    assert names == ["app.py", "deeper/__init__.py", "helpers.py", "taken", "taken/__init__.py"]
    said = [notice.message for notice in found.notices if notice.code == "local_import"]
    assert [message.split("`")[1] for message in sorted(said)] == ["deeper", "helpers"]


def test_local_files_and_what_they_leave_out(describe: Describe) -> None:
    describe.write(
        {
            "data/a.txt": "",
            "data/b.log": "",
            "mod.py": "",
            "app.py": """
import modal

image = (
    modal.Image.debian_slim()
    .add_local_file("mod.py", "/root/extra/", copy=True)
    .add_local_dir("data", "/root/data", ignore=["*.log"])
    .add_local_dir("data", "/root/logs", ignore=~modal.FilePatternMatcher("**/*.log"))
    .add_local_dir("data", "/root/chosen", ignore=lambda path: path.suffix == ".txt")
    .add_local_python_source("mod")
)
app = modal.App("files", image=image)

@app.function()
@modal.asgi_app()
def f(): ...
""",
        }
    )

    image = describe.good("app.py").app.functions[0].image

    assert image is not None
    assert [(m.kind, os.path.relpath(m.local, describe.folder), m.remote, m.ignore) for m in image.mounts] == [
        ("dir", "data", "/root/data", ("*.log",)),
        ("dir", "data", "/root/logs", ("**", "!**/*.log")),
        ("dir", "data", "/root/chosen", ("a.txt",)),
        ("python", "mod.py", "/root/mod", ()),
    ]
    assert [(step.kind, step.arguments["remote"]) for step in image.steps] == [("add_local_file", "/root/extra/mod.py")]
    assert image.steps[0].files == (str(describe.folder / "mod.py"),)


def test_names_of_2024_and_duplicates_give_notices(describe: Describe) -> None:
    describe.write(
        {
            "app.py": """
import modal

stub = modal.Stub("old")

@stub.function(keep_warm=1, concurrency_limit=3, container_idle_timeout=20, allow_concurrent_inputs=7,
               gpu=modal.gpu.A100(count=2))
@modal.web_endpoint(method="PUT")
def f(): ...

@stub.function()
@modal.asgi_app()
def g(): ...

@stub.function(name="g")
@modal.wsgi_app()
def h(): ...
"""
        }
    )

    found = describe.good("app.py")

    f, g = found.app.functions
    assert (f.scaling.min_containers, f.scaling.max_containers, f.scaling.scaledown_window) == (1, 3, 20.0)
    assert (f.scaling.max_inputs, f.endpoints[0].method, f.resources.gpu) == (7, "PUT", ("A100:2",))
    assert g.endpoints[0].kind == "wsgi_app"
    assert sorted(notice.code for notice in found.notices) == ["duplicate", *["old_argument"] * 4, *["old_name"] * 3]
    assert "app.py" not in describe.output, "said in the file, not on the terminal"


def test_it_runs_on_the_oldest_promised_python(describe: Describe) -> None:
    python = oldest_python()
    if python is None:
        pytest.skip("no Python 3.10 on this machine")
    describe.python = python
    describe.environment = {"PYTHONPATH": str(SDK.parent)}
    describe.write({"app.py": HELLO})

    assert describe.good("app.py").python == "3.10"
