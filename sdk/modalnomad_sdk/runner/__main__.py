"""Entry of a replica: `<image>/bin/python <sdk>/modalnomad_sdk/runner/__main__.py`, a zipapp, or
`-m modalnomad_sdk.runner`. With the arguments `call FILE`: a build step of an image, see build_call."""

from __future__ import annotations

import os
import sys


def _make_sdk_importable() -> None:
    """Only the SDK: its folder may be a site-packages full of things that must not leak into the image."""
    here = os.path.dirname(os.path.abspath(__file__))
    if not os.path.isdir(here):
        return  # from a zip file, which holds nothing but the SDK
    sys.path[:] = [entry for entry in sys.path if entry != here]  # Python put it there for the script
    if "modalnomad_sdk" in sys.modules:
        return  # started with -m
    from importlib.util import module_from_spec, spec_from_file_location

    package = os.path.dirname(here)
    spec = spec_from_file_location(
        "modalnomad_sdk", os.path.join(package, "__init__.py"), submodule_search_locations=[package]
    )
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    sys.modules["modalnomad_sdk"] = module
    spec.loader.exec_module(module)


def _let_multiprocessing_find_us() -> None:
    """Its new processes run this program again as `__mp_main__` only when they know it by its file: the one on disk."""
    main = sys.modules["__main__"]
    main.__spec__ = None
    file = os.path.abspath(__file__)
    while not os.path.exists(file):  # in a zip file
        file = os.path.dirname(file)
    main.__file__ = file


if __name__ == "__main__":
    _make_sdk_importable()
    _let_multiprocessing_find_us()
    if sys.argv[1:2] == ["call"]:
        from modalnomad_sdk.runner.build_call import main as call

        sys.exit(call(sys.argv[2]))
    if sys.argv[1:2] == ["template"]:
        from modalnomad_sdk.runner import template

        sys.exit(template.main(int(sys.argv[2])))
    from modalnomad_sdk.runner import start

    sys.exit(start.main())

if __name__ == "__mp_main__":  # a process that the user's code made with multiprocessing ("spawn")
    _make_sdk_importable()
    from modalnomad_sdk.alias import install_alias

    install_alias()
