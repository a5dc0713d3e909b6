"""Annotation and label templates: the part of Go's ``text/template`` that alerting rules use.

``{{ $labels.x }}``, ``{{ $value }}``, ``{{ .Labels.x }}``, ``{{ .Value }}``, pipes, brackets, ``if``/``else if``/
``else``/``with``/``range``/``end``, comments, the trim marks ``{{-`` and ``-}}``, and the functions in the table at the
end. Numbers are written as Go writes them. A template is compiled once; anything more than this is an error then, not
at three in the morning. The result is plain text, and what labels hold is never read as a template again.

Formats: https://prometheus.io/docs/prometheus/2.42/configuration/template_reference/ and https://pkg.go.dev/fmt.
"""

from __future__ import annotations

import json
import math
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import NoReturn

from agent.errors import ExpressionError
from agent.model import Labels
from agent.promql.arithmetic import format_float
from agent.promql.nodes import Expr, Kind, compile_regex, kind
from agent.promql.parse import parse
from agent.promql.values import Sample, Scalar, Vector

Query = Callable[[Expr], object]
"""Evaluates a parsed expression at the instant of the alert, to a value of PromQL."""

_VARIABLES = frozenset({"$labels", "$value", "$externalLabels", "$externalURL"})
_FIELDS = frozenset({"Labels", "Value", "ExternalLabels", "ExternalURL"})

# --- the tree ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Path:
    """A variable or the dot, and the fields taken from it."""

    root: str
    fields: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Literal:
    value: object


@dataclass(frozen=True, slots=True)
class _Call:
    function: str
    args: tuple[_Operand, ...]


@dataclass(frozen=True, slots=True)
class _Pipeline:
    """Each command's value is the last argument of the next."""

    first: _Operand
    then: tuple[_Call, ...] = ()


_Operand = _Path | _Literal | _Call | _Pipeline


@dataclass(frozen=True, slots=True)
class _Branch:
    """``if``, ``with`` and ``range``: the body when the condition is not empty.

    ``with`` makes the condition the dot, ``range`` each of its elements in turn.
    """

    keyword: str
    condition: _Pipeline
    body: tuple[_Part, ...]
    otherwise: tuple[_Part, ...]


_Part = str | _Pipeline | _Branch


@dataclass(frozen=True, slots=True)
class Template:
    """A compiled template."""

    text: str
    parts: tuple[_Part, ...]

    def expand(self, labels: Labels, value: float, query: Query) -> str:
        """The text for one alert.

        Parameters
        ----------
        labels, value
            Those of the alert.
        query
            Answers ``query "…"``.

        Returns
        -------
        str
            As in Prometheus, a template that fails says so in its result: an alert goes out whatever its words.
        """
        try:
            return _Expansion(dict(labels), value, query).write(self.parts)
        except ExpressionError as error:
            return f"<error expanding template: {error}>"


def compile(text: str) -> Template:
    """Compile a template.

    Raises
    ------
    ExpressionError
        With the offset in characters, if ``text`` is not a template or uses more than the subset.
    """
    return Template(text, _Parser(text).parse())


# --- reading -----------------------------------------------------------------------------------------------------

_TOKEN = re.compile(
    r"""\s*(?:
    (?P<close>-?\}\})
  | (?P<string>"(?:\\.|[^"\\\n])*"|`[^`]*`)
  | (?P<number>[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)
  | (?P<path>\$\w*(?:\.\w+)*|\.\w+(?:\.\w+)*|\.)
  | (?P<word>\w+)
  | (?P<mark>[|()])
)""",
    re.X,
)
_COMMENT = re.compile(r"\{\{(-\s)?\s*/\*.*?\*/\s*(\s-)?\}\}", re.S)
_END, _ELSE = "end", "else"
_KEYWORDS = ("if", "with", "range")


