from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent import yamlfile
from agent.located import AbsPath, Duration, Faults, Share, Size, build, parse_duration, parse_path, parse_size


@dataclass(frozen=True, slots=True)
class Inner:
    size: Size = 0


@dataclass(frozen=True, slots=True)
class Outer:
    name: str
    for_: Duration = 0.0
    share: Share = 0.0
    paths: tuple[AbsPath, ...] = ()
    inner: Inner | None = None
    on: bool = False
    count: int = 1


def built(text: str) -> tuple[Outer | None, list[str]]:
    root, found = yamlfile.parse("f.yaml", text)
    faults = Faults("f.yaml")
    faults.found.extend(found)
    value = build(Outer, root, faults)
    return value, [str(fault) for fault in sorted(faults.found)]


def test_a_mapping_becomes_a_dataclass_with_its_units() -> None:
    value, faults = built(
        "name: NO\nfor: 2m30s\nshare: 50%\npaths: [/a//b/]\ninner: {size: 1.5GiB}\non: true\ncount: 3\n"
    )
    assert not faults
    assert value == Outer("NO", 150.0, 0.5, ("/a/b",), Inner(1610612736), True, 3)


def test_an_optional_part_is_on_when_named_and_off_when_false() -> None:
    assert built("name: x\ninner:\n")[0] == Outer("x", inner=Inner())
    assert built("name: x\ninner: false\n")[0] == Outer("x", inner=None)


def test_every_fault_is_reported_at_once_with_its_place() -> None:
    text = (
        "nme: x\nfor: 5\nshare: 0.5\npaths: [a, ~/x, $HOME/x, /a/../b]\n"
        "inner: {size: 10G, colour: red}\non: yes\ncount: 1.5\n"
    )
    value, faults = built(text)
    assert value is None
    assert faults == [
        'f.yaml:1:1: missing key "name"',
        'f.yaml:1:1: unknown key "nme" (did you mean "name"?)',
        'f.yaml:2:6: cannot read "5" as a duration: a duration needs a unit: "5s", "5m", "5h"?',
        'f.yaml:3:8: cannot read "0.5" as a percentage: write it like 50%',
        'f.yaml:4:9: cannot use "a": write an absolute path',
        'f.yaml:4:12: cannot use "~/x": variables and ~ are not expanded, write the whole path',
        'f.yaml:4:17: cannot use "$HOME/x": variables and ~ are not expanded, write the whole path',
        'f.yaml:4:26: cannot use "/a/../b": a path may not hold "." or ".."',
        'f.yaml:5:15: cannot read "10G" as a size: say bytes: "10GiB" (1024) or "10GB" (1000)?',
        'f.yaml:5:20: unknown key "colour"',
        'f.yaml:6:5: cannot read "yes" as a switch: write true or false',
        'f.yaml:7:8: cannot read "1.5" as a whole number',
    ]


@pytest.mark.parametrize("text", ["[]", "just words", "[1, 2]"])
def test_another_kind_of_value_than_keys_is_said_so(text: str) -> None:
    assert "expected keys" in built(text)[1][0]


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("0", 0), ("5s", 5), ("1m30s", 90), ("1d", 86400), ("2w", 1209600), ("1y", 31536000), ("5ms", 0.005)],
)
def test_durations_are_prometheus_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "5", "1.5h", "5 s", "-5s", "1s1m", "5S", "s"])
def test_what_is_no_duration_is_refused_naming_the_text(text: str) -> None:
    with pytest.raises(ValueError, match="cannot read"):
        parse_duration(text)


@given(st.integers(1, 10**6), st.sampled_from([("B", 1), ("kB", 1000), ("KiB", 1024), ("MB", 10**6), ("GiB", 2**30)]))
def test_a_size_is_its_number_times_its_unit(number: int, unit: tuple[str, int]) -> None:
    assert parse_size(f"{number}{unit[0]}") == number * unit[1]


@given(st.text(max_size=40))
def test_a_path_is_refused_or_absolute_and_plain(text: str) -> None:
    try:
        path = parse_path(text)
    except ValueError:
        return
    assert path.startswith("/")
    assert not {".", ".."} & set(path.split("/"))
    assert "$" not in path
