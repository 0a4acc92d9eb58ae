"""`modalnomad token`: proxy-auth tokens for endpoints with `requires_proxy_auth=True`."""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import time
from typing import Annotated

import typer

from modalnomad.cli.common import EnvOption, JsonOption, load_settings
from modalnomad.cli.output import emit, out, show_table
from modalnomad.model.routes import Token
from modalnomad.ports.discovery import DeleteToken, PutToken

app = typer.Typer(help="Tokens: who may call endpoints with requires_proxy_auth=True.", no_args_is_help=True)


@app.command(epilog="Example: `modalnomad token create --name ci`")
def create(
    name: Annotated[str, typer.Option(help="A name for people.")] = "",
    rate: Annotated[
        float | None, typer.Option(min=0.001, help="Requests per second with this token. [default: the environment's]")
    ] = None,
    env: EnvOption = None,
    as_json: JsonOption = False,
) -> None:
    """Create a token and show its secret, this once."""
    from modalnomad.wiring.records import with_records

    settings = load_settings(env)
    token, secret = new_token(settings.environment, name, rate, now=time.time())
    asyncio.run(with_records(settings, lambda records: records.discovery.publish(PutToken(token))))
    if as_json:
        emit({"id": token.id, "secret": secret, "environment": token.environment, "name": token.name})
        return
    out.print(f"Token of environment {token.environment}; its secret is not shown again:", markup=False)
    out.print(f"\n  Modal-Key: {token.id}\n  Modal-Secret: {secret}", markup=False)
    out.print(f"\nor, in one header:\n\n  Authorization: Bearer {token.id}.{secret}", markup=False)
    out.print(f"\n  curl -H 'Modal-Key: {token.id}' -H 'Modal-Secret: {secret}' URL", markup=False)


def new_token(environment: str, name: str, rate: float | None, *, now: float) -> tuple[Token, str]:
    """A fresh token as it is stored, and its secret, which is not."""
    secret = f"ws-{secrets.token_urlsafe(24)}"
    token = Token(
        id=f"wk-{secrets.token_urlsafe(16)}",
        secret_sha256=hashlib.sha256(secret.encode()).hexdigest(),
        environment=environment,
        name=name,
        created_at=now,
        rate=rate,
    )
    return token, secret


@app.command("list", epilog="Example: `modalnomad token list`")
def list_(env: EnvOption = None, as_json: JsonOption = False) -> None:
    """All tokens of the environment; no secrets."""
    from modalnomad.wiring.records import with_records

    settings = load_settings(env)
    tokens = asyncio.run(with_records(settings, lambda records: records.discovery.tokens(settings.environment)))
    if as_json:
        for token in tokens:
            emit(token.model_dump(exclude={"secret_sha256"}))
    elif tokens:
        rows = (
            (
                token.id,
                token.name,
                f"{token.rate:g}/s" if token.rate is not None else "",
                time.strftime("%Y-%m-%d %H:%M", time.localtime(token.created_at)),
            )
            for token in tokens
        )
        show_table(("Token", "Name", "Rate", "Created"), rows)
    else:
        out.print(f"No tokens in environment {settings.environment}.", markup=False)


@app.command(epilog="Example: `modalnomad token delete wk-3kLuH0mHfZ2cqpWkbWJx0A`")
def delete(
    id: Annotated[str, typer.Argument(metavar="TOKEN", help="The token's id, wk-….")],
    env: EnvOption = None,
    as_json: JsonOption = False,
) -> None:
    """Delete a token; running routers refuse it within a second."""
    from modalnomad.wiring.records import with_records

    settings = load_settings(env)
    change = DeleteToken(id, settings.environment)
    asyncio.run(with_records(settings, lambda records: records.discovery.publish(change)))
    if as_json:
        emit({"deleted": id, "environment": settings.environment})
    else:
        out.print(f"Token {id} is deleted.", markup=False)
