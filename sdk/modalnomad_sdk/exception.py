"""Exceptions of the authoring API, under the names programs import from `modal.exception`.

Error
├── InvalidError                  the program is written wrongly; the message says where and what to write
│     ├── ConflictError
│     └── LocalFunctionError      defined inside another function, so a replica cannot import it
├── NotFoundError, AlreadyExistsError, AuthError, PermissionDeniedError, ResourceExhaustedError,
│   UnimplementedError, InternalError, DataLossError, ServiceError, VersionError, ConnectionError,
│   ClientClosed, InternalFailure, SerializationError, DeserializationError, RequestSizeError, …
├── ExecutionError
├── RemoteError → ImageBuildError
├── TimeoutError                  not the built-in one
└── SandboxFilesystemError, SandboxTerminatedError, SnapshotCreationError
InputCancellation                 a BaseException
DeprecationError, ServerWarning, AsyncUsageWarning, InternalAPIWarning      warnings
"""

from __future__ import annotations


class Error(Exception):
    """Base of all errors here."""


class InvalidError(Error):
    """The program uses the API wrongly."""


class ConflictError(InvalidError):
    """The thing changed since it was read, or is in the wrong state."""


class LocalFunctionError(InvalidError):
    """A function or class that a replica could not import, because it is not at the top level of its module."""


class AlreadyExistsError(Error):
    """Something of this name exists."""


class AuthError(Error):
    """No valid credentials."""


class ClientClosed(Error):
    """The connection to the platform is closed."""


class ConnectionError(Error):
    """The platform cannot be reached. Not the built-in exception of this name."""


class DataLossError(Error):
    """Stored data is damaged."""


class DeserializationError(Error):
    """A value could not be read back."""


class ExecutionError(Error):
    """Something unexpected happened while a Function ran."""


class InternalError(Error):
    """The platform failed."""


class InternalFailure(Error):
    """The platform failed in a way that is worth another try."""


class LogsFetchError(Error):
    """Logs could not be read."""


class NotFoundError(Error):
    """Nothing of this name exists."""


class PermissionDeniedError(Error):
    """The credentials do not allow this."""


class RemoteError(Error):
    """Something failed on the platform's side."""


class ImageBuildError(RemoteError):
    """An Image could not be built."""

    image_id: str | None = None


class RequestSizeError(Error):
    """A request is over the size limit."""


class ResourceExhaustedError(Error):
    """A quota is used up."""


class SerializationError(Error):
    """A value could not be written."""


class ServiceError(Error):
    """The platform answered with an error that has no class of its own."""


class UnimplementedError(Error):
    """This platform does not do that; the message names the limit."""


class VersionError(Error):
    """Client and platform do not understand each other."""


class WorkspaceManagementError(Error):
    """A workspace could not be changed."""


class TimeoutError(Error):
    """Base of all time-outs. Not the built-in exception of this name."""


class ExecTimeoutError(TimeoutError):
    """A command in a Sandbox took too long."""


class FunctionTimeoutError(TimeoutError):
    """A Function took longer than its `timeout`."""


class InteractiveTimeoutError(TimeoutError):
    """An interactive session took too long."""


class MountUploadTimeoutError(TimeoutError):
    """Local files took too long to upload."""


class OutputExpiredError(TimeoutError):
    """The result is no longer kept."""


class SandboxTimeoutError(TimeoutError):
    """A Sandbox reached its `timeout`."""


class VolumeUploadTimeoutError(TimeoutError):
    """Files took too long to upload to a Volume."""


class SandboxFilesystemError(Error):
    """Base of file errors in a Sandbox."""


class SandboxFilesystemDirectoryNotEmptyError(SandboxFilesystemError):
    """The folder is not empty."""


class SandboxFilesystemFileTooLargeError(SandboxFilesystemError):
    """The file is too large to read or write in one call."""


class SandboxFilesystemIsADirectoryError(SandboxFilesystemError):
    """A file was expected, a folder found."""


class SandboxFilesystemNotADirectoryError(SandboxFilesystemError):
    """A folder was expected, a file found."""


class SandboxFilesystemNotFoundError(SandboxFilesystemError):
    """No such file."""


class SandboxFilesystemPathAlreadyExistsError(SandboxFilesystemError):
    """The path exists."""


class SandboxFilesystemPermissionError(SandboxFilesystemError):
    """The file may not be read or written."""


class SandboxTerminatedError(Error):
    """The Sandbox is gone."""


class SnapshotCreationError(Error):
    """A snapshot could not be made."""


class ModuleNotMountable(Exception):
    """A local module named in `add_local_python_source` has no source that could be taken along."""


class UserCodeException(Exception):
    """Marks an exception of user code on its way out."""


class InputCancellation(BaseException):
    """Raised inside a Function whose input was cancelled. A BaseException: `except Exception` does not stop it."""


class DeprecationError(UserWarning):
    """Warning category (also raised) for names and arguments that have new ones."""


class ServerWarning(UserWarning):
    """Warning that the platform sent."""


class AsyncUsageWarning(UserWarning):
    """A blocking call inside an event loop."""


class InternalAPIWarning(UserWarning):
    """Use of something that is not part of the API."""


def simulate_preemption(wait_seconds: int, jitter_seconds: int = 0) -> None:
    """Interrupt this process after `wait_seconds` (and up to `jitter_seconds` more) as a preemption would."""
    import random
    import signal

    if wait_seconds <= 0:
        raise ValueError(f"simulate_preemption(wait_seconds={wait_seconds!r}): a time above 0 is needed")
    delay = wait_seconds + (random.random() * jitter_seconds if jitter_seconds else 0)

    def interrupt(_signal: int, _frame: object) -> None:
        signal.signal(signal.SIGALRM, lambda *_: signal.raise_signal(signal.SIGKILL))
        signal.alarm(30)
        raise KeyboardInterrupt("simulated preemption")

    signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, delay)
