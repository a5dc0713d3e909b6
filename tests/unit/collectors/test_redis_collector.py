"""INFO as metrics, and what a server's states look like from outside."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.collectors import Closing, build
from agent.collectors.redis import RedisCollector, parse
from agent.config import Collect, RedisInstance
from agent.metrics import METRICS
from agent.model import Event, Reading
from agent.redis import parse_info, parse_pairs
from tests.support.redis_servers import free_port, redis_server, stranger

INFO = """\
# Server\r
redis_version:6.2.14\r
redis_mode:standalone\r
os:Linux 6.1.0 x86_64\r
executable:/usr/bin/redis-server\r
config_file:/etc/redis/a:b.conf\r
\r
# Memory\r
used_memory:2097152\r
used_memory_human:2.00M\r
maxmemory:0\r
mem_fragmentation_ratio:0.81\r
mem_fragmentation_bytes:-123456\r
allocator_frag_ratio:nan\r
used_memory_peak_perc:93.58%\r
# Persistence\r
rdb_last_bgsave_status:err\r
aof_last_write_status:ok\r
rdb_last_save_time:1428427941\r
# Replication\r
role:slave\r
master_link_status:down\r
# Keyspace\r
db0:keys=585,expires=50,avg_ttl=86399999950\r
db12:keys=1,expires=0,avg_ttl=0,subexpiry=0\r
(error) ERR unknown command\r
"""


def named(text: str) -> dict[str, float]:
    from agent.model import Series

    return {str(Series(metric, labels)): value for metric, labels, value in parse(parse_info(text), "main")}


def test_what_info_says_and_what_it_does_not() -> None:
    values = named(INFO)
    assert values == {
        'redis_memory_used_bytes{name="main"}': 2097152,
        'redis_memory_max_bytes{name="main"}': 0,
        'redis_mem_fragmentation_ratio{name="main"}': 0.81,
        'redis_mem_fragmentation_bytes{name="main"}': -123456,
        'redis_rdb_last_save_timestamp_seconds{name="main"}': 1428427941,
        'redis_rdb_last_bgsave_status{name="main"}': 0,
        'redis_aof_last_write_status{name="main"}': 1,
        'redis_master_link_up{name="main"}': 0,
        'redis_db_keys{db="db0",name="main"}': 585,
        'redis_db_keys_expiring{db="db0",name="main"}': 50,
        'redis_db_keys{db="db12",name="main"}': 1,
        'redis_db_keys_expiring{db="db12",name="main"}': 0,
        'redis_instance_info{name="main",redis_mode="standalone",redis_version="6.2.14",role="slave"}': 1,
    }


def test_fields_keep_their_colons_and_an_error_is_no_field() -> None:
    fields = parse_info(INFO)
    assert fields["config_file"] == "/etc/redis/a:b.conf"
    assert len(fields) == 19
    assert parse_pairs(fields["db0"]) == {"keys": "585", "expires": "50", "avg_ttl": "86399999950"}
    assert parse_pairs("") == {}


@given(st.text())
def test_no_text_breaks_it_and_nothing_is_made_up(text: str) -> None:
    for metric, labels, value in parse(parse_info(text), "main"):
        assert value == value
        assert dict(labels)["name"] == "main"
        assert metric in METRICS


def test_every_metric_of_the_table_is_made_and_no_other() -> None:
    collected = run(lambda place: RedisInstance(url=f"unix://{place}"))[0]
    made = {series.metric for series in collected.series}
    table = {name for name, metric in METRICS.items() if metric.source == "redis"}
    assert made <= table
    # An empty server that is no replica has neither databases nor a master.
    assert table - made == {"redis_db_keys", "redis_db_keys_expiring", "redis_master_link_up"}


def run(instance: object) -> list[Reading]:
    import tempfile

    async def main() -> list[Reading]:
        with tempfile.TemporaryDirectory() as folder, redis_server(Path(folder)) as server:
            collector = RedisCollector(instance(server.socket))  # type: ignore[operator]
            readings = [await collector.collect(at) for at in (1.0, 6.0)]
            await collector.close()
            return readings

    return asyncio.run(main())


def test_the_layout_is_the_same_object_from_tick_to_tick() -> None:
    first, second = run(lambda place: RedisInstance(url=f"unix://{place}"))
    assert first.series is second.series


def values(reading: Reading) -> dict[str, float]:
    return {str(series): value for series, value in zip(reading.series, reading.values, strict=True)}


def test_a_server_that_goes_and_comes_back(tmp_path: Path) -> None:
    told: list[Event] = []

    async def tell(event: Event) -> None:
        told.append(event)

    async def main() -> None:
        with redis_server(tmp_path) as server:
            collector = RedisCollector(RedisInstance(name="queue", url=f"redis://127.0.0.1:{server.port}"), tell)
            assert values(await collector.collect(0.0))['redis_up{name="queue"}'] == 1
            server.stop()
            down = {
                'redis_up{name="queue"}': 0.0,
                'redis_exporter_last_scrape_error{err="unreachable",name="queue"}': 1.0,
            }
            for at in (5.0, 10.0):
                assert values(await collector.collect(at)) == down
            server.start()
            # The rest after the second failure lasts 2 s; a clock that is set back ends it too.
            assert values(await collector.collect(11.9)) == down
            assert values(await collector.collect(12.0))['redis_up{name="queue"}'] == 1
            await collector.close()

    asyncio.run(main())
    assert [(event.severity.value, dict(event.labels).get("reason")) for event in told] == [
        ("error", "unreachable"),
        ("info", None),
    ]
    assert told[0].message.startswith('Redis "queue" is unreachable: ')
    assert told[0].kind == "redis_state"


def test_the_longer_it_is_dead_the_less_often_it_is_asked_and_a_clock_set_back_ends_the_rest() -> None:
    async def main() -> None:
        async with stranger() as port:
            collector = RedisCollector(RedisInstance(url=f"redis://127.0.0.1:{port}", timeout=0.05))
            instants: list[float] = []
            for at in range(200):
                before = collector._failed_at
                await collector.collect(float(at))
                if collector._failed_at != before or at == 0:
                    instants.append(at)
            assert instants == [0, 1, 3, 7, 15, 31, 61, 91, 121, 151, 181]
            await collector.collect(50.0)
            assert collector._failed_at == 50.0
            await collector.close()

    asyncio.run(main())


def test_a_server_that_loads_is_not_up_and_has_no_values(tmp_path: Path) -> None:
    async def main() -> None:
        with redis_server(tmp_path, "--enable-debug-command", "local") as server:
            server.cli("debug", "populate", "20000")
            server.cli("save")
            server.stop()
            server.start("--key-load-delay", "500", "--loading-process-events-interval-bytes", "1024")
            collector = RedisCollector(RedisInstance(url=f"unix://{server.socket}"))
            assert values(await collector.collect(0.0)) == {
                'redis_up{name="main"}': 0.0,
                'redis_exporter_last_scrape_error{err="loading",name="main"}': 1.0,
            }
            await collector.close()

    asyncio.run(main())


def test_a_server_whose_dump_fails_is_up_and_says_so(tmp_path: Path) -> None:
    async def main() -> None:
        with redis_server(tmp_path, "--dbfilename", "dump.rdb") as server:
            (tmp_path / "dump.rdb").mkdir()
            server.cli("set", "a", "1")
            server.cli("bgsave")
            collector = RedisCollector(RedisInstance(url=f"unix://{server.socket}"))
            for at in range(200):
                found = values(await collector.collect(float(at)))
                if found['redis_rdb_last_bgsave_status{name="main"}'] == 0:
                    break
                await asyncio.sleep(0.02)
            assert found['redis_rdb_last_bgsave_status{name="main"}'] == 0
            assert found['redis_up{name="main"}'] == 1
            assert found['redis_db_keys{db="db0",name="main"}'] == 1
            await collector.close()

    asyncio.run(main())


def test_each_server_is_asked_on_its_own() -> None:
    hung = RedisInstance(name="hung", url=f"redis://127.0.0.1:{free_port()}", interval=30.0, timeout=10.0)
    sources = {source.collector.name: source for source in build(Collect(redis=(hung, RedisInstance())))}
    assert sources["redis:hung"].interval_s == 30.0
    assert sources["redis:main"].interval_s == 5.0
    for name in ("redis:hung", "redis:main"):
        assert not sources[name].inline
        assert isinstance(sources[name].collector, Closing)
        assert (sources[name].deadline_s or 0) > 5.0


@pytest.mark.parametrize("name", ["redis_memory_used_bytes", "redis_db_keys", "redis_up"])
def test_the_sampler_knows_whose_metric_it_is(name: str) -> None:
    assert METRICS[name].source == RedisCollector(RedisInstance()).name.partition(":")[0]
