"""What `modalnomad run` runs of a program: a name that was given, else the only local entrypoint, else the only
Function."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from .app import App
from .cls import Cls, Obj
from .declarations import FunctionDeclaration, ParameterDeclaration
from .describe import DescribeError, own_apps
from .entrypoints import LocalEntrypoint
from .functions import Function
from .partial import Handle, is_generator
from .where import show


@dataclass(frozen=True)
class Chosen:
    """`direct`: a Function or method itself, called in a replica; else a local entrypoint, which runs here."""

    app: App
    name: str
    where: str
    doc: str
    direct: bool
    needs: tuple[str, ...]
    """Tags of what must be startable."""
    signature: Callable[..., Any]
    """The user's own function, whose parameters are options."""
    bind: Callable[[Mapping[str, Any]], Callable[..., Any]]
    """Class parameters → what is called."""
    parameters: tuple[ParameterDeclaration, ...] = ()


def choose(module: ModuleType, name: str | None, target: str) -> Chosen:
    """Raises DescribeError, which lists what there is."""
    apps = own_apps(module, target)
    if name is not None:
        return _named(module, apps, name, target)
    return _only(apps, target)


def _only(apps: Mapping[str, App], target: str) -> Chosen:
    entrypoints = [(app, one) for app in apps.values() for one in app.entrypoints.values()]
    if len(entrypoints) == 1:
        return _entrypoint(*entrypoints[0])
    functions = [found for app in apps.values() for found in _runnable(app)]
    if not entrypoints and len(functions) == 1:
        app, declaration, method = functions[0]
        return _direct(app, declaration, method)
    options = [one.tag for _, one in entrypoints] + [
        _shown(declaration, method) for _, declaration, method in functions
    ]
    if not options:
        web = next((e.name for app in apps.values() for one in app.declarations.values() for e in one.endpoints), None)
        if web is not None:
            raise _web(web, target)
        raise DescribeError(
            "no_functions",
            f"{target} has nothing to run: no local entrypoint and no Function",
            hint="write a function with @app.local_entrypoint(), or @app.function()",
        )
    raise DescribeError(
        "bad_reference",
        f"{target} has several things to run: {', '.join(options)}",
        hint=f"name the one you mean: {target}::{options[0]}",
    )


def _named(module: ModuleType, apps: Mapping[str, App], name: str, target: str) -> Chosen:
    value = vars(module).get(name)
    if isinstance(value, App):
        return _only({name: value}, f"{target}::{name}")
    first, _, rest = name.partition(".")
    if rest and isinstance(vars(module).get(first), App):
        apps, name = {first: vars(module)[first]}, rest
        value = None
    for app in apps.values():
        for tag, entrypoint in app.entrypoints.items():
            if tag == name or entrypoint is value:
                return _entrypoint(app, entrypoint)
        for tag, declaration in app.declarations.items():
            # By tag, or by the variable that holds the handle.
            same = isinstance(value, Handle) and getattr(value, "_declaration", None) is declaration
            if tag == name or same:
                return _whole(app, declaration, target)
            held = vars(module).get(name.rpartition(".")[0])
            owner = tag == name.rpartition(".")[0] or (
                isinstance(held, Cls) and getattr(held, "_declaration", None) is declaration
            )
            if owner and declaration.is_class:
                return _method(app, declaration, name.rpartition(".")[2], target)
    options = ", ".join(_options(apps)) or "none"
    found = "is not there" if value is None else f"is a {type(value).__name__}"
    raise DescribeError(
        "bad_reference",
        f"{target}::{name}: `{name}` {found} (to be run here: {options})",
        hint=f"write {target}::NAME with one of these, or {target} alone when there is only one",
    )


def _options(apps: Mapping[str, App]) -> Iterator[str]:
    for app in apps.values():
        yield from app.entrypoints
        for _, declaration, method in _runnable(app):
            yield _shown(declaration, method)


def _whole(app: App, declaration: FunctionDeclaration, target: str) -> Chosen:
    """A Function, or a class with one method."""
    if not declaration.is_class:
        if declaration.endpoints:
            raise _web(declaration.tag, target)
        return _direct(app, declaration, "")
    if len(declaration.methods) == 1:
        return _direct(app, declaration, declaration.methods[0])
    methods = ", ".join(f"{declaration.tag}.{one}" for one in declaration.methods)
    if not methods and declaration.endpoints:
        raise _web(declaration.endpoints[0].name, target)
    hint = f"name the method you mean: {target}::{declaration.tag}.{declaration.methods[0]}" if methods else ""
    raise DescribeError(
        "bad_reference", f"{target}: `{declaration.tag}` is a class (its methods: {methods or 'none'})", hint=hint
    )


def _method(app: App, declaration: FunctionDeclaration, method: str, target: str) -> Chosen:
    if method in declaration.methods:
        return _direct(app, declaration, method)
    if any(endpoint.method_name == method for endpoint in declaration.endpoints):
        raise _web(f"{declaration.tag}.{method}", target)
    methods = ", ".join(declaration.methods) or "none"
    raise DescribeError(
        "bad_reference",
        f"{target}: `{declaration.tag}` has no method {method} with @modal.method() (it has: {methods})",
        where=declaration.where,
    )


def _web(name: str, target: str) -> DescribeError:
    return DescribeError(
        "bad_reference",
        f"{target}: `{name}` is a web endpoint, which is not run but served",
        hint=f"modalnomad serve {target.partition('::')[0]}, and send a request to its URL",
    )


def _runnable(app: App) -> Iterator[tuple[App, FunctionDeclaration, str]]:
    for declaration in app.declarations.values():
        if declaration.is_class:
            for method in declaration.methods:
                yield app, declaration, method
        elif not declaration.endpoints:
            yield app, declaration, ""


def _shown(declaration: FunctionDeclaration, method: str) -> str:
    return f"{declaration.tag}.{method}" if method else declaration.tag


def _entrypoint(app: App, entrypoint: LocalEntrypoint) -> Chosen:
    code = getattr(entrypoint.raw, "__code__", None)
    place = show(code.co_filename, code.co_firstlineno) if code is not None else ""
    return Chosen(
        app=app,
        name=entrypoint.tag,
        where=place,
        doc=inspect.getdoc(entrypoint.raw) or "",
        direct=False,
        needs=tuple(dict.fromkeys(declaration.tag for _, declaration, _ in _runnable(app))),
        signature=entrypoint.raw,
        bind=lambda _: entrypoint.raw,
    )


def _direct(app: App, declaration: FunctionDeclaration, method: str) -> Chosen:
    name = _shown(declaration, method)
    raw: Any = declaration.target
    if method:
        found = inspect.getattr_static(declaration.target, method)
        raw = getattr(found, "raw", found)
    if declaration.options.is_generator or is_generator(raw):
        raise DescribeError(
            "declaration",
            f"{declaration.where}: `{name}` is a generator, which cannot be run",
            hint="let it return a list, or call its parts from a local entrypoint",
        )

    def bind(parameters: Mapping[str, Any]) -> Callable[..., Any]:
        if not method:
            remote: Callable[..., Any] = Function(declaration, name, app=app, call=raw).remote
            return remote
        made = Obj(Cls(declaration, declaration.tag, app=app), (), parameters)
        called: Callable[..., Any] = getattr(made, method).remote
        return called

    return Chosen(
        app=app,
        name=name,
        where=declaration.where,
        doc=inspect.getdoc(raw) or "",
        direct=True,
        needs=(declaration.tag,),
        signature=raw,
        bind=bind,
        parameters=declaration.parameters,
    )
