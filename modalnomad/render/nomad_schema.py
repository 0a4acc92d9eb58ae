"""The fields of Nomad's jobs that are used here, and what may stand in each.

Nomad drops a key it does not know without a word, and takes many a wrong value that only breaks when a task starts; so
everything rendered is held against this. Names and types: the structs of Nomad 2.0.5's `api` package, as
https://developer.hashicorp.com/nomad/docs/job-specification describes them. Durations are whole nanoseconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final


@dataclass(frozen=True, slots=True)
class Text:
    """A string all of which matches `pattern`."""

    pattern: str = r"(?s).*"
    what: str = "a text"


@dataclass(frozen=True, slots=True)
class Whole:
    """A whole number."""

    least: int = 0
    most: int = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Flag:
    """true or false."""


@dataclass(frozen=True, slots=True)
class Texts:
    """An object of strings under keys that match `keys`."""

    keys: str = r".+"


@dataclass(frozen=True, slots=True)
class Block:
    """An object with these keys and no others."""

    keys: Mapping[str, Kind]
    required: frozenset[str] = field(default_factory=frozenset)


@dataclass(frozen=True, slots=True)
class Many:
    """A list; `least`: how many at least."""

    of: Kind
    least: int = 0


Kind = Text | Whole | Flag | Texts | Block | Many


def one_of_words(*words: str) -> Text:
    """One of these words."""
    return Text("|".join(words), " or ".join(words))


def needs(*required: str, **keys: Kind) -> Block:
    """A block of `keys`, of which those named must be there."""
    return Block(keys, frozenset(required))


SECOND: Final = 1_000_000_000
TEXT: Final = Text()
NAME: Final = Text(r"[^\s/\x00-\x1f]{1,520}", "a name without blanks and slashes")
LABEL: Final = Text(r"[A-Za-z0-9_]{1,57}", "a label of letters, digits and _")
ANY: Final = Whole()
FLAG: Final = Flag()
META_KEY: Final = r"[A-Za-z_][A-Za-z0-9_]{0,127}"

CONSTRAINT: Final = needs(
    "LTarget",
    "RTarget",
    "Operand",
    LTarget=Text(r"\$\{[a-z0-9._]+\}", "an attribute as ${attr.name}"),
    RTarget=TEXT,
    Operand=one_of_words("=", "!=", ">", ">=", "<", "<=", "regexp", "version", "semver", "is_set", "is_not_set"),
)
AFFINITY: Final = Block(
    {**CONSTRAINT.keys, "Weight": Whole(-100, 100)}, frozenset({"LTarget", "RTarget", "Operand", "Weight"})
)
DEVICE: Final = needs(
    "Name",
    "Count",
    Name=Text(r"[a-z0-9_-]+/[a-z0-9_-]+", "vendor/type"),
    Count=Whole(1),
    Constraints=Many(CONSTRAINT),
    Affinities=Many(AFFINITY),
)
RESOURCES: Final = needs(
    "CPU",
    "MemoryMB",
    CPU=Whole(1),
    MemoryMB=Whole(10),
    MemoryMaxMB=Whole(-1),
    SecretsMB=Whole(1),
    Devices=Many(DEVICE),
)
RAW_EXEC: Final = needs("command", "args", command=Text(r"\S+", "a program"), args=Many(TEXT))
DOCKER: Final = needs(
    "image",
    "command",
    "network_mode",
    image=Text(r"(?:\S+@)?sha256:[0-9a-f]{64}", "an image pinned by its digest"),
    force_pull=FLAG,
    image_pull_timeout=Text(r"[0-9]+[sm]", "a duration as 30s"),
    network_mode=one_of_words("host"),
    init=FLAG,
    pids_limit=Whole(1),
    cap_drop=Many(TEXT),
    labels=Many(Texts()),
    command=Text(r"/\S+", "a program's absolute path"),
    args=Many(TEXT),
)
DRIVERS: Final[Mapping[str, Block]] = {"raw_exec": RAW_EXEC, "docker": DOCKER}
"""What may stand in a task's `Config`."""
ARTIFACT: Final = needs(
    "GetterSource",
    "GetterOptions",
    "GetterMode",
    "RelativeDest",
    GetterSource=Text(r"https?://\S+", "an URL"),
    GetterOptions=needs("checksum", checksum=Text(r"sha256:[0-9a-f]{64}", "sha256:<hex>")),
    GetterMode=one_of_words("file", "dir", "any"),
    RelativeDest=Text(r"local/[A-Za-z0-9._/-]+", "a path below local/"),
)
TEMPLATE: Final = needs(
    "EmbeddedTmpl",
    "DestPath",
    "Envvars",
    "Once",
    "ErrMissingKey",
    "ChangeMode",
    "Perms",
    EmbeddedTmpl=TEXT,
    DestPath=Text(r"secrets/[A-Za-z0-9._-]+", "a file in secrets/"),
    Envvars=FLAG,
    Once=FLAG,
    ErrMissingKey=FLAG,
    ChangeMode=one_of_words("noop"),
    Perms=Text(r"0[0-7]{3}", "a mode as 0400"),
    Splay=ANY,
)
VAULT: Final = needs(
    "Role",
    "Env",
    "DisableFile",
    "ChangeMode",
    "AllowTokenExpiration",
    Role=Text(r"[A-Za-z0-9-]+", "a role"),
    Env=FLAG,
    DisableFile=FLAG,
    ChangeMode=one_of_words("noop"),
    AllowTokenExpiration=FLAG,
)
IDENTITY: Final = needs("Name", "Audience", Name=LABEL, Audience=Many(TEXT, 1), TTL=Whole(SECOND))
TASK: Final = needs(
    "Name",
    "Driver",
    "Config",
    "Resources",
    Name=LABEL,
    Driver=one_of_words(*DRIVERS),
    # Looked at by the driver's own block.
    Config=Block({}),
    Env=Texts(r"[A-Za-z_][A-Za-z0-9_]*"),
    Artifacts=Many(ARTIFACT),
    Resources=RESOURCES,
    LogConfig=needs("MaxFiles", "MaxFileSizeMB", MaxFiles=Whole(1), MaxFileSizeMB=Whole(1)),
    KillSignal=one_of_words("SIGTERM"),
    KillTimeout=ANY,
    Vault=VAULT,
    Identities=Many(IDENTITY),
    Templates=Many(TEMPLATE),
)
CHECK: Final = needs(
    "Name",
    "Type",
    "Path",
    "Interval",
    "Timeout",
    Name=TEXT,
    Type=one_of_words("http"),
    Path=Text(r"/\S*", "a path"),
    Method=one_of_words("GET"),
    Interval=Whole(SECOND),
    Timeout=Whole(SECOND),
)
SERVICE: Final = needs(
    "Name",
    "Provider",
    "PortLabel",
    "Checks",
    Name=Text(r"[A-Za-z0-9-]{1,63}", "a service's name"),
    Provider=one_of_words("consul", "nomad"),
    PortLabel=LABEL,
    AddressMode=one_of_words("auto", "host"),
    Tags=Many(TEXT),
    Meta=Texts(r"[A-Za-z0-9_-]{1,128}"),
    Checks=Many(CHECK, 1),
)
NETWORK: Final = needs(
    "Mode",
    Mode=one_of_words("host"),
    DynamicPorts=Many(needs("Label", Label=LABEL)),
    ReservedPorts=Many(needs("Label", "Value", Label=LABEL, Value=Whole(1, 65535))),
)
GROUP: Final = needs(
    "Name",
    "Count",
    "Tasks",
    "RestartPolicy",
    Name=LABEL,
    Count=Whole(1),
    Constraints=Many(CONSTRAINT),
    Affinities=Many(AFFINITY),
    RestartPolicy=needs("Attempts", "Mode", Attempts=ANY, Mode=one_of_words("fail")),
    ReschedulePolicy=needs("Attempts", "Unlimited", Attempts=ANY, Unlimited=FLAG),
    EphemeralDisk=needs("SizeMB", SizeMB=Whole(10)),
    ShutdownDelay=ANY,
    Networks=Many(NETWORK),
    Services=Many(SERVICE),
    Tasks=Many(TASK, 1),
)
JOB: Final = needs(
    "ID",
    "Name",
    "Namespace",
    "Type",
    "Datacenters",
    "NodePool",
    "TaskGroups",
    ID=NAME,
    Name=NAME,
    Namespace=Text(r"[A-Za-z0-9-]{1,128}", "a namespace"),
    Region=TEXT,
    Type=one_of_words("batch", "sysbatch"),
    Datacenters=Many(TEXT, 1),
    NodePool=Text(r"[A-Za-z0-9_-]{1,128}", "a node pool"),
    Meta=Texts(META_KEY),
    UI=needs(
        Description=Text(r"(?s).{0,1000}", "at most 1000 characters"),
        Links=Many(needs("Label", "Url", Label=Text(r".+"), Url=Text(r"https?://\S+", "an URL"))),
    ),
    ParameterizedJob=needs(
        "Payload",
        Payload=one_of_words("optional", "required", "forbidden"),
        MetaRequired=Many(Text(META_KEY)),
        MetaOptional=Many(Text(META_KEY)),
    ),
    TaskGroups=Many(GROUP, 1),
)
BODY: Final = needs(
    "Job",
    Job=JOB,
    Submission=needs("Source", "Format", Source=TEXT, Format=one_of_words("hcl2", "json")),
    EnforceIndex=FLAG,
    JobModifyIndex=ANY,
)
"""Of a request that registers."""
