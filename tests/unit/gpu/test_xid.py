"""What an Xid means: the catalogue, the driver's own words, and what a site says otherwise."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.errors import FaultyFilesError
from agent.gpu.xid import ADVICE, CATALOGUE, Override, judge, load_overrides
from agent.model import Severity


def test_where_catalogues_disagree_the_least_destructive_advice_is_taken() -> None:
    for code in (38, 43, 44, 63, 92, 93, 121):
        assert CATALOGUE[code].advice == "none", code
    for code in (8, 13, 31, 32, 68, 69, 94):
        assert CATALOGUE[code].advice == "restart_app", code
    for code in (46, 62, 64, 95, 109, 119, 120, 136, 140, 158):
        assert CATALOGUE[code].advice == "reset_gpu", code
    assert CATALOGUE[79].advice == "reboot"


def test_only_what_needs_a_person_at_the_machine_is_critical() -> None:
    grave = {"reset_gpu", "reboot", "restart_vm", "drain_and_reset", "check_memory"}
    for code, entry in CATALOGUE.items():
        assert (entry.severity is Severity.CRITICAL) == (entry.advice in grave), code


@pytest.mark.parametrize(
    ("text", "severity", "advice"),
    [
        ("GPU recovery action changed from 0x4 (Drain and Reset) to 0x0 (None)", "info", "none"),
        ("GPU recovery action changed from 0x0 (None) to 0x1 (GPU Reset Required)", "critical", "reset_gpu"),
        ("GPU recovery action changed from 0x0 (None) to 0x2 (Node Reboot Required)", "critical", "reboot"),
        ("GPU recovery action changed from 0x0 (None) to 0x3 (Drain P2P)", "error", "drain"),
        ("GPU recovery action changed from 0x0 (None) to 0x4 (Drain and Reset)", "critical", "drain_and_reset"),
        ("GPU recovery action changed from 0x0 (None) to 0x9 (Something New)", "error", "support"),
        ("", "info", "follow_other"),
    ],
)
def test_xid_154_carries_the_drivers_own_advice(text: str, severity: str, advice: str) -> None:
    judged = judge(154, text, {})
    assert (judged.severity, judged.advice) == (severity, advice)


def test_a_preemptive_cleanup_follows_its_cause() -> None:
    assert judge(45, "", {}, cause=94).advice == "follow_other"
    assert judge(45, "", {}, cause=94).severity is Severity.INFO
    assert judge(45, "", {}).advice == "restart_fabric_manager"


def test_an_nvlink_error_says_itself_whether_it_is_fatal() -> None:
    assert judge(149, "NETIR_LINK_EVT  Fatal   XC0 i0 Link 15 (0x0)", {}).severity is Severity.CRITICAL
    assert judge(145, "RLW_RXPIPE Nonfatal XC0 i0 Link 13 (0x0)", {}).severity is Severity.WARNING


def test_an_unknown_code_is_passed_on() -> None:
    assert judge(4711, "", {}).name == "unknown Xid"


def test_a_site_overrides_what_it_names_and_no_more() -> None:
    overrides = {94: Override(severity=Severity.INFO), 13: Override(ignore=True), 79: Override(advice="support")}
    assert (judge(94, "", overrides).severity, judge(94, "", overrides).advice) == (Severity.INFO, "restart_app")
    assert judge(13, "", overrides).ignore
    assert (judge(79, "", overrides).severity, judge(79, "", overrides).advice) == (Severity.CRITICAL, "support")
    assert judge(31, "", overrides) == judge(31, "", {})


def test_every_advice_has_words() -> None:
    assert all(ADVICE[entry.advice] for entry in CATALOGUE.values())


def overrides_of(path: Path, text: str) -> object:
    path.write_text(text)
    path.chmod(0o644)
    return load_overrides(str(path), apart=False)


def test_a_file_of_overrides(tmp_path: Path) -> None:
    text = "xids:\n  94: {severity: info, advice: none}\n  13: {ignore: true}\n"
    assert overrides_of(tmp_path / "xids.yaml", text) == {
        94: Override(severity=Severity.INFO, advice="none"),
        13: Override(ignore=True),
    }
    assert load_overrides(None) == {}


def test_every_fault_of_a_file_of_overrides_is_told_with_its_place(tmp_path: Path) -> None:
    text = "xids:\n  94: {severity: fatal}\n  13: {advise: none}\n"
    with pytest.raises(FaultyFilesError) as caught:
        overrides_of(tmp_path / "xids.yaml", text)
    assert [(fault.line, fault.column > 1) for fault in caught.value.faults] == [(2, True), (3, True)]
    with pytest.raises(FaultyFilesError, match='unknown Xid "many"'):
        overrides_of(tmp_path / "xids.yaml", "xids: {many: {ignore: true}}\n")
