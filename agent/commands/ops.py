"""``upkeep ops``: the hands themselves, or the policy they would follow."""

from __future__ import annotations

from argparse import Namespace

from agent.app import ops_policy
from agent.commands.common import loaded
from agent.ops import server


def run(arguments: Namespace) -> int:
    """Serve requests on standard input (a socket), or print the policy that the configuration gives."""
    if arguments.what == "policy":
        print(ops_policy(loaded(arguments).config).to_json())
        return 0
    return server.main()
