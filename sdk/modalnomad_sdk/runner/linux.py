"""The few calls of Linux that Python 3.10 has no names for."""

from __future__ import annotations

import ctypes
import fcntl
import os
import signal
import socket
import struct
import sys

CLONE_NEWNS = 0x00020000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

_MS_NOSUID, _MS_NODEV, _MS_NOEXEC = 0x2, 0x4, 0x8
_MS_BIND, _MS_REC, _MS_SLAVE = 0x1000, 0x4000, 0x80000
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 0x1

ON_LINUX = sys.platform == "linux"

_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def unshare(flags: int) -> None:
    """Raises OSError where it is not allowed. Only for a process with a single thread."""
    _check(_libc.unshare(ctypes.c_int(flags)))


def die_with_parent() -> None:
    """SIGKILL when the thread that forked this process ends. Our parents have one thread only."""
    if ON_LINUX:
        _check(_libc.prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL), 0, 0, 0))


def watch_parent() -> int | None:
    """A file descriptor that becomes readable when the parent ends (all of it: PR_SET_PDEATHSIG would tell of a single
    thread of a Go program). None: it cannot be watched here."""
    parent = os.getppid()
    if not hasattr(os, "pidfd_open") or parent <= 1:
        return None
    try:
        return os.pidfd_open(parent)
    except OSError:
        return None  # a kernel before 5.3, or a filter of system calls


def adopt_orphans() -> None:
    """Descendants whose parent died become children of this process."""
    if ON_LINUX:
        _check(_libc.prctl(_PR_SET_CHILD_SUBREAPER, ctypes.c_ulong(1), 0, 0, 0))


def _mount(source: bytes, target: bytes, kind: bytes | None, flags: int) -> None:
    _check(_libc.mount(source, target, kind, ctypes.c_ulong(flags), None))


def own_mounts() -> None:
    """Mounts from here on are this process's and its descendants' only; those made outside still arrive."""
    unshare(CLONE_NEWNS)
    _mount(b"none", b"/", None, _MS_REC | _MS_SLAVE)


def mount_own_proc() -> None:
    """A /proc that shows this PID namespace, invisible outside. Needs CAP_SYS_ADMIN and PID 1."""
    own_mounts()
    _mount(b"proc", b"/proc", b"proc", _MS_NOSUID | _MS_NODEV | _MS_NOEXEC)


def map_own_user(uid: int, gid: int) -> None:
    """In a user namespace just made: everybody keeps the name they had outside, so files keep their owner."""
    for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
        with open(f"/proc/self/{name}", "w", encoding="ascii") as file:
            file.write(text)


def raise_loopback() -> None:
    """Bring `lo` up in a network namespace just made."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        request = struct.pack("16sH14x", b"lo", 0)
        flags = struct.unpack_from("16sH", fcntl.ioctl(sock, _SIOCGIFFLAGS, request))[1]
        fcntl.ioctl(sock, _SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", flags | _IFF_UP))


_CAPABILITIES = (10, 12, 21)  # CAP_NET_BIND_SERVICE, CAP_NET_ADMIN, CAP_SYS_ADMIN
_LINUX_CAPABILITY_VERSION_3 = 0x20080522
_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE = 47, 2


def keep_capabilities_over_exec() -> None:
    """In a user namespace of ours: a program that configures the network keeps what it needs, without being root."""
    bits = sum(1 << number for number in _CAPABILITIES)
    header = struct.pack("Ii", _LINUX_CAPABILITY_VERSION_3, 0)
    # effective, permitted, inheritable; then the same for capabilities from 32 on
    _check(_libc.capset(header, struct.pack("6I", bits, bits, bits, 0, 0, 0)))
    for number in _CAPABILITIES:
        _check(_libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, ctypes.c_ulong(number), 0, 0))


def cover(target: str, source: str) -> None:
    """The file `source` in place of `target`, for this process and its descendants only."""
    own_mounts()
    _mount(os.fsencode(source), os.fsencode(target), None, _MS_BIND)
