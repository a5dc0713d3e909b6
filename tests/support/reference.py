"""The pages that are made from the code: ``python -m tests.support.reference`` writes them, a test compares them."""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import re
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from enum import Enum
from pathlib import Path

from agent import config, handlers, located, matching, metrics, rulefile, specs
from agent.cli import make_parser
from agent.commands.common import span
from agent.config import Config
from agent.gpu import xid
from agent.located import hints, key_of
from tests.support import schema

ROOT = Path(__file__).parents[2]

Rows = Iterator[tuple[str, ...]]


def main() -> None:
    """Write every page that differs, and say which."""
    for name, make in PAGES.items():
        page, text = ROOT / name, make()
        if not page.exists() or page.read_text(encoding="utf-8") != text:
            page.parent.mkdir(parents=True, exist_ok=True)
            page.write_text(text, encoding="utf-8")
            print(f"written   {name}")


# -- commands --------------------------------------------------------------------------------------------------------

_COMMANDS = """\
# Commands

Made from `agent/cli.py`; a test compares.

`upkeep COMMAND …`, or `./dev upkeep COMMAND …` for the instance of `./dev run`.

Every command takes `--config FILE`: the configuration; else `$UPKEEP_CONFIG`, else `/etc/upkeep/upkeep.yaml`.
Commands that print facts take `--json`. Errors go to standard error, as `FILE:LINE:COLUMN: message` where a file is at
fault.

| exit status | means |
|---|---|
| 0 | done |
| 1 | the answer is no, or something was refused |
| 2 | wrong usage |
| 75 | `upkeep run`: another agent holds the state directory |

Durations are written `90s`, `2m30s`, `7d`. An instant is ISO time (UTC unless it says otherwise), epoch seconds, or an
age such as `5m`.
"""
_EVERYWHERE = ("--help", "--config")


def commands() -> str:
    """``docs/reference/commands.md``."""
    parts = [_COMMANDS]
    for name, parser, words in _subcommands(make_parser()):
        arguments = [each for each in parser._actions if not set(each.option_strings) & set(_EVERYWHERE)]
        parts.append(f"## upkeep {name}\n\n{_sentence(words)}\n\n```text\n{_synopsis(name, arguments)}\n```\n")
        if arguments:
            parts.append(_table(("argument", "meaning"), ((_argument(each), _meaning(each)) for each in arguments)))
    return "\n".join(parts)


def _subcommands(parser: argparse.ArgumentParser) -> Iterator[tuple[str, argparse.ArgumentParser, str]]:
    [commands] = [each for each in parser._actions if isinstance(each, argparse._SubParsersAction)]
    words = {choice.dest: choice.help for choice in commands._choices_actions}
    for name, command in commands.choices.items():
        yield name, command, words[name] or ""


def _synopsis(name: str, arguments: Sequence[argparse.Action]) -> str:
    return " ".join(["upkeep", name, *map(_usage, arguments)])


def _usage(argument: argparse.Action) -> str:
    if argument.option_strings:
        longest = max(argument.option_strings, key=len)
        return f"[{longest}]" if argument.nargs == 0 else f"[{longest} {_value(argument)}]"
    usage = {"?": "[{}]", "*": "[{}…]", "+": "{}…"}.get(str(argument.nargs), "{}")
    return usage.format(_value(argument))


def _argument(argument: argparse.Action) -> str:
    names = ", ".join(f"`{name}`" for name in argument.option_strings)
    value = "" if argument.nargs == 0 else f"`{_value(argument)}`"
    return f"{names} {value}".strip()


def _value(argument: argparse.Action) -> str:
    if argument.metavar is not None:
        return str(argument.metavar)
    if argument.choices is not None:
        return "|".join(map(str, argument.choices))
    return argument.dest.upper()


def _meaning(argument: argparse.Action) -> str:
    return argument.help or ""


# -- configuration ---------------------------------------------------------------------------------------------------

