"""The guides' programs beside this checkout: read from there, never copied into the project."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from tests.support.repository import ROOT

PROGRAMS = ROOT.parent / "shared" / "seeds" / "programs"

PRELUDE = 'import modal\napp = modal.App("{name}")\n'
"""What a fragment is run with in front of it."""

NOTHING: Any = object()


@dataclass(frozen=True)
class Call:
    """One request and what it must be answered."""

    method: str = "GET"
    path: str = "/"
    send: Any = NOTHING
    """Sent as JSON."""
    status: int | tuple[int, ...] = 200
    json: Any = NOTHING
    text: str | None = None
    contains: str | None = None
    content_type: str | None = None
    headers: tuple[tuple[str, str], ...] = ()

    def made_with(self, client: httpx.Client) -> None:
        """Make it and compare."""
        content = {} if self.send is NOTHING else {"json": self.send}
        answer = client.request(self.method, self.path, headers=dict(self.headers), **content)
        said = f"{self.method} {self.path}: {answer.status_code} {answer.text[:2000]}"
        wanted = self.status if isinstance(self.status, tuple) else (self.status,)
        assert answer.status_code in wanted, said
        if self.json is not NOTHING:
            assert answer.json() == self.json, said
        if self.text is not None:
            assert answer.text == self.text, said
        if self.contains is not None:
            assert self.contains in answer.text, said
        if self.content_type is not None:
            assert answer.headers["content-type"].split(";")[0] == self.content_type, said


@dataclass(frozen=True)
class Program:
    """One block of a guide, with the calls `seeds/README.md` lists."""

    name: str
    endpoint: str
    calls: tuple[Call, ...]
    fragment: bool = False
    """It needs the prelude."""

    def write(self, folder: Path) -> Path:
        """The program in a file of its own name, nothing changed but the prelude of a fragment."""
        text = (PROGRAMS / f"{self.name}.py").read_text("utf-8")
        path = folder / f"{self.name}.py"
        path.write_text((PRELUDE.format(name=self.name) if self.fragment else "") + text, encoding="utf-8")
        return path


TOKEN = "guides-token"

HELLO = (Call(json="Hello world!"),)
SQUARE = (Call(path="/?x=42", json={"square": 1764}), Call(path="/?x=abc", status=422), Call(status=422))
POSTED_SQUARE = (Call("POST", send={"x": 42}, json={"square": 1764}), Call(status=405))
GREETING = (
    Call("POST", send={"name": "Erik", "qty": 10}, text="<html>Hello, Erik!</html>", content_type="text/html"),
    Call("POST", send={"qty": 10}, status=422),
)
ASGI_VALUES: tuple[Any, ...] = ({"a": [1, None, "ü"]}, [], "text", 7)
"""The first two are JSON values that a Flask function may return as they are."""
ECHO = tuple(Call("POST", "/echo", send=value, json=value) for value in ASGI_VALUES)
FLASK_ECHO = ECHO[:2]
LISTING = (Call(contains="Directory listing for /"), Call(contains="etc/"), Call(path="/no-such-file", status=404))
BEARER = (
    Call(status=(401, 403)),
    Call(status=401, headers=(("Authorization", "Bearer wrong"),)),
    Call(json="success!", headers=(("Authorization", f"Bearer {TOKEN}"),)),
)
ADDRESS = (Call(json="Your IP address is 127.0.0.1"),)

ALL = (
    Program("g2025_simple", "f", HELLO, fragment=True),
    Program("g2025_query_args", "square", SQUARE, fragment=True),
    Program("g2025_post_dict", "square", POSTED_SQUARE, fragment=True),
    Program("g2025_pydantic_html", "f", GREETING),
    Program("g2025_asgi_echo", "fastapi_app", ECHO, fragment=True),
    Program("g2025_asgi_lifespan", "fastapi_app_with_lifespan", (Call(json="hello"),)),
    Program("g2025_wsgi_echo", "flask_app", FLASK_ECHO, fragment=True),
    Program("g2025_web_server", "my_file_server", LISTING, fragment=True),
    Program("g2025_parametrized", "Server.files", (Call(path="/?root=%2F", contains="etc/"),), fragment=True),
    Program("g2025_bearer_token", "f", BEARER),
    Program("g2025_client_ip", "get_ip_address", ADDRESS),
    Program("g2024_simple", "f", HELLO),
    Program("g2024_query_args", "square", SQUARE),
    Program("g2024_post_dict", "square", POSTED_SQUARE),
    Program("g2024_pydantic_html", "f", GREETING),
    Program(
        "g2024_asgi",
        "fastapi_app",
        (
            Call("POST", "/foo", send={"x": 1}, json={"x": 1}),
            Call(path="/bar?arg=you", text="<h1>Hello Fast you!</h1>", content_type="text/html"),
        ),
    ),
    Program("g2024_wsgi", "flask_app", (Call(text="Hello Flask World!"), *FLASK_ECHO)),
    Program("g2024_web_server", "my_file_server", LISTING),
    Program("g2024_bearer_token", "f", BEARER),
    Program("g2024_client_ip", "get_ip_address", ADDRESS),
)

BY_NAME = {program.name: program for program in ALL}
