"""What holds for the whole suite: the same examples on every merge, fresh ones on a desk and in `./dev soak`."""

from __future__ import annotations

import os

from hypothesis import settings

settings.register_profile("desk", print_blob=True)
settings.register_profile("merge", derandomize=True, print_blob=True)
settings.load_profile("merge" if os.environ.get("CI") and not os.environ.get("UPKEEP_SOAK") else "desk")
