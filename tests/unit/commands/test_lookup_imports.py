"""What a look-up imports: people and scripts ask ``upkeep status`` often, and most of its time is imports."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

WRITERS = {"asyncio", "aiosqlite", "uvloop", "agent.store.database", "agent.store.ledger", "agent.store.metrics"}
JUDGES = {"promql_parser", "hyperscan", "re2", "cronsim", "agent.promql.nodes", "agent.rulefile", "agent.app"}


def imported(module: str) -> set[str]:
    program = f"import sys, json, {module}; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout))


@pytest.mark.parametrize("module", ["agent.commands.status", "agent.commands.lookup"])
def test_a_lookup_needs_no_loop_no_writer_and_no_rules(module: str) -> None:
    assert not imported(module) & (WRITERS | JUDGES | {"subprocess", "logging"})


def test_the_commands_line_imports_no_command() -> None:
    assert not {name for name in imported("agent.cli") if name.startswith("agent.")} - {"agent.cli", "agent.errors"}


def test_the_store_gives_every_name_it_promises() -> None:
    import agent.store

    assert all(getattr(agent.store, name).__module__.startswith("agent.") for name in agent.store.__all__)
    with pytest.raises(AttributeError, match="Stroe"):
        _ = agent.store.Stroe  # type: ignore[attr-defined]
