"""Imports go down only: the one rule that keeps the house a house."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

LAYERS = (
    ("cli", "agent.cli agent.commands agent.quickstart agent.hostlook"),
    ("app", "agent.app agent.control"),
    (
        "runners",
        "agent.sampler agent.kernelwatch agent.journalwatch agent.engine agent.guards agent.silencing agent.dispatch "
        "agent.calendar agent.logwatch.runner agent.routing agent.serve agent.ruletest agent.backtest",
    ),
    ("plug-ins", "agent.collectors agent.handlers agent.notifiers"),
    ("reports", "reports"),
    (
        "edges",
        "agent.store agent.ops agent.gpu agent.kernel agent.journal agent.redis agent.objectstore agent.mail "
        "agent.process agent.systemd agent.inhibit agent.secret agent.aside agent.web agent.spool "
        "agent.logwatch.tailer agent.logwatch.history agent.logwatch.cut",
    ),
    (
        "what is written",
        "agent.config agent.matching agent.rulefile agent.rulecheck agent.rulevalues agent.overrides agent.logwatch",
    ),
    ("rules", "agent.promql agent.alerting agent.grouping"),
    (
        "base",
        "agent.model agent.metrics agent.told agent.specs agent.clock agent.timewatch agent.errors agent.located "
        "agent.yamlfile agent.followed agent.roots agent.schedule agent.supervisor agent.faultpoint agent.memory "
        "agent.procfs agent.fs",
    ),
)

HEAVY = {"matplotlib", "jinja2", "aiobotocore", "aiohttp", "redis", "pydantic", "yaml", "rich", "numpy"}
MAY_BE_HEAVY = ("reports", "agent.commands", "agent.quickstart", "agent.yamlfile", "agent.serve")


def modules() -> dict[str, Path]:
    found = {}
    for package in ("agent", "reports"):
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(part for part in parts if part != "__init__")] = path
    return found


def layer(module: str) -> int:
    """The layer of a module, 0 the highest: the longest matching prefix decides."""
    best = (-1, -1)
    for index, (_, prefixes) in enumerate(LAYERS):
        for prefix in prefixes.split():
            if module == prefix or module.startswith(prefix + "."):
                best = max(best, (len(prefix), index))
    return best[1]


def imports(path: Path, *, top_only: bool = False) -> set[str]:
    """Full names of what a module imports, at its top or anywhere; type-checking imports count too."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = tree.body if top_only else list(ast.walk(tree))
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            found.add(node.module)
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return found


ALL = modules()


@pytest.mark.parametrize("module", [name for name in ALL if name not in ("agent", "agent.__main__")])
def test_every_module_has_a_layer_and_imports_only_downwards(module: str) -> None:
    own = layer(module)
    assert own >= 0, f"{module} has no layer: add it to LAYERS"
    for name in imports(ALL[module]):
        if name in ALL and name != "agent":
            assert layer(name) >= own, f"{module} ({LAYERS[own][0]}) imports {name} ({LAYERS[layer(name)][0]})"


@pytest.mark.parametrize("family", ["agent.collectors", "agent.handlers", "agent.notifiers"])
def test_siblings_of_a_plugin_family_never_import_each_other(family: str) -> None:
    members = [name for name in ALL if name.startswith(family + ".")]
    for module in members:
        assert not imports(ALL[module]) & set(members) - {module}, f"{module} imports a sibling"


def test_the_hands_import_the_standard_library_and_the_base_only() -> None:
    base = len(LAYERS) - 1
    import sys

    for module, path in ALL.items():
        if not module.startswith("agent.ops"):
            continue
        for name in imports(path):
            top = name.split(".")[0]
            allowed = (
                top in sys.stdlib_module_names or name == "agent" or name.startswith("agent.ops") or layer(name) == base
            )
            assert allowed or layer(name.rpartition(".")[0]) == base, f"{module} imports {name}"


@pytest.mark.parametrize("module", list(ALL))
def test_heavy_packages_are_imported_where_they_are_used_and_not_before(module: str) -> None:
    if module.startswith(MAY_BE_HEAVY):
        return
    heavy = {name for name in imports(ALL[module], top_only=True) if name.split(".")[0] in HEAVY}
    assert not heavy, f"{module} loads {heavy} in the idle agent"
