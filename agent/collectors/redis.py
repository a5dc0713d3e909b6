"""Redis servers, under redis_exporter's names.

A server that does not answer has ``redis_up`` 0 with the reason beside it, and no other value: absent, never 0.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from agent.config import RedisInstance
from agent.model import Labels, Reading, Series, Severity, make_labels
from agent.redis import RedisError, client, parse_pairs
from agent.told import States, Tell, nobody

FIRST_REST_S = 1.0
LONGEST_REST_S = 30.0
"""A server that does not answer is left alone for a second, then twice as long each time, up to half a minute."""

NUMBERS: Mapping[str, str] = {
    "used_memory": "redis_memory_used_bytes",
    "used_memory_peak": "redis_memory_used_peak_bytes",
    "used_memory_rss": "redis_memory_used_rss_bytes",
    "maxmemory": "redis_memory_max_bytes",
    "mem_fragmentation_ratio": "redis_mem_fragmentation_ratio",
    "mem_fragmentation_bytes": "redis_mem_fragmentation_bytes",
    "allocator_frag_ratio": "redis_allocator_frag_ratio",
    "allocator_frag_bytes": "redis_allocator_frag_bytes",
    "uptime_in_seconds": "redis_uptime_in_seconds",
    "connected_clients": "redis_connected_clients",
    "blocked_clients": "redis_blocked_clients",
    "rejected_connections": "redis_rejected_connections_total",
    "evicted_keys": "redis_evicted_keys_total",
    "expired_keys": "redis_expired_keys_total",
    "keyspace_hits": "redis_keyspace_hits_total",
    "keyspace_misses": "redis_keyspace_misses_total",
    "total_commands_processed": "redis_commands_processed_total",
    "rdb_last_save_time": "redis_rdb_last_save_timestamp_seconds",
    "rdb_changes_since_last_save": "redis_rdb_changes_since_last_save",
    "connected_slaves": "redis_connected_slaves",
}
"""Fields of INFO that are numbers, and redis_exporter's names for them."""

WORDS: Mapping[str, tuple[str, str]] = {
    "rdb_last_bgsave_status": ("redis_rdb_last_bgsave_status", "ok"),
    "aof_last_write_status": ("redis_aof_last_write_status", "ok"),
    "master_link_status": ("redis_master_link_up", "up"),
}
"""Fields that are words: their names, and the word that is 1."""

_NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e[+-]?\d+)?", re.ASCII)
_DATABASE = re.compile(r"db\d+", re.ASCII)


def parse(fields: Mapping[str, str], name: str) -> Iterator[tuple[str, Labels, float]]:
    """Metric, labels and value of what INFO says; what it does not say, or not as a number, is absent."""
    own = make_labels(name=name)
    for field, metric in NUMBERS.items():
        if _NUMBER.fullmatch(text := fields.get(field, "")):
            yield metric, own, float(text)
    for field, (metric, good) in WORDS.items():
        if field in fields:
            yield metric, own, float(fields[field] == good)
    for field, value in fields.items():
        if _DATABASE.fullmatch(field):
            pairs = parse_pairs(value)
            labels = make_labels(name=name, db=field)
            for key, metric in (("keys", "redis_db_keys"), ("expires", "redis_db_keys_expiring")):
                if _NUMBER.fullmatch(pairs.get(key, "")):
                    yield metric, labels, float(pairs[key])
    about = {label: fields.get(label, "") for label in ("redis_version", "redis_mode", "role")}
    yield "redis_instance_info", make_labels(about, name=name), 1.0


class RedisCollector:
    """One server; a host's servers are asked each by its own, so that none waits for another.

    Parameters
    ----------
    instance
        The server.
    tell
        Records an event when its state changes.
    """

    def __init__(self, instance: RedisInstance, tell: Tell = nobody) -> None:
        self.name = f"redis:{instance.name}"
        self._instance = instance
        self._client = client(instance)
        self._states = States("redis", tell)
        self._labels = make_labels(name=instance.name)
        self._failed_at = self._rest_s = 0.0
        self._reason = ""
        self._found: list[tuple[str, Labels, float]] = []
        self._layout: list[tuple[str, Labels]] = []
        self._series: tuple[Series, ...] = ()

    async def collect(self, at: float) -> Reading:
        if not self._failed_at <= at < self._failed_at + self._rest_s:  # a clock that was set back ends the rest
            await self._ask(at)
            if not self._reason:
                return self._reading(at)
        err = make_labels(name=self._instance.name, err=self._reason)
        self._found = [("redis_up", self._labels, 0.0), ("redis_exporter_last_scrape_error", err, 1.0)]
        return self._reading(at)

    async def close(self) -> None:
        """Let the connection go."""
        await self._client.close()

    async def _ask(self, at: float) -> None:
        named = f'Redis "{self._instance.name}"'
        try:
            fields = await self._client.info()
            if fields.get("loading", "0") != "0":
                raise RedisError("loading", "it reads its data from disk")
        except RedisError as error:
            self._reason = error.reason
            self._rest_s = min(LONGEST_REST_S, max(FIRST_REST_S, 2 * self._rest_s))
            self._failed_at = at
            await self._states.wrong(
                self._instance.name, error.reason, f"{named} is {error.reason}: {error}", at, Severity.ERROR
            )
            return
        self._reason, self._rest_s = "", 0.0
        await self._states.right(self._instance.name, f"{named} answers again", at)
        self._found = [
            ("redis_up", self._labels, 1.0),
            ("redis_exporter_last_scrape_error", self._labels, 0.0),
            *parse(fields, self._instance.name),
        ]

    def _reading(self, at: float) -> Reading:
        layout = [(metric, labels) for metric, labels, _ in self._found]
        if layout != self._layout:
            self._layout = layout
            self._series = tuple(Series(metric, labels) for metric, labels in layout)
        return Reading(at, self._series, [value for _, _, value in self._found])
