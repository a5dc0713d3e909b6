"""What becomes of findings: events told once, counters that go on, echoes that are no second Xid."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from agent.gpu.xid import Override
from agent.kernel.book import ECHO_S, FOLD_S, MOST_LABEL_SETS, MOST_TEXTS, Book
from agent.kernel.messages import Finding, Identity, Named, SXid, Xid
from agent.model import Event, Severity

GPU = "0000:5e:00"
UUID = "GPU-1"


def take(book: Book, *findings: Finding, at: float = 0.0) -> list[Event]:
    return [event for finding in findings if (event := book.take(finding, at)) is not None]


def counts(book: Book, metric: str = "gpu_xid_errors_total", label: str = "xid") -> dict[str, float]:
    series, values = book.readings()
    found = zip(series, values, strict=True)
    return {dict(each.labels)[label]: value for each, value in found if each.metric == metric}


def test_an_event_says_which_gpu_what_it_means_what_to_do_and_who_was_hit() -> None:
    book = Book()
    [event] = take(book, Identity(GPU, UUID), Xid(GPU, 31, "pid=7, name=train, fault", "7", "train"), at=5.0)
    assert event.kind == "gpu_xid"
    assert event.severity is Severity.WARNING
    assert event.at == 5.0
    assert "memory page fault, hit train (7); restart the application" in event.message
    assert dict(event.labels) == {
        "xid": "31", "name": "memory page fault", "action": "restart_app", "device": GPU, "UUID": UUID,
        "pid": "7", "process": "train",
    }  # fmt: skip


def test_the_same_words_again_are_counted_and_told_once_an_hour_later() -> None:
    book = Book()
    storm = [event for n in range(1000) for event in take(book, Xid(GPU, 95, "uncontained"), at=float(n))]
    assert len(storm) == 1
    assert book.due(FOLD_S - 1) == []
    [summary] = book.due(FOLD_S)
    assert summary.message.startswith("999 more within the hour: Xid 95")
    assert summary.at == 999.0
    assert book.due(2 * FOLD_S) == []
    counts(book)
    assert counts(book) == {"95": 1000.0}


def test_other_words_of_one_xid_are_events_of_their_own_up_to_a_bound() -> None:
    book = Book()
    told = take(book, *(Xid(GPU, 13, f"exception {n}") for n in range(1000)))
    assert len(told) == MOST_TEXTS + 1


def test_a_cleanup_names_its_cause_when_that_came_just_before() -> None:
    book = Book()
    take(book, Xid(GPU, 94, "contained"), at=10.0)
    [follows] = take(book, Xid(GPU, 45, "Ch 1"), at=12.0)
    assert dict(follows.labels)["cause"] == "94"
    assert follows.severity is Severity.INFO
    [alone] = take(book, Xid(GPU, 45, "Ch 2"), at=100.0)
    assert "cause" not in dict(alone.labels)
    [other] = take(book, Xid("0000:5f:00", 45, "Ch 3"), at=13.0)
    assert "cause" not in dict(other.labels)


def test_one_loss_is_one_event_however_often_the_driver_says_it() -> None:
    book = Book()
    events = take(book, Xid(GPU, 79, "GPU has fallen off the bus."), Xid(GPU, 79, "GPU has fallen off the bus"))
    assert len(events) == 1
    counts(book)
    assert counts(book) == {"79": 1.0}


def test_nvml_and_the_log_tell_of_one_xid_in_either_order() -> None:
    for nvml_first in (True, False):
        book = Book()
        if nvml_first:
            book.take_nvml(GPU, 13, 100.0)
        take(book, Xid(GPU, 13, "text"), at=101.0)
        if not nvml_first:
            book.take_nvml(GPU, 13, 102.0)
        assert book.due(200.0) == []
        counts(book)
        assert counts(book) == {"13": 1.0}


def test_what_nvml_alone_tells_counts_after_a_while() -> None:
    book = Book()
    book.take_nvml(GPU, 79, 100.0)
    assert book.due(100.0 + ECHO_S) == []
    [event] = book.due(100.1 + ECHO_S)
    assert (event.kind, event.at) == ("gpu_xid", 100.0)
    assert book.due(300.0) == []


def test_a_new_counter_is_0_once_and_keeps_its_tuple_of_series() -> None:
    book = Book()
    take(book, Xid(GPU, 13, "a"))
    assert counts(book) == {"13": 0.0}
    series, _ = book.readings()
    assert counts(book) == {"13": 1.0}
    assert book.readings()[0] is series
    take(book, Xid(GPU, 13, "b"))
    assert counts(book) == {"13": 2.0}
    assert book.readings()[0] is series


def test_the_last_code_is_a_gauge_and_0_for_a_gpu_without_xids() -> None:
    book = Book()
    book.identify(GPU, {"UUID": UUID, "gpu": "0"})
    assert counts(book, "DCGM_FI_DEV_XID_ERRORS", "UUID") == {UUID: 0.0}
    take(book, Xid(GPU, 63, "a"), Xid(GPU, 64, "b"))
    assert counts(book, "DCGM_FI_DEV_XID_ERRORS", "UUID") == {UUID: 64.0}


def test_counters_go_on_after_a_restart_without_a_false_rise() -> None:
    book = Book()
    take(book, Xid(GPU, 13, "a"), Xid(GPU, 13, "b"), Named("oom_kill", Severity.ERROR, "x", (("pid", "1"),)))
    again = Book()
    again.restore(json.loads(json.dumps(book.to_json())))
    assert counts(again) == {"13": 2.0}
    again.identify(GPU, {"UUID": UUID, "gpu": "0"})
    assert counts(again) == {"13": 2.0}, "other labels are no new Xids"
    assert counts(again, "kernel_messages_total", "pattern") == {"oom_kill": 1.0}


def test_an_ignored_xid_is_counted_and_no_event() -> None:
    book = Book({13: Override(ignore=True)})
    assert take(book, Xid(GPU, 13, "a")) == []
    counts(book)
    assert counts(book) == {"13": 1.0}


def test_a_switchs_error_is_fatal_when_it_says_so() -> None:
    book = Book()
    fatal, other = take(book, SXid("s0", GPU, 20034, True, "Fatal, x"), SXid("s0", GPU, 22013, False, "Non-fatal, y"))
    assert (fatal.kind, fatal.severity, other.severity) == ("nvswitch_sxid", Severity.CRITICAL, Severity.WARNING)


def test_what_a_log_names_makes_no_series_without_end() -> None:
    book = Book()
    for number in range(3 * MOST_LABEL_SETS):
        device = (("device", f"nvme{number}n1"), ("pid", str(number)))
        take(book, Named("nvme_no_path", Severity.CRITICAL, f"line {number}", device))
    series, _ = book.readings()
    assert len(series) <= MOST_LABEL_SETS + 1
    assert sum(book.readings()[1]) == 3 * MOST_LABEL_SETS


@given(st.lists(st.tuples(st.sampled_from([13, 45, 79, 95]), st.sampled_from(["a", "b"]), st.floats(0, 7200))))
def test_whatever_is_folded_nothing_but_repeated_losses_goes_uncounted(found: list[tuple[int, str, float]]) -> None:
    book = Book()
    for code, text, at in sorted(found, key=lambda entry: entry[2]):
        book.take(Xid(GPU, code, text), at)
    counts(book)
    counted = counts(book)
    for code in (13, 45, 95):
        assert counted.get(str(code), 0.0) == sum(1 for entry in found if entry[0] == code)
