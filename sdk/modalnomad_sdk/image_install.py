"""Image steps that install packages."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TypeVar

from . import where
from .exception import InvalidError
from .image_base import Common, ImageBase, local, package_names
from .secret import Secret

I = TypeVar("I", bound="InstallSteps")  # noqa: E741


class InstallSteps(ImageBase):
    """pip, uv, Poetry, micromamba and apt."""

    def pip_install(
        self: I,
        *packages: str | list[str],
        find_links: str | None = None,
        index_url: str | None = None,
        extra_index_url: str | None = None,
        pre: bool = False,
        extra_options: str = "",
        force_build: bool = False,
        env: Mapping[str, str | None] | None = None,
        secrets: Collection[Secret] | None = None,
        gpu: str | None = None,
    ) -> I:
        """Install Python packages with pip's rules."""
        arguments = {
            "packages": package_names("pip_install", packages),
            "find_links": find_links,
            "index_url": index_url,
            "extra_index_url": extra_index_url,
            "pre": pre,
            "extra_options": extra_options,
        }
        if not arguments["packages"]:
            return self
        return self._build("pip_install", arguments, common=Common(env, secrets, gpu, force_build))

    def uv_pip_install(
        self: I,
        *packages: str | list[str],
        requirements: list[str] | None = None,
        find_links: str | None = None,
        index_url: str | None = None,
        extra_index_url: str | None = None,
        pre: bool = False,
        extra_options: str = "",
        force_build: bool = False,
        uv_version: str | None = None,
        env: Mapping[str, str | None] | None = None,
        secrets: Collection[Secret] | None = None,
        gpu: str | None = None,
    ) -> I:
        """Install Python packages with uv, also from `requirements` files."""
        if requirements is not None and (isinstance(requirements, str) or not isinstance(requirements, (list, tuple))):
            raise InvalidError(
                f"{where.caller()}: Image.uv_pip_install(requirements={requirements!r}): write a list of files"
            )
        arguments = {
            "packages": package_names("uv_pip_install", packages),
            "requirements": [local(file) for file in requirements or ()],
            "find_links": find_links,
            "index_url": index_url,
            "extra_index_url": extra_index_url,
            "pre": pre,
            "extra_options": extra_options,
            "uv_version": uv_version,
        }
        if not arguments["packages"] and not requirements:
            return self
        files = tuple(local(file) for file in requirements or ())
        return self._build("uv_pip_install", arguments, common=Common(env, secrets, gpu, force_build), files=files)

    def uv_sync(
        self: I,
        uv_project_dir: str = "./",
        *,
        force_build: bool = False,
        groups: list[str] | None = None,
        extras: list[str] | None = None,
        frozen: bool = True,
        extra_options: str = "",
        uv_version: str | None = None,
        env: Mapping[str, str | None] | None = None,
        secrets: Collection[Secret] | None = None,
        gpu: str | None = None,
    ) -> I:
        """Install what a uv project's lock file (`frozen`) or pyproject.toml says."""
        folder = local(uv_project_dir)
        arguments = {
            "uv_project_dir": folder,
            "groups": groups,
            "extras": extras,
            "extra_options": extra_options,
            "uv_version": uv_version,
            "not_frozen": not frozen,
        }
        files = (f"{folder}/pyproject.toml", f"{folder}/uv.lock")
        return self._build("uv_sync", arguments, common=Common(env, secrets, gpu, force_build), files=files)

    def pip_install_from_requirements(
        self: I,
        requirements_txt: str,
        find_links: str | None = None,
        *,
        index_url: str | None = None,
        extra_index_url: str | None = None,
        pre: bool = False,
        extra_options: str = "",
        force_build: bool = False,
        env: Mapping[str, str | None] | None = None,
        secrets: Collection[Secret] | None = None,
        gpu: str | None = None,
    ) -> I:
        """Install what a requirements file lists."""
        arguments = {
            "requirements_txt": local(requirements_txt),
            "find_links": find_links,
            "index_url": index_url,
            "extra_index_url": extra_index_url,
            "pre": pre,
            "extra_options": extra_options,
        }
        return self._build(
            "pip_install_from_requirements",
            arguments,
            common=Common(env, secrets, gpu, force_build),
            files=(local(requirements_txt),),
        )

    def pip_install_from_pyproject(
        self: I,
        pyproject_toml: str,
        optional_dependencies: Sequence[str] = [],
        *,
        find_links: str | None = None,
        index_url: str | None = None,
        extra_index_url: str | None = None,
        pre: bool = False,
        extra_options: str = "",
        force_build: bool = False,
        env: Mapping[str, str | None] | None = None,
        secrets: Collection[Secret] | None = None,
        gpu: str | None = None,
    ) -> I:
        """Install the dependencies (and named groups of optional ones) of a pyproject.toml."""
        arguments = {
            "pyproject_toml": local(pyproject_toml),
            "optional_dependencies": list(optional_dependencies),
            "find_links": find_links,
            "index_url": index_url,
            "extra_index_url": extra_index_url,
            "pre": pre,
            "extra_options": extra_options,
        }
        return self._build(
            "pip_install_from_pyproject",
            arguments,
            common=Common(env, secrets, gpu, force_build),
            files=(local(pyproject_toml),),
        )

    def pip_install_private_repos(
        self: I,
        *repositories: str,
        git_user: str,
        find_links: str | None = None,
        index_url: str | None = None,
        extra_index_url: str | None = None,
        pre: bool = False,
        extra_options: str = "",
        gpu: str | None = None,
        env: Mapping[str, str | None] | None = None,
        secrets: Collection[Secret] | None = None,
        force_build: bool = False,
    ) -> I:
        """Install packages from private repositories, with a token from a Secret."""
        if not secrets:
            raise InvalidError(
                f"{where.caller()}: Image.pip_install_private_repos needs secrets=[…] with GITHUB_TOKEN or GITLAB_TOKEN"
            )
        arguments = {
            "repositories": list(repositories),
            "git_user": git_user,
            "find_links": find_links,
            "index_url": index_url,
            "extra_index_url": extra_index_url,
            "pre": pre,
            "extra_options": extra_options,
        }
        return self._build("pip_install_private_repos", arguments, common=Common(env, secrets, gpu, force_build))

    def poetry_install_from_file(
        self: I,
        poetry_pyproject_toml: str,
        poetry_lockfile: str | None = None,
        *,
        ignore_lockfile: bool = False,
        force_build: bool = False,
        with_: Sequence[str] = [],
        without: Sequence[str] = [],
        only: Sequence[str] = [],
        poetry_version: str | None = "latest",
        old_installer: bool = False,
        env: Mapping[str, str | None] | None = None,
        secrets: Collection[Secret] | None = None,
        gpu: str | None = None,
    ) -> I:
        """Install a Poetry project's dependencies. Refused at deploy."""
        arguments = {
            "poetry_pyproject_toml": local(poetry_pyproject_toml),
            "poetry_lockfile": local(poetry_lockfile) if poetry_lockfile else None,
            "ignore_lockfile": ignore_lockfile,
            "with": list(with_),
            "without": list(without),
            "only": list(only),
            "poetry_version": poetry_version,
            "old_installer": old_installer,
        }
        return self._build(
            "poetry_install_from_file",
            arguments,
            common=Common(env, secrets, gpu, force_build),
            refusal="Poetry is not used here; export a requirements file and use Image.pip_install_from_requirements",
        )

    def micromamba_install(
        self: I,
        *packages: str | list[str],
        spec_file: str | None = None,
        channels: Sequence[str] = [],
        force_build: bool = False,
        env: Mapping[str, str | None] | None = None,
        secrets: Collection[Secret] | None = None,
        gpu: str | None = None,
    ) -> I:
        """Install conda packages. Refused at deploy."""
        arguments = {
            "packages": package_names("micromamba_install", packages),
            "spec_file": local(spec_file) if spec_file else None,
            "channels": list(channels),
        }
        return self._build(
            "micromamba_install",
            arguments,
            common=Common(env, secrets, gpu, force_build),
            refusal="micromamba is not used here; Image.pip_install or Image.uv_pip_install use a package index",
        )

    def apt_install(
        self: I,
        *packages: str | list[str],
        force_build: bool = False,
        env: Mapping[str, str | None] | None = None,
        secrets: Collection[Secret] | None = None,
        gpu: str | None = None,
    ) -> I:
        """System packages. The process driver checks that they are installed, and says which are not."""
        names = package_names("apt_install", packages)
        if not names:
            return self
        return self._build("apt_install", {"packages": names}, common=Common(env, secrets, gpu, force_build))
