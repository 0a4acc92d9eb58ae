"""The decorators that stand between a function and its App: web endpoints, methods, lifecycle, concurrency."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, ParamSpec, TypeVar

from . import where
from .declarations import EndpointKind
from .exception import InvalidError
from .notices import note
from .partial import (
    Batched,
    Clustered,
    Concurrent,
    Enter,
    Exit,
    Method,
    PartialFunction,
    Sessioned,
    Web,
    add,
    is_generator,
    own_parameters,
)

P = ParamSpec("P")
R = TypeVar("R")
C = TypeVar("C", bound=type)


def fastapi_endpoint(
    *,
    method: str = "GET",
    label: str | None = None,
    custom_domains: Iterable[str] | None = None,
    docs: bool = False,
    requires_proxy_auth: bool = False,
) -> Callable[[PartialFunction[P, R] | Callable[P, R]], PartialFunction[P, R]]:
    """A handler in FastAPI's style becomes a web endpoint for one HTTP verb.

    Args:
        method: the HTTP verb.
        label: replaces the `<app>-<function>` part of the host name.
        custom_domains: further host names of the endpoint.
        docs: serve `/docs`, `/redoc` and `/openapi.json`.
        requires_proxy_auth: callers need a proxy token.
    """
    web = Web(
        "fastapi_endpoint",
        where.caller(),
        method=_verb(method),
        docs=bool(docs),
        **_common("fastapi_endpoint", label, custom_domains, requires_proxy_auth),
    )

    def decorate(function: PartialFunction[P, R] | Callable[P, R]) -> PartialFunction[P, R]:
        raw = _raw(function)
        if callable(raw) and is_generator(raw):
            raise InvalidError(
                f"{web.where}: `{_name(raw)}` is a generator, which a web endpoint cannot be. For streaming, return "
                "fastapi.responses.StreamingResponse with the generator in it"
            )
        return add("web", web, function)

    return decorate


def web_endpoint(
    *,
    method: str = "GET",
    label: str | None = None,
    custom_domains: Iterable[str] | None = None,
    docs: bool = False,
    requires_proxy_auth: bool = False,
    wait_for_response: bool = True,
) -> Callable[[PartialFunction[P, R] | Callable[P, R]], PartialFunction[P, R]]:
    """Old name of `fastapi_endpoint`."""
    place = where.caller()
    if not wait_for_response:
        raise InvalidError(
            f"{place}: web_endpoint(wait_for_response=False) was taken out of the API; leave it out: callers wait for "
            "the answer"
        )
    note(
        "old_name", "`modal.web_endpoint` is now called `modal.fastapi_endpoint`; the old name still works here", place
    )
    return fastapi_endpoint(
        method=method,
        label=label,
        custom_domains=custom_domains,
        docs=docs,
        requires_proxy_auth=requires_proxy_auth,
    )


def asgi_app(
    *,
    label: str | None = None,
    custom_domains: Iterable[str] | None = None,
    requires_proxy_auth: bool = False,
) -> Callable[[PartialFunction[P, R] | Callable[P, R]], PartialFunction[P, R]]:
    """A function without parameters that returns an ASGI app becomes a web endpoint; it is called once per replica."""
    return _nullary(Web("asgi_app", where.caller(), **_common("asgi_app", label, custom_domains, requires_proxy_auth)))


def wsgi_app(
    *,
    label: str | None = None,
    custom_domains: Iterable[str] | None = None,
    requires_proxy_auth: bool = False,
) -> Callable[[PartialFunction[P, R] | Callable[P, R]], PartialFunction[P, R]]:
    """A function without parameters that returns a WSGI app becomes a web endpoint; it is called once per replica."""
    return _nullary(Web("wsgi_app", where.caller(), **_common("wsgi_app", label, custom_domains, requires_proxy_auth)))


def web_server(
    port: int,
    *,
    startup_timeout: float = 5.0,
    label: str | None = None,
    custom_domains: Iterable[str] | None = None,
    requires_proxy_auth: bool = False,
) -> Callable[[PartialFunction[P, R] | Callable[P, R]], PartialFunction[P, R]]:
    """A function that starts an HTTP server on `port` and returns becomes a web endpoint.

    Args:
        port: where the server listens, 1…65535.
        startup_timeout: seconds after which a port that does not accept is a failed start.
        label: replaces the `<app>-<function>` part of the host name.
        custom_domains: further host names of the endpoint.
        requires_proxy_auth: callers need a proxy token.
    """
    place = where.caller()
    if not isinstance(port, int) or isinstance(port, bool) or not 1 <= port <= 65535:
        raise InvalidError(f"{place}: web_server({port!r}): the port must be a whole number from 1 to 65535")
    if not isinstance(startup_timeout, (int, float)) or not startup_timeout > 0:
        raise InvalidError(f"{place}: web_server(startup_timeout={startup_timeout!r}): seconds above 0 are needed")
    common = _common("web_server", label, custom_domains, requires_proxy_auth)
    return _nullary(Web("web_server", place, port=port, port_timeout=float(startup_timeout), **common))


def _nullary(web: Web) -> Callable[[PartialFunction[P, R] | Callable[P, R]], PartialFunction[P, R]]:
    def decorate(function: PartialFunction[P, R] | Callable[P, R]) -> PartialFunction[P, R]:
        raw = _raw(function)
        if callable(raw) and not isinstance(raw, type):
            _check_nullary(web.kind, web.where, raw)
        return add("web", web, function)

    return decorate


def _check_nullary(kind: EndpointKind, place: str, raw: Callable[..., Any]) -> None:
    import inspect

    name = _name(raw)
    if inspect.iscoroutinefunction(raw):
        raise InvalidError(
            f"{place}: `{name}` is an async function; @modal.{kind}() needs a plain `def`, which is called once when "
            "the replica starts"
        )
    if is_generator(raw):
        raise InvalidError(f"{place}: `{name}` is a generator; @modal.{kind}() needs a function that returns")
    parameters = own_parameters(raw)
    if parameters:
        names = ", ".join(parameter.name for parameter in parameters)
        raise InvalidError(
            f"{place}: `{name}` under @modal.{kind}() can't have parameters (found: {names}), not even with defaults. "
            "Take request values from the request itself, and settings from a Cls with modal.parameter()"
        )


def _common(
    kind: str, label: str | None, custom_domains: Iterable[str] | None, requires_proxy_auth: bool
) -> dict[str, Any]:
    assert not isinstance(custom_domains, str), (
        f"{where.caller()}: {kind}(custom_domains={custom_domains!r}) is one string; write a list of names"
    )
    if label is not None and not isinstance(label, str):
        raise InvalidError(f"{where.caller()}: {kind}(label={label!r}): a text is needed")
    domains = tuple(custom_domains or ())
    if not all(isinstance(domain, str) for domain in domains):
        raise InvalidError(f"{where.caller()}: {kind}(custom_domains={list(domains)!r}): each must be a host name")
    return {"label": label, "custom_domains": domains, "requires_proxy_auth": bool(requires_proxy_auth)}


def _verb(method: str) -> str:
    if not isinstance(method, str) or not method.isalpha():
        raise InvalidError(f'{where.caller()}: fastapi_endpoint(method={method!r}): one HTTP verb is needed, as "POST"')
    return method.upper()


def _raw(function: Any) -> Any:
    return function.raw if isinstance(function, PartialFunction) else function


def _name(raw: Any) -> str:
    return str(getattr(raw, "__qualname__", raw))


def method(
    *, is_generator: bool | None = None
) -> Callable[[PartialFunction[P, R] | Callable[P, R]], PartialFunction[P, R]]:
    """A method of an `@app.cls` class that other programs may call."""
    setting = Method(where.caller(), is_generator)
    return lambda function: add("method", setting, function)


def enter(*, snap: bool = False) -> Callable[[PartialFunction[P, R] | Callable[P, R]], PartialFunction[P, R]]:
    """A method that runs when a replica starts, before it takes requests. Several run in the order they are written."""
    setting = Enter(where.caller(), bool(snap))
    return lambda function: add("enter", setting, function)


def exit() -> Callable[[PartialFunction[P, R] | Callable[P, R]], PartialFunction[P, R]]:
    """A method that runs after a replica's last request, within the grace period."""
    setting = Exit(where.caller())
    return lambda function: add("exit", setting, function)