_CONFIGURATION = """\
# Configuration: `upkeep.yaml`

Made from the dataclasses of `agent/config.py`; a test compares. `upkeep init DIR` writes what has an effect as a
commented file.

Every key has a default: an empty file is a working agent in observe mode. The file is `--config FILE`, else
`$UPKEEP_CONFIG`, else `/etc/upkeep/upkeep.yaml`. It is read at start. A reload (SIGHUP) takes over rules, patterns and
jobs; other keys need a restart, and the event `reloaded` says so.

- A size has a unit: `10GiB` (1024), `10GB` (1000), `512B`. A duration has one too: `3d`, `2m30s`, `500ms`. `0` needs
  none.
- A path is absolute. Nothing in it is expanded: no `~`, no variables, no `..`.
- `key: false` switches a part off where "off" stands below; `key:` or `key: {}` means the part with its defaults.
- Unknown and repeated keys, anchors, aliases, tags and a second document are errors, each with its line and column.
- A file is refused that others may write, or that belongs to neither root nor the agent's user; so is one over 256 KiB.
- Secrets are never written here: a `password_file` names the file that holds one.
"""
_LATER = """\
## Accepted, no effect in this version

These keys are read and checked, and `upkeep check` says that they do nothing yet.
"""
_KEY_COLUMNS = ("key", "holds", "default", "meaning")


def configuration() -> str:
    """``docs/reference/configuration.md``."""
    parts = [_CONFIGURATION, "## Keys\n", _table(_KEY_COLUMNS, _keys(Config, "", later=False))]
    later = list(_keys(Config, "", later=True))
    if later:
        parts += [_LATER, _table(_KEY_COLUMNS, later)]
    return "\n".join(parts)


def _keys(cls: type, lead: str, *, later: bool, inside: bool = False) -> Rows:
    """The rows of a dataclass; of *later* keys and everything inside them, or of all others."""
    for item in dataclasses.fields(cls):
        hint, is_later = hints(cls)[item.name], inside or bool(item.metadata.get("later"))
        if is_later and not later:
            continue
        inner, many = _part(hint)
        if is_later or not later:
            yield f"`{lead}{key_of(item)}`", holds(hint), _default(item, hint), str(item.metadata["help"])
        if inner is not None:
            below = f"{lead}{key_of(item)}{'[]' if many else ''}."
            yield from _keys(inner, below, later=later, inside=is_later)


def _part(hint: object) -> tuple[type | None, bool]:
    """The dataclass that a key holds, if any, and whether it holds a list of them."""
    options = [each for each in _alternatives(hint) if each is not type(None)]
    inner, many = options[0], False
    if typing.get_origin(inner) is tuple:
        inner, many = typing.get_args(inner)[0], True
    return (typing.cast(type, inner), many) if dataclasses.is_dataclass(inner) else (None, False)


def _alternatives(hint: object) -> tuple[object, ...]:
    return typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)


_NAMED: Sequence[tuple[object, str]] = (
    (located.Duration, "duration"),
    (config.Interval, "duration, at least 100ms"),
    (located.Size, "size"),
    (located.Share, "percentage"),
    (located.AbsPath, "absolute path"),
    (config.Root, "absolute path"),
    (config.Listen, "`ADDRESS:PORT`"),
    (config.Zone, "time zone"),
    (config.Smtp, "`smtp://` or `smtps://`"),
    (config.Http, "`http://` or `https://`"),
    (config.Address, "address"),
    (config.Secret, "absolute path, or a bare name"),
    (config.RedisUrl, "address"),
    (config.Unit, "unit"),
    (config.Target, "target"),
    (config.RouteName, "small letters, digits, `_`, `-`"),
    (matching.Matchers, "matchers"),
    (str, "text"),
    (int, "whole number"),
    (bool, "`true` or `false`"),
)


