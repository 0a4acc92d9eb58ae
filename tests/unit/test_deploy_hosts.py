"""Labels and host names."""

from __future__ import annotations

import pytest

from modalnomad.deploy.hosts import Naming, name_endpoints
from modalnomad.model.manifest import Endpoint, Function, Manifest, Source

SOURCE = Source(mode="script", entry="app.py", root="/x", module="app")


def endpoint(name: str = "f", *, label: str | None = None, domains: tuple[str, ...] = ()) -> Endpoint:
    return Endpoint(
        name=name, kind="fastapi_endpoint", where=f"app.py:{len(name)}", label=label, custom_domains=domains
    )


def manifest(*endpoints: Endpoint) -> Manifest:
    functions = tuple(Function(tag=each.name, endpoints=(each,)) for each in endpoints)
    return Manifest(name="shop", source=SOURCE, functions=functions)


def hosts(*endpoints: Endpoint, app: str = "shop", ephemeral: bool = False, naming: Naming | None = None) -> list[str]:
    named, problems = name_endpoints(manifest(*endpoints), app, naming or Naming(), ephemeral=ephemeral)
    assert not problems
    return [host for entry in named for host in entry.hosts]


def problems(*endpoints: Endpoint, app: str = "shop") -> list[str]:
    return [str(problem) for problem in name_endpoints(manifest(*endpoints), app, Naming(), ephemeral=True)[1]]


@pytest.mark.parametrize(
    ("app", "name", "expected"),
    [
        ("shop", "hello", "shop-hello"),
        ("My_Shop", "Say_Hello", "my-shop-say-hello"),
        ("shop", "Server.files", "shop-server-files"),
        ("_x_", "f", "x--f"),
        ("a.b", "f", "a-b-f"),
    ],
)
def test_default_label(app: str, name: str, expected: str) -> None:
    assert hosts(endpoint(name), app=app) == [f"{expected}.localhost"]


@pytest.mark.parametrize("label", [None, "mine"])
def test_serve_appends_dev_to_every_label(label: str | None) -> None:
    (host,) = hosts(endpoint(label=label), ephemeral=True)

    assert host == f"{label or 'shop-f'}-dev.localhost"


def test_a_long_label_is_cut_after_the_suffix_to_63_characters() -> None:
    plain, dev = hosts(endpoint("g" * 70)), hosts(endpoint("g" * 70), ephemeral=True)
    label = plain[0].removesuffix(".localhost")

    assert len(label) == 63
    assert label[:57] == f"shop-{'g' * 51}-"
    assert int(label[57:], 16) >= 0
    assert dev != plain
    assert len(dev[0]) == len(plain[0])


def test_63_characters_are_not_cut() -> None:
    label = "a" * 63

    assert hosts(endpoint(label=label)) == [f"{label}.localhost"]


@pytest.mark.parametrize(
    ("naming", "expected"),
    [
        (Naming(workspace="acme"), "acme--shop-f.localhost"),
        (Naming(workspace="acme", environment="staging"), "acme-staging--shop-f.localhost"),
        (Naming(environment="staging"), "staging--shop-f.localhost"),
        (Naming(domain="Apps.Example.com."), "shop-f.apps.example.com"),
    ],
)
def test_workspace_environment_and_domain(naming: Naming, expected: str) -> None:
    assert hosts(endpoint(), naming=naming) == [expected]


def test_the_prefix_counts_towards_63_characters() -> None:
    (host,) = hosts(endpoint(label="a" * 60), naming=Naming(workspace="workspace"))

    assert len(host.partition(".")[0]) == 63


@pytest.mark.parametrize(
    ("label", "why"),
    [
        ("Hello", "may hold only a-z"),
        ("-a", "may hold only a-z"),
        ("a-", "may hold only a-z"),
        ("a_b", "may hold only a-z"),
        ("", "may hold only a-z"),
        ("123", "all digits"),
        ("a" * 64, "64 characters"),
    ],
)
def test_a_bad_label_is_refused_with_the_value_and_the_place(label: str, why: str) -> None:
    (problem,) = problems(endpoint("fun", label=label))

    assert problem.startswith("app.py:3: ")
    assert repr(label) in problem
    assert why in problem


def test_a_name_without_any_usable_character_needs_a_label() -> None:
    (problem,) = problems(endpoint("__"), app="__")

    assert "label=" in problem


def test_custom_domains_are_further_hosts() -> None:
    assert hosts(endpoint(domains=("API.example.com",))) == ["shop-f.localhost", "api.example.com"]


@pytest.mark.parametrize("domain", ["*.example.com", "https://a.example.com", "example", "a..b", "1.2.3.4", "a.b:80"])
def test_a_bad_custom_domain_is_refused(domain: str) -> None:
    (problem,) = problems(endpoint(domains=(domain,)))

    assert repr(domain) in problem


def test_two_endpoints_of_one_host_are_refused_naming_both() -> None:
    (problem,) = problems(endpoint("first", label="same"), endpoint("second", label="same"))

    assert "shop/first" in problem
    assert "shop/second" in problem
    assert "same-dev.localhost" in problem


def test_all_problems_are_told_at_once() -> None:
    found = problems(endpoint("a", label="A"), endpoint("b", label="B", domains=("x",)), endpoint("c", domains=("y",)))

    assert len(found) == 3
