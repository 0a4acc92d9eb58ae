"""From a decorated function or class to its declaration: the rules of what may be put together."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

from .declarations import EndpointDeclaration, FunctionDeclaration, FunctionOptions
from .exception import InvalidError, LocalFunctionError
from .parameters import parameters_of
from .partial import Concurrent, Handle, PartialFunction, Settings, Web, is_generator, is_method, own_parameters


def unwrap(target: Any) -> tuple[Any, Settings]:
    """The user's own function or class, and what its decorators said."""
    return (target.raw, target.settings) if isinstance(target, PartialFunction) else (target, Settings())


def declare_function(target: Any, name: str | None, options: FunctionOptions, place: str) -> FunctionDeclaration:
    """Declaration of `@app.function(…)`.

    Raises:
        TypeError: a class.
        InvalidError: what the API forbids.
    """
    raw, settings = unwrap(target)
    if isinstance(raw, type):
        raise TypeError(f"{place}: @app.function() cannot be used on the class `{raw.__name__}`: use @app.cls()")
    if isinstance(raw, Handle):
        raise InvalidError(f"{place}: `{raw.tag}` is a Function already; one @app.function() is enough")
    if isinstance(raw, (staticmethod, classmethod)) or not callable(raw):
        raise InvalidError(f"{place}: @app.function() is applied to {raw!r}, which is not a plain function")
    shown = getattr(raw, "__qualname__", repr(raw))
    if is_method(raw):
        raise InvalidError(
            f"{place}: @app.function() cannot be used on class methods (`{shown}`): put @app.cls() on the class, and "
            "@modal.method() or a web decorator on the method"
        )
    if settings.method or settings.enter or settings.exit:
        raise InvalidError(
            f"{place}: `{shown}` has {_spelled(settings)}, which belongs on a method of a class with @app.cls()"
        )
    if settings.sessioned:
        raise InvalidError(f"{settings.sessioned.where}: @modal.sessioned() only goes with @app.server()")
    _check_top_level(raw, options, place)
    generator = options.is_generator or is_generator(raw)
    if options.retries is not None and settings.web:
        raise InvalidError(f"{place}: `{shown}` is a web endpoint, which cannot have retries: leave `retries` out")
    if options.retries is not None and generator:
        raise InvalidError(f"{place}: `{shown}` is a generator, which cannot have retries: leave `retries` out")
    if options.schedule is not None:
        _check_schedulable(raw, shown, place)
    _check_cluster(settings, shown)
    tag = name if name is not None else raw.__name__
    max_inputs, target_inputs = _inputs(settings.concurrent)
    return FunctionDeclaration(
        tag=tag,
        where=place,
        is_class=False,
        target=raw,
        endpoints=(_endpoint(settings.web, tag, None),) if settings.web else (),
        max_inputs=max_inputs,
        target_inputs=target_inputs,
        options=options,
        batched=settings.batched is not None,
        clustered=settings.clustered is not None,
    )


def declare_class(target: Any, options: FunctionOptions, place: str, *, server: str = "") -> FunctionDeclaration:
    """Declaration of `@app.cls(…)`, or of `@app.server(…)` when `server` is its tag.

    Raises:
        TypeError: not a class.
        InvalidError: what the API forbids.
    """
    decorator = "@app.server()" if server else "@app.cls()"
    raw, settings = unwrap(target)
    if isinstance(raw, Handle):
        raise InvalidError(f"{place}: `{raw.tag}` is registered with an App already; one {decorator} is enough")
    if not isinstance(raw, type):
        raise TypeError(f"{place}: {decorator} is applied to {raw!r}, which is not a class: use @app.function()")
    cls, name = raw, raw.__name__
    if settings.sessioned and not server:
        raise InvalidError(f"{settings.sessioned.where}: @modal.sessioned() only goes with @app.server()")
    _check_top_level(cls, options, place)
    if inspect.getattr_static(cls, "__init__") is not object.__init__:
        raise InvalidError(
            f"{place}: the class `{name}` has an `__init__` of its own, which is not supported: do what it does in a "
            f"method with @modal.enter(), and take values as `value: str = modal.parameter()`"
        )
    members = list(_members(cls))
    web = [(attribute, partial.settings.web) for attribute, partial in members if partial.settings.web]
    methods = [attribute for attribute, partial in members if partial.settings.method]
    _check_members(name, members, options, place)
    _check_cluster(settings, name)
    max_inputs, target_inputs = _inputs(settings.concurrent)
    tag = server or name
    return FunctionDeclaration(
        tag=tag,
        where=place,
        is_class=True,
        target=cls,
        endpoints=tuple(_endpoint(one, f"{tag}.{attribute}", attribute) for attribute, one in web if one),
        parameters=parameters_of(cls),
        methods=tuple(methods),
        enters=tuple(
            attribute
            for snap in (True, False)
            for attribute, partial in members
            if partial.settings.enter is not None and partial.settings.enter.snap is snap
        ),
        exits=tuple(attribute for attribute, partial in members if partial.settings.exit),
        max_inputs=max_inputs,
        target_inputs=target_inputs,
        options=options,
        batched=any(partial.settings.batched for _, partial in members),
        clustered=settings.clustered is not None,
        is_server=bool(server),
    )


