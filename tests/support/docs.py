"""The documentation as its tests read it: pages, fenced blocks, links, and YAML examples through the real loaders."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from agent import config, rulecheck, rulefile, yamlfile
from agent.errors import Fault
from agent.located import MappingNode

ROOT = Path(__file__).parents[2]

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_RULES = {"groups", "patterns", "jobs", "inhibit"}
_OTHERS = {"tests": "tests", "scrape_configs": "prometheus"}


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block: its language, its text, and where it stands."""

    page: str
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def pages() -> list[Path]:
    """Every page that people read."""
    return [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path) -> Iterator[Block]:
    text = page.read_text(encoding="utf-8")
    for found in _FENCE.finditer(text):
        yield Block(name_of(page), text.count("\n", 0, found.start()) + 2, found[1], found[2])


def prose(page: Path) -> str:
    """A page without its fenced blocks."""
    return _FENCE.sub("", page.read_text(encoding="utf-8"))


def links(page: Path) -> Iterator[str]:
    """Targets of links in the prose, those to other hosts left out."""
    for target in _LINK.findall(re.sub(r"`[^`\n]*`", "", prose(page))):
        if "://" not in target:
            yield target


def sql_examples() -> list[tuple[str, str]]:
    """Each query of the store's reference page, with the file that it is for."""
    found, file = [], ""
    page = (ROOT / "docs/reference/sql.md").read_text(encoding="utf-8")
    for heading, query in re.findall(r"^#{2,3} .*?(\w+\.db)$|^```sql\n(.*?)^```$", page, re.M | re.S):
        file = heading or file
        if query:
            found.append((file, query))
    return found


def rows(text: str, heading: str) -> list[list[str]]:
    """The cells of the first table whose header row begins with ``heading``."""
    lines = iter(text.splitlines())
    for line in lines:
        if line.startswith(f"| {heading} |"):
            break
    else:
        raise AssertionError(f'no table begins with "{heading}"')
    next(lines)
    found = []
    for line in lines:
        if not line.startswith("|"):
            break
        found.append([cell.strip() for cell in line.strip("|").replace("\\|", "\0").split("|")])
    return found


def words(text: str) -> set[str]:
    """Everything set in code type."""
    return set(re.findall(r"`([^`\s]+)`", text))


def faults(block: Block) -> list[Fault]:
    """What the loader that a YAML example is meant for finds wrong or, in rules, doubtful."""
    root, found = yamlfile.parse(str(block), block.text)
    if kind(block) == "rules":
        rules, wrong = rulefile.from_nodes({str(block): yamlfile.Parsed(root, found, block.text)})
        return [*wrong, *(rulecheck.warnings(rules, None) if rules else ())]
    _, wrong = config.from_node(str(block), root, found)
    return [fault for fault in wrong if not fault.warning]


def kind(block: Block) -> str:
    """``rules``, ``tests``, ``prometheus`` (not ours to load) or ``config``, by the top keys of an example."""
    root, _ = yamlfile.parse(str(block), block.text)
    keys = {key.text for key, _ in root.entries} if isinstance(root, MappingNode) else set()
    if keys & _RULES:
        return "rules"
    return next((other for key, other in _OTHERS.items() if key in keys), "config")
