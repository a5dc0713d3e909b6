"""Traffic and state of each interface, TCP, sockets and the firewall's table, as node_exporter names them."""

from __future__ import annotations

import os

from agent.model import Reading, Series
from agent.procfs import Files, NamedNumbers, Parser, PinnedFile

LEFT_OUT = frozenset({"lo"})
"""The loopback never drops a packet that matters."""

_WAYS = ((1, "receive"), (9, "transmit"))
_COLUMNS = ((0, "bytes"), (1, "packets"), (2, "errs"), (3, "drop"))
_WIDTH = 17
_BYTES_PER_MEGABIT = 125_000


class TrafficParser:
    """Parses /proc/net/dev: eight columns received, eight sent, of which four each are wanted."""

    def __init__(self) -> None:
        self._names: list[bytes] = []
        self._places: list[int] = []
        self.series: tuple[Series, ...] = ()

    def parse(self, raw: bytes) -> list[float]:
        """The counters of each interface, received before sent."""
        words = raw.partition(b"\n")[2].partition(b"\n")[2].replace(b":", b" ").split()
        if words[::_WIDTH] != self._names:
            self._learn(words)
        return list(map(int, map(words.__getitem__, self._places)))

    def _learn(self, words: list[bytes]) -> None:
        if len(words) % _WIDTH:
            raise ValueError("cannot read /proc/net/dev: its lines are not of one kind")
        self._names = words[::_WIDTH]
        named = [(line * _WIDTH, os.fsdecode(name)) for line, name in enumerate(self._names)]
        wanted = [(place, device) for place, device in named if device not in LEFT_OUT]
        self._places = [place + way + column for place, _ in wanted for way, _ in _WAYS for column, _ in _COLUMNS]
        self.series = tuple(
            Series(f"node_network_{way}_{what}_total", (("device", device),))
            for _, device in wanted
            for _, way in _WAYS
            for _, what in _COLUMNS
        )


class TcpParser:
    """Parses the two ``Tcp:`` lines of /proc/net/snmp: names above numbers."""

    _WANTED = ("CurrEstab", "ActiveOpens", "PassiveOpens", "InSegs", "OutSegs", "RetransSegs", "InErrs", "OutRsts")

    def __init__(self) -> None:
        self._names = b""
        self._places: list[int] = []
        self.series: tuple[Series, ...] = ()

    def parse(self, raw: bytes) -> list[float]:
        """The wanted numbers of TCP; none where the kernel has no TCP."""
        names, _, rest = raw[raw.find(b"\nTcp: ") + 1 :].partition(b"\n")
        if names != self._names:
            self._names = names
            columns = names.decode().split() if names.startswith(b"Tcp: ") else []
            self._places = [columns.index(name) for name in self._WANTED if name in columns]
            self.series = tuple(Series(f"node_netstat_Tcp_{columns[place]}") for place in self._places)
        words = rest.partition(b"\n")[0].split()
        return [int(words[place]) for place in self._places]


class SocketsParser:
    """Parses the line ``TCP:`` of /proc/net/sockstat."""

    def __init__(self) -> None:
        names = ("inuse", "orphan", "tw", "alloc", "mem")
        self._numbers = NamedNumbers({name.encode(): (Series(f"node_sockstat_TCP_{name}"), 1) for name in names})
        self._of: tuple[Series, ...] = ()
        self._page_bytes = os.sysconf("SC_PAGE_SIZE")
        self.series: tuple[Series, ...] = ()

    def parse(self, raw: bytes) -> list[float]:
        """The numbers of TCP sockets, the memory in pages and in bytes."""
        line = raw[raw.find(b"TCP: ") :].partition(b"\n")[0]
        values = self._numbers.parse(line)
        if self._numbers.series is not self._of:
            self._of = self._numbers.series
            self.series = (*self._of, Series("node_sockstat_TCP_mem_bytes")) if self._of else ()
        return [*values, *(pages * self._page_bytes for pages in values[-1:])]


class NumberParser:
    """Parses a file that holds one number."""

    def __init__(self, series: Series) -> None:
        self.series = (series,)

    def parse(self, raw: bytes) -> list[float]:
        return [int(raw)]


class LinkParser:
    """Parses an interface's ``operstate`` into 1 for up; while it is up, adds the link's speed.

    A link changes its speed only by going down, and asking for it can take a lock for milliseconds: it is read when
    the state changes. A speed that the driver does not know is absent.
    """

    def __init__(self, device: str, speed: PinnedFile) -> None:
        self._device = device
        self._speed_file = speed
        self._state = b""
        self._speed: list[float] = []
        self.series: tuple[Series, ...] = ()

    def parse(self, raw: bytes) -> list[float]:
        if raw != self._state:
            self._state = raw
            self._speed = self._read_speed()
            names = ("node_network_up", "node_network_speed_bytes")
            self.series = tuple(Series(name, (("device", self._device),)) for name in names[: 1 + len(self._speed)])
        return [int(raw == b"up\n"), *self._speed]

    def _read_speed(self) -> list[float]:
        try:
            megabits = int(self._speed_file.read())
        except (OSError, ValueError):
            return []
        finally:
            self._speed_file.close()
        return [megabits * _BYTES_PER_MEGABIT] if megabits > 0 else []


class NetworkCollector:
    """Traffic of each interface. Reads a file of /proc that never blocks.

    Parameters
    ----------
    proc
        Where /proc is mounted.
    """

    name = "network"

    def __init__(self, proc: str = "/proc") -> None:
        self._files = Files({f"{proc}/net/dev": TrafficParser()})

    async def collect(self, at: float) -> Reading:
        values = self._files.read()
        return Reading(at, self._files.series, values)


class LinksCollector:
    """State of each interface, TCP, its sockets and the firewall's table.

    That is a file for each interface and some that the kernel adds up over all processors: they are read less often.

    Parameters
    ----------
    proc, sys
        Where /proc and /sys are mounted.
    """

    name = "network:links"

    def __init__(self, proc: str = "/proc", sys: str = "/sys") -> None:
        self._folder = f"{sys}/class/net"
        self._proc = proc
        self._devices: list[str] | None = None
        self._files = Files({})

    async def collect(self, at: float) -> Reading:
        devices = self._present()
        if devices != self._devices:
            self._devices = devices
            self._files = Files(self._parsers(devices))
        values = self._files.read()
        return Reading(at, self._files.series, values)

    def _present(self) -> list[str]:
        try:
            return sorted(set(os.listdir(self._folder)) - LEFT_OUT)
        except FileNotFoundError:
            return []

    def _parsers(self, devices: list[str]) -> dict[str, Parser]:
        entries, limit = Series("node_nf_conntrack_entries"), Series("node_nf_conntrack_entries_limit")
        parsers: dict[str, Parser] = {
            f"{self._proc}/net/snmp": TcpParser(),
            f"{self._proc}/net/sockstat": SocketsParser(),
            f"{self._proc}/sys/net/netfilter/nf_conntrack_count": NumberParser(entries),
            f"{self._proc}/sys/net/netfilter/nf_conntrack_max": NumberParser(limit),
        }
        for device in devices:
            speed = PinnedFile(f"{self._folder}/{device}/speed")
            parsers[f"{self._folder}/{device}/operstate"] = LinkParser(device, speed)
        return parsers
