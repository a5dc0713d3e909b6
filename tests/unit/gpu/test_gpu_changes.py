"""Each state is told when it begins and when it ends, and a host without a driver is quiet."""

from __future__ import annotations

from dataclasses import replace

from agent.gpu.changes import Changes
from agent.gpu.protocol import Gpu, GpuState, Orphan, Seen, without_driver
from agent.model import Severity


def gpu(number: int, state: GpuState = "up", *, index: int | None = None, orphans: tuple[Orphan, ...] = ()) -> Gpu:
    call, call_s = ("nvmlDeviceGetFieldValues", 3.0) if state == "hung" else ("", 0.0)
    index = number if index is None else index
    return Gpu(
        f"GPU-{number}", index, index, "H100", f"0000:{number:02x}:00.0", state, call, call_s, 0, (), (), orphans
    )


def ready(*gpus: Gpu, driver: str = "590.48.01") -> Seen:
    return replace(without_driver("ready", ""), driver_version=driver, gpus=gpus)


def told(*looks: Seen, mismatch: bool | None = None) -> list[str]:
    """The kinds of events that the last look brings after the others."""
    changes = Changes()
    for look in looks[:-1]:
        changes.take(look, mismatch, 0.0)
    return [event.kind for event in changes.take(looks[-1], mismatch, 1.0)]


def test_a_host_that_never_had_a_driver_is_quiet() -> None:
    assert told(without_driver("no_driver", "")) == []
    assert told(without_driver("no_driver", ""), without_driver("no_driver", "")) == []


def test_a_driver_that_answers_from_the_start_is_no_news() -> None:
    assert told(ready(gpu(0), gpu(1))) == []


def test_a_state_of_the_driver_is_told_once() -> None:
    mismatch = without_driver("mismatch", "lib rm version mismatch")
    assert told(mismatch) == ["gpu_driver"]
    assert told(mismatch, mismatch) == []
    assert told(mismatch, ready(gpu(0))) == ["gpu_driver"]
    assert told(ready(gpu(0)), without_driver("no_driver", "")) == ["gpu_driver"]


def test_gpus_that_went_with_their_driver_are_not_told_one_by_one() -> None:
    assert told(ready(gpu(0), gpu(1)), without_driver("hung", "x")) == ["gpu_driver"]
    assert told(ready(gpu(0), gpu(1)), without_driver("hung", "x"), ready(gpu(0), gpu(1))) == ["gpu_driver"]


def test_one_gpu_hangs_is_lost_needs_a_reset_and_comes_back() -> None:
    states: list[tuple[GpuState, str]] = [
        ("hung", "gpu_hung"),
        ("lost", "gpu_lost"),
        ("needs_reset", "gpu_needs_reset"),
    ]
    for state, kind in states:
        assert told(ready(gpu(0), gpu(1)), ready(gpu(0), gpu(1, state))) == [kind]
        assert told(ready(gpu(0), gpu(1, state)), ready(gpu(0), gpu(1, state))) == []
        assert told(ready(gpu(0), gpu(1, state)), ready(gpu(0), gpu(1))) == ["gpu_back"]


def test_a_gpu_that_is_no_longer_listed_is_lost_once_and_may_return() -> None:
    assert told(ready(gpu(0), gpu(1)), ready(gpu(0))) == ["gpu_lost"]
    assert told(ready(gpu(0), gpu(1)), ready(gpu(0)), ready(gpu(0))) == []
    assert told(ready(gpu(0), gpu(1)), ready(gpu(0)), ready(gpu(0), gpu(1))) == ["gpu_back"]


def test_after_a_loss_others_have_another_index() -> None:
    before = ready(gpu(0), gpu(1), gpu(2))
    assert told(before, ready(gpu(0), gpu(2, index=1))) == ["gpu_renumbered", "gpu_lost"]


def test_a_gpu_that_was_added() -> None:
    assert told(ready(gpu(0)), ready(gpu(0), gpu(1))) == ["gpu_added"]


def test_a_driver_that_was_loaded_anew() -> None:
    looks = (ready(gpu(0)), without_driver("failed", ""), ready(gpu(0), driver="595.1"))
    assert told(*looks) == ["gpu_driver", "gpu_driver_reloaded"]


def test_a_package_that_is_newer_than_the_loaded_driver_is_told_before_anything_breaks() -> None:
    changes = Changes()
    assert changes.take(ready(gpu(0)), False, 0.0) == []
    [event] = changes.take(ready(gpu(0)), True, 1.0)
    assert (event.kind, event.severity) == ("gpu_driver_replaced", Severity.WARNING)
    assert changes.take(ready(gpu(0)), True, 2.0) == []


def test_orphaned_memory_is_told_when_it_stays() -> None:
    held = (Orphan(7, "train", "zombie", 5 << 20),)
    changes = Changes()
    assert changes.take(ready(gpu(0)), None, 0.0) == []
    assert changes.take(ready(gpu(0, orphans=held)), None, 1.0) == [], "a process that is just ending"
    [event] = changes.take(ready(gpu(0, orphans=held)), None, 2.0)
    assert event.message == "GPU 0 (H100, GPU-0): 5 MiB are held by train (7), zombie"
    assert changes.take(ready(gpu(0, orphans=held)), None, 3.0) == []
    assert changes.take(ready(gpu(0)), None, 4.0) == []
    assert changes.take(ready(gpu(0, orphans=held)), None, 5.0) == []


def test_a_gpu_that_does_not_even_give_its_name_is_told() -> None:
    seen = replace(ready(gpu(0)), faults=("GPU 1: unknown",))
    assert told(seen) == ["gpu_unreadable"]
    assert told(seen, seen) == []


def test_an_event_says_which_gpu() -> None:
    changes = Changes()
    changes.take(ready(gpu(3)), None, 0.0)
    [event] = changes.take(ready(gpu(3, "hung")), None, 9.0)
    assert dict(event.labels) == {"gpu": "3", "UUID": "GPU-3", "device": "0000:03:00.0"}
    assert event.message == "GPU 3 (H100, GPU-3) hangs in nvmlDeviceGetFieldValues, for 3 s so far"
    assert event.at == 9.0
