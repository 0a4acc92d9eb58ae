"""`modalnomad`, and `python -m modalnomad`."""

from __future__ import annotations

import signal
import sys


def main() -> None:
    """Run the command line and exit. Ctrl-C while it is still being imported is no traceback either."""
    try:
        from modalnomad.cli.main import main as command

        command()
    except KeyboardInterrupt:
        sys.exit(130)
    finally:
        # All is done and told; the interpreter takes a while to go, and a signal now must not make that a failure.
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)


if __name__ == "__main__":
    main()