def holds(hint: object) -> str:
    """What a key may hold, in words."""
    options = _alternatives(hint)
    if len(options) > 1:
        [hint] = [each for each in options if each is not type(None)]
        return holds(hint) + (" or `false`" if dataclasses.is_dataclass(hint) else "")
    if typing.get_origin(hint) is tuple:
        return f"list: {holds(typing.get_args(hint)[0])}"
    if typing.get_origin(hint) is typing.Literal:
        return _one_of(typing.get_args(hint))
    if isinstance(hint, type) and issubclass(hint, Enum):
        return _one_of([member.value for member in hint])
    if dataclasses.is_dataclass(hint):
        return "keys"
    if typing.get_origin(hint) is not None and hint not in [named for named, _ in _NAMED]:
        return "keys and text"
    return next(words for named, words in _NAMED if hint == named)


def _one_of(values: Sequence[object]) -> str:
    *others, last = (f"`{each}`" for each in values)
    return f"{', '.join(others)} or {last}"


def _default(item: dataclasses.Field[object], hint: object) -> str:
    if item.default is not dataclasses.MISSING:
        value = item.default
    elif item.default_factory is not dataclasses.MISSING:
        value = item.default_factory()
    else:
        return "required"
    optional_part = len(_alternatives(hint)) > 1 and _part(hint)[0] is not None
    if value is None:
        return "off" if optional_part else "none"
    if dataclasses.is_dataclass(value):
        return "on" if optional_part else ""
    if value in ((), "", {}):
        return "empty" if value == "" else "none"
    return f"`{written(hint, value)}`"


def written(hint: object, value: object) -> str:
    """A value as an operator would write it."""
    if isinstance(value, tuple):
        [inner, *_] = typing.get_args(hint)
        return f"[{', '.join(written(inner, each) for each in value)}]"
    if dataclasses.is_dataclass(value):
        held = {item: getattr(value, item.name) for item in dataclasses.fields(value)}
        cls = type(value)
        inner = ", ".join(f"{key_of(item)}: {written(hints(cls)[item.name], each)}" for item, each in held.items())
        return f"{{{inner}}}"
    if isinstance(value, bool):
        return str(value).lower()
    words = next((holds(each) for each in _alternatives(hint) if each is not type(None)), "")
    if words.startswith("duration"):
        return _largest_unit(float(str(value)), (("d", 86400.0), ("h", 3600.0), ("m", 60.0), ("s", 1.0)))
    if words == "size":
        return _largest_unit(float(str(value)), (("GiB", 1024.0**3), ("MiB", 1024.0**2), ("B", 1.0)))
    if words == "percentage":
        return f"{float(str(value)):.0%}"
    return str(value.value if isinstance(value, Enum) else value)


def _largest_unit(value: float, units: Sequence[tuple[str, float]]) -> str:
    return next((f"{value / length:.0f}{unit}" for unit, length in units if value and value % length == 0), "0")


# -- handlers --------------------------------------------------------------------------------------------------------

_HANDLERS = """\
# Handlers

Made from `agent/specs.py`; a test compares. A handler is named in a step of a rule or of a job, or on the command line:

```sh
upkeep plan clean_cache path=/tmp/evaluation_cache down_to=8GiB
```

It first plans, which only reads, and then carries out that plan, which is the only place that changes anything. Both
are kept: `upkeep actions ID` shows each item and what became of it. Why something was left alone: [ops.md](ops.md).
"""


def handler_pages() -> str:
    """``docs/reference/handlers.md``."""
    parts = [_HANDLERS]
    for name, spec in specs.HANDLERS.items():
        kind = getattr(handlers, spec.__name__)
        parts.append(f"## {name}\n\n{_paragraphs(inspect.getdoc(spec) or '')}\n")
        parts.append(_table(_KEY_COLUMNS, _parameters(spec)))
        parts.append("\n".join(f"- {line}" for line in _traits(kind)) + "\n")
    return "\n".join(parts)


def _parameters(spec: type) -> Rows:
    for item in dataclasses.fields(spec):
        hint = hints(spec)[item.name]
        yield f"`{key_of(item)}`", holds(hint), _default(item, hint), str(item.metadata["help"])


