"""Counters of log files: zeros before ones, bounds, and totals that survive a restart."""

from __future__ import annotations

import json

from agent.logwatch.counts import FileCounts, LabelBound, Throttle
from agent.model import Reading


def flat(reading: Reading) -> dict[str, float]:
    return {str(series): value for series, value in zip(reading.series, reading.values, strict=True)}


def test_every_series_begins_with_a_zero_one_millisecond_before() -> None:
    counts = FileCounts("/x.log", ["oom"], LabelBound(), {})
    counts.read(2, 100)
    zero, now = counts.readings(10.0)
    assert (zero.at, now.at) == (9.999, 10.0)
    assert set(flat(zero).values()) == {0.0}
    assert flat(now)['log_lines_total{file="/x.log"}'] == 2
    counts.match("oom", (("gpu", "1"),))
    zero, now = counts.readings(11.0)
    assert flat(zero) == {'log_matches_total{file="/x.log",gpu="1",pattern="oom"}': 0.0}
    assert flat(now)['log_matches_total{file="/x.log",gpu="1",pattern="oom"}'] == 1.0
    assert flat(now)['log_matches_total{file="/x.log",pattern="oom"}'] == 0.0


def test_the_layout_is_the_same_object_until_a_series_is_added() -> None:
    counts = FileCounts("/x.log", ["oom"], LabelBound(), {})
    first = counts.readings(1.0)[-1].series
    counts.match("oom", ())
    (second,) = counts.readings(2.0)
    assert second.series is first


def test_totals_survive_a_restart_and_are_not_announced_again() -> None:
    counts = FileCounts("/x.log", ["oom"], LabelBound(), {})
    counts.read(3, 30)
    counts.gap()
    counts.match("oom", (("gpu", "1"),))
    counts.readings(1.0)
    again = FileCounts("/x.log", ["oom", "added"], LabelBound(), json.loads(json.dumps(counts.to_json())))
    again.match("oom", (("gpu", "1"),))
    zero, now = again.readings(2.0)
    assert flat(zero) == {'log_matches_total{file="/x.log",pattern="added"}': 0.0}
    assert flat(now) == {
        'log_lines_total{file="/x.log"}': 3,
        'log_bytes_total{file="/x.log"}': 30,
        'log_gaps_total{file="/x.log"}': 1,
        'log_matches_total{file="/x.log",pattern="oom"}': 0,
        'log_matches_total{file="/x.log",gpu="1",pattern="oom"}': 2,
        'log_matches_total{file="/x.log",pattern="added"}': 0,
    }


def test_a_pattern_has_a_hundred_label_sets_and_then_other() -> None:
    bound = LabelBound()
    counts = FileCounts("/x.log", ["oom"], bound, {})
    for gpu in range(250):
        counts.match("oom", (("gpu", str(gpu)),))
    values = flat(counts.readings(1.0)[-1])
    assert values['log_matches_total{file="/x.log",gpu="other",pattern="oom"}'] == 150
    assert len(values) == 3 + 1 + 101
    assert bound.admit("oom", (("gpu", "7"),)) == (("gpu", "7"),)
    assert bound.admit("oom", ()) == ()


def test_the_throttle_counts_what_it_folds() -> None:
    throttle = Throttle(2)
    assert [throttle.admit("p", 1.0) for _ in range(5)] == [True, True, False, False, False]
    assert throttle.folding
    assert throttle.due(1.5) == []
    assert throttle.due(2.0) == [("p", 3)]
    assert not throttle.folding
    assert throttle.admit("p", 2.0)
