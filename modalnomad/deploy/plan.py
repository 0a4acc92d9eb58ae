"""Plan: what a description means on this platform. Pure: no files, no network, no clock."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from modalnomad.deploy.hosts import Named, Naming, clashes, name_endpoints
from modalnomad.deploy.image_plan import step_secrets
from modalnomad.model.apps import AppVersion
from modalnomad.model.errors import ManifestInvalid, Problem, UserError
from modalnomad.model.ids import ENVIRONMENT_NAME, NAME, SECRET_NAME, Digest
from modalnomad.model.manifest import Description, Function, Manifest, Notice, SecretRef
from modalnomad.model.revision import BuiltImage, Revision
from modalnomad.model.routes import Route
from modalnomad.scaling.decide import excess
from modalnomad.scaling.schedule import fault


@dataclass(frozen=True, slots=True)
class Plan:
    """A checked description: nothing of it can still be refused for how it is written."""

    app: str
    environment: str
    ephemeral: bool
    manifest: Manifest
    named: tuple[Named, ...]
    notices: tuple[Notice, ...]

    @property
    def functions(self) -> tuple[Function, ...]:
        """Those that something starts: with at least one endpoint or, when deployed, with a schedule."""
        return tuple(f for f in self.manifest.functions if is_used(f, ephemeral=self.ephemeral))

    @property
    def secrets(self) -> tuple[SecretRef, ...]:
        """Every secret these functions and their images' build steps need, once."""
        return tuple(dict.fromkeys(ref for function in self.functions for ref in secrets_of(function)))

    def revisions(self, bundle: Digest, images: Mapping[str, BuiltImage]) -> tuple[Revision, ...]:
        """One for each of `functions`, in the order of the program; `images` by function tag."""
        return tuple(
            Revision.make(
                app=self.app,
                environment=self.environment,
                function=function,
                source=self.manifest.source,
                bundle=bundle,
                image=images[function.tag],
            )
            for function in self.functions
        )

    def version(self, revisions: tuple[Revision, ...], number: int) -> AppVersion:
        """What is published; who made it, and when, is still to be filled in."""
        of = {endpoint.name: revision.id for revision in revisions for endpoint in revision.function.endpoints}
        routes = tuple(
            Route(
                hosts=named.hosts,
                environment=self.environment,
                app=self.app,
                endpoint=named.endpoint,
                revision=of[named.endpoint.name],
                ephemeral=self.ephemeral,
            )
            for named in self.named
        )
        return AppVersion(number=number, routes=routes, revisions=revisions)


def make_plan(
    description: Description,
    naming: Naming,
    *,
    ephemeral: bool,
    name: str | None = None,
    problems: Iterable[Problem] = (),
    notices: Iterable[Notice] = (),
) -> Plan:
    """Check everything that can be checked without doing anything. `name` overrides the App's own; `problems` and
    `notices` were found elsewhere and are told with the rest.

    Raises ManifestInvalid with every problem at once, or UserError when there is nothing to serve.
    """
    manifest = description.app
    app, unnamed = app_name(manifest, name)
    problems = [*(Problem(refusal.where, refusal.message) for refusal in description.refusals), *problems]
    if not NAME.fullmatch(app):
        problems.append(Problem("", f"App name {app!r}: 1 to 64 letters, digits, '-', '_' and '.' are allowed"))
    named, bad = name_endpoints(manifest, app, naming, ephemeral=ephemeral)
    problems += bad
    for function in manifest.functions:
        problems += (*secret_problems(function), *scaling_problems(function), *schedule_problems(function))
    if problems:
        raise ManifestInvalid(problems)
    if ephemeral:
        found = (*description.notices, *not_by_the_clock(manifest))
    else:
        found = (*without_not_web(description.notices), *not_deployed(manifest))
    all_notices = (*found, *notices, *unnamed)
    plan = Plan(app, naming.environment, ephemeral, manifest, named, all_notices)
    if not plan.functions:
        tags = ", ".join(function.tag for function in manifest.functions) or "none"
        has = "a web endpoint" if ephemeral else "a web endpoint or a schedule"
        raise UserError(
            f"App {app} has nothing to {'serve' if ephemeral else 'deploy'}: no function has {has} (functions: {tags})",
            "add @modal.fastapi_endpoint(), @modal.asgi_app(), @modal.wsgi_app() or @modal.web_server(port)",
        )
    return plan


