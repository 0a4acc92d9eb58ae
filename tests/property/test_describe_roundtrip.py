"""Whatever can be declared is described in a shape that the platform accepts, and says the same there."""

from __future__ import annotations

import json
from typing import Any

import modalnomad_sdk as modal
from hypothesis import given
from hypothesis import strategies as st
from modalnomad_sdk import notices
from modalnomad_sdk.description import SourceOf, describe_app

from modalnomad.model.manifest import Description, Function

SOURCE = SourceOf("script", "app.py", "/no/such/folder", "app")

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)
KEYS = st.from_regex(r"[A-KM-MO-UW-Z][A-Z0-9_]{0,8}", fullmatch=True).filter(lambda key: key != "PATH")
VALUES = st.dictionaries(KEYS, TEXT, max_size=3)
COUNTS = st.none() | st.integers(1, 50)


def pairs(numbers: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """A request, or (request, limit)."""
    return st.none() | numbers | st.tuples(numbers, numbers).map(lambda pair: tuple(sorted(pair)))


SECRETS = st.builds(modal.Secret.from_dict, VALUES) | st.builds(
    lambda name, keys: modal.Secret.from_name(name, required_keys=keys), TEXT.filter(bool), st.lists(KEYS, max_size=2)
)
IMAGES = st.recursive(
    st.builds(modal.Image.debian_slim, st.none() | st.just("3.12")),
    lambda image: (
        st.builds(lambda i, names: i.pip_install(*names), image, st.lists(st.just("flask"), max_size=2))
        | st.builds(lambda i, values: i.env(values), image, VALUES)
        | st.builds(lambda i, values: i.run_commands("true", env=values), image, VALUES)
        | st.builds(lambda i: i.workdir("/root/x").apt_install("curl", force_build=True), image)
    ),
    max_leaves=4,
)
OPTIONS = st.fixed_dictionaries(
    {},
    optional={
        "image": IMAGES,
        "env": VALUES,
        "secrets": st.lists(SECRETS, max_size=2),
        "gpu": st.sampled_from(["h100", "A100:2", ["T4", "l4:3"]]),
        "cpu": pairs(st.floats(0.1, 64)),
        "memory": pairs(st.integers(1, 2**20)),
        "min_containers": st.none() | st.integers(0, 3),
        "max_containers": st.none() | st.integers(3, 50),
        "buffer_containers": COUNTS,
        "scaledown_window": st.none() | st.integers(2, 3600),
        "timeout": st.integers(1, 86400),
        "startup_timeout": st.none() | st.integers(1, 86400),
        "region": st.none() | TEXT | st.lists(TEXT, max_size=2),
        "cloud": st.none() | TEXT,
        "block_network": st.booleans(),
        "single_use_containers": st.booleans(),
        "enable_memory_snapshot": st.booleans(),
        "include_source": st.none() | st.booleans(),
        "nonpreemptible": st.booleans(),
        "experimental_options": st.none() | st.dictionaries(TEXT, TEXT, max_size=1),
    },
)
COMMON: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries(
    {},
    optional={
        "label": st.none() | TEXT,
        "custom_domains": st.none() | st.lists(TEXT, max_size=2),
        "requires_proxy_auth": st.booleans(),
    },
)
FASTAPI = st.tuples(COMMON, st.sampled_from(["GET", "post", "Delete"]), st.booleans()).map(
    lambda made: modal.fastapi_endpoint(method=made[1], docs=made[2], **made[0])
)
WEB = (
    FASTAPI
    | st.builds(lambda common: modal.asgi_app(**common), COMMON)
    | st.builds(lambda common: modal.wsgi_app(**common), COMMON)
    | st.builds(
        lambda common, port, seconds: modal.web_server(port, startup_timeout=seconds, **common),
        COMMON,
        st.integers(1, 65535),
        st.floats(0.1, 100),
    )
)
CONCURRENT = st.none() | st.tuples(st.integers(1, 100), st.integers(1, 100)).map(
    lambda pair: modal.concurrent(max_inputs=max(pair), target_inputs=min(pair))
)
DEFAULTS: dict[type, st.SearchStrategy[Any]] = {
    str: TEXT,
    int: st.integers(),
    bool: st.booleans(),
    bytes: st.binary(max_size=5),
}


@st.composite
def parameter(draw: st.DrawFn) -> tuple[type, Any]:
    """(annotation, modal.parameter())."""
    kind = draw(st.sampled_from(sorted(DEFAULTS, key=lambda one: one.__name__)))
    if draw(st.booleans()):
        return kind, modal.parameter(default=draw(DEFAULTS[kind]))
    return kind, modal.parameter()


def handler() -> None:
    """Stands for the user's function."""


def method(self: object) -> None:
    """Stands for a method of the user's class."""


def described(app: modal.App) -> Description:
    """By way of JSON, as the platform reads it."""
    return Description.model_validate(json.loads(json.dumps(describe_app(app, SOURCE))))


def same_options(function: Function, options: dict[str, Any]) -> None:
    """The manifest says what was declared."""
    assert function.scaling.min_containers == (options.get("min_containers") or 0)
    assert function.scaling.max_containers == options.get("max_containers")
    assert function.scaling.scaledown_window == (options.get("scaledown_window") or 60)
    assert function.timeout == options.get("timeout", 300)
    assert function.startup_timeout == options.get("startup_timeout")
    assert function.block_network == options.get("block_network", False)
    assert function.include_source == (options.get("include_source") is not False)
    for name in ("cpu", "memory"):
        value = options.get(name)
        wanted = value if isinstance(value, tuple) or value is None else (value, None)
        assert getattr(function.resources, name) == wanted


@given(options=OPTIONS, web=WEB, concurrent=CONCURRENT, name=st.none() | TEXT.filter(bool))
def test_functions(options: dict[str, Any], web: Any, concurrent: Any, name: str | None) -> None:
    notices.collect()
    app = modal.App("p")
    target = web(handler)
    app.function(name=name, **options)(concurrent(target) if concurrent else target)

    found = described(app)

    (function,) = found.app.functions
    (endpoint,) = function.endpoints
    settings = target.settings.web
    assert function.tag == endpoint.name == (name or "handler")
    assert (endpoint.kind, endpoint.method, endpoint.label, endpoint.custom_domains, endpoint.docs, endpoint.port) == (
        settings.kind,
        settings.method,
        settings.label,
        settings.custom_domains,
        settings.docs,
        settings.port,
    )
    same_options(function, options)
    values = {json.dumps(one, sort_keys=True) for one in found.anonymous_secrets.values()}
    assert json.dumps(options.get("env") or {}, sort_keys=True) in {*values, "{}"}
    assert {one.anonymous for one in function.secrets if one.anonymous} == set(found.anonymous_secrets)
    assert found.refusals == ()


@given(
    options=OPTIONS,
    parameters=st.dictionaries(
        st.from_regex(r"[a-z]{1,6}", fullmatch=True).map(lambda n: f"p_{n}"), parameter(), max_size=3
    ),
    webs=st.lists(WEB, min_size=1, max_size=3),
)
def test_classes(options: dict[str, Any], parameters: dict[str, tuple[type, Any]], webs: list[Any]) -> None:
    notices.collect()
    app = modal.App("p")
    body: dict[str, Any] = {f"web{n}": web(method) for n, web in enumerate(webs)}
    body.update({name: value for name, (_, value) in parameters.items()})
    body["__annotations__"] = {name: kind for name, (kind, _) in parameters.items()}
    body["up"] = modal.enter()(method)
    app.cls(**options)(type("Server", (), body))

    (function,) = described(app).app.functions

    assert function.is_class
    assert [endpoint.name for endpoint in function.endpoints] == [f"Server.web{n}" for n in range(len(webs))]
    assert {one.name: one.type for one in function.parameters} == {
        n: kind.__name__ for n, (kind, _) in parameters.items()
    }
    same_options(function, options)
