"""The first screen of ``./dev run``: what this host holds, and three things worth doing, each measured here and now.

It only reads, and never longer than its budget. ``asking`` puts the questions, ``answers`` reads what comes back,
``findings`` says what of it matters most, ``screen`` makes lines of it all.
"""

from agent.hostlook.asking import look
from agent.hostlook.screen import lines

__all__ = ["lines", "look"]
