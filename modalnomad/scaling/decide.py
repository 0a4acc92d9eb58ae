"""How many replicas a pool should have beyond what its waiting requests ask for, and which one goes.

What waiting requests need is decided by the pool itself at once (`router/pool.py`); this is the slow part: the minimum,
the buffer, replicas that have been idle for the scaledown window.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, Self

from modalnomad.model.manifest import Function, Scaling
from modalnomad.model.routes import ScalingOverride
from modalnomad.scaling.window import Peak

STARTING: Final = 100
"""Replicas that a minimum or a buffer has starting at once. What the machine has no room for fails at once, too: a
minimum must not keep the router busy with nothing else."""
KEPT: Final = 10_000
"""Replicas that a minimum or a buffer may ask for: more than a platform holds, so that a slip of the pen is told."""


def excess(wanted: Scaling | ScalingOverride) -> str | None:
    """What asks for more replicas than can be kept, in words; None: nothing. A maximum may be as large as it likes:
    requests decide how many there are."""
    for name in ("min_containers", "buffer_containers"):
        if (count := getattr(wanted, name) or 0) > KEPT:
            return f"{name}={count} is more replicas than can be kept: {KEPT} at most"
    return None


@dataclass(frozen=True, slots=True)
class Policy:
    """What the author of a function asked for. Times in seconds."""

    min: int = 0
    max: int | None = None
    buffer: int = 0
    """Idle replicas kept beside the busy ones while the pool is in use."""
    window: float = 60.0
    """Idle time after which a replica goes."""
    target: int = 1
    """Requests a replica is meant to hold."""
    max_inputs: int = 1
    """Requests a replica can hold."""
    single_use: bool = False
    start_limit: float = 300.0
    request_limit: float = 300.0
    """Time one request may take."""
    greet: float = 60.0
    """An idle replica that is kept hears of a router this often at least, or it takes itself for an orphan."""

    @classmethod
    def of(cls, function: Function, *, parametrized: bool, override: ScalingOverride | None = None) -> Self:
        """`override` wins over what the program declares, where it says something. Every pool of class-parameter values
        is scaled alike, but has no minimum, not by an override either: nobody asked for those values yet."""
        scaling = function.scaling
        said = {} if override is None else override.model_dump(exclude_none=True)
        wanted = scaling.model_copy(update=said)
        most = 1 if function.single_use else scaling.max_inputs
        return cls(
            min=0 if parametrized else wanted.min_containers,
            max=wanted.max_containers,
            buffer=wanted.buffer_containers,
            window=wanted.scaledown_window,
            # A replica was told the window of its program when it started.
            greet=max(1.0, min(wanted.scaledown_window, scaling.scaledown_window)),
            target=max(1, min(scaling.target, most)),
            max_inputs=max(1, most),
            single_use=function.single_use,
            start_limit=function.start_limit,
            request_limit=function.timeout,
        )

    def within(self, count: int) -> int:
        """`count` held between minimum and maximum; the maximum wins."""
        raised = max(count, self.min)
        return raised if self.max is None else min(raised, max(1, self.max))

    def needed(self, demand: int) -> int:
        """Replicas that hold `demand` requests at the target."""
        return -(-demand // self.target)


Kind = Literal[
    "requests",
    "min",
    "buffer",
    "warm",
    "idle",
    "max",
    "retired",
    "evicted",
    "single_use",
    "faulty",
    "asked",
    "replaced",
    "doubled",
]


@dataclass(frozen=True, slots=True)
class Reason:
    """Why a replica comes or goes: `kind` is counted, `text` (with the numbers) is logged and sent along."""

    kind: Kind
    text: str

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True)
class Seen:
    """One replica as the pool sees it. `leaving` ones take no more requests."""

    number: int
    state: Literal["starting", "ready", "leaving"]
    running: int = 0
    idle_since: float = 0.0
    """When its last request ended, or when it became ready; only of use while `running` is 0."""
    outgoing: bool = False
    """It takes requests, but is to be replaced: the first to go; one may be above the maximum for it."""


@dataclass(frozen=True, slots=True)
class Observed:
    """One pool at one moment."""

    replicas: tuple[Seen, ...] = ()
    waiting: int = 0


@dataclass(frozen=True, slots=True)
class Decision:
    """Start so many, or drain this one, or let these go after what they hold, because of `reason`; `state` is for the
    next call."""

    state: Peak
    wanted: int = 0
    """Replicas the pool needs, as it is used now."""
    start: int = 0
    drain: int | None = None
    shed: frozenset[int] = frozenset()
    reason: Reason | None = None


def fresh(policy: Policy) -> Peak:
    """State for the first call."""
    return Peak(span=_span(policy))


def decide(now: float, observed: Observed, policy: Policy, state: Peak) -> Decision:
    """At most one drain at a time: while one replica is leaving, none follows it. What is above the maximum, because
    that was lowered, goes at once."""
    live = [replica for replica in observed.replicas if replica.state != "leaving"]
    demand = observed.waiting + sum(replica.running for replica in live)
    state = state.over(_span(policy), now).seen(now, demand)
    most = len(live) if policy.max is None else max(1, policy.max)
    if len(live) > most + any(replica.outgoing for replica in live):
        text = f"max_containers={policy.max}, of {len(live)} running"
        return Decision(state, most, shed=_least_useful(live, len(live) - most), reason=Reason("max", text))
    busy = policy.needed(demand)
    kept, reason = policy.min, Reason("min", f"min_containers={policy.min}")
    if policy.buffer and state.value(now) > 0 and busy + policy.buffer > kept:
        kept, reason = busy + policy.buffer, Reason("buffer", f"buffer_containers={policy.buffer} beside {busy} in use")
    wanted = policy.within(max(kept, busy))
    room = wanted - len(live) if policy.max is None else min(wanted - len(live), policy.max - len(observed.replicas))
    room = min(room, max(policy.needed(observed.waiting), STARTING - sum(seen.state == "starting" for seen in live)))
    if room > 0:
        why = reason if kept >= busy else Reason("requests", f"{demand} requests")
        return Decision(state, wanted, start=room, reason=why)
    if len(live) <= wanted or observed.waiting or len(live) < len(observed.replicas):
        return Decision(state, wanted)
    idle = [r for r in live if r.state == "ready" and not r.running and now - r.idle_since >= policy.window]
    if not idle:
        return Decision(state, wanted)
    victim = max(idle, key=lambda replica: (replica.outgoing, replica.number))
    why = Reason("idle", f"idle for {now - victim.idle_since:.0f} s")
    return Decision(state, wanted, drain=victim.number, reason=why)


def _span(policy: Policy) -> float:
    return max(policy.window, 1.0)


def _least_useful(live: list[Seen], count: int) -> frozenset[int]:
    """Those to be replaced first, then those still starting, then the idle, then the highest-numbered."""
    order = sorted(live, key=lambda seen: (not seen.outgoing, seen.state != "starting", seen.running > 0, -seen.number))
    return frozenset(seen.number for seen in order[:count])
