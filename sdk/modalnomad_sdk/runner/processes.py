"""All processes of a replica, so that none of them outlives it.

    supervisor ─▶ init ─▶ runner ─▶ whatever the user starts
     (outside)    (PID 1 of a namespace where allowed)

The supervisor is what the engine started: it holds the lifeline, keeps the clocks and turns the end of anything into
the end of everything. init reaps, and dies with the supervisor; in a PID namespace the kernel then kills the rest.
Where namespaces are not to be had, both adopt orphans and walk their descendants instead.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable
from types import FrameType
from typing import NoReturn

from modalnomad_sdk.contract import Exit

from . import cgroups, linux
from .config import Config
from .descendants import kill_below, reap, signal_all

# Between supervisor and runner, one byte each.
READY = b"R"
DRAINING = b"D"
TERMINATE = b"T"
LIMITED = b"L"
"""User code may run: all of the tree is in its control groups."""
# From supervisor to init.
SHOW_TRACEBACK = b"D"

SIGNAL_TRACEBACK = getattr(signal, "SIGRTMIN", signal.SIGUSR2) + 7 if linux.ON_LINUX else signal.SIGUSR2
"""The runner answers it with the tracebacks of all threads on standard error, even while it hangs, and ends."""

LAST_WORDS = 0.5
"""Seconds that what is left over gets to react to SIGTERM when the runner has ended."""

SILENCE = 3.0
"""Seconds to the runner's end from that of its link, or from SIGNAL_TRACEBACK: more than LAST_WORDS."""


def say(text: str) -> None:
    """One line on standard error, whole."""
    os.write(2, f"modalnomad: {text}\n".encode())