def batched(
    *, max_batch_size: int, wait_ms: int
) -> Callable[[PartialFunction[P, R] | Callable[P, R]], PartialFunction[P, R]]:
    """Callers pass single items, the function gets lists of up to `max_batch_size`, at the latest after `wait_ms`."""
    place = where.caller()
    if not isinstance(max_batch_size, int) or not 1 <= max_batch_size <= 1000:
        raise InvalidError(f"{place}: batched(max_batch_size={max_batch_size!r}): a number from 1 to 1000 is needed")
    if not isinstance(wait_ms, int) or not 0 <= wait_ms <= 600_000:
        raise InvalidError(f"{place}: batched(wait_ms={wait_ms!r}): milliseconds from 0 to 600000 are needed")
    setting = Batched(place, max_batch_size, wait_ms)

    def decorate(function: PartialFunction[P, R] | Callable[P, R]) -> PartialFunction[P, R]:
        raw = _raw(function)
        if callable(raw) and not isinstance(raw, type):
            if _yields(raw):
                raise InvalidError(f"{place}: `{_name(raw)}` is a generator, which cannot be batched: return a list")
            defaults = [p.name for p in own_parameters(raw) if p.default is not p.empty]
            if defaults:
                raise InvalidError(
                    f"{place}: parameters of the batched `{_name(raw)}` cannot have defaults: {', '.join(defaults)}"
                )
        return add("batched", setting, function)

    return decorate


