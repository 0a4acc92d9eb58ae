"""Runner contract, version 1: what an engine, the router and a replica say to each other. Constants only.

The platform imports this module and nothing else of the SDK but the image store. A change here that an older
runner would misread raises `VERSION`; the engine refuses a runner of another version.
"""

from __future__ import annotations

from enum import IntEnum

TYPE_CHECKING = False
if TYPE_CHECKING:  # importing typing takes longer than all the rest of a launcher's start
    from typing import Final

VERSION: Final = 1

# --- Environment of a replica -------------------------------------------------------------------------------
# Every name starts with MODALNOMAD_; users may not set such names.

ENV_CONTRACT: Final = "MODALNOMAD_CONTRACT"
"""Decimal contract version."""
ENV_APP: Final = "MODALNOMAD_APP"
ENV_ENVIRONMENT: Final = "MODALNOMAD_ENVIRONMENT"
ENV_FUNCTION: Final = "MODALNOMAD_FUNCTION"
"""Tag of the Function or Cls in its App: `f` or `Server`."""
ENV_REVISION: Final = "MODALNOMAD_REVISION"
ENV_POOL: Final = "MODALNOMAD_POOL"
ENV_REPLICA: Final = "MODALNOMAD_REPLICA"
"""`<number>.<epoch>` in its pool, both decimal."""
ENV_SOURCE: Final = "MODALNOMAD_SOURCE"
"""`script:<file relative to the bundle>` or `module:<dotted name>`."""
ENV_BUNDLE: Final = "MODALNOMAD_BUNDLE"
"""Folder the bundle is unpacked in, absolute: first on `sys.path`, the replica's own working directory unless the
image names one."""
ENV_WORKDIR: Final = "MODALNOMAD_WORKDIR"
"""Working directory of user code, absolute; unset: the bundle's folder."""
ENV_PARAMETERS: Final = "MODALNOMAD_PARAMETERS"
"""Class parameters of this pool: base64url (no padding) of canonical JSON {name: value}; unset: none. A `bytes` value
is written as {"bytes": base64}."""
ENV_TICKET_SHA256: Final = "MODALNOMAD_TICKET_SHA256"
"""Lower-case hex SHA-256 of the ticket every request must carry."""
ENV_LISTEN: Final = "MODALNOMAD_LISTEN"
"""`fd:<n>` (an inherited listening socket, not yet accepting user traffic) or `port:<n>` (bind it on 127.0.0.1);
unset: port from NOMAD_PORT_http on NOMAD_IP_http."""
ENV_LIFELINE: Final = "MODALNOMAD_LIFELINE"
"""`fd:<n>`: read end of a pipe the starter holds open; end of file: the starter is gone, and everything here dies.
Unset in a task of Nomad: so it does when the process that started it ends."""
ENV_NETWORK: Final = "MODALNOMAD_NETWORK"
"""`host` | `namespace` | `exclusive`: how a fixed port of a `web_server` is kept apart from other replicas'.
`namespace` is only honoured for a Function with a `web_server` endpoint."""
ENV_WEB_PORTS: Final = "MODALNOMAD_WEB_PORTS"
"""Comma-separated fixed ports of this Function's `web_server` endpoints; unset: none. Known before user code is
imported, because a network namespace has to be made before any thread exists."""
ENV_MAX_INPUTS: Final = "MODALNOMAD_MAX_INPUTS"
ENV_TIMEOUT: Final = "MODALNOMAD_TIMEOUT"
"""Seconds a request may take (decimal, may be fractional)."""
ENV_STARTUP_TIMEOUT: Final = "MODALNOMAD_STARTUP_TIMEOUT"
"""Seconds from process start to ready."""
ENV_GRACE_PERIOD: Final = "MODALNOMAD_GRACE_PERIOD"
"""Seconds from SIGTERM or drain to the hard end, unfinished requests included."""
ENV_ORPHAN_AFTER: Final = "MODALNOMAD_ORPHAN_AFTER"
"""Seconds without any request (greetings of a router count) after which a replica drains itself; 0: never."""
ENV_WEB_URLS: Final = "MODALNOMAD_WEB_URLS"
"""JSON {endpoint name: public URL} for `Function.get_web_url()`."""
ENV_LOG_TAGS: Final = "MODALNOMAD_LOG_TAGS"
"""`1`: lines written while a request runs start with LOG_TAG_OPEN <request id> LOG_TAG_CLOSE."""
ENV_GPUS: Final = "MODALNOMAD_GPUS"
"""Number of GPUs asked for; the runner fails when fewer are visible."""
ENV_IMAGE: Final = "MODALNOMAD_IMAGE"
"""Digest of the environment the replica runs in (`Image.imports()` compares with it)."""

