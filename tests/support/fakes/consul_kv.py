"""Consul's KV, transaction and session endpoints on a Store: wire shapes, status codes, texts."""

from __future__ import annotations

import base64
import copy
import json
import re
from collections.abc import Callable
from typing import Any
from urllib.parse import unquote

from aiohttp import web

from tests.support.fakes.consul_acl import Rights
from tests.support.fakes.consul_state import Entry, Refused, Store

KV_LIMIT = 512 * 1024
"""Bytes of a value, and of a transaction's body."""
TXN_OPERATIONS = 128
DOCS = "https://developer.hashicorp.com/docs/agent/config/config-files"
UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}

LIKE_A_FILE = (".js", ".css", ".html", ".json", ".txt", ".py", ".sh", ".com", ".exe", ".zip", ".png")
"""Some of the endings of keys that Consul refuses since 1.22, lest a proxy caches them."""

Read = Callable[[], tuple[int, Any]]


def key_of(request: web.Request) -> str:
    """The key in the path. Raises Refused."""
    key = unquote(request.match_info["key"])
    if odd := re.search(r"[^A-Za-z0-9,._/-]", key):
        raise Refused(400, f"key contains invalid character '{odd[0]}' at position {odd.start()}.")
    if key.lower().endswith(LIKE_A_FILE):
        raise Refused(400, f"key contains suspicious file extension '.{key.rpartition('.')[2]}'")
    return key


def seconds(text: Any) -> float:
    """A Go duration, or a number of seconds. Raises Refused."""
    if isinstance(text, int | float):
        return float(text) if text < 1000 else text / 1e9
    parts = re.findall(r"([0-9.]+)(ms|h|m|s)", str(text))
    if not parts or "".join(number + unit for number, unit in parts) != str(text):
        raise Refused(400, f'Request decode failed: time: invalid duration "{text}"')
    return sum(float(number) * UNITS[unit] for number, unit in parts)


def too_large(length: int, limit: int, setting: str = "kv_max_value_size") -> Refused:
    """A body over a limit."""
    return Refused(413, f"Request body({length} bytes) too large, max size: {limit} bytes. See {DOCS}#{setting}.")


def get(store: Store, request: web.Request, rights: Rights) -> Read:
    """What a read of the KV looks at; values: status and what is in the body (bytes as they are)."""
    key, query = key_of(request), request.query
    if "keys" in query:
        return lambda: _names(store, key, query.get("separator", ""), rights)
    if "recurse" in query:
        return lambda: _tree(store, key, rights)
    if not key:
        raise Refused(400, "Missing key name")
    rights.need("key", "read", key)
    absent: int | None = None

    def read() -> tuple[int, Any]:
        nonlocal absent
        index, entry = store.get(key)
        if entry is None:
            # Who waits for it goes on waiting, whatever else is written.
            absent = index if absent is None else absent
            return absent, None
        return index, entry.value if "raw" in query else [entry.json()]

    return read


def _tree(store: Store, prefix: str, rights: Rights) -> tuple[int, Any]:
    index, found = store.tree(prefix)
    shown = [entry.json() for entry in found if rights.may("key", "read", entry.key)]
    rights.filtered |= len(shown) < len(found)
    return index, shown or None


def _names(store: Store, prefix: str, separator: str, rights: Rights) -> tuple[int, Any]:
    index, found = store.tree(prefix)
    names: dict[str, None] = {}
    for entry in found:
        if rights.may("key", "read", entry.key):
            rest = entry.key[len(prefix) :]
            cut = rest.find(separator) if separator else -1
            names[prefix + rest[: cut + len(separator)] if cut >= 0 else entry.key] = None
        else:
            rights.filtered = True
    return index, list(names) or None


async def put(store: Store, request: web.Request, rights: Rights, limit: int) -> bool:
    """PUT /v1/kv/:key."""
    key, query = key_of(request), request.query
    if not key:
        raise Refused(400, "Missing key name")
    flags = [name for name in ("cas", "acquire", "release") if name in query]
    if len(flags) > 1:
        raise Refused(400, f"Conflicting flags: {flags}")
    if request.content_length is not None and request.content_length > limit:
        raise too_large(request.content_length, limit)
    value = await request.read()
    if len(value) > limit:
        raise too_large(len(value), limit)
    rights.need("key", "write", key)
    number = int(query.get("flags", "0"))
    if "cas" in query:
        try:
            index = int(query["cas"])
        except ValueError:
            raise Refused(500, f'strconv.ParseUint: parsing "{query["cas"]}": invalid syntax') from None
        return store.cas(key, value, number, index) is not None
    if "acquire" in query:
        return store.acquire(key, value, number, query["acquire"])
    if "release" in query:
        return store.release(key, value, number, query["release"])
    store.put(key, value, number)
    return True


def delete(store: Store, request: web.Request, rights: Rights) -> bool:
    """DELETE /v1/kv/:key."""
    key, query = key_of(request), request.query
    if "recurse" in query:
        rights.need_below("key", "write", key)
        store.delete_tree(key)
        return True
    if not key:
        raise Refused(400, "Missing key name")
    rights.need("key", "write", key)
    if "cas" in query:
        entry = store.keys.get(key)
        if entry is not None and entry.modify != int(query["cas"]):
            return False
    store.delete(key)
    return True


# --- transactions --------------------------------------------------------------------------------------------