_yields = is_generator


def concurrent(
    *, max_inputs: int | None = None, target_inputs: int | None = None
) -> Callable[[PartialFunction[P, R] | Callable[P, R]], PartialFunction[P, R]]:
    """How many requests one replica takes at once. On a function or a class, above or below the web decorator.

    Args:
        max_inputs: the most a replica is given.
        target_inputs: how many it should have before another replica starts; None: `max_inputs`.
    """
    place = where.caller()
    for name, value in (("max_inputs", max_inputs), ("target_inputs", target_inputs)):
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int) or not math.isfinite(value) or value < 1:
            raise InvalidError(f"{place}: concurrent({name}={value!r}): a whole number of at least 1 is needed")
    if max_inputs is not None and target_inputs is not None and target_inputs > max_inputs:
        raise InvalidError(
            f"{place}: concurrent(target_inputs={target_inputs}) is more than max_inputs={max_inputs}: the target "
            "cannot be above the most"
        )
    setting = Concurrent(place, max_inputs, target_inputs)
    return lambda target: add("concurrent", setting, target)


def clustered(
    *, size: int, rdma: bool = False
) -> Callable[[PartialFunction[P, R] | Callable[P, R]], PartialFunction[P, R]]:
    """A gang of `size` replicas for each input. Refused at deploy: this platform starts replicas one by one."""
    place = where.caller()
    if not isinstance(size, int) or size < 1:
        raise InvalidError(f"{place}: clustered(size={size!r}): a number of at least 1 is needed")
    setting = Clustered(place, size, bool(rdma))
    return lambda target: add("clustered", setting, target)


def sessioned() -> Callable[[PartialFunction[P, R] | Callable[P, R]], PartialFunction[P, R]]:
    """Sessions of an `app.server`. Refused at deploy with it."""
    setting = Sessioned(where.caller())
    return lambda target: add("sessioned", setting, target)
