"""Arguments of `app.function` and `app.cls`: checked, given defaults, and frozen."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import fields
from typing import Any

from .declarations import FunctionOptions
from .exception import InvalidError
from .image import Image
from .notices import note
from .partial import Concurrent, add
from .retries import Retries
from .schedule import Schedule
from .secret import Secret, checked
from .storage import Proxy, check_volumes

_COUNTS = ("min_containers", "max_containers", "buffer_containers")
_MAX_TIMEOUT = 24 * 3600
_MAX_DISK = 3_145_728


def make_options(arguments: Mapping[str, Any], place: str, what: str) -> FunctionOptions:
    """Options from the arguments of the decorator; `image`, `secrets`, … already with those of the App.

    Raises:
        InvalidError: a value that cannot be; the message names the argument and what it takes.
    """
    check = _Check(place, what)
    known = {field.name for field in fields(FunctionOptions)}
    values: dict[str, Any] = {name: value for name, value in arguments.items() if name in known}
    values["image"] = check.instance("image", values["image"], Image)
    values["schedule"] = check.instance("schedule", values.get("schedule"), Schedule)
    values["proxy"] = check.instance("proxy", values["proxy"], Proxy)
    values["secrets"] = check_secrets(values["secrets"] or (), place, what)
    values["env"] = checked(values["env"] or {}, place, f"{what}(env=…)")
    values["volumes"] = check_volumes(values["volumes"] or {}, place, what)
    values["network_file_systems"] = dict(values["network_file_systems"] or {})
    values["gpu"] = check.gpu(values["gpu"])
    values["cpu"] = check.pair("cpu", values["cpu"], (int, float))
    values["memory"] = check.pair("memory", values["memory"], (int,))
    values["ephemeral_disk"] = check.number("ephemeral_disk", values["ephemeral_disk"], (int,), 1, _MAX_DISK)
    for name in _COUNTS:
        values[name] = check.number(name, values[name], (int,), 0, None)
    if values["max_containers"] == 0:
        raise check.error("max_containers", 0, "a number of at least 1")
    low, high = values["min_containers"], values["max_containers"]
    if low is not None and high is not None and low > high:
        raise InvalidError(f"{place}: {what}: min_containers={low} is more than max_containers={high}")
    values["scaledown_window"] = check.number("scaledown_window", values["scaledown_window"], (int,), 2, 3600)
    values["retries"] = check.retries(values["retries"])
    if values["timeout"] is None:
        raise check.error("timeout", None, f"seconds from 1 to {_MAX_TIMEOUT}")
    values["timeout"] = check.number("timeout", values["timeout"], (int, float), 1, _MAX_TIMEOUT)
    values["startup_timeout"] = check.number(
        "startup_timeout", values["startup_timeout"], (int, float), 1, _MAX_TIMEOUT
    )
    region = values["region"]
    values["region"] = (region,) if isinstance(region, str) else tuple(region or ())
    values["is_generator"] = bool(values.get("is_generator"))
    values["experimental_options"] = dict(values["experimental_options"] or {})
    return FunctionOptions(**values)


_RENAMED = {
    "keep_warm": "min_containers",
    "concurrency_limit": "max_containers",
    "container_idle_timeout": "scaledown_window",
}


def modernise(arguments: Mapping[str, Any], target: Any, place: str, what: str) -> tuple[dict[str, Any], Any]:
    """`arguments` and the decorated thing with the names of 2024 replaced by today's; each gives a notice.

    Raises:
        InvalidError: the old and the new name are both given, or `max_inputs` is not 1.
    """
    found = dict(arguments)
    for old, new in _RENAMED.items():
        value = found.pop(old, None)
        if value is None:
            continue
        if found[new] is not None:
            raise InvalidError(f"{place}: {what}: {old} and {new} are the same setting; keep {new}")
        found[new] = value
        note("old_argument", f"`{old}` is now called `{new}`; the old name still works here", place)
    if (value := found.pop("max_inputs", None)) is not None:
        if value != 1:
            raise InvalidError(
                f"{place}: {what}(max_inputs={value!r}): only 1 is possible here; for requests at once use "
                f"@modal.concurrent(max_inputs={value!r})"
            )
        found["single_use_containers"] = True
        note("old_argument", "`max_inputs=1` is now written `single_use_containers=True`", place)
    if (value := found.pop("allow_concurrent_inputs", None)) is not None:
        check = _Check(place, what)
        check.number("allow_concurrent_inputs", value, (int,), 1, None)
        target = add("concurrent", Concurrent(place, value, None), target)
        new = f"@modal.concurrent(max_inputs={value})"
        note("old_argument", f"`allow_concurrent_inputs` is now written {new}; the old name still works here", place)
    return found, target


def check_secrets(secrets: Any, place: str, what: str) -> tuple[Secret, ...]:
    """Raises InvalidError for anything but a collection of Secrets."""
    if isinstance(secrets, (Secret, str, Mapping)) or not isinstance(secrets, Collection):
        raise InvalidError(f"{place}: {what}(secrets=…) needs a list of modal.Secret, not a {type(secrets).__name__}")
    for secret in secrets:
        if not isinstance(secret, Secret):
            hint = ": write modal.Secret.from_dict(…)" if isinstance(secret, Mapping) else ""
            raise InvalidError(f"{place}: {what}(secrets=…) has a {type(secret).__name__} in it{hint}")
    return tuple(secrets)


class _Check:
    """Checks of single values, with one form of message."""

    def __init__(self, place: str, what: str) -> None:
        self.place = place
        self.what = what

    def error(self, name: str, value: object, rule: str) -> InvalidError:
        return InvalidError(f"{self.place}: {self.what}({name}={value!r}): {rule} is needed")

    def instance(self, name: str, value: Any, kind: type) -> Any:
        if value is not None and not isinstance(value, kind):
            raise self.error(name, value, f"a modal.{kind.__name__}")
        return value

    def number(self, name: str, value: Any, kinds: tuple[type[Any], ...], low: float, high: float | None) -> Any:
        if value is None:
            return None
        rule = f"a number from {low} to {high}" if high is not None else f"a number of at least {low}"
        if int in kinds and len(kinds) == 1:
            rule = rule.replace("a number", "a whole number")
        if isinstance(value, bool) or not isinstance(value, kinds):
            raise self.error(name, value, rule)
        if not low <= value or (high is not None and value > high):
            raise self.error(name, value, rule)
        return value

    def pair(self, name: str, value: Any, kinds: tuple[type, ...]) -> tuple[Any, Any] | None:
        """A request, or (request, limit)."""
        if value is None:
            return None
        if not isinstance(value, tuple):
            return self.number(name, value, kinds, 0, None), None
        if len(value) != 2:
            raise self.error(name, value, "(request, limit)")
        request, limit = (self.number(name, part, kinds, 0, None) for part in value)
        if request is not None and limit is not None and limit < request:
            raise InvalidError(f"{self.place}: {self.what}({name}={value!r}): the limit is below the request")
        return request, limit

    def gpu(self, value: Any) -> tuple[str, ...]:
        if value is None:
            return ()
        choices = [value] if isinstance(value, str) else value
        if not isinstance(choices, Sequence) or not all(isinstance(choice, str) for choice in choices):
            raise self.error("gpu", value, 'a text as "H100" or "H100:2", or a list of them,')
        found = []
        for choice in choices:
            kind, colon, count = choice.strip().partition(":")
            good = count.isascii() and count.isdigit() and int(count) > 0
            if not kind or (colon and not good):
                raise self.error("gpu", choice, 'a type, or a type and a count as "H100:2",')
            found.append(choice.strip().upper())
        return tuple(found)

    def retries(self, value: Any) -> Retries | None:
        if value is None or isinstance(value, Retries):
            return value
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise self.error("retries", value, "a whole number of at least 0, or modal.Retries(…),")
        return Retries(max_retries=value, backoff_coefficient=1.0)