def is_used(function: Function, *, ephemeral: bool) -> bool:
    """Whether anything would ever start it: requests or, once deployed, its schedule."""
    return bool(function.endpoints) or (not ephemeral and function.schedule is not None)


def without_not_web(notices: Iterable[Notice]) -> Iterator[Notice]:
    """The SDK cannot know that schedules run once deployed; `not_deployed` says what does not."""
    return (notice for notice in notices if notice.code != "not_web")


def not_by_the_clock(manifest: Manifest) -> tuple[Notice, ...]:
    """Schedules belong to what is deployed."""
    return tuple(
        Notice(
            code="no_effect",
            message=f"`schedule` has no effect here: `{function.tag}` runs by it once deployed, under `modalnomad up`",
            where=function.where,
        )
        for function in manifest.functions
        if function.schedule is not None
    )


def not_deployed(manifest: Manifest) -> tuple[Notice, ...]:
    """Functions that are left out of a deploy, which is said."""
    return tuple(
        Notice(
            code="not_deployed",
            message=f"{function.tag} is not deployed: it has no web endpoint and no schedule",
            where=function.where,
        )
        for function in manifest.functions
        if not is_used(function, ephemeral=False)
    )


def app_name(manifest: Manifest, name: str | None) -> tuple[str, tuple[Notice, ...]]:
    """The App's name: given, its own, or the file's stem, which is said."""
    if name or manifest.name:
        return str(name or manifest.name), ()
    stem = manifest.source.module.rpartition(".")[2]
    return stem, (Notice(code="unnamed_app", message=f"the App has no name; it is called {stem!r} after its file"),)


def secrets_of(function: Function) -> tuple[SecretRef, ...]:
    """Its own and those of its image's build steps."""
    return (*function.secrets, *(ref for refs in step_secrets(function.image).values() for ref in refs))


def secret_problems(function: Function) -> list[Problem]:
    """Secret references that no store could hold."""
    problems = []
    where = function.where or function.tag
    for ref in secrets_of(function):
        if ref.name is not None and not SECRET_NAME.fullmatch(ref.name):
            problems.append(
                Problem(where, f"secret name {ref.name!r}: a-z, 0-9, '-' and '_', at most 63, not starting with - or _")
            )
        if ref.environment is not None and not ENVIRONMENT_NAME.fullmatch(ref.environment):
            problems.append(Problem(where, f"secret environment {ref.environment!r}: a-z, 0-9 and '-', at most 63"))
    return problems


def scaling_problems(function: Function) -> list[Problem]:
    """More replicas than can be kept."""
    why = excess(function.scaling)
    return [Problem(function.where or function.tag, f"`{function.tag}`: {why}")] if why else []


def schedule_problems(function: Function) -> list[Problem]:
    """A schedule that would never run."""
    schedule, where = function.schedule, function.where or function.tag
    if schedule is None:
        return []
    if function.endpoints:
        return [Problem(where, f"`{function.tag}` is a web endpoint and has a schedule: give that to another Function")]
    why = fault(schedule)
    return [Problem(where, f"`{function.tag}` {why}")] if why else []


def check_together(plans: tuple[Plan, ...]) -> None:
    """Several Apps behind one router: raises ManifestInvalid for an App given twice or a host shared by two."""
    problems: list[Problem] = []
    seen: dict[str, Plan] = {}
    for plan in plans:
        first = seen.setdefault(plan.app, plan)
        if first is not plan:
            sources = f"{first.manifest.source.entry} and {plan.manifest.source.entry}"
            problems.append(Problem("", f"two programs define the App {plan.app!r}: {sources}"))
    problems += clashes(
        (named.endpoint.where, f"{plan.app}/{named.endpoint.name}", named.hosts)
        for plan in seen.values()
        for named in plan.named
    )
    if problems:
        raise ManifestInvalid(problems, "serve them one by one, or rename one")
