"""Options of Functions, Apps, Images and Secrets with values they do not take."""

from __future__ import annotations

from tests.support.misuse_row import Misuse

ROWS: tuple[Misuse, ...] = (
    Misuse("gpu_count", "@app.function(gpu='H100:x')\ndef f():\n    pass\n", "InvalidError", ("H100:x", "H100:2")),
    Misuse("timeout_none", "@app.function(timeout=None)\ndef f():\n    pass\n", "InvalidError", ("timeout", "86400")),
    Misuse(
        "cpu_limit", "@app.function(cpu=(2.0, 1.0))\ndef f():\n    pass\n", "InvalidError", ("cpu", "limit"), vendor=""
    ),
    Misuse(
        "memory_limit",
        "@app.function(memory=(200, 100))\ndef f():\n    pass\n",
        "InvalidError",
        ("memory", "limit"),
        vendor="",
    ),
    Misuse(
        "schedule_with_argument",
        "@app.function(schedule=modal.Period(days=1))\ndef f(x):\n    pass\n",
        "InvalidError",
        ("schedule", "x"),
    ),
    Misuse(
        "secret_alone",
        "@app.function(secrets=modal.Secret.from_dict({'A': 'b'}))\ndef f():\n    pass\n",
        "InvalidError",
        ("secrets", "list"),
        vendor="TypeError",
    ),
    Misuse(
        "secret_as_dict",
        "@app.function(secrets=[{'A': 'b'}])\ndef f():\n    pass\n",
        "InvalidError",
        ("secrets", "from_dict"),
        vendor="",
    ),
    Misuse("app_image", "modal.App('x', image='python')\n", "InvalidError", ("modal.Image",), marked="modal.App"),
    Misuse(
        "app_secret",
        "modal.App('x', secrets=modal.Secret.from_dict({}))\n",
        "InvalidError",
        ("list",),
        marked="modal.App",
    ),
    Misuse(
        "volume_at_root",
        "@app.function(volumes={'/root': modal.Volume.from_name('v')})\ndef f():\n    pass\n",
        "InvalidError",
        ("/root",),
    ),
    Misuse(
        "volume_twice",
        "v = modal.Volume.from_name('v')\n@app.function(volumes={'/a': v, '/b': v})\ndef f():\n    pass\n",
        "InvalidError",
        ("twice",),
    ),
    Misuse(
        "parameter_without_annotation",
        "@app.cls()\nclass C:\n    x = modal.parameter()\n",
        "InvalidError",
        ("annotation", "x: str"),
        marked="modal.parameter",
    ),
    Misuse(
        "parameter_float",
        "@app.cls()\nclass C:\n    x: float = modal.parameter()\n",
        "InvalidError",
        ("float", "bytes"),
        marked="modal.parameter",
    ),
    Misuse(
        "entrypoint_twice",
        "@app.local_entrypoint()\ndef f():\n    pass\n@app.local_entrypoint(name='f')\ndef g():\n    pass\n",
        "InvalidError",
        ("`f`",),
        marked="name='f'",
    ),
    Misuse(
        "retries_range",
        "modal.Retries(max_retries=1, backoff_coefficient=11)\n",
        "InvalidError",
        ("backoff_coefficient", "10"),
        marked="Retries",
    ),
    Misuse(
        "build_step_after_local_file",
        "modal.Image.debian_slim().add_local_file('x', '/root/x').pip_install('y')\n",
        "InvalidError",
        ("copy=True",),
        marked="pip_install",
        vendor="",
    ),
    Misuse(
        "relative_remote_path",
        "modal.Image.debian_slim().add_local_dir('x', 'y')\n",
        "InvalidError",
        ("absolute",),
        marked="add_local_dir",
    ),
    Misuse(
        "option_among_packages",
        "modal.Image.debian_slim().pip_install('--pre')\n",
        "InvalidError",
        ("--pre", "option"),
        marked="pip_install",
    ),
    Misuse("secret_value", "modal.Secret.from_dict({'A': 1})\n", "InvalidError", ("`A`", "int"), marked="Secret"),
    Misuse(
        "secret_environ",
        "modal.Secret.from_local_environ(['MISUSE_NOT_SET'])\n",
        "InvalidError",
        ("MISUSE_NOT_SET",),
        marked="Secret",
    ),
    Misuse(
        "run_in_global_scope",
        "with app.run():\n    pass\n",
        "InvalidError",
        ("global scope",),
        marked="app.run",
        vendor="AuthError",
    ),
    Misuse(
        "remote_on_web",
        "@app.function()\n@modal.asgi_app()\ndef f():\n    pass\nf.remote()\n",
        "InvalidError",
        ("webhook", "remote", ".local()"),
        marked="f.remote",
        vendor="ExecutionError",
    ),
    Misuse(
        "function_of_method_name",
        "modal.Function.from_name('app', 'C.f')\n",
        "InvalidError",
        ("Cls",),
        marked="from_name",
    ),
    Misuse(
        "method_without_instance",
        "@app.cls()\nclass C:\n    @modal.method()\n    def f(self):\n        pass\nC.f.remote()\n",
        "AttributeError",
        ("forget to instantiate",),
        marked="-",
        vendor="AuthError",
    ),
)
