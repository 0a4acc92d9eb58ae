"""What a replica's runner needs besides the user's own packages (design §3), resolved together with them.

Lower bounds only, as low as the runner was seen to serve with: the user's pins win (`pydantic<2` brings an older
FastAPI).
"""

from __future__ import annotations

RUNTIME_REQUIREMENTS: tuple[str, ...] = (
    "fastapi>=0.80",
    "httptools>=0.5",
    "python-multipart>=0.0.5",
    "uvicorn>=0.21",
    "uvloop>=0.17; sys_platform != 'win32' and platform_python_implementation == 'CPython'",
    "websockets>=10.0",
)