def proc_is_plain() -> bool:
    """May an unprivileged user namespace mount /proc? Not where parts of it are covered, as containers do."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as file:
        points = [line.split(" ", 5)[4] for line in file]
    return not any(p.startswith("/proc/") and p != "/proc/sys/fs/binfmt_misc" for p in points)


def isolate() -> bool:
    """Put the children of this process in a PID namespace of their own, where that is allowed."""
    if not linux.ON_LINUX:
        return False
    uid, gid = os.getuid(), os.getgid()
    try:
        if uid == 0:
            linux.unshare(linux.CLONE_NEWPID)
        elif proc_is_plain():
            linux.unshare(linux.CLONE_NEWUSER | linux.CLONE_NEWPID)
            linux.map_own_user(uid, gid)
        else:
            return False
    except OSError:
        return False
    return True


class Signals:
    """Signals as readable bytes; nothing happens in handlers."""

    def __init__(self, *numbers: int) -> None:
        self.read_end, write_end = os.pipe()
        os.set_blocking(self.read_end, False)
        os.set_blocking(write_end, False)
        self._write_end = write_end
        signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
        for number in numbers:
            signal.signal(number, _ignore)

    def take(self) -> bytes:
        try:
            return os.read(self.read_end, 512)
        except BlockingIOError:
            return b""

    def release(self) -> None:
        """In a child: back to how a process starts."""
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        os.close(self.read_end)
        os.close(self._write_end)


def _ignore(number: int, frame: FrameType | None) -> None:
    """The wake-up descriptor has it."""


class Init:
    """The parent of the runner: reaps, passes signals on, ends with the supervisor."""

    def __init__(self, leash: int, namespaced: bool) -> None:
        self.leash = leash
        self.namespaced = namespaced
        self.signals = Signals(signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

    def watch(self, runner: int) -> int:
        """Until the runner ends: its exit code. Never returns when the supervisor is gone."""
        poll = select.poll()
        poll.register(self.leash, select.POLLIN)
        poll.register(self.signals.read_end, select.POLLIN)
        while True:
            ready = dict(poll.poll())
            if self.leash in ready:
                orders = os.read(self.leash, 64)
                if not orders:
                    self._end_all()
                if SHOW_TRACEBACK in orders:
                    os.kill(runner, SIGNAL_TRACEBACK)
            self.signals.take()
            for pid, code in reap():
                if pid == runner:
                    return code

    def _end_all(self) -> None:
        if not self.namespaced:
            kill_below()
        os._exit(Exit.PARENT_GONE)

    def clear(self) -> None:
        """End what the runner left behind: asked first, killed soon."""
        signal_all(signal.SIGTERM, self.namespaced)
        deadline = time.monotonic() + LAST_WORDS
        poll = select.poll()
        poll.register(self.signals.read_end, select.POLLIN)
        poll.register(self.leash, select.POLLIN)
        reap()
        while signal_all(0, self.namespaced) and time.monotonic() < deadline:
            poll.poll(max(1, 1000 * (deadline - time.monotonic())))
            self.signals.take()
            reap()
        kill_below(self.namespaced)


class Supervisor:
    """Outside of everything: clocks, lifeline, and the last word."""

    def __init__(self, config: Config, init: int, leash: int, link: socket.socket, signals: Signals) -> None:
        self.config = config
        self.init = init
        self.leash = leash
        self.link = link
        self.signals = signals
        self.ready = False
        self.terminating = False
        """The grace period runs."""
        self.asked = False
        """A signal asked us to end."""
        self.lost = False
        """The runner's end of the link is closed."""
        self.deadline: float | None = time.monotonic() + config.startup_timeout

    def watch(self) -> int:
        """The replica's exit code, when everything has ended."""
        poll = select.poll()
        poll.register(self.signals.read_end, select.POLLIN)
        poll.register(self.link, select.POLLIN)
        lifeline = self.config.lifeline
        if lifeline is not None:
            poll.register(lifeline, select.POLLIN)
        parent = linux.watch_parent() if self.config.tied else None
        if parent is not None:
            poll.register(parent, select.POLLIN)
        while True:
            left = None if self.deadline is None else max(0.0, 1000 * (self.deadline - time.monotonic()))
            happened = dict(poll.poll(left))
            if lifeline in happened and not _alive(lifeline):
                return self._end(Exit.PARENT_GONE)
            if parent in happened:
                say("the process that started this replica has ended: so does it")
                return self._end(Exit.PARENT_GONE)
            arrived = self.signals.take()
            # After the signals: who was served by a ready replica may signal at once, and finds it ready.
            if not self.lost and not self._listen():
                poll.unregister(self.link)
                self._lose()
            code = self._signals(arrived)
            if code is None and self.deadline is not None and time.monotonic() >= self.deadline:
                code = self._too_late()
            if code is not None:
                return self._end(code)

    def _listen(self) -> bool:
        """False: the runner's end of the link is closed."""
        try:
            said = self.link.recv(64, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return True
        except ConnectionResetError:  # it ended before it read what we said last
            return False
        if READY in said:
            self.ready = True
            if not self.terminating:
                self.deadline = None
        if DRAINING in said:
            self._start_grace()
        return bool(said)

    def _lose(self) -> None:
        """The runner ends, or it is none any more: then nobody would ever hear of it again."""
        self.lost = True
        self.deadline = time.monotonic() + SILENCE

    def _start_grace(self) -> None:
        if not self.terminating:
            self.terminating = True
            if not self.lost:
                self.deadline = time.monotonic() + self.config.grace_period

    def _signals(self, arrived: bytes) -> int | None:
        """An exit code when this is the end.

        A second signal is one sent after the first had its effect: the kernel keeps only one of several of a kind
        that wait for a process to run, so two sent at once are one here.
        """
        for pid, code in reap():
            if pid == self.init:
                return code
        for _ in range(arrived.count(signal.SIGTERM) + arrived.count(signal.SIGINT)):
            if not self.ready:
                return Exit.OK  # nothing was served
            if self.asked:
                say("asked a second time to end: ending at once")
                return Exit.GRACE_EXPIRED
            self.asked = True
            self._start_grace()
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # its end is closed: we hear of it next
                self.link.send(TERMINATE)
        return None

    def _too_late(self) -> int:
        if self.lost:
            say(
                "the program replaced its process (exec), or closed file descriptors it had not opened: it cannot serve"
            )
            return Exit.USER_CODE_FAILED
        if self.terminating:
            say(f"not done {self.config.grace_period:g} s after it was asked to end; this is what it was doing:")
        else:
            say(
                f"not ready {self.config.startup_timeout:g} s after its start (startup_timeout); this is what it was "
                "doing. A start that needs longer sets startup_timeout= in @app.function or @app.cls:"
            )
        self._show_traceback()
        return Exit.GRACE_EXPIRED if self.terminating else Exit.STARTUP_TIMEOUT

    def _show_traceback(self) -> None:
        os.write(self.leash, SHOW_TRACEBACK)
        self.link.settimeout(SILENCE)
        with contextlib.suppress(TimeoutError, ConnectionResetError):
            while self.link.recv(64):  # its end: it writes to our standard error itself, and is killed after that
                continue

    def _end(self, code: int) -> int:
        kill_below()
        if code > 128:
            _explain_signal(code - 128)
        return code


def _alive(lifeline: int) -> bool:
    try:
        return bool(os.read(lifeline, 512))
    except BlockingIOError:
        return True


def _explain_signal(number: int) -> None:
    try:
        name = signal.Signals(number).name
    except ValueError:
        name = f"signal {number}"
    hint = " (nobody here asked for it: out of memory?)" if number == signal.SIGKILL else ""
    say(f"the replica was killed by {name}{hint}")


def wait_until_limited(link: socket.socket) -> None:
    """In the runner, before user code runs and only where there are limits."""
    try:
        said = link.recv(1)
    except ConnectionResetError:
        said = b""
    if not said:
        os._exit(Exit.PARENT_GONE)  # the supervisor has gone


class Inside:
    """What runs in a tree; its owner says what happens where."""

    def before_runner(self) -> None:
        """In init, before the runner is forked."""

    def after_runner(self) -> None:
        """In init, after the runner was forked: drop what only the runner may hold."""

    def run(self, link: socket.socket, mapped: bool) -> int:
        """In the runner: its whole life. `mapped`: it may make namespaces (root, or in a user namespace of ours)."""
        raise NotImplementedError


class Tree:
    """A tree as its supervisor holds it; nothing of a replica needs to be known yet."""

    def __init__(self, init: int, leash: int, link: socket.socket, signals: Signals) -> None:
        self.init = init
        self.leash = leash
        self.link = link
        self.signals = signals

    def limit(self, folders: tuple[str, ...]) -> None:
        """Have all of it in these control groups, then let user code run (`wait_until_limited`)."""
        for problem in cgroups.enter(folders):
            say(problem)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it has ended, which is noticed elsewhere
            self.link.send(LIMITED)

    def watch(self, config: Config) -> int:
        """The replica's exit code, when everything has ended."""
        return Supervisor(config, self.init, self.leash, self.link, self.signals).watch()


def grow(inside: Inside) -> Tree:
    """Fork the tree. Returns in the supervisor only: the other processes end here."""
    namespaced = isolate()
    leash_read, leash_write = os.pipe()
    link, inner_link = socket.socketpair()
    signals = Signals(signal.SIGCHLD, signal.SIGTERM, signal.SIGINT)
    linux.adopt_orphans()
    init = os.fork()
    if init == 0:
        signals.release()
        os.close(leash_write)
        link.close()
        guard(lambda: _inside(namespaced, leash_read, inner_link, inside))
    inner_link.close()
    os.close(leash_read)
    return Tree(init, leash_write, link, signals)


def _inside(namespaced: bool, leash: int, link: socket.socket, inside: Inside) -> int:
    """init, and the runner below it."""
    os.setsid()
    init = Init(leash, namespaced)
    if namespaced:
        linux.die_with_parent()
        try:
            linux.mount_own_proc()
        except OSError as error:
            say(f"/proc shows the processes of the whole machine here ({error.strerror})")
    else:
        linux.adopt_orphans()  # and live on when the supervisor is killed: somebody has to walk
    inside.before_runner()
    pid = os.fork()
    if pid == 0:
        init.signals.release()
        linux.die_with_parent()
        os.close(leash)
        os.setsid()
        return inside.run(link, namespaced or os.getuid() == 0)
    link.close()
    inside.after_runner()
    code = init.watch(pid)
    init.clear()
    return code


def guard(process: Callable[[], int]) -> NoReturn:
    """The body of a forked process: it never returns into its parent's code."""
    code = 1
    try:
        code = process()
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(code)