def _traits(kind: type[handlers.Handler]) -> Iterator[str]:
    if kind.harmless:
        yield "It changes nothing on the host: it works in every mode and during a pause, and is not verified."
    else:
        yield "It changes the host: it needs `mode: act`, an approval or a person who asks for it, and is verified."
    if kind.idempotent:
        yield "Interrupted by a crash, it is planned afresh, three times in all."
    else:
        yield "Interrupted by a crash, it is left to the next rung."
    if kind.waits_for_idle_host:
        yield "It waits while the host is busy."


# -- decisions -------------------------------------------------------------------------------------------------------

_DECISIONS = """\
# Decisions

One page for each choice that someone will ask about: the objective, the options, what was measured, what was decided.
This list is made from the pages' titles by `./dev docs`; a test compares.
"""
_TITLE = re.compile(r"# (\d{3}):? (.+)")


_SHIPPED = """\
# Shipped rules

Made from `rules/`; a test compares. Each has a unit test in `rules/tests/`, of a case in which it fires and of one in
which it must not. What to do about an alert stands in its `description`: `upkeep explain RULE`. Another threshold,
another mode or not at all: [overrides](rules.md#overrides-a-sites-changes-in-one-line).

Rules on metrics whose collector is off, or on hardware that is not there, cost nearly nothing and stay silent.
"""


def shipped_rules() -> str:
    """``docs/reference/shipped-rules.md``: every rule that comes with the agent."""
    parts = [_SHIPPED]
    for path in rulefile.shipped():
        rules = rulefile.load([path]).alert_rules
        rows = [
            (
                f"`{rule.name}`",
                rule.labels["severity"].text,
                _span(rule.timing.for_s),
                f"`{rule.expr.text}`",
                _repair(rule),
            )
            for rule in rules
        ]
        parts += [f"## {Path(path).stem}\n", _table(("rule", "severity", "for", "fires when", "asks for"), rows)]
    return "\n".join(parts)


def _span(seconds: float) -> str:
    return span(seconds) if seconds else "at once"


def _repair(rule: rulefile.AlertRule) -> str:
    return ", then ".join(f"`{step.handler}`" for step in rule.remediation.steps) if rule.remediation else ""


def decisions() -> str:
    """``docs/decisions/README.md``: the titles of all pages, by number."""
    return "\n".join([_DECISIONS, _table(("number", "decision"), _titles(ROOT / "docs/decisions"))])


def _titles(folder: Path) -> Rows:
    for page in sorted(folder.glob("[0-9]*.md")):
        found = _TITLE.match(page.read_text(encoding="utf-8"))
        if found is None or not page.name.startswith(f"{found[1]}-"):
            raise ValueError(f'cannot list "{page.name}": its first line is not "# {page.name[:3]}: TITLE"')
        yield found[1], f"[{found[2][0].upper()}{found[2][1:]}]({page.name})"


# -- text ------------------------------------------------------------------------------------------------------------


def _table(columns: Sequence[str], rows: typing.Iterable[Sequence[str]]) -> str:
    def line(cells: Sequence[str]) -> str:
        return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"

    return "\n".join([line(columns), "|---" * len(columns) + "|", *map(line, rows)]) + "\n"


def _sentence(words: str) -> str:
    return f"{words[0].upper()}{words[1:]}."


def _paragraphs(doc: str) -> str:
    """A docstring as Markdown: double backquotes become single ones."""
    return doc.replace("``", "`")


PAGES: Mapping[str, Callable[[], str]] = {
    "docs/reference/commands.md": commands,
    "docs/reference/configuration.md": configuration,
    "docs/reference/handlers.md": handler_pages,
    "docs/reference/metrics.md": metrics.reference,
    "docs/reference/shipped-rules.md": shipped_rules,
    "docs/reference/upkeep.schema.json": schema.configuration,
    "docs/reference/rules.schema.json": schema.rules,
    "docs/reference/xids.md": xid.reference,
    "docs/decisions/README.md": decisions,
}
"""Each generated page, by its place in the checkout, and what makes it."""


if __name__ == "__main__":
    main()
