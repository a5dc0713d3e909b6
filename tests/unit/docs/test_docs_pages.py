"""What every page promises: generated pages are current, links lead somewhere, YAML examples load."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.docs import ROOT, Block, blocks, faults, kind, links, name_of, pages
from tests.support.reference import PAGES

EXAMPLES = [block for page in pages() for block in blocks(page) if block.language == "yaml"]


@pytest.mark.parametrize("name", PAGES)
def test_a_generated_page_is_what_the_code_says(name: str) -> None:
    assert (ROOT / name).read_text(encoding="utf-8") == PAGES[name](), "make it again: ./dev docs"


@pytest.mark.parametrize("page", pages(), ids=name_of)
def test_every_link_leads_somewhere(page: Path) -> None:
    broken = []
    for target in links(page):
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if not file.exists() or (anchor and anchor not in anchors(file)):
            broken.append(target)
    assert broken == []


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as Git hosts make them."""
    found = set()
    for line in page.read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            kept = "".join(each for each in line.lstrip("# ").lower() if each.isalnum() or each in " -_")
            found.add(kept.replace(" ", "-"))
    return found


@pytest.mark.parametrize("block", [each for each in EXAMPLES if kind(each) in ("rules", "config")], ids=str)
def test_every_yaml_example_loads(block: Block) -> None:
    assert [str(fault) for fault in faults(block)] == []


def test_no_fence_is_left_open() -> None:
    for page in pages():
        assert page.read_text(encoding="utf-8").count("\n```") % 2 == 0, name_of(page)
