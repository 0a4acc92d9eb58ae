"""From the environment to a running replica: configuration, listening socket, process tree."""

from __future__ import annotations

import os
import socket

from modalnomad_sdk.contract import Exit

from .config import BadConfiguration, Config, read_config
from .network import Outbound, PortTaken, claim_ports, enter_namespace
from .processes import Inside, say, supervise
from .sockets import open_listener


def main(only_here: tuple[int, ...] = ()) -> int:
    """Run the replica that the environment describes; its exit code. Descriptors in `only_here` stay with its outermost
    process."""
    try:
        config = read_config(os.environ)
        listener = open_listener(config.listen)
    except (BadConfiguration, OSError) as error:
        say(str(error))
        return Exit.BAD_CONFIGURATION
    if config.lifeline is not None:
        os.set_blocking(config.lifeline, False)
        os.set_inheritable(config.lifeline, False)
        only_here = (*only_here, config.lifeline)
    return run_replica(config, listener, only_here)


def run_replica(config: Config, listener: socket.socket, only_here: tuple[int, ...]) -> int:
    """The process tree of one replica, from its outermost process; the exit code."""
    inside = _Runner(config, listener, only_here)
    try:
        if config.network == "exclusive":
            inside.claims = claim_ports(config.web_ports)
        return supervise(config, listener, inside)
    except PortTaken as error:
        say(str(error))
        return error.code


class _Runner(Inside):
    """What happens in init and in the runner."""

    def __init__(self, config: Config, listener: socket.socket, only_outside: tuple[int, ...]) -> None:
        self.config = config
        self.listener = listener
        self.claims: list[socket.socket] = []
        self.only_outside = only_outside
        self.outbound: Outbound | None = None

    def before_fork(self, namespaced: bool) -> None:
        for fd in self.only_outside:
            os.close(fd)
        if self.config.network != "namespace" or not self.config.web_ports:
            return
        try:
            self.outbound = enter_namespace(namespaced)
        except OSError as error:
            say(f"no network namespace is to be had here ({error.strerror}): the port is taken on the host itself")
            try:
                self.claims = claim_ports(self.config.web_ports)
            except PortTaken as taken:
                say(str(taken))
                os._exit(taken.code)  # init has nothing to end yet

    def child_ended(self, pid: int, code: int) -> None:
        if self.outbound is not None and pid == self.outbound.pid:
            self.outbound.ended(code)

    def run(self, link: socket.socket) -> int:
        from .replica import run

        for claim in self.claims:
            claim.close()  # init and supervisor hold them
        return run(self.config, self.listener, link, self.outbound)
