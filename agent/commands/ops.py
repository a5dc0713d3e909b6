"""``upkeep ops``: the hands themselves, or the policy they would follow."""

from __future__ import annotations

import dataclasses
import os
import sys
from argparse import Namespace

from agent.app import ops_policy
from agent.commands.common import loaded
from agent.ops import server


def run(arguments: Namespace) -> int:
    """Serve requests on standard input (a socket), or print the policy that the configuration gives."""
    if arguments.what == "policy":
        settings = loaded(arguments).config
        policy = dataclasses.replace(ops_policy(settings), peers=_peers(settings.state_dir))
        print(policy.to_json())
        return 0
    return server.main()


def _peers(state_dir: str) -> tuple[int, ...]:
    """Who may ask hands that root runs: the agent's user, which is whose state directory it is."""
    try:
        return (os.stat(state_dir).st_uid,)
    except OSError as error:
        print(
            f'cannot tell who the agent is from "{state_dir}": {(error.strerror or str(error)).lower()}; '
            "hands under this policy serve only the user they run as",
            file=sys.stderr,
        )
        return ()
