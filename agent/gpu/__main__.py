"""``python -m agent.gpu``, also run as a plain file by ``python -I``: then nothing but this checkout is added."""

from __future__ import annotations

import os
import sys

if __name__ == "__main__":
    if not __package__:
        sys.path.append(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))
    from agent.gpu.server import main

    sys.exit(main())
