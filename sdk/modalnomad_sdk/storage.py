"""Stored objects: declared here, not available on this platform yet. A Function that uses one is refused at deploy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from . import where
from .exception import InvalidError
from .secret import Secret
from .unavailable import Missing, Unavailable, runtime

if TYPE_CHECKING:
    from .process import Client

_FILES = "Keep files in a folder of the machine, or in an object store that your code talks to itself"
_VALUES = "Keep shared values in a database of your own"


class Volume(Unavailable):
    """A shared file system."""

    _runtime: ClassVar[frozenset[str]] = runtime(
        "commit reload listdir iterdir read_file read_file_into_fileobj remove_file copy_files batch_upload rename "
        "info objects"
    )
    _instead: ClassVar[str] = _FILES

    @property
    def name(self) -> str:
        """Its name."""
        return self._name

    @staticmethod
    def from_name(
        name: str,
        *,
        environment_name: str | None = None,
        create_if_missing: bool = False,
        version: int | None = None,
        create_options: Any = None,
        client: Client | None = None,
    ) -> Volume:
        """A Volume by its name."""
        return Volume(name)

    @staticmethod
    def from_id(volume_id: str, client: Client | None = None) -> Volume:
        """A Volume by its id."""
        return Volume(volume_id)

    @classmethod
    def ephemeral(
        cls,
        client: Client | None = None,
        environment_name: str | None = None,
        version: int | None = None,
        create_options: Any = None,
    ) -> Missing:
        """A Volume for the length of a `with` block."""
        return Missing("Volume.ephemeral", _FILES)

    def with_mount_options(self, *, read_only: bool | None = None, sub_path: str | None = None) -> Volume:
        """The same Volume, mounted read-only or from a folder in it."""
        return Volume(self._name)

    def read_only(self) -> Volume:
        """The same Volume, mounted read-only."""
        return Volume(self._name)


class NetworkFileSystem(Unavailable):
    """The older shared file system."""

    _runtime: ClassVar[frozenset[str]] = runtime(
        "create_deployed delete add_local_dir add_local_file iterdir listdir read_file remove_file write_file"
    )
    _instead: ClassVar[str] = _FILES

    @staticmethod
    def from_name(
        name: str,
        *,
        environment_name: str | None = None,
        create_if_missing: bool = False,
        client: Client | None = None,
    ) -> NetworkFileSystem:
        """A file system by its name."""
        return NetworkFileSystem(name)

    @classmethod
    def ephemeral(cls, client: Client | None = None, environment_name: str | None = None) -> Missing:
        """A file system for the length of a `with` block."""
        return Missing("NetworkFileSystem.ephemeral", _FILES)


class Dict(Unavailable):
    """A shared dictionary."""

    _runtime: ClassVar[frozenset[str]] = runtime("clear contains get info items keys len objects pop put update values")
    _instead: ClassVar[str] = _VALUES

    @property
    def name(self) -> str:
        """Its name."""
        return self._name

    @staticmethod
    def from_name(
        name: str,
        *,
        environment_name: str | None = None,
        create_if_missing: bool = False,
        client: Client | None = None,
    ) -> Dict:
        """A Dict by its name."""
        return Dict(name)

    @staticmethod
    def from_id(dict_id: str, client: Client | None = None) -> Dict:
        """A Dict by its id."""
        return Dict(dict_id)

    @classmethod
    def ephemeral(cls, *, client: Client | None = None, environment_name: str | None = None) -> Missing:
        """A Dict for the length of a `with` block."""
        return Missing("Dict.ephemeral", _VALUES)

    def _refuse(self, *_args: object) -> Any:
        return Missing("Dict", _VALUES)._refuse()

    __getitem__ = _refuse
    __setitem__ = _refuse
    __delitem__ = _refuse
    __contains__ = _refuse


class Queue(Unavailable):
    """A shared queue."""

    _runtime: ClassVar[frozenset[str]] = runtime(
        "clear get get_many info iterate len objects put put_many validate_partition_key"
    )
    _instead: ClassVar[str] = _VALUES

    @property
    def name(self) -> str:
        """Its name."""
        return self._name

    @staticmethod
    def from_name(
        name: str,
        *,
        environment_name: str | None = None,
        create_if_missing: bool = False,
        client: Client | None = None,
    ) -> Queue:
        """A Queue by its name."""
        return Queue(name)

    @staticmethod
    def from_id(queue_id: str, client: Client | None = None) -> Queue:
        """A Queue by its id."""
        return Queue(queue_id)

    @classmethod
    def ephemeral(cls, client: Client | None = None, environment_name: str | None = None) -> Missing:
        """A Queue for the length of a `with` block."""
        return Missing("Queue.ephemeral", _VALUES)


class Proxy(Unavailable):
    """A fixed outbound address."""

    _runtime: ClassVar[frozenset[str]] = runtime("")
    _instead: ClassVar[str] = "Replicas leave by the address of their machine"

    @staticmethod
    def from_name(name: str, *, environment_name: str | None = None, client: Client | None = None) -> Proxy:
        """A Proxy by its name."""
        return Proxy(name)


class CloudBucketMount(Unavailable):
    """A bucket mounted as a folder."""

    _instead: ClassVar[str] = _FILES

    def __init__(  # noqa: PLR0917 - the API that programs are written against
        self,
        bucket_name: str,
        bucket_endpoint_url: str | None = None,
        key_prefix: str | None = None,
        secret: Secret | None = None,
        oidc_auth_role_arn: str | None = None,
        read_only: bool = False,
        requester_pays: bool = False,
        force_path_style: bool = False,
    ) -> None:
        super().__init__(bucket_name)
        if key_prefix is not None and not key_prefix.endswith("/"):
            raise InvalidError(f"{where.caller()}: CloudBucketMount(key_prefix={key_prefix!r}): it must end with /")
        self.bucket_name = bucket_name
        self.secret = secret


def check_volumes(volumes: Any, place: str, what: str) -> dict[str, Any]:
    """Path → object, with the rules for paths.

    Raises:
        InvalidError: a path that cannot be mounted, one Volume twice, or something that is not a Volume.
    """
    if not isinstance(volumes, Mapping):
        raise InvalidError(
            f"{place}: {what}(volumes=…) needs a dict of path → modal.Volume, not {type(volumes).__name__}"
        )
    found: dict[str, Any] = {}
    seen: list[Volume] = []
    for path, volume in volumes.items():
        text = str(path)
        parts = text.split("/")
        if not text.startswith("/") or any(part in {"", ".", ".."} for part in parts[1:]) or text in {"/root", "/tmp"}:
            raise InvalidError(
                f"{place}: {what}(volumes=…): {text!r} cannot be mounted on; an absolute path without . or .. is "
                "needed, and not /, /root or /tmp"
            )
        if not isinstance(volume, (Volume, CloudBucketMount)):
            raise InvalidError(f"{place}: {what}(volumes=…): {text!r} is a {type(volume).__name__}, not a modal.Volume")
        if isinstance(volume, Volume):
            if any(volume is other for other in seen):
                raise InvalidError(f"{place}: {what}(volumes=…): the same Volume is mounted twice, at {text!r} again")
            seen.append(volume)
        found[text] = volume
    return found
