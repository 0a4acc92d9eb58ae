"""The platform: command line, deploy, router and back ends. User programs import `modalnomad_sdk` (as `modal`)."""

from typing import NoReturn

__version__ = "0.1.0"


def __getattr__(name: str) -> NoReturn:
    raise AttributeError(
        f"modalnomad has no attribute {name!r}; programs write `import modal` (or `import modalnomad_sdk`), "
        "the platform itself is used through the `modalnomad` command"
    )