async def txn(store: Store, request: web.Request, rights: Rights, limit: int) -> tuple[int, dict[str, Any]]:
    """PUT /v1/txn → status and body. All of it or nothing."""
    raw = await request.read()
    if len(raw) > limit:
        raise too_large(len(raw), limit, "txn_max_req_len")
    try:
        operations = json.loads(raw)
    except ValueError as error:
        raise Refused(400, f"Failed to parse body: {error}") from None
    if len(operations) > TXN_OPERATIONS:
        raise Refused(413, f"Transaction contains too many operations ({len(operations)} > {TXN_OPERATIONS})")
    for operation in operations:
        if operation["KV"]["Key"].startswith("/"):
            raise Refused(400, "Invalid key in transaction: invalid key name, must not begin with a '/'")
    denied = [
        {"OpIndex": n, "What": refusal.text}
        for n, operation in enumerate(operations)
        if (refusal := _forbidden(operation["KV"], rights)) is not None
    ]
    if denied:
        return 409, {"Results": None, "Errors": denied}
    before = store.index, store.keys, store.graves, store.tables
    store.keys, store.graves, store.tables = (
        {key: copy.copy(entry) for key, entry in store.keys.items()},
        dict(store.graves),
        dict(store.tables),
    )
    writes = any(operation["KV"]["Verb"] not in READING for operation in operations)
    store.index, store.together = store.index + writes, True
    results: list[Any] = []
    errors: list[Any] = []
    for n, operation in enumerate(operations):
        try:
            results += [{"KV": one} for one in _operate(store, operation["KV"])]
        except Refused as refusal:
            errors.append({"OpIndex": n, "What": refusal.text})
    store.together = False
    if errors:
        store.index, store.keys, store.graves, store.tables = before
        return 409, {"Results": None, "Errors": errors}
    return 200, {"Results": results, "Errors": None}


READING = {"get", "get-or-empty", "get-tree", "check-index", "check-session", "check-not-exists"}


def _forbidden(operation: dict[str, Any], rights: Rights) -> Refused | None:
    try:
        rights.need("key", "read" if operation["Verb"] in READING else "write", operation["Key"])
    except Refused as refusal:
        return refusal
    return None


def _operate(store: Store, operation: dict[str, Any]) -> list[dict[str, Any]]:
    verb, key = operation["Verb"], operation["Key"]
    value = base64.b64decode(operation.get("Value") or "")
    if verb in READING:
        return _look(store, verb, key, operation)
    flags, index, session = operation.get("Flags", 0), operation.get("Index", 0), operation.get("Session", "")
    entry: Entry | None = None
    match verb:
        case "set":
            entry = store.put(key, value, flags)
        case "cas":
            if (entry := store.cas(key, value, flags, index)) is None:
                raise Refused(409, f'failed to set key "{key}", index is stale')
        case "lock":
            if not store.acquire(key, value, flags, session):
                raise Refused(409, f'failed to lock key "{key}", lock is already held')
            entry = store.keys[key]
        case "unlock":
            if not store.release(key, value, flags, session):
                raise Refused(409, f'failed to unlock key "{key}", lock isn\'t held, or is held by another session')
            entry = store.keys[key]
        case "delete":
            store.delete(key)
        case "delete-tree":
            store.delete_tree(key)
        case "delete-cas":
            old = store.keys.get(key)
            if old is not None and old.modify != index:
                raise Refused(409, f'failed to delete key "{key}", index is stale')
            store.delete(key)
        case _:
            raise Refused(409, f'unknown KV verb "{verb}"')
    return [entry.json(value=False)] if entry else []


def _look(store: Store, verb: str, key: str, operation: dict[str, Any]) -> list[dict[str, Any]]:
    entry = store.keys.get(key)
    if verb == "get-tree":
        return [one.json() for one in store.tree(key)[1]]
    if verb == "check-not-exists":
        if entry is not None:
            raise Refused(409, f'key "{key}" exists')
        return []
    if entry is None:
        if verb == "get-or-empty":
            return [Entry(key, b"", 0, 0, 0).json()]
        doing = {"check-index": "failed to check index, ", "check-session": "failed to check session, "}.get(verb, "")
        raise Refused(409, f'{doing}key "{key}" doesn\'t exist')
    if verb == "check-index" and entry.modify != operation.get("Index", 0):
        wanted = operation.get("Index", 0)
        raise Refused(409, f'failed index check for key "{key}", current modify index {entry.modify} != {wanted}')
    if verb == "check-session" and entry.session != operation.get("Session", ""):
        wanted = operation.get("Session", "")
        raise Refused(409, f'failed session check for key "{key}", current session "{entry.session}" != "{wanted}"')
    return [entry.json(value=verb.startswith("get"))]


# --- sessions ------------------------------------------------------------------------------------------------


async def create_session(store: Store, request: web.Request, rights: Rights, node: str, least: float) -> dict[str, Any]:
    """PUT /v1/session/create."""
    raw = await request.read()
    try:
        wanted = json.loads(raw) if raw else {}
    except ValueError as error:
        raise Refused(400, f"Request decode failed: {error}") from None
    rights.need("session", "write", node)
    text = wanted.get("TTL", "")
    ttl = seconds(text) if text else 0.0
    if text and not least <= ttl <= 86400:
        raise Refused(500, f"Invalid Session TTL '{int(ttl * 1e9)}', must be between [{least:g}s=24h0m0s]")
    behavior = wanted.get("Behavior", "") or "release"
    if behavior not in {"release", "delete"}:
        raise Refused(500, f"Invalid Behavior setting '{behavior}'")
    session = store.add_session(
        name=wanted.get("Name", ""),
        ttl=ttl,
        ttl_text=str(text),
        lock_delay=seconds(wanted.get("LockDelay", "15s")),
        behavior=behavior,
        node=node,
    )
    return {"ID": session.id}
