"""The GPUs of this machine, found with the driver's own library and handed out one replica at a time."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

from modalnomad.embedded.store import FileLock, held_since, locked, make_folder, translated
from modalnomad.model.gpus import Choice, Gpu, parse_choice

LIBRARY: Final = "libnvidia-ml.so.1"
NAME_LENGTH: Final = 96
MIB: Final = 1024 * 1024


class Gpus:
    """Hands out cards. A card is one replica's at a time, over all processes of one home, and free again when its
    holder is gone, however it went."""

    def __init__(self, home: Path, find: Callable[[], tuple[Gpu, ...]] | None = None) -> None:
        self._folder = home / "gpus"
        self._find = find or find_gpus
        self._found: tuple[Gpu, ...] | None = None

    def found(self) -> tuple[Gpu, ...]:
        """All cards of this machine; looked for once. May take a second: not for the event loop the first time."""
        if self._found is None:
            self._found = self._find()
        return self._found

    def possible(self, wanted: Sequence[str]) -> bool:
        """Could any of the choices ever be given?"""
        return any(len(self._fitting(parse_choice(text))) >= parse_choice(text).count for text in wanted)

    def free(self, wanted: Sequence[str]) -> bool:
        """Could any be given now? Raises BackendRefused."""
        with self._asking(), self._taken(wanted) as got:
            return got is not None

    @contextmanager
    def taken(self, wanted: Sequence[str]) -> Iterator[tuple[Gpu, ...] | None]:
        """The first of the user's choices that is free, held for the time of the block; None: none is. Raises
        BackendRefused."""
        with ExitStack() as stack:
            with self._asking():
                got = stack.enter_context(self._taken(wanted))
            yield got

    @contextmanager
    def _asking(self) -> Iterator[None]:
        """Who only looks, or tries a choice that is not free in the end, has cards for a moment: nobody asks for them
        then."""
        self.found()  # first: others need not wait while the driver is asked
        with translated(f"look which GPUs are free in {self._folder}"):
            make_folder(self._folder)
        with locked(self._folder):
            yield

    @contextmanager
    def _taken(self, wanted: Sequence[str]) -> Iterator[tuple[Gpu, ...] | None]:
        for text in wanted:
            choice = parse_choice(text)
            locks: list[FileLock] = []
            got: list[Gpu] = []
            try:
                for gpu in self._fitting(choice):
                    lock = FileLock(self._folder / f"{gpu.uuid}.lock")
                    try:
                        lock.acquire(wait=False)
                    except BlockingIOError:
                        continue
                    locks.append(lock)
                    got.append(gpu)
                    if len(got) == choice.count:
                        yield tuple(got)
                        return
            finally:
                for lock in locks:
                    lock.release()
        yield None

    def held(self) -> frozenset[str]:
        """Those a replica has now."""
        return frozenset(held_since(self._folder))

    def _fitting(self, choice: Choice) -> list[Gpu]:
        return [gpu for gpu in self.found() if choice.fits(gpu)]

    def describe(self) -> str:
        """What this machine has, for an error."""
        names = [gpu.name for gpu in self.found()]
        counted = [f"{names.count(name)} × {name}" for name in dict.fromkeys(names)]
        return ", ".join(counted) or "none"


class _Memory(ctypes.Structure):
    _fields_ = (("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong))


def find_gpus() -> tuple[Gpu, ...]:
    """What NVML lists; nothing where there is no driver or it does not answer."""
    try:
        nvml = ctypes.CDLL(LIBRARY)
    except OSError:
        return ()
    if nvml.nvmlInit_v2() != 0:
        return ()
    try:
        count = ctypes.c_uint()
        if nvml.nvmlDeviceGetCount_v2(ctypes.byref(count)) != 0:
            return ()
        found = (_device(nvml, index) for index in range(count.value))
        return tuple(gpu for gpu in found if gpu is not None)
    finally:
        nvml.nvmlShutdown()


def _device(nvml: Any, index: int) -> Gpu | None:
    """None for a card that does not answer: it cannot be given to anybody."""
    handle = ctypes.c_void_p()
    name = ctypes.create_string_buffer(NAME_LENGTH)
    uuid = ctypes.create_string_buffer(NAME_LENGTH)
    memory = _Memory()
    failed = (
        nvml.nvmlDeviceGetHandleByIndex_v2(ctypes.c_uint(index), ctypes.byref(handle))
        or nvml.nvmlDeviceGetName(handle, name, ctypes.c_uint(NAME_LENGTH))
        or nvml.nvmlDeviceGetUUID(handle, uuid, ctypes.c_uint(NAME_LENGTH))
        or nvml.nvmlDeviceGetMemoryInfo(handle, ctypes.byref(memory))
    )
    if failed:
        return None
    return Gpu(uuid.value.decode(), name.value.decode(), int(memory.total) // MIB)
