"""Options of the commands that listen until they are stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

HostOption = Annotated[str | None, typer.Option(help="Address to listen on. [default: 127.0.0.1]")]
PortOption = Annotated[
    int | None, typer.Option(min=0, max=65535, help="Port to listen on; 0: a free one. [default: 8700]")
]
DomainOption = Annotated[str | None, typer.Option(help="Last part of all host names. [default: localhost]")]
TlsCertOption = Annotated[Path | None, typer.Option(help="PEM file of a certificate with its chain: HTTPS.")]
TlsKeyOption = Annotated[Path | None, typer.Option(help="PEM file of the certificate's key.")]
AdminPortOption = Annotated[
    int | None,
    typer.Option(min=0, max=65535, help="Port for metrics, health, /debug; 0: a free one. [default: 8701]"),
]
AccessLogOption = Annotated[
    str | None, typer.Option(metavar="FILE", help="A line of JSON for each request; `-`: standard output.")
]
