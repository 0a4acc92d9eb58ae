"""What programs may look like: classes and their lifecycle, the vendor's package in the image, files, environments."""

from __future__ import annotations

from pathlib import Path
from textwrap import dedent

import httpx
import pytest
from websockets.exceptions import InvalidStatus

from tests.support.doors import direct_door, web_socket
from tests.support.serve import serve


def write(folder: Path, source: str, name: str = "sample.py") -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(dedent(source), encoding="utf-8")
    return path


def get(url: str, path: str = "/") -> httpx.Response:
    return httpx.get(url + path, trust_env=False, timeout=60)


def test_enter_and_exit_in_order_base_classes_first(tmp_path: Path) -> None:
    program = write(
        tmp_path,
        """
        import modal

        app = modal.App("lifecycle")

        class Base:
            @modal.enter()
            def base_first(self):
                self.seen = ["base first"]

            @modal.enter()
            async def base_second(self):
                self.seen.append("base second")

            @modal.exit()
            def base_leaves(self):
                print("base leaves")

        @app.cls(enable_memory_snapshot=True)
        class Derived(Base):
            @modal.enter()
            def own(self):
                self.seen.append("own")

            @modal.enter(snap=True)
            def before_everything(self):
                print("snapshot first")

            @modal.fastapi_endpoint()
            async def order(self):
                return self.seen

            @modal.fastapi_endpoint()
            def blocking(self, x: int):
                return x + 1

            @modal.exit()
            async def own_leaves(self):
                print("own leaves")
        """,
    )
    with serve(program) as s:
        assert get(s.url("Derived.order")).json() == ["base first", "base second", "own"]
        assert get(s.url("Derived.blocking"), "/?x=1").json() == 2
    lines = [log["line"] for log in s.logs()]

    assert s.exit_code == 0
    assert "snapshot first" in lines
    assert {"base leaves", "own leaves"} <= set(lines)
    assert lines.index("snapshot first") < min(lines.index("base leaves"), lines.index("own leaves"))


def test_the_sdk_wins_over_the_vendors_package_in_the_image(tmp_path: Path) -> None:
    program = write(
        tmp_path,
        """
        import modal
        from modal.exception import InvalidError

        image = modal.Image.debian_slim().pip_install("modal", "fastapi[standard]")
        app = modal.App("beside", image=image)

        @app.function()
        @modal.fastapi_endpoint()
        def f():
            import importlib.metadata
            return [modal.__name__, InvalidError.__module__, importlib.metadata.version("modal")]
        """,
    )
    with serve(program) as s:
        name, module, version = get(s.url("f")).json()

    assert name == "modalnomad_sdk"
    assert module.startswith("modalnomad_sdk")
    assert version, "the vendor's package really is installed in the image"


def test_local_files_beside_the_program(tmp_path: Path) -> None:
    write(tmp_path, "GREETING = 'from a helper'\n", "helper.py")
    write(tmp_path, "from .deep import VALUE\n", "library/__init__.py")
    write(tmp_path, "VALUE = 42\n", "library/deep.py")
    write(tmp_path, "some data\n", "data/file.txt")
    program = write(
        tmp_path,
        """
        import os
        from pathlib import Path

        import modal
        import helper
        import library

        image = (
            modal.Image.debian_slim()
            .env({"COLOUR": "blue"})
            .add_local_dir("data", "/root/data")
            .add_local_python_source("library", "helper")
        )
        app = modal.App("files", image=image)

        @app.function(env={"SHAPE": "round"}, secrets=[modal.Secret.from_dict({"SIZE": "big", "SHAPE": "square"})])
        @modal.fastapi_endpoint()
        def f():
            return {
                "helper": helper.GREETING,
                "library": library.VALUE,
                "data": Path("data/file.txt").read_text(),
                "environment": [os.environ[name] for name in ("COLOUR", "SHAPE", "SIZE")],
                "local": modal.is_local(),
                "name": __name__,
                "leaked": [name for name in os.environ if name in ("PYTHONDONTWRITEBYTECODE", "TEST_SHARED_HOME")],
            }
        """,
    )
    with serve(program.name, cwd=tmp_path) as s:
        answer = get(s.url("f")).json()

    assert answer == {
        "helper": "from a helper",
        "library": 42,
        "data": "some data\n",
        "environment": ["blue", "round", "big"],
        "local": False,
        "name": "sample",
        "leaked": [],
    }


def test_an_image_without_fastapi_and_with_an_old_pydantic(tmp_path: Path) -> None:
    program = write(
        tmp_path,
        """
        import modal

        app = modal.App("old")
        image = modal.Image.debian_slim().pip_install("pydantic<2")

        @app.function(image=image)
        @modal.fastapi_endpoint()
        def f(x: int):
            import pydantic
            return [x, pydantic.VERSION[0]]
        """,
    )
    with serve(program) as s:
        assert get(s.url("f"), "/?x=3").json() == [3, "1"]


def test_imports_that_are_only_there_in_the_image(tmp_path: Path) -> None:
    program = write(
        tmp_path,
        """
        import modal

        image = modal.Image.debian_slim().pip_install("iniconfig")
        other = modal.Image.debian_slim().pip_install("sniffio")
        app = modal.App("imports")

        with image.imports():
            import sortedcontainers_that_is_nowhere
        with other.imports():
            import sniffio

        @app.function(image=other)
        @modal.fastapi_endpoint()
        def f():
            return sniffio.__name__
        """,
    )
    with serve(program) as s:
        assert get(s.url("f")).json() == "sniffio"


def test_an_app_without_a_name_takes_the_files(tmp_path: Path) -> None:
    program = write(
        tmp_path,
        """
        import modal

        app = modal.App()

        @app.function()
        @modal.fastapi_endpoint()
        def Hello_World():
            return Hello_World.get_web_url()
        """,
        "my_program.py",
    )
    with serve(program) as s:
        event = s.endpoints["Hello_World"]
        assert event["label"] == "my-program-hello-world-dev"
        assert "//my-program-hello-world-dev.localhost:" in event["url"]
        assert get(s.url()).json() == event["url"]


def test_websockets_are_refused_where_there_is_no_route_for_them(tmp_path: Path) -> None:
    program = write(
        tmp_path,
        """
        import modal

        app = modal.App("no-sockets")

        @app.function()
        @modal.fastapi_endpoint()
        def f():
            return 1

        @app.function()
        @modal.wsgi_app()
        def g():
            def application(environ, start_response):
                start_response("200 OK", [])
                return [b"wsgi"]
            return application
        """,
    )
    with serve(program) as s:
        for name in ("f", "g"):
            with pytest.raises(InvalidStatus) as refused, web_socket(s, "/", name):
                pass
            assert refused.value.response.status_code in {400, 403, 404, 426, 501}
        with direct_door(s, "g") as client:
            assert client.get("/").text == "wsgi"


def test_the_2024_names_work(tmp_path: Path) -> None:
    program = write(
        tmp_path,
        """
        import modal

        stub = modal.Stub("vintage")

        @stub.function(allow_concurrent_inputs=10, keep_warm=1, concurrency_limit=2, container_idle_timeout=30)
        @modal.web_endpoint(method="POST")
        def f(item: dict):
            return item
        """,
    )
    with serve(program) as s, direct_door(s) as client:
        s.wait_event("replica", timeout=60, state="ready")
        assert client.post("/", json={"a": 1}).json() == {"a": 1}
