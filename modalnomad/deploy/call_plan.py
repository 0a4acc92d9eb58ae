"""What `modalnomad run` builds of an App: the Functions that will be called, whether they are web endpoints or not."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from modalnomad.deploy.images import check_images
from modalnomad.deploy.plan import Plan, app_name, scaling_problems, secret_problems
from modalnomad.model.errors import ManifestInvalid, Problem
from modalnomad.model.ids import NAME
from modalnomad.model.manifest import Description, Function


@dataclass(frozen=True, slots=True)
class CallPlan(Plan):
    """A Plan without endpoints. `tags` names what is built."""

    tags: frozenset[str] = frozenset()

    @property
    def functions(self) -> tuple[Function, ...]:
        """Those that may be called."""
        return tuple(function for function in self.manifest.functions if function.tag in self.tags)


def plan_calls(
    description: Description, tags: Collection[str], environment: str, *, name: str | None, most: int
) -> CallPlan:
    """`most`: replicas of a Function that names no max_containers. Raises ManifestInvalid with every problem."""
    functions = tuple(_bounded(function, most) for function in description.app.functions)
    manifest = description.app.model_copy(update={"functions": functions})
    app, notices = app_name(manifest, name)
    wanted = [function for function in functions if function.tag in tags]
    problems = [Problem(refusal.where, refusal.message) for refusal in description.refusals]
    if not NAME.fullmatch(app):
        problems.append(Problem("", f"App name {app!r}: 1 to 64 letters, digits, '-', '_' and '.' are allowed"))
    for function in wanted:
        problems += (*secret_problems(function), *scaling_problems(function))
    bad, more = check_images(wanted)
    problems += bad
    if problems:
        raise ManifestInvalid(problems)
    said = tuple(notice for notice in description.notices if notice.code != "not_web")
    return CallPlan(app, environment, True, manifest, (), (*said, *more, *notices), frozenset(tags))


def _bounded(function: Function, most: int) -> Function:
    """Many calls at once must not start a process for each."""
    if function.scaling.max_containers is not None:
        return function
    most = max(most, function.scaling.min_containers)
    return function.model_copy(update={"scaling": function.scaling.model_copy(update={"max_containers": most})})
