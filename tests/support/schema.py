"""JSON Schema (draft-07) for editors, from the same dataclasses that the loader builds.

An editor sees a file as ordinary YAML, the loader sees each value as its text. So the schema is never stricter than the
loader: what it refuses the loader refuses too. What only the loader knows (expressions, patterns, roots) is plain text
here.
"""

from __future__ import annotations

import dataclasses
import json
import typing
from collections.abc import Mapping
from enum import Enum

from agent import config, located, rulefile, specs
from agent.located import FromNode, hints, key_of

Schema = dict[str, object]

_DRAFT = "http://json-schema.org/draft-07/schema#"
_TEXT: Schema = {"type": ["string", "number", "boolean", "null"]}
_INTEGER: Schema = {"type": ["integer", "string"], "pattern": r"^[+-]?(0|[1-9]\d*)$"}
_DURATION: Schema = {
    "anyOf": [{"const": 0}, {"type": "string", "pattern": f"^(?:0|(?=.){located._DURATION.pattern})$"}]
}
_SIZE: Schema = {"anyOf": [{"const": 0}, {"type": "string", "pattern": f"^(?:0|{located._SIZE.pattern})$"}]}
_PATH: Schema = {"type": "string", "pattern": "^/"}
_MARKED: Mapping[object, Schema] = {
    "duration": _DURATION,
    "size": _SIZE,
    "path": _PATH,
    "percent": {"type": "string", "pattern": r"^\d+(\.\d+)?%$"},
    config._interval: _DURATION,
    config._root: _PATH,
    rulefile._limit: {"type": "string", "pattern": r"^[1-9]\d* per \S+$"},
}
"""What an annotation of a hint means, by its tag or its converter; any other is text."""

_BUILT: Mapping[object, type] = {
    rulefile._group: rulefile._WrittenGroup,
    rulefile._rule: rulefile._WrittenRule,
    rulefile._pattern: rulefile._WrittenPattern,
    rulefile._job: rulefile._WrittenJob,
}


def configuration() -> str:
    """``docs/reference/upkeep.schema.json``."""
    return _document("upkeep.yaml", config.Config)


def rules() -> str:
    """``docs/reference/rules.schema.json``."""
    return _document("a rule file of Upkeep", rulefile._WrittenFile)


def _document(title: str, cls: type) -> str:
    return json.dumps({"$schema": _DRAFT, "title": title, **_object(cls)}, indent=1, ensure_ascii=False) + "\n"


def _object(cls: type) -> Schema:
    properties: dict[str, Schema] = {}
    required = []
    for item in dataclasses.fields(cls):
        words = item.metadata.get("help")
        properties[key_of(item)] = _of(hints(cls)[item.name]) | ({"description": words} if words else {})
        if item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING:
            required.append(key_of(item))
    kind: Schema = {"type": "object" if required else ["object", "null"]}
    return (
        kind | {"properties": properties, "additionalProperties": False} | ({"required": required} if required else {})
    )


def _of(hint: object) -> Schema:
    """What one key may hold."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        return _annotated(arguments[1])
    if type(None) in arguments:
        [inner] = [each for each in arguments if each is not type(None)]
        off: list[Schema] = [{"const": False}] if dataclasses.is_dataclass(inner) else []
        return {"anyOf": [{"type": "null"}, *off, _of(inner)]}
    if origin is tuple:
        return {"type": ["array", "null"], "items": _of(arguments[0])}
    if origin is typing.Literal:
        return {"enum": list(arguments)}
    if origin is not None:
        return {"type": ["object", "null"], "additionalProperties": _of(arguments[1])}
    if isinstance(hint, type) and issubclass(hint, Enum):
        return {"enum": [member.value for member in hint]}
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return _object(hint)
    plain: Mapping[object, Schema] = {bool: {"type": "boolean"}, int: _INTEGER}
    return plain.get(hint, _TEXT)


def _annotated(how: object) -> Schema:
    if not isinstance(how, FromNode):
        return _MARKED.get(how, _TEXT)
    return _step() if how.build is rulefile._step else _object(_BUILT[how.build])


def _step() -> Schema:
    """Exactly one handler with its parameters."""
    handlers = {name: _object(spec) for name, spec in specs.HANDLERS.items()}
    return {
        "type": "object",
        "properties": {**handlers, "verify_within": _DURATION},
        "additionalProperties": False,
        "oneOf": [{"required": [name]} for name in handlers],
    }
