"""Where the fixed port of a `web_server` lives: in a network namespace of the replica's own, or on the host.

Called in the runner before any thread exists and before user code: the listening socket was made outside and goes on
serving there, while user code binds its port inside. Outbound traffic goes through `pasta`, when that is installed.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import tempfile

from modalnomad_sdk.contract import Exit

from . import linux

WAYS_OUT = (
    "three ways out: run modalnomad as root or allow unprivileged user namespaces, so that each replica gets a network "
    'of its own; use another port; or set network = "host" and max_containers=1'
)


RESOLVER = "169.254.77.53"
"""Inside a network namespace, pasta answers here with what the host's own resolver says (link-local: RFC 3927)."""


class PortTaken(Exception):
    """Somebody holds the fixed port; the message names port, holder and ways out."""

    code = Exit.PORT_TAKEN


def enter_namespace(mapped: bool) -> int | None:
    """Move this process, and what it forks from now on, into a network namespace. `mapped`: it is root, or already in a
    user namespace of ours. Returns the process that connects the namespace to the outside, for `wait_for_outbound`.

    Raises:
        OSError: not allowed here.
    """
    uid, gid = os.getuid(), os.getgid()
    outbound = _prepare_outbound(uid)
    try:
        if mapped:
            linux.unshare(linux.CLONE_NEWNET)
        else:
            linux.unshare(linux.CLONE_NEWUSER | linux.CLONE_NEWNET)
            linux.map_own_user(uid, gid)
        linux.raise_loopback()
    except OSError:
        if outbound is not None:
            outbound[1].close()
            os.waitpid(outbound[0], 0)
        raise
    if outbound is None:
        return None
    launcher, orders = outbound
    namespace = os.open("/proc/self/ns/net", os.O_RDONLY)
    with orders:
        socket.send_fds(orders, [b"n"], [namespace])
    os.close(namespace)
    return launcher


def wait_for_outbound(launcher: int) -> bool:
    """Does traffic leave the namespace? pasta's first process ends when it is connected, and leaves another at work."""
    _, status = os.waitpid(launcher, 0)
    return status == 0


def reach_resolver() -> None:
    """Where the host's resolver is one on its own loopback address (as with systemd-resolved), ask it through pasta.

    Raises:
        OSError: this process may not put another resolv.conf in its place.
    """
    target = os.path.realpath("/etc/resolv.conf")
    try:
        with open(target, encoding="utf-8", errors="replace") as file:
            lines = file.read().splitlines()
    except FileNotFoundError:
        return
    servers = [line.split()[1] for line in lines if line.startswith("nameserver") and len(line.split()) > 1]
    if not any(server.startswith("127.") or server == "::1" for server in servers):
        return
    kept = [line for line in lines if not line.startswith("nameserver")]
    with tempfile.NamedTemporaryFile("w", suffix=".resolv.conf") as own:
        os.fchmod(own.fileno(), 0o644)
        own.write("\n".join([f"nameserver {RESOLVER}", *kept, ""]))
        own.flush()
        linux.cover(target, own.name)


def _prepare_outbound(uid: int) -> tuple[int, socket.socket] | None:
    """Fork the launcher of pasta while still outside: it waits for the namespace's descriptor."""
    program = shutil.which("pasta")
    if program is None:
        return None
    theirs, ours = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        try:
            ours.close()
            _become_pasta(program, theirs, uid)
        finally:
            os._exit(127)
    theirs.close()
    return pid, ours


def _become_pasta(program: str, orders: socket.socket, uid: int) -> None:
    _, descriptors, _, _ = socket.recv_fds(orders, 1, 1)
    if not descriptors:
        return  # there is no namespace
    namespace = descriptors[0]
    os.set_inheritable(namespace, True)
    if uid != 0:
        linux.keep_capabilities_over_exec()
    quiet = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(quiet, fd)
    for number in (signal.SIGPIPE, signal.SIGXFSZ):  # Python ignores them, and pasta takes that for an error
        signal.signal(number, signal.SIG_DFL)
    # Nothing comes in through it, and the host's loopback stays out of reach. A path under /proc/self/fd needs no right
    # to look into another process.
    arguments = ["--config-net", "--quiet", "--netns-only", "--netns", f"/proc/self/fd/{namespace}", "--no-map-gw"]
    arguments += ["-t", "none", "-u", "none", "-T", "none", "-U", "none", "--dns-forward", RESOLVER]
    if uid == 0:
        arguments += ["--runas", "0:0"]
    os.execv(program, [program, *arguments])


def claim_ports(ports: tuple[int, ...]) -> list[socket.socket]:
    """Hold fixed ports of the host for this replica, against other replicas, for as long as the sockets live.

    Raises:
        PortTaken: another replica, or any other program, has one.
    """
    claims = []
    for port in ports:
        claim = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            claim.bind(f"\0modalnomad-port-{port}")
        except OSError as error:
            raise PortTaken(_taken(port, f"another replica, {_peer(port)}")) from error
        claim.listen(1)
        claims.append(claim)
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # passes over connections that are closing
            try:
                probe.bind(("0.0.0.0", port))
            except OSError as error:
                raise PortTaken(_taken(port, listener_of(port) or "another program")) from error
    return claims


def _taken(port: int, holder: str) -> str:
    return f"port {port} of web_server({port}) is held by {holder}; {WAYS_OUT}"


def _peer(port: int) -> str:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(1)
        try:
            sock.connect(f"\0modalnomad-port-{port}")
            pid = int.from_bytes(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)[:4], "little")
        except OSError:
            return "gone meanwhile"
    return f"process {pid}"


def listener_of(port: int) -> str | None:
    """Who listens on a TCP port, as far as /proc shows it to us."""
    inodes = {inode for number, inode in _listening() if number == port}
    for pid in filter(str.isdigit, os.listdir("/proc") if inodes else []):
        with contextlib.suppress(OSError):  # gone meanwhile, or not ours to look into
            for fd in os.listdir(f"/proc/{pid}/fd"):
                with contextlib.suppress(OSError):
                    if os.readlink(f"/proc/{pid}/fd/{fd}").removeprefix("socket:[").rstrip("]") in inodes:
                        with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as file:
                            return f"process {pid} ({file.read().strip()})"
    return None


def listening_ports() -> list[int]:
    """TCP ports somebody listens on in this network namespace."""
    return sorted({port for port, _ in _listening()})


def _listening() -> list[tuple[int, str]]:
    """(port, inode) of listening TCP sockets, from /proc/net/tcp and tcp6."""
    found = []
    for name in ("tcp", "tcp6"):
        with contextlib.suppress(OSError), open(f"/proc/self/net/{name}", encoding="ascii") as file:
            next(file, None)
            for line in file:
                columns = line.split()
                if columns[3] == "0A":
                    found.append((int(columns[1].rpartition(":")[2], 16), columns[9]))
    return found