class _Parser:
    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._kind, self._token = "", ""
        self._trim = False

    def parse(self) -> tuple[_Part, ...]:
        parts, stopped = self._block()
        if stopped:
            self._fail(f'"{stopped}" without "if", "with" or "range"')
        return parts

    def _fail(self, reason: str) -> NoReturn:
        raise ExpressionError(f"cannot read the template at offset {self._at}: {reason}")

    # -- blocks

    def _block(self) -> tuple[tuple[_Part, ...], str]:
        """Parts up to the end of the text or a keyword that ends a block, which is read."""
        parts: list[_Part] = []
        while True:
            start = self._text.find("{{", self._at)
            literal = self._text[self._at : start if start >= 0 else None]
            trimmed_left = start >= 0 and re.match(r"\{\{-\s", self._text[start : start + 4]) is not None
            if self._trim:
                literal = literal.lstrip(" \t\r\n")
            if trimmed_left:
                literal = literal.rstrip(" \t\r\n")
            if literal:
                parts.append(literal)
            if start < 0:
                self._at = len(self._text)
                return tuple(parts), ""
            if comment := _COMMENT.match(self._text, start):
                self._at, self._trim = comment.end(), comment[2] is not None
                continue
            self._at = start + (3 if trimmed_left else 2)
            self._next()
            if self._kind == "word" and self._token in (_END, _ELSE):
                return tuple(parts), self._token
            parts.append(self._action())

    def _action(self) -> _Part:
        if self._kind == "word" and self._token in _KEYWORDS:
            return self._branch()
        pipeline = self._pipeline()
        self._close()
        return pipeline

    def _branch(self) -> _Branch:
        keyword = self._token
        self._next()
        condition = self._pipeline()
        self._close()
        body, stopped = self._block()
        otherwise: tuple[_Part, ...] = ()
        if stopped == _ELSE:
            self._next()
            if self._kind == "word" and self._token == "if":
                return _Branch(keyword, condition, body, (self._branch(),))
            self._close()
            otherwise, stopped = self._block()
        if stopped != _END:
            self._fail(f'"{keyword}" without "end"')
        self._next()
        self._close()
        return _Branch(keyword, condition, body, otherwise)

    # -- inside {{ }}

    def _next(self) -> None:
        found = _TOKEN.match(self._text, self._at)
        if found is None:
            self._fail("not closed" if not self._text[self._at :].strip() else "unexpected character")
        assert found.lastgroup is not None
        self._at, self._kind, self._token = found.end(), found.lastgroup, found[found.lastgroup]

    def _close(self) -> None:
        if self._kind != "close":
            self._fail(f'unexpected "{self._token}"')
        self._trim = self._token.startswith("-")

    def _pipeline(self) -> _Pipeline:
        first = self._command(piped=False)
        then: list[_Call] = []
        while self._token == "|" and self._kind == "mark":
            self._next()
            command = self._command(piped=True)
            if not isinstance(command, _Call):
                self._fail("only a function can stand after |")
            then.append(command)
        return _Pipeline(first, tuple(then))

    def _command(self, *, piped: bool) -> _Operand:
        if self._kind != "word" or self._token in ("true", "false"):
            return self._operand()
        name = self._token
        if name not in FUNCTIONS:
            self._fail(f'function "{name}" is not part of this template language')
        self._next()
        args: list[_Operand] = []
        while self._kind in ("string", "number", "path", "word") or self._token == "(":
            args.append(self._operand())
        if name == "query":
            return _Call(name, (self._expression(args, piped),))
        return _Call(name, tuple(args))

    def _operand(self) -> _Operand:
        token, kind = self._token, self._kind
        if token == "(" and kind == "mark":
            self._next()
            inner = self._pipeline()
            if self._token != ")":
                self._fail("a bracket is not closed")
            self._next()
            return inner
        operand: _Operand
        match kind:
            case "string":
                operand = _Literal(token[1:-1] if token[0] == "`" else self._unquote(token))
            case "number":
                operand = _Literal(int(token) if re.fullmatch(r"[-+]?\d+", token) else float(token))
            case "path":
                operand = self._path(token)
            case "word" if token in ("true", "false"):
                operand = _Literal(token == "true")
            case "word" if token in FUNCTIONS:
                operand = _Call(token, ())
            case _:
                self._fail(f'unexpected "{token}"')
        self._next()
        return operand

    def _unquote(self, token: str) -> str:
        try:
            return str(json.loads(token))
        except ValueError:
            self._fail(f"unknown escape in {token}")

    def _path(self, token: str) -> _Path:
        root, *names = token.split(".")
        if root and root != "$" and root not in _VARIABLES:
            self._fail(f'unknown variable "{root}"')
        fields = tuple(name for name in names if name)
        if root == "$" and fields and fields[0] not in _FIELDS:
            self._fail(f'unknown field "{fields[0]}"')
        return _Path(root, fields)

    def _expression(self, args: Sequence[_Operand], piped: bool) -> _Literal:
        if piped or len(args) != 1 or not isinstance(args[0], _Literal) or not isinstance(args[0].value, str):
            self._fail('"query" takes one expression in quotes')
        try:
            expr = parse(args[0].value)
        except ExpressionError as error:
            self._fail(str(error))
        if kind(expr) not in (Kind.SCALAR, Kind.VECTOR):
            self._fail(f'"query" of a {kind(expr)}')
        return _Literal(expr)