ENV_CGROUPS: Final = "MODALNOMAD_CGROUPS"
"""Absolute folders of control groups, one a line, that the replica's processes enter before user code runs. One that
cannot be entered is said, and the replica runs without its limits. Unset: none."""

# --- Task of a Nomad node: what the launcher gets beside the above --------------------------------------------

ENV_LAUNCH: Final = "MODALNOMAD_LAUNCH"
"""Contract version of the launcher, decimal; a task that Nomad starts has it, a replica does not."""
ENV_IMAGE_ENV: Final = "MODALNOMAD_IMAGE_ENV"
"""Base64url (no padding) of JSON [[name, value], …]: Image.env, in order. Encoded because Nomad replaces `${…}`."""
ENV_IMAGE_WORKDIR: Final = "MODALNOMAD_IMAGE_WORKDIR"
"""Image.workdir as the program says it; unset: none."""
ENV_NODE_STORE: Final = "MODALNOMAD_NODE_STORE"
"""Absolute folder of this node for environments and runners, shared by all its replicas."""
ENV_PACK: Final = "MODALNOMAD_PACK"
"""Digest of the artifact that holds the image's definition and what it needs; fetched only when it has to be built."""
ENV_SDK: Final = "MODALNOMAD_SDK"
"""Digest of the zip application the launcher itself is."""
ENV_ARTIFACTS: Final = "MODALNOMAD_ARTIFACTS"
"""`http[s]://host:port`; an artifact is at `/artifacts/<digest>` there."""
ENV_SECRET_FILES: Final = "MODALNOMAD_SECRET_FILES"
"""Comma-separated file names in NOMAD_SECRETS_DIR, each a JSON object of strings that become variables; later ones
win. Unset: none."""

# In a container's image, whatever it was made from:

CONTAINER_PYTHON: Final = "/opt/modalnomad/python"
"""Program: the Python that has what the image installs. A link will do."""
CONTAINER_SDK: Final = "/opt/modalnomad/sdk"
"""Folder: what the zip application holds, unpacked. `CONTAINER_PYTHON -I -S CONTAINER_SDK launch` starts a replica;
there is no ENV_NODE_STORE then, nothing is built, and the image's variables and working directory are there already."""

INHERITED: Final = frozenset(
    {
        "HOME",
        "USER",
        "LOGNAME",
        "LANG",
        "LANGUAGE",
        "TZ",
        "TMPDIR",
        # What the machine's network needs, where it is not open.
        "SSL_CERT_FILE",
        "SSL_CERT_DIR",
        "REQUESTS_CA_BUNDLE",
        "HTTP_PROXY",
        "HTTPS_PROXY",
        "NO_PROXY",
        "http_proxy",
        "https_proxy",
        "no_proxy",
        # Where a Python built outside the system's folders finds its library.
        "LD_LIBRARY_PATH",
    }
)
"""Variables of whatever starts replicas that they get too, besides LC_* and PATH; no others."""

LOG_TAG_OPEN: Final = "\x1e"
LOG_TAG_CLOSE: Final = "\x1f"

# --- Requests of the router to a replica --------------------------------------------------------------------

