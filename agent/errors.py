"""Errors a person reads: what, where, and what to do. Lower case, "cannot X: why", the user's value in quotes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass


class UpkeepError(Exception):
    """The base of every error that reaches a person as one line and exit status 1, never as a traceback."""


@dataclass(frozen=True, slots=True, order=True)
class Fault:
    """One thing wrong with one place of one file. Lines and columns count from 1; 0 means the file as a whole."""

    path: str
    line: int
    column: int
    message: str
    warning: bool = False

    def __str__(self) -> str:
        place = f"{self.path}:{self.line}:{self.column}" if self.line else self.path
        return f"{place}: {'warning: ' if self.warning else ''}{self.message}"


class FaultyFilesError(UpkeepError):
    """Files that cannot be used, with every fault of every file at once."""

    def __init__(self, faults: Sequence[Fault]) -> None:
        self.faults = tuple(sorted(faults))
        super().__init__("\n".join(map(str, self.faults)))


class ExpressionError(UpkeepError):
    """A PromQL expression that cannot be parsed or evaluated."""


class PatternError(UpkeepError):
    """A log pattern that cannot be compiled, with the reason (look-around, back-reference, size)."""


class StoreError(UpkeepError):
    """A store file that cannot be opened, is from a newer version, or is held by another agent."""


class OpsError(UpkeepError):
    """The hands could not be reached, did not answer in time, or answered out of protocol."""


class DeliveryError(UpkeepError):
    """Something could not be handed over to its receiver.

    Parameters
    ----------
    message
        What the receiver said, or why it could not be reached.
    refused
        The receiver was there and will not have this one, now or later; others may pass.
    retry_after_s
        How long the receiver asked to be left alone.
    """

    def __init__(self, message: str, *, refused: bool = False, retry_after_s: float = 0.0) -> None:
        super().__init__(message)
        self.refused = refused
        self.retry_after_s = retry_after_s


def cause(error: BaseException) -> str:
    """What an error of the system says, in a few words; asyncio puts the address in the place of the reason."""
    if isinstance(error, OSError) and error.errno is not None and error.errno > 0:
        return os.strerror(error.errno).lower()
    return (getattr(error, "strerror", None) or str(error) or type(error).__name__).lower()