# --- writing -----------------------------------------------------------------------------------------------------


class _Expansion:
    """One alert's words."""

    def __init__(self, labels: Mapping[str, str], value: float, query: Query) -> None:
        self._data = {"Labels": labels, "Value": value, "ExternalLabels": {}, "ExternalURL": ""}
        self._query = query

    def write(self, parts: Sequence[_Part], dot: object = None) -> str:
        dot = self._data if dot is None else dot
        return "".join([self._write(part, dot) for part in parts])

    def _write(self, part: _Part, dot: object) -> str:
        match part:
            case str():
                return part
            case _Branch():
                return self._branch(part, self._value(part.condition, dot), dot)
            case _:
                return go_value(self._value(part, dot))

    def _branch(self, branch: _Branch, condition: object, dot: object) -> str:
        if not _truth(condition):
            return self.write(branch.otherwise, dot)
        match branch.keyword, condition:
            case "if", _:
                return self.write(branch.body, dot)
            case "with", _:
                return self.write(branch.body, condition)
            case _, list(elements):
                return "".join([self.write(branch.body, element) for element in elements])
            case _, dict(pairs):
                return "".join([self.write(branch.body, pairs[key]) for key in sorted(pairs)])
        raise ExpressionError(f"cannot range over {go_value(condition)}")

    def _value(self, operand: _Operand, dot: object) -> object:
        match operand:
            case _Literal(value):
                return value
            case _Path():
                return self._path(operand, dot)
            case _Call(function, args):
                return self._apply(function, [self._value(arg, dot) for arg in args])
            case _Pipeline(first, then):
                value = self._value(first, dot)
                for call in then:
                    value = self._apply(call.function, [*(self._value(arg, dot) for arg in call.args), value])
                return value

    def _path(self, path: _Path, dot: object) -> object:
        value: object = dot
        if path.root:
            value = self._data
            if path.root != "$":
                value = self._data[path.root[1].upper() + path.root[2:]]
        for name in path.fields:
            value = _field(value, name)
        return value

    def _apply(self, function: str, args: list[object]) -> object:
        if function == "query":
            return _samples(self._query(args[0]))  # type: ignore[arg-type]
        try:
            return FUNCTIONS[function](*args)
        except (TypeError, ValueError, IndexError, OverflowError) as error:
            raise ExpressionError(f'cannot apply "{function}": {error}') from None


def _samples(value: object) -> list[Sample]:
    match value:
        case Scalar(number):
            return [((), number)]
        case Vector(samples):
            return list(samples)
    raise ExpressionError("the query gives neither a scalar nor an instant vector")


def _field(value: object, name: str) -> object:
    match value:
        case dict():
            # A label that is not there is empty, as an absent label is.
            return value.get(name, "")
        case (tuple() as labels, float() as number) if name in ("Labels", "Value"):
            return dict(labels) if name == "Labels" else number
    raise ExpressionError(f'no field "{name}" in {go_value(value)}')


