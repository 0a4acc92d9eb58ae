"""`modalnomad`, and `python -m modalnomad`."""

from __future__ import annotations

import os
import signal
import sys


def main() -> None:
    """Run the command line and exit. Ctrl-C while it is still being imported is no traceback either."""
    _have_standard_streams()
    try:
        from modalnomad.cli.main import main as command

        command()
    except KeyboardInterrupt:
        sys.exit(130)
    finally:
        # All is done and told; the interpreter takes a while to go, and a signal now must not make that a failure.
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)


def _have_standard_streams() -> None:
    """With one of them closed, the next file opened would get its number, and what is printed would go there."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
            os.set_inheritable(number, True)
    sys.stdin = sys.stdin or os.fdopen(0, encoding="utf-8")
    sys.stdout = sys.stdout or os.fdopen(1, "w", encoding="utf-8")
    sys.stderr = sys.stderr or os.fdopen(2, "w", encoding="utf-8")


if __name__ == "__main__":
    main()
