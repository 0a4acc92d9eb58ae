"""Entry of a task that Nomad starts: `python -I -S modalnomad.pyz launch`; `prewarm` only makes the environment.

This file is the archive's `__main__.py` (see modalnomad/hashicorp/sdk_archive.py) and compiled anew at each start, so
it is short, and Pythons older than the SDK's oldest can read it. It finds the SDK that lies unpacked and compiled on
this node, else the archive's own.
"""

import os
import sys

BAD_CONFIGURATION = 71
ENVIRONMENT_FAILED = 80
OLDEST = (3, 10)


def package_folder(here: str, environ: "os._Environ[str]") -> str:
    """Of the modules to use: unpacked on this node, or beside this file (in a zip archive, or in a container)."""
    store, digest = environ.get("MODALNOMAD_NODE_STORE"), environ.get("MODALNOMAD_SDK")
    if store and digest:
        unpacked = os.path.join(store, "sdk", digest, "modalnomad_sdk")
        if os.path.isdir(unpacked):
            return unpacked
    return os.path.join(here, "modalnomad_sdk")


def distrusted(store: str) -> str:
    """Why nothing may be run from this folder: somebody else than root and this task's user may have put it there.
    Empty: it may, or there is none."""
    try:
        found = os.stat(store)
    except OSError:
        return ""
    us = os.geteuid()
    if found.st_uid == us or (found.st_uid == 0 and not found.st_mode & 0o022):
        return ""
    whose = f"belongs to user {found.st_uid}" if found.st_uid else "can be written by others than root"
    return (
        f"{store} {whose}, and what lies in it would run as user {us}: give it to user {us} alone, or name another "
        "folder with nomad.node_store"
    )


def main(arguments: "list[str]") -> int:
    """The exit code; a replica that starts never returns."""
    if sys.version_info < OLDEST:
        version = ".".join(str(number) for number in sys.version_info[:3])
        sys.stderr.write(
            f"modalnomad: this node would start replicas with Python {version} ({sys.executable}), and 3.10 is the "
            "oldest that can: set nomad.python to a newer one\n"
        )
        return BAD_CONFIGURATION
    why = distrusted(os.environ.get("MODALNOMAD_NODE_STORE", ""))
    if why:
        sys.stderr.write(f"modalnomad: {why}\n")
        return ENVIRONMENT_FAILED
    here = os.path.dirname(os.path.abspath(__file__))
    # In place of the package's own __init__, which is for programs and would take its time.
    package = type(sys)("modalnomad_sdk")
    package.__path__ = [package_folder(here, os.environ)]
    sys.modules["modalnomad_sdk"] = package
    from modalnomad_sdk.node.launch import main as launch

    return launch(arguments, here)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
