"""From the environment to a running replica: configuration, listening socket, process tree."""

from __future__ import annotations

import os
import socket

from ..contract import Exit
from .config import BadConfiguration, Config, read_config
from .processes import say, supervise
from .sockets import open_listener


def main() -> int:
    """Run the replica that the environment describes; its exit code."""
    try:
        config = read_config(os.environ)
        listener = open_listener(config.listen)
    except (BadConfiguration, OSError) as error:
        say(str(error))
        return Exit.BAD_CONFIGURATION
    if config.lifeline is not None:
        os.set_blocking(config.lifeline, False)
        os.set_inheritable(config.lifeline, False)
    return supervise(config, listener, lambda link: _replica(config, listener, link))


def _replica(config: Config, listener: socket.socket, link: socket.socket) -> int:
    from .replica import Replica

    return Replica(config, listener, link).run()
