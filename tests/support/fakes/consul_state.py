"""What a Consul server keeps: keys, sessions, indexes, and who waits for a change. As Consul's state store."""

from __future__ import annotations

import asyncio
import base64
import heapq
import time
import uuid
from dataclasses import dataclass, field
from typing import Any


class Refused(Exception):
    """An answer that is no success: status and text."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status
        self.text = text


@dataclass
class Entry:
    """One key."""

    key: str
    value: bytes
    flags: int
    create: int
    modify: int
    lock: int = 0
    """How often it was locked."""
    session: str = ""

    def json(self, value: bool = True) -> dict[str, Any]:
        """As the API shows it."""
        shown: dict[str, Any] = {
            "LockIndex": self.lock,
            "Key": self.key,
            "Flags": self.flags,
            "Value": base64.b64encode(self.value).decode() if value and self.value else None,
            "CreateIndex": self.create,
            "ModifyIndex": self.modify,
        }
        return {**shown, "Session": self.session} if self.session else shown


@dataclass
class Session:
    """Who may hold keys."""

    id: str
    name: str
    ttl: float
    """Seconds; 0: none."""
    ttl_text: str
    lock_delay: float
    behavior: str
    index: int
    node: str
    expires: float = 0.0
    """Monotonic."""

    def json(self) -> dict[str, Any]:
        """As the API shows it; the lock delay is in nanoseconds."""
        return {
            "ID": self.id,
            "Name": self.name,
            "Node": self.node,
            "LockDelay": int(self.lock_delay * 1e9),
            "Behavior": self.behavior,
            "TTL": self.ttl_text,
            "NodeChecks": ["serfHealth"],
            "ServiceChecks": None,
            "CreateIndex": self.index,
            "ModifyIndex": self.index,
        }


@dataclass
class Store:
    """One server's tables. Every write raises `index` by one and wakes whoever waits."""

    index: int = 12
    expiry_factor: float = 1.5
    """A session really ends this many TTLs after its last renewal (Consul: up to 2)."""
    keys: dict[str, Entry] = field(default_factory=dict)
    graves: dict[str, int] = field(default_factory=dict)
    """Removed keys → index of the removal, until `reap`."""
    tables: dict[str, int] = field(default_factory=dict)
    sessions: dict[str, Session] = field(default_factory=dict)
    delays: dict[str, float] = field(default_factory=dict)
    """Key → monotonic time until which nobody gets its lock."""
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    together: bool = False
    """The writes of one transaction have one index."""

    def bump(self, table: str) -> int:
        """The index of a write to `table`."""
        self.index += not self.together
        self.tables[table] = self.index
        self.wake()
        return self.index

    def wake(self) -> None:
        """Let whoever waits look again."""
        changed, self.changed = self.changed, asyncio.Event()
        changed.set()

    # --- keys ------------------------------------------------------------------------------------------------

    def get(self, key: str) -> tuple[int, Entry | None]:
        """With the index a blocking query is told: the key's own, or the table's when there is no such key."""
        entry = self.keys.get(key)
        return (entry.modify if entry else self._table(), entry)

    def tree(self, prefix: str) -> tuple[int, list[Entry]]:
        """All below `prefix`, with the highest index of what is there or was lately, else the table's."""
        found = sorted((e for key, e in self.keys.items() if key.startswith(prefix)), key=lambda entry: entry.key)
        graves = (at for key, at in self.graves.items() if key.startswith(prefix))
        index = max((*(entry.modify for entry in found), *graves), default=0)
        return index or self._table(), found

    def _table(self) -> int:
        return max(self.tables.get("kvs", 0), self.tables.get("tombstones", 0), 1)

    def put(self, key: str, value: bytes, flags: int = 0, *, session: str | None = None) -> Entry:
        """Create or replace. `session` None: whoever holds it goes on holding it. An equal one is no change."""
        old = self.keys.get(key)
        holder = (old.session if old else "") if session is None else session
        locks = (old.lock if old else 0) + bool(session and (old is None or old.session != session))
        if old and (old.value, old.flags, old.session, old.lock) == (value, flags, holder, locks):
            return old
        index = self.bump("kvs")
        entry = Entry(key, value, flags, old.create if old else index, index, locks, holder)
        self.keys[key] = entry
        return entry

    def cas(self, key: str, value: bytes, flags: int, index: int) -> Entry | None:
        """None: it is another one now."""
        old = self.keys.get(key)
        if (old.modify if old else 0) != index:
            return None
        return self.put(key, value, flags)

    def delete(self, key: str) -> None:
        """Nothing happens when it is not there."""
        if self.keys.pop(key, None) is not None:
            self.graves[key] = self.bump("tombstones")

    def delete_tree(self, prefix: str) -> None:
        """All below `prefix`, in one write."""
        gone = [key for key in self.keys if key.startswith(prefix)]
        if gone:
            index = self.bump("tombstones")
            for key in gone:
                del self.keys[key]
                self.graves[key] = index

    def reap(self) -> None:
        """Forget removals, as Consul does after 15 minutes: indexes of prefixes may go backwards."""
        self.graves.clear()
        self.wake()

    # --- locks -----------------------------------------------------------------------------------------------

    def acquire(self, key: str, value: bytes, flags: int, session: str) -> bool:
        """False: another session holds it, or its lock delay is not over. Raises Refused."""
        if time.monotonic() < self.delays.get(key, 0.0):
            return False
        self.session(session)
        old = self.keys.get(key)
        if old and old.session not in {"", session}:
            return False
        self.put(key, value, flags, session=session)
        return True

    def release(self, key: str, value: bytes, flags: int, session: str) -> bool:
        """False: this session does not hold it."""
        old = self.keys.get(key)
        if old is None or old.session != session:
            return False
        self.put(key, value, flags, session="")
        return True

    def session(self, id: str) -> Session:
        """Raises Refused."""
        if (found := self.sessions.get(id)) is None:
            raise Refused(500, f'rpc error making call: invalid session "{id}"')
        return found

    def add_session(self, **fields: Any) -> Session:
        """A new one, its TTL begins to run."""
        session = Session(id=str(uuid.uuid4()), index=self.bump("sessions"), **fields)
        self.sessions[session.id] = session
        self.renew(session)
        return session

    def renew(self, session: Session) -> None:
        """Its TTL begins anew."""
        session.expires = time.monotonic() + session.ttl * self.expiry_factor if session.ttl else float("inf")
        self.wake()

    def end_session(self, id: str) -> None:
        """What it holds is released or removed in the same write, and nobody gets it for the lock delay."""
        if (session := self.sessions.pop(id, None)) is None:
            return
        self.bump("sessions")
        self.together = True
        for key in [key for key, entry in self.keys.items() if entry.session == id]:
            if session.lock_delay:
                self.delays[key] = time.monotonic() + session.lock_delay
            if session.behavior == "delete":
                self.delete(key)
            else:
                entry = self.keys[key]
                self.put(key, entry.value, entry.flags, session="")
        self.together = False

    async def expire(self) -> None:
        """Ends sessions that were not renewed. Until cancelled."""
        while True:
            now = time.monotonic()
            for session in [one for one in self.sessions.values() if one.expires <= now]:
                self.end_session(session.id)
            nearest = heapq.nsmallest(1, (one.expires for one in self.sessions.values()))
            wait = min(nearest[0] - time.monotonic(), 3600) if nearest else 3600
            changed = self.changed
            try:
                async with asyncio.timeout(max(wait, 0)):
                    await changed.wait()
            except TimeoutError:
                continue
