"""Decorators where they do not belong, and together with others they do not go with."""

from __future__ import annotations

from tests.support.misuse_row import Misuse

ROWS: tuple[Misuse, ...] = (
    Misuse("function_on_class", "@app.function()\nclass C:\n    pass\n", "TypeError", ("app.cls",)),
    Misuse("cls_on_function", "@app.cls()\ndef f():\n    pass\n", "TypeError", ("app.function",)),
    Misuse("server_on_function", "@app.server()\ndef f():\n    pass\n", "TypeError", ("not a class",)),
    Misuse(
        "function_on_method",
        "class C:\n    @app.function()\n    def f(self):\n        pass\n",
        "InvalidError",
        ("cannot be used on class methods", "@modal.method"),
    ),
    Misuse(
        "function_on_web_method",
        "class C:\n    @app.function()\n    @modal.fastapi_endpoint()\n    def f(self):\n        pass\n",
        "InvalidError",
        ("cannot be used on class methods",),
        marked="app.function",
    ),
    Misuse(
        "local_function",
        "def outer():\n    @app.function()\n    def f():\n        pass\nouter()\n",
        "InvalidError",
        ("inside another function", "top level"),
    ),
    Misuse(
        "local_class",
        "def outer():\n    @app.cls()\n    class C:\n        pass\nouter()\n",
        "InvalidError",
        ("inside another function", "top level"),
    ),
    *(
        Misuse(
            f"{kind}_above_function",
            f"@modal.{kind}({arguments})\n@app.function()\ndef f():\n    pass\n",
            "InvalidError",
            (kind, "swap the order"),
            marked=f"modal.{kind}",
        )
        for kind, arguments in (("fastapi_endpoint", ""), ("asgi_app", ""), ("wsgi_app", ""), ("web_server", "8000"))
    ),
    Misuse(
        "web_above_cls",
        "@modal.asgi_app()\n@app.cls()\nclass C:\n    pass\n",
        "InvalidError",
        ("asgi_app",),
        marked="asgi_app",
    ),
    *(
        Misuse(
            f"{name}_on_class",
            f"@{name}({arguments})\nclass C:\n    pass\n",
            "InvalidError",
            ("applying to a method instead",),
        )
        for name, arguments in (
            ("modal.fastapi_endpoint", ""),
            ("modal.asgi_app", ""),
            ("modal.wsgi_app", ""),
            ("modal.web_server", "8000"),
            ("modal.enter", ""),
            ("modal.exit", ""),
            ("modal.method", ""),
        )
    ),
    *(
        Misuse(
            f"async_{kind}",
            f"@app.function()\n@modal.{kind}({arguments})\nasync def f():\n    pass\n",
            "InvalidError",
            ("async function", "plain `def`"),
        )
        for kind, arguments in (("asgi_app", ""), ("wsgi_app", ""), ("web_server", "8000"))
    ),
    *(
        Misuse(
            f"{kind}_with_{what}",
            f"@app.function()\n@modal.{kind}({arguments})\ndef f({parameter}):\n    pass\n",
            "InvalidError",
            ("can't have parameters", "x"),
        )
        for kind, arguments in (("asgi_app", ""), ("wsgi_app", ""), ("web_server", "8000"))
        for what, parameter in (("parameter", "x"), ("default", "x=1"))
    ),
    Misuse(
        "asgi_method_with_parameter",
        "@app.cls()\nclass C:\n    @modal.asgi_app()\n    def f(self, x):\n        pass\n",
        "InvalidError",
        ("can't have parameters", "x"),
    ),
    Misuse(
        "fastapi_generator",
        "@app.function()\n@modal.fastapi_endpoint()\ndef f():\n    yield 1\n",
        "InvalidError",
        ("generator", "streaming", "StreamingResponse"),
    ),
    Misuse(
        "asgi_generator", "@app.function()\n@modal.asgi_app()\ndef f():\n    yield 1\n", "InvalidError", ("generator",)
    ),
    Misuse(
        "retries_on_web",
        "@app.function(retries=2)\n@modal.fastapi_endpoint()\ndef f():\n    pass\n",
        "InvalidError",
        ("retries", "leave"),
        marked="retries=2",
    ),
    Misuse(
        "retries_on_generator",
        "@app.function(retries=2)\ndef f():\n    yield 1\n",
        "InvalidError",
        ("retries", "leave"),
    ),
    Misuse(
        "method_and_web",
        "class C:\n    @modal.method()\n    @modal.fastapi_endpoint()\n    def f(self):\n        pass\n",
        "InvalidError",
        ("cannot be combined", "keep one"),
        marked="modal.method",
    ),
    Misuse(
        "web_and_method",
        "class C:\n    @modal.fastapi_endpoint()\n    @modal.method()\n    def f(self):\n        pass\n",
        "InvalidError",
        ("cannot be combined", "keep one"),
        marked="fastapi_endpoint",
    ),
    Misuse(
        "batched_and_web",
        "@modal.batched(max_batch_size=2, wait_ms=5)\n@modal.fastapi_endpoint()\ndef f(x):\n    pass\n",
        "InvalidError",
        ("cannot be combined",),
        marked="batched",
    ),
    Misuse(
        "enter_and_method",
        "class C:\n    @modal.enter()\n    @modal.method()\n    def f(self):\n        pass\n",
        "InvalidError",
        ("cannot be combined with lifecycle decorators",),
        marked="modal.enter",
    ),
    Misuse(
        "exit_and_web",
        "class C:\n    @modal.exit()\n    @modal.asgi_app()\n    def f(self):\n        pass\n",
        "InvalidError",
        ("cannot be combined with lifecycle decorators",),
        marked="modal.exit",
    ),
    Misuse(
        "two_web",
        "@modal.asgi_app()\n@modal.wsgi_app()\ndef f():\n    pass\n",
        "InvalidError",
        ("twice", "keep one"),
        marked="asgi_app",
    ),
    Misuse(
        "two_concurrent",
        "@modal.concurrent(max_inputs=2)\n@modal.concurrent(max_inputs=3)\ndef f():\n    pass\n",
        "InvalidError",
        ("twice",),
        marked="max_inputs=2",
    ),
    Misuse(
        "concurrent_on_method",
        "@app.cls()\nclass C:\n    @modal.concurrent(max_inputs=2)\n    @modal.method()\n"
        "    def f(self):\n        pass\n",
        "InvalidError",
        ("decorate the class",),
        marked="concurrent",
    ),
    Misuse(
        "concurrent_without_max",
        "@app.function()\n@modal.concurrent()\ndef f():\n    pass\n",
        "TypeError",
        ("max_inputs",),
    ),
    Misuse(
        "target_over_max",
        "@app.function()\n@modal.concurrent(max_inputs=2, target_inputs=3)\ndef f():\n    pass\n",
        "InvalidError",
        ("target_inputs=3", "max_inputs=2"),
    ),
    *(
        Misuse(
            f"target_{name}",
            f"@app.function()\n@modal.concurrent(max_inputs=2, target_inputs={value})\ndef f():\n    pass\n",
            "InvalidError",
            ("target_inputs", "whole number"),
        )
        for name, value in (("negative", "-1"), ("fraction", "1.5"), ("infinite", "float('inf')"))
    ),
    *(
        Misuse(
            f"batched_{name}",
            f"@app.function()\n@modal.batched({arguments})\ndef f(x):\n    pass\n",
            "InvalidError",
            (arguments.split("=")[0],) if name.startswith("size") else ("wait_ms",),
        )
        for name, arguments in (
            ("size_0", "max_batch_size=0, wait_ms=1"),
            ("size_1001", "max_batch_size=1001, wait_ms=1"),
            ("wait_negative", "max_batch_size=2, wait_ms=-1"),
            ("wait_long", "max_batch_size=2, wait_ms=600001"),
        )
    ),
    Misuse(
        "batched_default",
        "@app.function()\n@modal.batched(max_batch_size=2, wait_ms=5)\ndef f(x=1):\n    pass\n",
        "InvalidError",
        ("defaults", "x"),
    ),
    Misuse(
        "batched_generator",
        "@app.function()\n@modal.batched(max_batch_size=2, wait_ms=5)\ndef f(x):\n    yield x\n",
        "InvalidError",
        ("generator",),
    ),
    Misuse(
        "two_batched",
        "@app.cls()\nclass C:\n    @modal.batched(max_batch_size=2, wait_ms=5)\n    def f(self, x):\n        pass\n"
        "    @modal.batched(max_batch_size=2, wait_ms=5)\n    def g(self, x):\n        pass\n",
        "InvalidError",
        ("batched", "only one"),
        marked="app.cls",
    ),
    Misuse(
        "batched_and_method",
        "@app.cls()\nclass C:\n    @modal.batched(max_batch_size=2, wait_ms=5)\n    def f(self, x):\n        pass\n"
        "    @modal.method()\n    def g(self, x):\n        pass\n",
        "InvalidError",
        ("batched", "only one"),
        marked="app.cls",
    ),
    Misuse(
        "snap_without_snapshot",
        "@app.cls()\nclass C:\n    @modal.enter(snap=True)\n    def f(self):\n        pass\n",
        "InvalidError",
        ("enable_memory_snapshot=True",),
    ),
    Misuse(
        "own_init",
        "@app.cls()\nclass C:\n    def __init__(self):\n        pass\n",
        "InvalidError",
        ("__init__", "modal.enter", "modal.parameter"),
    ),
    Misuse(
        "inherited_init",
        "class B:\n    def __init__(self):\n        pass\n@app.cls()\nclass C(B):\n    pass\n",
        "InvalidError",
        ("__init__",),
    ),
    Misuse(
        "min_over_max",
        "@app.function(min_containers=3, max_containers=2)\ndef f():\n    pass\n",
        "InvalidError",
        ("min_containers=3", "max_containers=2"),
    ),
    Misuse(
        "min_not_int",
        "@app.function(min_containers='2')\ndef f():\n    pass\n",
        "InvalidError",
        ("min_containers", "whole number"),
    ),
    *(
        Misuse(
            f"window_{value}",
            f"@app.function(scaledown_window={value})\ndef f():\n    pass\n",
            "InvalidError",
            ("scaledown_window", "2", "3600"),
        )
        for value in (1, 3601)
    ),
    Misuse(
        "server_without_port",
        "@app.function()\n@modal.web_server()\ndef f():\n    pass\n",
        "TypeError",
        ("port",),
        marked="-",
    ),
    *(
        Misuse(
            f"port_{name}",
            f"@app.function()\n@modal.web_server({value})\ndef f():\n    pass\n",
            "InvalidError",
            ("port", "65535"),
        )
        for name, value in (("0", "0"), ("65536", "65536"), ("text", "'8000'"))
    ),
    Misuse(
        "server_startup_timeout",
        "@app.function()\n@modal.web_server(8000, startup_timeout=0)\ndef f():\n    pass\n",
        "InvalidError",
        ("startup_timeout", "above 0"),
    ),
    Misuse(
        "custom_domains_text",
        "@app.function()\n@modal.asgi_app(custom_domains='a.b.c')\ndef f():\n    pass\n",
        "AssertionError",
        ("a.b.c", "list"),
    ),
    Misuse(
        "no_parentheses",
        "@app.function()\n@modal.asgi_app\ndef f():\n    pass\n",
        "TypeError",
        ("positional",),
        marked="-",
    ),
    Misuse(
        "positional_method",
        "@app.function()\n@modal.fastapi_endpoint('POST')\ndef f():\n    pass\n",
        "TypeError",
        ("positional",),
        marked="-",
    ),
    Misuse(
        "function_without_parentheses", "@app.function\ndef f():\n    pass\n", "TypeError", ("positional",), marked="-"
    ),
    Misuse(
        "sessioned_function",
        "@app.function()\n@modal.sessioned()\ndef f():\n    pass\n",
        "InvalidError",
        ("app.server",),
    ),
    Misuse("sessioned_cls", "@app.cls()\n@modal.sessioned()\nclass C:\n    pass\n", "InvalidError", ("app.server",)),
    Misuse(
        "sessioned_method",
        "@app.server()\nclass C:\n    @modal.enter()\n    def up(self):\n        pass\n"
        "    @modal.sessioned()\n    def f(self):\n        pass\n",
        "InvalidError",
        ("sessioned",),
        marked="-",
    ),
    Misuse(
        "server_without_enter",
        "@app.server()\nclass C:\n    pass\n",
        "InvalidError",
        ("enter",),
    ),
    Misuse(
        "server_with_method",
        "@app.server()\nclass C:\n    @modal.enter()\n    def up(self):\n        pass\n"
        "    @modal.method()\n    def f(self):\n        pass\n",
        "InvalidError",
        ("C.f",),
        marked="app.server",
    ),
)
