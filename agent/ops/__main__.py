"""``python -m agent.ops``, also run as a plain file by ``python -I -S``: then nothing but this checkout is added.

Without site there are no .pth files and no user packages, so nobody's start-up code runs with the hands' rights.
"""

from __future__ import annotations

import os
import sys

if __name__ == "__main__":
    if not __package__:
        sys.path.append(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))
    from agent.ops.server import main

    sys.exit(main())
