"""``python -m agent`` is ``upkeep``: how the agent starts its own short-lived children."""

import sys

from agent.cli import main

sys.exit(main())
