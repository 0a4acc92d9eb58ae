"""What `deploy` and `app rollback` tell: progress on standard error, the answer on standard output."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.markup import escape

from modalnomad.cli.changing import Told
from modalnomad.cli.output import emit, out
from modalnomad.cli.serve_text import curl
from modalnomad.cli.serve_view import Shown
from modalnomad.deploy.changing import Changed
from modalnomad.deploy.compare import schedule_in_words
from modalnomad.model.apps import AppVersion
from modalnomad.model.manifest import Notice, Schedule
from modalnomad.wiring.deploy_parts import Listener

NOT_SERVED = {
    "up": "No platform runs on this home: `modalnomad up` serves it.",
    "router": "No router runs: `modalnomad router` serves it.",
}
"""By what would serve it."""


def show_deployed(
    changed: Changed, listener: Listener, told: Told, seconds: float, *, as_json: bool, what: str = "Deployment"
) -> None:
    """Every endpoint with its addresses, the schedules, the version."""
    endpoints = shown_endpoints(changed, listener)
    if as_json:
        emit(as_record(changed, endpoints, told.notices, seconds))
        return
    record, version = changed.record, changed.record.versions[-1]
    for shown in endpoints:
        show_endpoint(shown)
    for tag, schedule in schedules(version).items():
        out.print(f"[green]✓[/] [bold]{escape(record.app)}/{escape(tag)}[/] runs {escape(schedule_in_words(schedule))}")
    if changed.renewed:
        out.print(f"Jobs registered anew, as they are made now: {', '.join(changed.renewed)}.", markup=False)
    if changed.skipped and changed.renewed:
        out.print(f"App {record.app} stays v{version.number}: its program did not change.", markup=False)
    elif changed.skipped:
        out.print(f"{what} skipped: nothing changed since v{version.number} of App {record.app}.", markup=False)
    else:
        note = f" ({version.note})" if version.note else ""
        out.print(f"App {record.app} deployed as v{version.number}{note} in {seconds:.1f} s.", markup=False)
    if not changed.served:
        out.print(NOT_SERVED[listener.server], markup=False)


def shown_endpoints(changed: Changed, listener: Listener) -> list[Shown]:
    """One for each route; addresses nobody knows yet are empty."""
    return [
        Shown(
            app=route.app,
            endpoint=route.endpoint,
            label=route.hosts[0].partition(".")[0],
            url=listener.url(route.hosts[0]) or "",
            direct_url=changed.direct_urls.get(route.hosts[0], ""),
            custom_urls=tuple(listener.url(host) or host for host in route.hosts[1:]),
        )
        for route in changed.record.routes
    ]


def show_endpoint(shown: Shown) -> None:
    """Name, URLs, a command that works when pasted."""
    key = " 🔑" if shown.endpoint.requires_proxy_auth else ""
    address = shown.url or shown.direct_url or f"label {shown.label}"
    out.print(f"[green]✓[/] [bold]{escape(shown.app)}/{escape(shown.endpoint.name)}[/] → {escape(address)}{key}")
    for url in (shown.direct_url, *shown.custom_urls):
        if url and url != address:
            out.print(f"    {url}", markup=False)
    if shown.direct_url:
        out.print(f"    {curl(shown)}", style="dim", markup=False)


def as_record(
    changed: Changed, endpoints: Sequence[Shown], notices: Sequence[Notice], seconds: float
) -> Mapping[str, Any]:
    """For programs: one object with all of it."""
    record, version = changed.record, changed.record.versions[-1]
    return {
        "app": record.app,
        "environment": record.environment,
        "version": version.number,
        "tag": version.tag,
        "note": version.note,
        "skipped": changed.skipped,
        "renewed": changed.renewed,
        "served": changed.served,
        "seconds": round(seconds, 3),
        "endpoints": [
            {
                "name": shown.endpoint.name,
                "kind": shown.endpoint.kind,
                "label": shown.label,
                "host": route.hosts[0],
                "url": shown.url or None,
                "direct_url": shown.direct_url or None,
                "custom_domains": route.hosts[1:],
                "auth": shown.endpoint.requires_proxy_auth,
            }
            for shown, route in zip(endpoints, record.routes, strict=True)
        ],
        "schedules": {tag: schedule_in_words(schedule) for tag, schedule in schedules(version).items()},
        "notices": [{"code": n.code, "message": n.message, "where": n.where} for n in notices],
    }


def schedules(version: AppVersion) -> dict[str, Schedule]:
    """Function → when it runs."""
    return {r.function.tag: r.function.schedule for r in version.revisions if r.function.schedule is not None}
