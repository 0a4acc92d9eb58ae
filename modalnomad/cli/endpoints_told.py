"""Endpoints coming, changing and going, told once each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from modalnomad.cli.serve_view import Shown


class EndpointView(Protocol):
    """Where they are told."""

    def endpoint(self, shown: Shown) -> None:
        """An endpoint is served, newly or under another URL."""

    def endpoint_gone(self, shown: Shown) -> None:
        """An endpoint is served no more."""


class EndpointsTold:
    """What was told last is what the next call is compared with."""

    def __init__(self, view: EndpointView) -> None:
        self._view = view
        self._told: Mapping[str, Shown] = {}

    def tell(self, wanted: Mapping[str, Shown]) -> None:
        """All that are served now, by their host."""
        told, self._told = self._told, wanted
        for host, shown in told.items():
            if host not in wanted:
                self._view.endpoint_gone(shown)
        for host, shown in wanted.items():
            if host not in told or not shown.looks_like(told[host]):
                self._view.endpoint(shown)