def _truth(value: object) -> bool:
    return bool(value) or (isinstance(value, float) and value != value)


def go_value(value: object) -> str:
    """A value as Go's ``%v`` writes it."""
    match value:
        case bool():
            return str(value).lower()
        case float():
            return _float(value)
        case dict():
            return "map[" + " ".join(f"{key}:{go_value(value[key])}" for key in sorted(value)) + "]"
        case _:
            return str(value)


def _float(value: float) -> str:
    """The shortest digits that give the number back; with an exponent below 1e-4 and from 1e6 on."""
    if not math.isfinite(value):
        return _infinite(value)
    shortest = Decimal(repr(value)).normalize()
    if -5 < shortest.adjusted() < 6 or not value:
        return format_float(value)
    return f"{value:.{len(shortest.as_tuple().digits) - 1}e}"


def _infinite(value: float) -> str:
    return "NaN" if value != value else "+Inf" if value > 0 else "-Inf"


# --- functions ---------------------------------------------------------------------------------------------------


def _number(value: object) -> float:
    if isinstance(value, float | int | str) and not isinstance(value, bool):
        try:
            return float(value)
        except ValueError:
            raise ValueError(f'"{value}" is not a number') from None
    raise TypeError(f"{go_value(value)} is not a number")


def _significant(value: float) -> str:
    return f"{value:.4g}" if math.isfinite(value) else _infinite(value)


_LARGE, _SMALL = "kMGTPEZY", "munpfazy"


def _humanize(value: object) -> str:
    number, prefix = _number(value), ""
    if not number or not math.isfinite(number):
        return _significant(number)
    if abs(number) < 1:
        return _small(number)
    for larger in _LARGE:
        if abs(number) < 1000:
            break
        number, prefix = number / 1000, larger
    return _significant(number) + prefix


def _small(number: float) -> str:
    prefix = ""
    for smaller in _SMALL:
        if abs(number) >= 1:
            break
        number, prefix = number * 1000, smaller
    return _significant(number) + prefix


def _humanize1024(value: object) -> str:
    number, prefix = _number(value), ""
    if abs(number) <= 1 or not math.isfinite(number):
        return _significant(number)
    for larger in _LARGE:
        if abs(number) < 1024:
            break
        number, prefix = number / 1024, f"{larger}i"
    return _significant(number) + prefix


def _humanize_percentage(value: object) -> str:
    return _significant(_number(value) * 100) + "%"


def _humanize_duration(value: object) -> str:
    number = _number(value)
    if not math.isfinite(number):
        return _significant(number)
    if abs(number) < 1:
        return (_small(number) if number else "0") + "s"
    sign, number = ("-", -number) if number < 0 else ("", number)
    minutes, seconds = divmod(int(number), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{sign}{days}d {hours}h {minutes}m {seconds}s"
    if hours:
        return f"{sign}{hours}h {minutes}m {seconds}s"
    if minutes:
        return f"{sign}{minutes}m {seconds}s"
    return f"{sign}{_significant(number)}s"


def _humanize_timestamp(value: object) -> str:
    number = _number(value)
    if not math.isfinite(number):
        return _significant(number)
    milliseconds = math.floor(number * 1000)
    moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=milliseconds)
    fraction = f".{milliseconds % 1000:03}".rstrip("0").rstrip(".")
    return f"{moment:%Y-%m-%d %H:%M:%S}{fraction} +0000 UTC"


_VERB = re.compile(r"%(?P<flags>[-+# 0]*)(?P<width>\d*)(?P<precision>\.\d*)?(?P<verb>.)", re.S)


def _printf(template: object, *args: object) -> str:
    """``fmt.Sprintf`` for the values that occur here: numbers, texts, truths."""
    rest = list(args)

    def write(found: re.Match[str]) -> str:
        if found["verb"] == "%":
            return "%"
        if not rest:
            return f"%!{found['verb']}(MISSING)"
        return _formatted(found, rest.pop(0))

    text = _VERB.sub(write, str(template))
    if rest:
        text += "%!(EXTRA " + ", ".join(f"{_go_type(value)}={go_value(value)}" for value in rest) + ")"
    return text


