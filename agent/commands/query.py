"""``upkeep query``: PromQL over the store."""

from __future__ import annotations

import sys
import time
from argparse import Namespace
from collections.abc import Iterator, Sequence
from itertools import pairwise

from agent.commands.common import duration, iso, json_number, parse_time, print_json, state_dir
from agent.model import Labels
from agent.promql.evaluate import evaluate, evaluate_range
from agent.promql.nodes import lookback
from agent.promql.parse import parse
from agent.promql.values import DEFAULTS, Matrix, Options, Points, Scalar, String, Vector
from agent.store.read import Reader


def run(arguments: Namespace) -> int:
    """Instant or range query over the store."""
    expression = parse(arguments.expression)
    now = time.time()
    with Reader.open(state_dir(arguments)) as reader:
        if arguments.start or arguments.end:
            start = parse_time(arguments.start or "1h", now)
            end = parse_time(arguments.end, now) if arguments.end else now
            options = _tell_tiers(reader, start - lookback(expression))
            value: object = evaluate_range(expression, reader, start, end, duration(arguments.step), options)
        else:
            at = parse_time(arguments.at, now) if arguments.at else now
            value = evaluate(expression, reader, at, _tell_tiers(reader, at - lookback(expression)))
    rows = list(_elements(value))
    if arguments.json:
        print_json(
            [{"labels": dict(labels), "values": [[at, json_number(v)] for at, v in points]} for labels, points in rows]
        )
    elif not rows:
        print("no data: no series matches, or all of them are older than five minutes", file=sys.stderr)
        return 1
    else:
        for labels, points in rows:
            _print_element(labels, points)
    return 0 if rows else 1


def _tell_tiers(reader: Reader, earliest: float) -> Options:
    """Say where the answer is made of minutes or hours, and let one of their points stand until the next."""
    step_s = 0.0
    tiers = reader.tiers()
    for finer, coarser in pairwise(tiers):
        if earliest < finer.since:
            step_s = coarser.step_s
            print(f"before {iso(finer.since)}: the last sample of each of the {coarser.name}", file=sys.stderr)
    return Options(lookback_s=max(DEFAULTS.lookback_s, step_s))


def _elements(value: object) -> Iterator[tuple[Labels, list[tuple[float | None, float | str]]]]:
    match value:
        case Scalar():
            yield (), [(None, value.value)]
        case String():
            yield (), [(None, value.value)]
        case Vector():
            for labels, number in value.samples:
                yield labels, [(None, number)]
        case Matrix():
            yield from ((each.labels, _pairs(each)) for each in value.series)


def _pairs(points: Points) -> list[tuple[float | None, float | str]]:
    return list(zip(points.times, points.values, strict=True))


def _print_element(labels: Labels, points: Sequence[tuple[float | None, float | str]]) -> None:
    held = dict(labels)
    name = held.pop("__name__", "")
    inner = ",".join(f'{key}="{text}"' for key, text in held.items())
    series = name + (f"{{{inner}}}" if inner or not name else "")
    if len(points) == 1 and points[0][0] is None:
        print(f"{series} {points[0][1]:g}" if isinstance(points[0][1], float) else points[0][1])
        return
    print(series)
    for at, number in points:
        print(f"  {iso(at)}  {number:g}")
