"""``listen:``: the agent's one TCP socket. ``/metrics``, ``/healthz``, the status page and the reports, to read only.

Nothing here is loaded unless the configuration has ``listen:``; aiohttp and jinja2 are imported with it.
"""

from __future__ import annotations

from agent.serve.site import address, bind, serve
from agent.serve.status import Facts, size_limits

__all__ = ["Facts", "address", "bind", "serve", "size_limits"]
