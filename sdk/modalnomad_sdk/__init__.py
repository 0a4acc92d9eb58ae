"""What programs import as `modal`.

Names are loaded when they are first used, so that importing one module of this package (the contract, the runner) does
not cost the start-up time of all.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# Public name → module. The same list stands below for type checkers; a test compares them.
_HOME = {
    "App": "app",
    "Client": "process",
    "CloudBucketMount": "storage",
    "Cls": "cls",
    "Cluster": "sandbox",
    "Cron": "schedule",
    "Dict": "storage",
    "Environment": "sandbox",
    "Error": "exception",
    "FilePatternMatcher": "patterns",
    "Function": "functions",
    "FunctionCall": "functions",
    "Image": "image",
    "NetworkFileSystem": "storage",
    "Period": "schedule",
    "Probe": "sandbox",
    "Proxy": "storage",
    "Queue": "storage",
    "Retries": "retries",
    "Sandbox": "sandbox",
    "SandboxSnapshot": "sandbox",
    "SchedulerPlacement": "sandbox",
    "Secret": "secret",
    "Server": "sandbox",
    "Stub": "app",
    "Tunnel": "process",
    "Volume": "storage",
    "Workspace": "sandbox",
    "asgi_app": "decorators",
    "batched": "decorators",
    "billing": "sandbox",
    "clustered": "decorators",
    "concurrent": "decorators",
    "current_function_call_id": "process",
    "current_input_id": "process",
    "enable_output": "process",
    "enter": "decorators",
    "exit": "decorators",
    "fastapi_endpoint": "decorators",
    "forward": "process",
    "interact": "process",
    "is_local": "process",
    "method": "decorators",
    "parameter": "parameters",
    "sessioned": "decorators",
    "web_endpoint": "decorators",
    "web_server": "decorators",
    "wsgi_app": "decorators",
}
# Modules that programs reach as attributes, without importing them: `modal.exception.InvalidError`.
_MODULES = {"exception", "experimental", "gpu"}

if TYPE_CHECKING:
    from . import exception as exception
    from . import experimental as experimental
    from . import gpu as gpu
    from .app import App, Stub
    from .cls import Cls
    from .decorators import (
        asgi_app,
        batched,
        clustered,
        concurrent,
        enter,
        exit,
        fastapi_endpoint,
        method,
        sessioned,
        web_endpoint,
        web_server,
        wsgi_app,
    )
    from .exception import Error
    from .functions import Function, FunctionCall
    from .image import Image
    from .parameters import parameter
    from .patterns import FilePatternMatcher
    from .process import (
        Client,
        Tunnel,
        current_function_call_id,
        current_input_id,
        enable_output,
        forward,
        interact,
        is_local,
    )
    from .retries import Retries
    from .sandbox import (
        Cluster,
        Environment,
        Probe,
        Sandbox,
        SandboxSnapshot,
        SchedulerPlacement,
        Server,
        Workspace,
        billing,
    )
    from .schedule import Cron, Period
    from .secret import Secret
    from .storage import CloudBucketMount, Dict, NetworkFileSystem, Proxy, Queue, Volume

__all__ = [
    "App",
    "Client",
    "CloudBucketMount",
    "Cls",
    "Cluster",
    "Cron",
    "Dict",
    "Environment",
    "Error",
    "FilePatternMatcher",
    "Function",
    "FunctionCall",
    "Image",
    "NetworkFileSystem",
    "Period",
    "Probe",
    "Proxy",
    "Queue",
    "Retries",
    "Sandbox",
    "SandboxSnapshot",
    "SchedulerPlacement",
    "Secret",
    "Server",
    "Stub",
    "Tunnel",
    "Volume",
    "Workspace",
    "asgi_app",
    "batched",
    "billing",
    "clustered",
    "concurrent",
    "current_function_call_id",
    "current_input_id",
    "enable_output",
    "enter",
    "exit",
    "experimental",
    "fastapi_endpoint",
    "forward",
    "interact",
    "is_local",
    "method",
    "parameter",
    "sessioned",
    "web_endpoint",
    "web_server",
    "wsgi_app",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f"{__name__}.{name}")
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module 'modal' (modalnomad's) has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
