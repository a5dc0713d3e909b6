"""Handlers by name. A new one is a file here, a line in :data:`_FACTORIES` and its parameters in agent/specs.py."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from agent import specs
from agent.errors import UpkeepError
from agent.handlers.clean_cache import CleanCache
from agent.handlers.notify import Notify
from agent.handlers.port import Handler, Tools
from agent.handlers.report import Report

__all__ = ["Handler", "Tools", "make"]

_FACTORIES: Mapping[str, Callable[[Any, Tools], Handler]] = {
    "clean_cache": CleanCache,
    "notify": Notify,
    "report": Report,
}


def make(name: str, params: Mapping[str, object], tools: Tools) -> Handler:
    """A handler from its name and its parameters as the ledger keeps them.

    Raises
    ------
    UpkeepError
        For a name or parameters that this version does not know or would not accept.
    """
    if name not in _FACTORIES:
        raise UpkeepError(f'unknown handler "{name}"')
    try:
        cls: Any = specs.HANDLERS[name]
        spec = cls(**params)
    except (TypeError, ValueError) as error:
        raise UpkeepError(f"cannot use the parameters of {name}: {error}") from error
    return _FACTORIES[name](spec, tools)
