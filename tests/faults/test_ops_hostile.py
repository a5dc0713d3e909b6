"""FAULTS I1: whatever an agent that was taken over says, the hands do what their policy allows, or nothing.

``UPKEEP_FUZZ_REQUESTS`` makes the campaign longer.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import random
import socket
import string
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from agent.errors import FaultyFilesError
from agent.ops.policy import Limits, Policy, parse
from agent.ops.protocol import MAX_LINE_BYTES, VERSION, Hello, Measure, Refused, Survey, encode, quote
from agent.ops.server import serve
from tests.support.hands import DAY_S, hands, item_of, put

REQUESTS = int(os.environ.get("UPKEEP_FUZZ_REQUESTS", "5000"))
AT_ONCE = 20
EXAMPLES = max(REQUESTS // AT_ONCE, 1)
LAST = 2**62


class House:
    """A cache that may be cleaned, and beside it what must never be touched."""

    def __init__(self, folder: Path) -> None:
        self.cache = folder / "cache"
        self.outside = folder / "outside"
        self.open = put(self.cache / "held", age_s=9 * DAY_S)
        self.linked = put(self.cache / "linked", age_s=9 * DAY_S)
        put(self.cache / "lost+found/x", age_s=9 * DAY_S)
        for name in ("a", "cache", "held"):
            put(self.outside / name, age_s=9 * DAY_S)
        os.link(self.linked, self.outside / "linked")
        (self.cache / "way_out").symlink_to(self.outside)
        self.fill()
        self._before = self._outside()

    def fill(self) -> None:
        """What the policy allows to go."""
        for name in ("a", "b/c"):
            if not (self.cache / name).exists():
                put(self.cache / name, age_s=9 * DAY_S)

    def _outside(self) -> list[tuple[str, int, int, bytes]]:
        return [
            (path.name, path.stat().st_ino, path.stat().st_mtime_ns, path.read_bytes())
            for path in sorted(self.outside.iterdir())
        ]

    def assert_whole(self) -> None:
        assert self._outside() == self._before
        for path in (self.open, self.linked, self.cache / "lost+found/x", self.cache / "way_out"):
            assert os.path.lexists(path), path

    def items(self) -> list[dict[str, object]]:
        """True items, those that must not go included, as a hostile agent could learn them."""
        names = ["a", "b/c", "held", "linked", "lost+found/x", "way_out"]
        found = [(name, self.cache / name) for name in names if os.path.lexists(self.cache / name)]
        found += [("../outside/a", self.outside / "a"), ("way_out/a", self.outside / "a")]
        found += [(quote(os.fsencode(self.outside / "a")), self.outside / "a")]
        return [{**dataclasses.asdict(item_of(path, path.parent)), "path": name} for name, path in found]


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    made = House(tmp_path_factory.mktemp("house"))
    with open(made.open, "rb"):
        yield made


PATHS = [
    "",
    "a",
    "b",
    "b/c",
    "..",
    "../outside",
    "/",
    "/etc",
    "way_out",
    "lost+found",
    ".",
    "a/..",
    "\\x2e\\x2e",
    "b\\x2fc",
]
HOSTILE = st.sampled_from(
    [
        None,
        True,
        -1,
        0,
        1,
        2**63,
        2**64,
        10**400,
        1.5,
        "",
        "..",
        "/etc/passwd",
        "\x00",
        "\ud800",
        [],
        {},
        [[]],
        "a" * 5000,
    ]
)


def wordly(house: House) -> st.SearchStrategy[dict[str, object]]:
    """Requests that are nearly or fully right."""
    roots = st.sampled_from([str(house.cache), str(house.outside), str(house.cache.parent), "/", "/etc", "", "*"])
    numbers = st.sampled_from([0, 0.0, 1, -1, 3600.0, 1e18, 1 << 40])
    fields = {
        "root": st.just(str(house.cache)) | roots,
        "path": st.sampled_from(PATHS),
        "use": st.sampled_from(["atime", "mtime", "ctime"]),
        "keep_used_within_s": numbers,
        "older_than_s": st.none() | numbers,
        "down_to_bytes": st.none() | st.sampled_from([0, 1, -1, 1 << 40]),
        "unit": st.sampled_from(["", "ssh.service", "-H", "a.service b.service"]),
        "limit": st.sampled_from([0, 1, 10, 1 << 62]),
        "count": st.sampled_from([0, 1, 2, 9, 1 << 40]),
    }
    verbs = {
        "hello": ["version", "distrust_clock_s"],
        "measure": ["root", "path"],
        "survey": ["root", "path", "older_than_s", "down_to_bytes", "use", "keep_used_within_s", "limit"],
        "prune": ["root", "path", "use", "keep_used_within_s", "count"],
        "logs": ["root", "path", "limit"],
        "compress": ["root", "path", "count"],
        "rotate": ["root", "path", "count"],
        "signal": ["unit"],
    }
    fields |= {"version": st.sampled_from([1, 1, 1, 0, 2]), "distrust_clock_s": st.sampled_from([0.0, 0, -1e9])}
    asked = st.sampled_from(sorted(verbs)).flatmap(
        lambda verb: st.fixed_dictionaries({"verb": st.just(verb), **{name: fields[name] for name in verbs[verb]}})
    )
    wishes = st.lists(st.sampled_from(house.items()), min_size=1, max_size=9).map(
        lambda items: {"verb": "items", "items": items}
    )
    return asked | wishes


def raid(house: House) -> st.SearchStrategy[bytes]:
    """A prune in due form of everything, allowed or not, in any order."""

    def lines(items: list[dict[str, object]]) -> bytes:
        prune = {"verb": "prune", "root": str(house.cache), "path": "", "use": "mtime", "keep_used_within_s": 0}
        asked = ({"id": 5, **prune, "count": len(items)}, {"id": 5, "verb": "items", "items": items})
        return b"\n".join(json.dumps(body).encode() for body in asked)

    return st.lists(st.sampled_from(house.items()), min_size=1, max_size=9).map(lines)


def spoilt(house: House) -> st.SearchStrategy[bytes]:
    """The same with one field made wrong, one byte changed, or cut short."""

    def spoil(parts: tuple[dict[str, object], object, int, int]) -> bytes:
        body, value, where, how = parts
        names = sorted(body)
        body = {"id": 5, **body}
        if how == 0:
            body[names[where % len(names)]] = value
        line = json.dumps(body).encode()
        if how == 1:
            line = line[: where % len(line)] + bytes([where % 256]) + line[where % len(line) + 1 :]
        return line[: where % len(line)] if how == 2 else line

    return st.tuples(wordly(house), HOSTILE, st.integers(0, 10_000), st.integers(0, 3)).map(spoil)


def converse(house: House, lines: list[bytes]) -> None:
    """Say it all to fresh hands that have been greeted, and hear them to the end."""
    policy = Policy((str(house.cache),), Limits(actions_per_hour=1000))
    ours, theirs = socket.socketpair()
    ours.settimeout(30)
    died: list[BaseException] = []

    def work() -> None:
        with theirs:
            try:
                serve(theirs, policy)
            except BaseException as error:
                died.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    # A prune that waits for items takes the first farewell for them.
    farewell = [encode(LAST, Hello(VERSION, 0.0)), encode(LAST, Hello(VERSION, 0.0))]
    speech = b"".join([encode(1, Hello(VERSION, 0.0)), *(line + b"\n" for line in lines), *farewell])
    speaker = threading.Thread(target=_speak, args=(ours, speech))
    speaker.start()
    with ours, ours.makefile("rb") as answers:
        with contextlib.suppress(ConnectionError):
            for answer in answers:
                if json.loads(answer)["id"] == LAST:
                    break
        ours.shutdown(socket.SHUT_RDWR)
        speaker.join(30)
    thread.join(30)
    assert not thread.is_alive()
    assert not died, died


def _speak(sock: socket.socket, speech: bytes) -> None:
    with contextlib.suppress(OSError):
        sock.sendall(speech)


def test_i1_fuzzed_requests_never_crash_the_hands_nor_reach_outside_the_policy(house: House) -> None:
    removed = 0

    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(st.data())
    def campaign(data: st.DataObject) -> None:
        nonlocal removed
        house.fill()
        right = wordly(house).map(lambda body: json.dumps({"id": 5, **body}).encode())
        line = right | spoilt(house) | raid(house) | st.binary(max_size=200)
        converse(house, data.draw(st.lists(line, min_size=AT_ONCE, max_size=AT_ONCE)))
        removed += not (house.cache / "a").exists()
        house.assert_whole()

    campaign()
    assert REQUESTS < 1000 or removed > 0, "the campaign must reach what the policy allows"


def test_i1_noise_and_endless_lines_end_the_conversation_and_nothing_else(house: House) -> None:
    noise = random.Random(1).randbytes(200_000)
    for lines in ([noise], [b"x" * (3 * MAX_LINE_BYTES)], [b'{"id":' * 10_000], [b"\n" * 50_000], [b"\0" * 9999]):
        converse(house, lines)
        house.assert_whole()


def test_i1_nothing_is_answered_before_hello_or_to_another_version(house: House) -> None:
    with hands(Policy((str(house.cache),)), greet=False) as peer:
        assert peer.refusal(Measure(str(house.cache), "")) == "protocol"
        assert peer.refusal(Hello(VERSION + 1, 0.0)) == "version"
        assert peer.refusal(Measure(str(house.cache), "")) == "protocol"


def test_i1_a_user_that_the_policy_does_not_name_is_turned_away(house: House) -> None:
    with hands(Policy((str(house.cache),), peers=(os.geteuid() + 1,)), greet=False) as peer:
        assert json.loads(peer.raw(b""))["reason"] == "peer"
        assert peer.raw(b"") == b""


def test_i1_a_root_of_the_agents_own_is_refused(house: House) -> None:
    with hands(Policy((str(house.cache),))) as peer:
        for root in (
            "/",
            "/etc",
            str(house.outside),
            str(house.cache) + "/",
            str(house.cache) + "/../outside",
            "cache",
        ):
            refused = Refused("outside_roots", f'cannot use "{root}": it is no root of the policy')
            assert peer.ask(Measure(root, ""))[-1] == refused


@given(st.text(string.printable, max_size=40), st.text(string.printable, max_size=40))
@settings(max_examples=300, deadline=None)
def test_d8_property_no_policy_that_loads_and_no_request_ever_open_a_folder_outside(root: str, path: str) -> None:
    try:
        policy = parse(Policy((root,)).to_json().encode(), "ops.json")
    except FaultyFilesError:
        policy = Policy(())
    for asked in (root, path, "/etc", "/"):
        if asked.isprintable() and path.isprintable():
            with hands(policy) as peer:
                answer = peer.ask(Survey(asked, path, 1.0, 1, "mtime", 0.0, 1))[-1]
            assert isinstance(answer, Refused) or asked in policy.roots