PREFIX: Final = "/.modalnomad/"
READY_PATH: Final = "/.modalnomad/ready"
"""GET, answered 200 only when `enter`, app construction, lifespan start-up and open ports are done: until then whoever
asks is kept waiting. The answer carries HEADER_REPLICA. Without the ticket, as health checks ask: the same, but 503 as
soon as the replica drains; it takes no place, and counts for nobody's ENV_ORPHAN_AFTER."""
DRAIN_PATH: Final = "/.modalnomad/drain"
"""POST with ?idle_for=<seconds>: 202 the replica lets no more requests in and exits when empty; 409 refused, because
something runs or ran less than that long ago (seconds since in the body, JSON {"running": n, "idle_for": s}). With
?force=1: 202 whatever runs; what runs has the grace period to end, and others are answered 503 with HEADER_BUSY."""

CALL_PATH: Final = "/.modalnomad/call"
"""POST: run the Function, or a method of the Cls, once. The body is pickle (CALL_PICKLE) of (args, kwargs), or empty:
no arguments. HEADER_METHOD names the method. It takes one of `max_inputs` and obeys `timeout`. 200 with HEADER_OUTCOME:

    result    the body is pickle of what it returned
    raised    JSON {"type", "message", "traceback", "exception": base64 of pickle, or null when it has none}
    timeout   JSON as `raised`

404: nothing of that name can be called here; 413: the body is over CALL_LIMIT. Who hangs up has cancelled the call."""
CALL_PICKLE: Final = 4
"""Highest pickle protocol of either side."""
CALL_LIMIT: Final = 256 * 1024 * 1024
"""Bytes of arguments, and of a result."""
HEADER_METHOD: Final = "modalnomad-method"
"""Attribute of the Cls; empty or absent: the Function itself."""
HEADER_TELL: Final = "modalnomad-tell"
"""`1`: what the call raises is written to standard error too, because nobody waits for the answer."""
HEADER_OUTCOME: Final = "modalnomad-outcome"

HEADER_TICKET: Final = "modalnomad-ticket"
"""Hex HMAC-SHA256(platform key, revision id). Every request but a GET of READY_PATH needs it, else 403."""
HEADER_REQUEST_ID: Final = "x-request-id"
HEADER_CLIENT: Final = "modalnomad-client"
"""`<ip> <port>` of the real client; becomes `scope["client"]` and REMOTE_ADDR."""
HEADER_ENDPOINT: Final = "modalnomad-endpoint"
"""Name of the endpoint (`f`, or `Server.files`) the request is for; needed when a Cls has several."""
HEADER_REPLICA: Final = "modalnomad-replica"
"""In answers under PREFIX: `<pool> <number>.<epoch>`, so that a stranger on the port cannot pass for it."""
HEADER_BUSY: Final = "modalnomad-busy"
"""`1` beside status 503: refused before anything was read (max_inputs reached, or draining); try elsewhere."""

# All request headers with this prefix are removed before user code sees the request.
PRIVATE_HEADER_PREFIX: Final = "modalnomad-"

WEBSOCKET_MESSAGE_LIMIT: Final = 2 * 1024 * 1024


class Exit(IntEnum):
    """Exit codes of a replica. 0: drained. Anything else before ready is a failed start."""

    OK = 0
    USER_CODE_FAILED = 70
    """The module, `enter`, the app-building function or lifespan start-up raised; the traceback is on stderr."""
    BAD_CONFIGURATION = 71
    """MODALNOMAD_* missing or wrong; every problem is on stderr."""
    PORT_NEVER_OPENED = 72
    """A `web_server` did not accept within its startup_timeout."""
    FUNCTION_NOT_FOUND = 73
    """The bundle has no such module or tag."""
    PORT_TAKEN = 74
    """network=exclusive and somebody holds the fixed port."""
    GPU_MISSING = 75
    STARTUP_TIMEOUT = 76
    GRACE_EXPIRED = 77
    """Requests were still running at the end of the grace period."""
    EXIT_FAILED = 78
    """Lifespan shutdown or an `exit` method raised."""
    PARENT_GONE = 79
    ENVIRONMENT_FAILED = 80
    """The launcher could not make the image's environment, or what else the replica needs, on this node."""
