"""`modalnomad`, and `python -m modalnomad`."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line and exit. Ctrl-C while it is still being imported is no traceback either."""
    try:
        from modalnomad.cli.main import main as command

        command()
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
