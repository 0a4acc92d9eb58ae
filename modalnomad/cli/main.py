"""The `modalnomad` command: its sub-commands, and how every one of them ends.

Exit codes: 0 done; 1 the program's or the machine's problem, told in one message and a hint; 2 wrong usage; 130
interrupted before there was anything to stop in order.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from typing import Annotated

import typer

from modalnomad import __version__
from modalnomad.cli import app as app_group
from modalnomad.cli import (
    container,
    deploy,
    doctor,
    environment,
    gpu,
    image,
    plan,
    prune,
    render,
    router,
    run,
    secret,
    serve,
    setup,
    token,
    up,
)
from modalnomad.cli.output import emit, err, error_record, show_error, write_what_can_be_written
from modalnomad.model.errors import BackendError, ModalNomadError

app = typer.Typer(
    name="modalnomad",
    help="Run Modal-style Python web endpoints on machines you own.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"modalnomad {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_version, is_eager=True)
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Also tell what happens inside.")] = False,
) -> None:
    logging.basicConfig(
        level=logging.DEBUG if verbose else logging.WARNING,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        stream=sys.stderr,
    )
    for name in ("asyncio", "watchfiles"):
        logging.getLogger(name).setLevel(logging.WARNING)


app.command("serve")(serve.serve)
app.command("run", context_settings=run.PASSED_ON)(run.run)
app.command("up")(up.up)
app.command("router")(router.router)
app.command("deploy")(deploy.deploy)
app.command("plan")(plan.plan)
app.command("render")(render.render)
app.add_typer(app_group.app, name="app")
app.add_typer(container.app, name="container")
app.add_typer(secret.app, name="secret")
app.add_typer(token.app, name="token")
app.add_typer(image.app, name="image")
app.add_typer(gpu.app, name="gpu")
app.add_typer(environment.app, name="environment")
app.command("prune")(prune.prune)
app.command("doctor", epilog="Example: `modalnomad doctor --json`")(doctor.doctor)
app.command("setup", epilog="Example: `modalnomad setup --env main --env staging --dry-run`")(setup.setup)


def main() -> None:
    """Run the command line and exit."""
    write_what_can_be_written()
    try:
        code = run_app()
    except ModalNomadError as error:
        if "--json" in sys.argv:
            emit({"event": "error", **error_record(error)})
        show_error(error)
        code = 1
    except BrokenPipeError:
        # Whoever read our output is gone; nothing can be told any more, not even at exit.
        forget_output()
        code = 1
    except KeyboardInterrupt:
        err.print("Aborted.")
        code = 130
    except OSError as error:
        # What no command foresaw, such as a full disk under standard output. --verbose shows where it happened.
        logging.getLogger(__name__).debug("a system call failed", exc_info=True)
        failure = BackendError(f"the system refused something: {error}", "look with --verbose where it happened")
        if "--json" in sys.argv:
            with contextlib.suppress(OSError):
                emit({"event": "error", **error_record(failure)})
        show_error(failure)
        try:
            sys.stdout.flush()
        except OSError:
            forget_output()  # at exit it would fail once more, with a code of the interpreter's
        code = 1
    sys.exit(code)


def run_app() -> int:
    """Exit code. What was printed is out by then: a disk that is full is found where it can still be told."""
    try:
        code: int = app(standalone_mode=True)
    except SystemExit:
        sys.stdout.flush()
        raise
    return code


def forget_output() -> None:
    """What is still to be printed goes nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
