"""FunctionCall: a call that was started with `.spawn()` and goes on by itself."""

from __future__ import annotations

import builtins
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

from . import calling, where
from .exception import InputCancellation, UnimplementedError
from .twin import Twin
from .unavailable import Unavailable, runtime

if TYPE_CHECKING:
    from concurrent.futures import Future

    from .process import Client


class FunctionCall(Unavailable):
    """A call of a Function that goes on by itself; it ends with the local entrypoint that started it."""

    _runtime: ClassVar[frozenset[str]] = runtime("get_call_graph iter logs num_inputs") - {"object_id"}
    _future: Future[calling.Answer] | None = None

    @classmethod
    def from_id(cls, function_call_id: str, client: Client | None = None) -> FunctionCall:
        """A call by its id. Nothing can be asked of it: calls are not kept."""
        return cls(function_call_id)

    @classmethod
    def _started(cls, future: Future[calling.Answer], name: str) -> FunctionCall:
        import uuid

        made = cls(f"fc-{uuid.uuid4().hex}")
        made._future, made._function_name = future, name
        return made

    _function_name = ""

    @property
    def object_id(self) -> str:
        """`fc-…`."""
        return self._name

    @Twin
    def get(self, timeout: float | None = None) -> Any:
        """What the call returned, once it has; what it raised is raised.

        Raises:
            TimeoutError: the built-in one, not within `timeout` seconds.
            InputCancellation: it was cancelled.
        """
        from concurrent.futures import CancelledError
        from concurrent.futures import TimeoutError as FutureTimeout

        try:
            answer = self._need("get").result(timeout)
        except FutureTimeout:
            raise builtins.TimeoutError(f"{self} has not ended within {timeout:g} s") from None
        except CancelledError:
            raise InputCancellation(f"{self} was cancelled") from None
        return calling.value_of(answer, self._function_name)

    @get.awaited
    async def _get_aio(self, timeout: float | None = None) -> Any:
        """The same, for `await`."""
        import asyncio

        future = self._need("get")
        waiter = asyncio.shield(asyncio.wrap_future(future))
        try:
            answer = await asyncio.wait_for(waiter, timeout)
        except asyncio.TimeoutError:  # noqa: UP041 - a class of its own in Python 3.10
            raise builtins.TimeoutError(f"{self} has not ended within {timeout:g} s") from None
        except asyncio.CancelledError:
            if future.cancelled():
                raise InputCancellation(f"{self} was cancelled") from None
            raise
        return calling.value_of(answer, self._function_name)

    @Twin
    def cancel(self, terminate_containers: bool = False) -> None:
        """End it, if it has not ended. `terminate_containers` has no effect: the call ends in its replica."""
        self._need("cancel").cancel()

    @staticmethod
    def gather(*function_calls: FunctionCall) -> list[Any]:
        """The results of all, in this order; the first error is raised."""
        return [call.get() for call in function_calls]

    def _need(self, method: str) -> Future[calling.Answer]:
        if self._future is None:
            self._refuse(method)
        return self._future

    def _refuse(self, method: str) -> NoReturn:
        raise UnimplementedError(
            f"{where.caller()}: `FunctionCall.{method}()`: calls are not kept; only the object that .spawn() gave "
            "knows its call"
        )

    def __repr__(self) -> str:
        return f"FunctionCall({self._name!r})"
