"""The text of INFO (https://redis.io/docs/latest/commands/info/) as fields."""

from __future__ import annotations

import re

_FIELD = re.compile(r"^([\w.@|:-]*?[\w.@|-]):(.*)$", re.ASCII)


def parse_info(text: str) -> dict[str, str]:
    """Fields by name, in the text's order. Headings, empty lines and what is no field are passed over."""
    found = map(_FIELD.match, text.splitlines())
    return {field[1]: field[2].strip() for field in found if field}


def parse_pairs(value: str) -> dict[str, str]:
    """The pairs in a field such as ``db0`` (``keys=2,expires=0,avg_ttl=0``)."""
    return {name: text for name, mark, text in (pair.partition("=") for pair in value.split(",")) if mark}