def _formatted(found: re.Match[str], value: object) -> str:
    verb, flags, precision = found["verb"], found["flags"], found["precision"] or ""
    number = isinstance(value, float | int) and not isinstance(value, bool)
    if verb in "eEfFgG" and isinstance(value, float):
        body = _float_verb(verb, flags, precision, value)
    elif verb in "dxXob" and isinstance(value, int) and number:
        body = format(value, ("+" if "+" in flags else "") + verb)
    elif verb == "v" or (verb == "s" and isinstance(value, str)) or (verb == "t" and isinstance(value, bool)):
        body = go_value(value)[: int(precision[1:] or 0) if precision and not number else None]
    elif verb == "q" and isinstance(value, str):
        body = json.dumps(value, ensure_ascii=False)
    else:
        body = f"%!{verb}({_go_type(value)}={go_value(value)})"
    width = int(found["width"] or 0)
    if "-" in flags:
        return body.ljust(width)
    return body.zfill(width) if "0" in flags and body[-1].isdigit() else body.rjust(width)


def _float_verb(verb: str, flags: str, precision: str, value: float) -> str:
    sign = "+" if "+" in flags else " " if " " in flags else ""
    if not math.isfinite(value):
        return "+NaN" if value != value and sign == "+" else _infinite(value)
    if verb in "gG" and not precision:
        return (sign if value >= 0 else "") + _float(value)
    return format(value, f"{sign}{precision}{verb}")


def _go_type(value: object) -> str:
    match value:
        case bool():
            return "bool"
        case int():
            return "int"
        case float():
            return "float64"
        case str():
            return "string"
        case _:
            return "map[string]string" if isinstance(value, dict) else "interface {}"


def _first(samples: object) -> object:
    if not isinstance(samples, list):
        raise TypeError("it takes the result of a query")
    if not samples:
        raise ValueError("the query gives nothing")
    return samples[0]


def _sample(value: object) -> Sample:
    if not isinstance(value, tuple):
        raise TypeError("it takes one sample: put first before it")
    return value


def _replace_all(pattern: str, replacement: str, text: str) -> str:
    # Go writes groups as $1 and ${1}.
    return str(compile_regex(pattern).sub(re.sub(r"\$\{?(\w+)\}?", r"\\g<\1>", replacement), text))


def _all(*values: object) -> object:
    return next((value for value in values if not _truth(value)), values[-1])


def _any(*values: object) -> object:
    return next((value for value in values if _truth(value)), values[-1])


def _equal(left: object, *others: object) -> bool:
    return any(left == other for other in others)


FUNCTIONS: dict[str, Callable[..., object]] = {
    # numbers
    "humanize": _humanize,
    "humanize1024": _humanize1024,
    "humanizeDuration": _humanize_duration,
    "humanizePercentage": _humanize_percentage,
    "humanizeTimestamp": _humanize_timestamp,
    # queries
    "first": _first,
    "label": lambda name, sample: dict(_sample(sample)[0]).get(name, ""),
    "query": lambda expr: expr,  # answered by the expansion, which knows whom to ask
    "value": lambda sample: _sample(sample)[1],
    # texts
    "match": lambda pattern, text: compile_regex(pattern).search(text) is not None,
    "print": lambda *values: "".join(map(go_value, values)),
    "printf": _printf,
    "reReplaceAll": _replace_all,
    "title": lambda text: re.sub(r"(?<!\w)\w", lambda found: found[0].upper(), text),
    "toLower": lambda text: text.lower(),
    "toUpper": lambda text: text.upper(),
    # conditions; with NaN, ge and gt are true, as they are in Go
    "and": _all,
    "eq": _equal,
    "ge": lambda left, right: not left < right,
    "gt": lambda left, right: not left <= right,
    "index": lambda values, key: values.get(key, "") if isinstance(values, dict) else values[key],
    "le": operator.le,
    "len": len,
    "lt": operator.lt,
    "ne": operator.ne,
    "not": lambda value: not _truth(value),
    "or": _any,
}
