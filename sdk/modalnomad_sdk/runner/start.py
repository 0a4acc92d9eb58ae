"""From the environment to a running replica: configuration, listening socket, process tree."""

from __future__ import annotations

import os
import socket

from modalnomad_sdk.contract import Exit

from .config import BadConfiguration, Config, read_config
from .network import PortTaken, claim_ports, enter_namespace
from .processes import Inside, grow, say
from .sockets import open_listener


def main() -> int:
    """Run the replica that the environment describes, from its outermost process; the exit code."""
    try:
        config = read_config(os.environ)
        listener = open_listener(config.listen)
    except (BadConfiguration, OSError) as error:
        say(str(error))
        return Exit.BAD_CONFIGURATION
    try:
        claims = prepare_outside(config)
    except PortTaken as error:
        say(str(error))
        return error.code
    tree = grow(_Known(config, listener, claims))
    listener.close()
    if config.cgroups:
        tree.limit(config.cgroups)
    return tree.watch(config)


def prepare_outside(config: Config) -> list[socket.socket]:
    """What the outermost process does before anything runs. Keep what it returns until the end.

    Raises:
        PortTaken: somebody holds a port that this replica needs for itself.
    """
    if config.lifeline is not None:
        os.set_blocking(config.lifeline, False)
        os.set_inheritable(config.lifeline, False)
    return claim_ports(config.web_ports) if config.network == "exclusive" else []


def run_inside(config: Config, listener: socket.socket, link: socket.socket, mapped: bool) -> int:
    """The innermost process: network first, because no thread may exist; then the replica's life."""
    outbound = None
    claims: list[socket.socket] = []
    if config.network == "namespace" and config.web_ports:
        try:
            outbound = enter_namespace(mapped)
        except OSError as error:
            say(f"no network namespace is to be had here ({error.strerror}): the port is taken on the host itself")
            try:
                claims = claim_ports(config.web_ports)
            except PortTaken as taken:
                say(str(taken))
                return taken.code
    from .replica import run

    try:
        return run(config, listener, link, outbound)
    finally:
        for claim in claims:
            claim.close()


class _Known(Inside):
    """A tree whose replica is known before it grows."""

    def __init__(self, config: Config, listener: socket.socket, claims: list[socket.socket]) -> None:
        self.config = config
        self.listener = listener
        self.claims = claims

    def before_runner(self) -> None:
        for claim in self.claims:
            claim.close()
        if self.config.lifeline is not None:
            os.close(self.config.lifeline)

    def after_runner(self) -> None:
        self.listener.close()

    def run(self, link: socket.socket, mapped: bool) -> int:
        return run_inside(self.config, self.listener, link, mapped)
