"""Asking Redis servers: one port, two drivers beneath it, each loaded only where a server is configured."""

from __future__ import annotations

from agent.redis.info import parse_info, parse_pairs
from agent.redis.port import Client, Reason, RedisError, client

__all__ = ["Client", "Reason", "RedisError", "client", "parse_info", "parse_pairs"]
