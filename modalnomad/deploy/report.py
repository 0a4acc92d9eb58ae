"""What deploy and serve tell whoever started them. The command line decides how it is shown."""

from __future__ import annotations

from typing import Protocol

from modalnomad.model.errors import ModalNomadError
from modalnomad.model.manifest import Notice


class Report(Protocol):
    """Told in order, from one event loop. No text holds a value of a secret."""

    def progress(self, text: str) -> None:
        """One line about work under way: a step of an image build, the resolver's words."""

    def output(self, line: str) -> None:
        """One line the user's module printed while it was imported."""

    def notice(self, app: str, notice: Notice) -> None:
        """Something accepted without effect here, or a warning. Each is told once."""

    def reloaded(self, app: str, functions: tuple[str, ...], seconds: float) -> None:
        """New code answers from now on. `functions`: tags whose revision changed; `seconds`: since the save."""

    def reload_failed(self, app: str, error: ModalNomadError) -> None:
        """A change could not be served; what was served goes on."""


class Silent:
    """Tells nobody."""

    def progress(self, text: str) -> None:
        """Nothing."""

    def output(self, line: str) -> None:
        """Nothing."""

    def notice(self, app: str, notice: Notice) -> None:
        """Nothing."""

    def reloaded(self, app: str, functions: tuple[str, ...], seconds: float) -> None:
        """Nothing."""

    def reload_failed(self, app: str, error: ModalNomadError) -> None:
        """Nothing."""
