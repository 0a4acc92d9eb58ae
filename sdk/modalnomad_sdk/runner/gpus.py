"""Did the replica get the GPUs it asked for?"""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Mapping


def visible_gpus(environ: Mapping[str, str]) -> int:
    """How many GPUs a CUDA program would find here."""
    present = _present()
    named = environ.get("CUDA_VISIBLE_DEVICES")
    if named is None:
        return present
    count = 0
    for name in named.split(","):
        name = name.strip()
        if not name or name.startswith("-") or (name.isdigit() and int(name) >= present):
            break  # CUDA stops at the first one that does not exist
        count += 1
    # Slices of one device (MIG) are devices of their own to CUDA.
    return count if "MIG-" in named else min(count, present)


def _present() -> int:
    """Devices of the driver; without its library, device files."""
    try:
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        devices = os.listdir("/dev") if os.path.isdir("/dev") else []
        return sum(1 for name in devices if re.fullmatch(r"nvidia[0-9]+", name))
    if nvml.nvmlInit_v2() != 0:
        return 0
    count = ctypes.c_uint(0)
    result = nvml.nvmlDeviceGetCount_v2(ctypes.byref(count))
    nvml.nvmlShutdown()
    return count.value if result == 0 else 0
