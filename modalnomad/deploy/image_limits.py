"""Steps of an image that only a container can carry out, and what to write instead. Texts only."""

from __future__ import annotations

from collections.abc import Mapping

_DOCKER = (
    "replicas here run in a virtual environment of this machine (process driver), not in a container; "
    "{instead}, or run the image with the docker driver (a Nomad back end)"
)


def _refusal(name: str, instead: str) -> str:
    return f"Image.{name}: {_DOCKER.format(instead=instead)}"


_SLIM = "use Image.debian_slim(python_version=…) with pip_install, apt_install and run_commands"

CONTAINER_BASES: Mapping[str, str] = {
    "micromamba": _refusal("micromamba", "use Image.debian_slim(python_version=…) and pip_install what conda gave"),
    "from_registry": _refusal("from_registry", _SLIM),
    "from_dockerhub": _refusal("from_dockerhub", _SLIM),
    "from_aws_ecr": _refusal("from_aws_ecr", _SLIM),
    "from_gcp_artifact_registry": _refusal("from_gcp_artifact_registry", _SLIM),
    "from_dockerfile": _refusal("from_dockerfile", _SLIM),
    "from_scratch": _refusal("from_scratch", _SLIM),
    "from_name": _refusal("from_name", _SLIM),
    "from_id": _refusal("from_id", _SLIM),
}
CONTAINER_STEPS: Mapping[str, str] = {
    "micromamba_install": _refusal("micromamba_install", "use pip_install"),
    "dockerfile_commands": _refusal("dockerfile_commands", "use run_commands, env, workdir and add_local_file"),
    "entrypoint": _refusal("entrypoint", "set up what the program needs in @modal.enter or at its top"),
    "shell": _refusal("shell", "name the shell in the command: run_commands(\"bash -c '…'\")"),
    "poetry_install_from_file": _refusal(
        "poetry_install_from_file", "export the lock (poetry export) and use pip_install_from_requirements"
    ),
    "pip_install_private_repos": _refusal(
        "pip_install_private_repos", "use pip_install('git+https://${TOKEN}@…') with TOKEN in deploy's environment"
    ),
}
NO_CONDA = "conda is not set up here: use Image.from_registry with an image that has it, and run_commands"
NEVER_BASES: Mapping[str, str] = {
    "micromamba": f"Image.micromamba: {NO_CONDA}",
    "from_scratch": "Image.from_scratch: replicas need a Python and a shell: use Image.from_registry or debian_slim",
    "from_name": "Image.from_name: images have no names of their own here: use Image.from_registry",
    "from_id": "Image.from_id: images are known by their registry's names here: use Image.from_registry",
}
"""What containers cannot start from either."""
NEVER_STEPS: Mapping[str, str] = {
    "micromamba_install": f"Image.micromamba_install: {NO_CONDA}",
    "poetry_install_from_file": (
        "Image.poetry_install_from_file: export the lock (poetry export) and use pip_install_from_requirements"
    ),
    "pip_install_private_repos": (
        'Image.pip_install_private_repos: use run_commands("pip install git+https://$TOKEN@…", secrets=[…])'
    ),
}
LOGIN = "Image.{base}: secret= has no effect: the engine pulls with the login of this machine (docker login)"
WITHOUT_EFFECT: Mapping[str, str] = {
    "cmd": "Image.cmd has no effect on Functions",
}
