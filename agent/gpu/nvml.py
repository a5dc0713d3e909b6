"""The only door to NVML: each call is timed, each answer is a value or absent, each failure has a kind."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

import pynvml

from agent.gpu.protocol import DriverState

GONE = {pynvml.NVML_ERROR_GPU_IS_LOST, pynvml.NVML_ERROR_GPU_NOT_FOUND}
BROKEN = {
    pynvml.NVML_ERROR_UNINITIALIZED,
    pynvml.NVML_ERROR_DRIVER_NOT_LOADED,
    pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH,
}
UNSUPPORTED = {
    pynvml.NVML_ERROR_NOT_SUPPORTED,
    pynvml.NVML_ERROR_FUNCTION_NOT_FOUND,
    pynvml.NVML_ERROR_DEPRECATED,
    pynvml.NVML_ERROR_ARGUMENT_VERSION_MISMATCH,
}
"""This driver or this card has no such thing, and will not have it a moment later."""

_DRIVER_STATES: dict[int, DriverState] = {
    pynvml.NVML_ERROR_DRIVER_NOT_LOADED: "no_driver",
    pynvml.NVML_ERROR_LIBRARY_NOT_FOUND: "no_library",
    pynvml.NVML_ERROR_NO_PERMISSION: "no_permission",
    pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH: "mismatch",
}

_WORDS: dict[int, str] = {
    getattr(pynvml, name): name.removeprefix("NVML_ERROR_").lower().replace("_", " ")
    for name in vars(pynvml)
    if name.startswith("NVML_ERROR_")
}


class GoneError(Exception):
    """The GPU is lost; nothing more can be asked of it."""


class NeedsResetError(Exception):
    """The GPU answers nothing before it is reset."""


class BrokenError(Exception):
    """NVML itself is unusable: ``code`` is its return."""

    def __init__(self, code: int) -> None:
        self.code = code
        super().__init__(words(code))


def words(code: int) -> str:
    """A return code in words. NVML's own ``nvmlErrorString`` is a call like any other, so it is not asked."""
    return _WORDS.get(code, f"error {code}")


def driver_state(code: int) -> DriverState:
    """What a failure to begin says of the driver."""
    return _DRIVER_STATES.get(code, "failed")


class Calls:
    """The calls of one thread. Other threads may look at :attr:`under_way` and take the times."""

    def __init__(self) -> None:
        self.under_way: tuple[str, float] | None = None
        """The call that has not come back, and when it began, on the monotonic clock."""
        self._unsupported: set[tuple[object, ...]] = set()
        self._times: dict[str, float] = {}
        self._lock = threading.Lock()

    def begin(self, name: str, *arguments: object) -> Any:
        """Call ``pynvml.NAME``.

        Raises
        ------
        BrokenError
            With whatever it returned.
        """
        try:
            return self._call(name, arguments)
        except pynvml.NVMLError as error:
            raise BrokenError(error.value) from None

    def ask(self, name: str, *arguments: object, key: tuple[object, ...] = ()) -> Any:
        """What ``pynvml.NAME`` answers; None where there is no answer.

        What the driver does not support is not asked again before :meth:`forget`.

        Parameters
        ----------
        key
            What tells this question from others to the same function, besides the device.

        Raises
        ------
        GoneError, NeedsResetError, BrokenError
            When no further question makes sense.
        """
        question = (name, *key)
        if question in self._unsupported:
            return None
        try:
            return self._call(name, arguments)
        except pynvml.NVMLError as error:
            self._judge(error.value, question)
        except UnicodeDecodeError:
            pass  # a name from a card's own memory that is no text
        return None

    def fields(self, device: object, names: Iterable[str]) -> dict[str, float]:
        """Many values in one call (``nvmlDeviceGetFieldValues``); one that has no answer is absent."""
        asked = [name for name in names if hasattr(pynvml, name)]
        answers = self.ask("nvmlDeviceGetFieldValues", device, [getattr(pynvml, name) for name in asked])
        found = {}
        for name, answer in zip(asked, answers or (), strict=False):
            if answer.nvmlReturn == pynvml.NVML_SUCCESS and (read := _UNION.get(answer.valueType)):
                found[name] = float(getattr(answer.value, read))
            elif answer.nvmlReturn in GONE | BROKEN:
                self._judge(answer.nvmlReturn, ("nvmlDeviceGetFieldValues", name))
        return found

    def forget(self) -> None:
        """Ask everything again: what a card supports changes with its mode."""
        self._unsupported.clear()

    def take_times(self) -> dict[str, float]:
        """The longest time of each function since this was last asked."""
        with self._lock:
            times, self._times = self._times, {}
        return times

    def _call(self, name: str, arguments: Iterable[object]) -> Any:
        function: Callable[..., Any] | None = getattr(pynvml, name, None)
        if function is None:  # an older pynvml
            raise pynvml.NVMLError(pynvml.NVML_ERROR_FUNCTION_NOT_FOUND)
        began = time.monotonic()
        self.under_way = (name, began)
        try:
            return function(*arguments)
        finally:
            self.under_way = None
            with self._lock:
                self._times[name] = max(time.monotonic() - began, self._times.get(name, 0.0))

    def _judge(self, code: int, question: tuple[object, ...]) -> None:
        if code in GONE:
            raise GoneError
        if code == pynvml.NVML_ERROR_RESET_REQUIRED:
            raise NeedsResetError
        if code in BROKEN:
            raise BrokenError(code)
        if code in UNSUPPORTED:
            self._unsupported.add(question)


_UNION = {
    pynvml.NVML_VALUE_TYPE_DOUBLE: "dVal",
    pynvml.NVML_VALUE_TYPE_UNSIGNED_INT: "uiVal",
    pynvml.NVML_VALUE_TYPE_UNSIGNED_LONG: "ulVal",
    pynvml.NVML_VALUE_TYPE_UNSIGNED_LONG_LONG: "ullVal",
    pynvml.NVML_VALUE_TYPE_SIGNED_LONG_LONG: "sllVal",
    5: "siVal",  # SIGNED_INT and UNSIGNED_SHORT, which older packages do not name
    6: "usVal",
}
"""How each kind of field value is read out of the union."""