def declare_server(target: Any, name: str | None, options: FunctionOptions, place: str) -> FunctionDeclaration:
    """Declaration of `@app.server(…)`, which is checked and then refused at deploy.

    Raises:
        TypeError, InvalidError: as `declare_class`, and what is not allowed in a server.
    """
    raw, settings = unwrap(target)
    if isinstance(raw, type):
        shown = raw.__name__
        if settings.concurrent:
            raise InvalidError(
                f"{settings.concurrent.where}: `{shown}` has @app.server(), which takes target_concurrency instead of "
                "@modal.concurrent(…)"
            )
        members = dict(_members(raw))
        for attribute, partial in members.items():
            if partial.settings.method or partial.settings.batched:
                raise InvalidError(
                    f"{place}: `{shown}.{attribute}` cannot be called: @app.server() has no @modal.method"
                )
        if not any(partial.settings.enter for partial in members.values()):
            raise InvalidError(
                f"{place}: `{shown}` has @app.server() and needs a @modal.enter() that starts the server"
            )
        if parameters_of(raw):
            raise InvalidError(f"{place}: `{shown}` has @app.server(), which has no modal.parameter()")
    return declare_class(target, options, place, server=name or str(getattr(raw, "__name__", "?")))


def _members(cls: type) -> Iterator[tuple[str, PartialFunction[Any, Any]]]:
    """Decorated attributes: base classes first, in definition order; an overridden one at its first place."""
    names: dict[str, None] = {}
    for base in reversed(cls.__mro__):
        names.update(dict.fromkeys(vars(base)))
    for name in names:
        value = inspect.getattr_static(cls, name)
        if isinstance(value, PartialFunction):
            yield name, value


def _check_members(
    name: str, members: list[tuple[str, PartialFunction[Any, Any]]], options: FunctionOptions, place: str
) -> None:
    batched = [attribute for attribute, partial in members if partial.settings.batched]
    called = [attribute for attribute, partial in members if partial.settings.method or partial.settings.web]
    if len(batched) > 1 or (batched and called):
        others = ", ".join(attribute for attribute in (*batched, *called))
        raise InvalidError(
            f"{place}: the class `{name}` has a @modal.batched method beside other methods ({others}): a batched "
            "method must be the only one"
        )
    for attribute, partial in members:
        settings = partial.settings
        if settings.concurrent:
            raise InvalidError(
                f"{settings.concurrent.where}: @modal.concurrent(…) is on the method `{name}.{attribute}`: decorate "
                "the class with it"
            )
        if settings.sessioned or settings.clustered:
            raise InvalidError(f"{place}: `{name}.{attribute}` has {_spelled(settings)}, which goes on a class")
        if settings.enter and settings.enter.snap and not options.enable_memory_snapshot:
            raise InvalidError(
                f"{settings.enter.where}: `{name}.{attribute}` has @modal.enter(snap=True), which needs "
                "enable_memory_snapshot=True in the class's @app.cls(…)"
            )
        if settings.web and options.retries is not None:
            raise InvalidError(
                f"{place}: `{name}.{attribute}` is a web endpoint, which cannot have retries: leave `retries` out"
            )


def _check_top_level(target: Any, options: FunctionOptions, place: str) -> None:
    qualified = getattr(target, "__qualname__", target.__name__ if isinstance(target, type) else "")
    if "<locals>" in qualified and not options.serialized:
        raise LocalFunctionError(
            f"{place}: `{qualified}` is defined inside another function, where a replica cannot import it: move it to "
            "the top level of its module"
        )


def _check_schedulable(raw: Any, shown: str, place: str) -> None:
    required = [
        p.name for p in own_parameters(raw) if p.default is p.empty and p.kind not in {p.VAR_POSITIONAL, p.VAR_KEYWORD}
    ]
    if required:
        raise InvalidError(
            f"{place}: `{shown}` has a schedule, so it is called without arguments, but it needs {', '.join(required)}"
            ": give them defaults"
        )


def _check_cluster(settings: Settings, name: str) -> None:
    if settings.clustered and settings.web:
        raise InvalidError(
            f"{settings.clustered.where}: `{name}` is a web endpoint, which cannot be @modal.clustered(…)"
        )


def _inputs(concurrent: Concurrent | None) -> tuple[int, int | None]:
    if concurrent is None:
        return 1, None
    if concurrent.max_inputs is None:
        raise TypeError(
            f"{concurrent.where}: @modal.concurrent() needs max_inputs, as in @modal.concurrent(max_inputs=100)"
        )
    return concurrent.max_inputs, concurrent.target_inputs


def _endpoint(web: Web, name: str, method_name: str | None) -> EndpointDeclaration:
    return EndpointDeclaration(
        name=name,
        method_name=method_name,
        kind=web.kind,
        method=web.method,
        label=web.label,
        custom_domains=web.custom_domains,
        docs=web.docs,
        requires_proxy_auth=web.requires_proxy_auth,
        port=web.port,
        port_timeout=web.port_timeout,
        where=web.where,
    )


def _spelled(settings: Settings) -> str:
    return " and ".join(f"@modal.{name}" for name in settings.present())
