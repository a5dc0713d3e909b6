"""The one table of metric names: it feeds ``/metrics``, the checker's did-you-mean, the reference page and the tests.

Names, types, units and labels are those of node_exporter, dcgm-exporter and redis_exporter where they have one.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

MetricType = Literal["counter", "gauge", "info", "untyped"]


@dataclass(frozen=True, slots=True)
class Metric:
    """What is known of a name before any value is.

    ``source`` is the family of collectors that makes it (a key of :data:`SOURCES`). ``low`` and ``high`` bound every
    value it can take, for warnings about thresholds that can never be crossed; a ratio lies between 0 and 1.
    """

    name: str
    type: MetricType
    unit: str
    help: str
    source: str
    labels: tuple[str, ...] = ()
    low: float | None = 0.0
    high: float | None = None

    @property
    def ratio(self) -> bool:
        """Whether values are shares of one, so that a threshold of 90 is a mistake for 0.9."""
        return self.unit == "ratio" and self.high == 1.0


SOURCES: Mapping[str, str] = {
    "system": "/proc/stat, /proc/loadavg, /proc/meminfo, /proc/vmstat, /proc/pressure, /proc/sys/fs/file-nr",
    "filesystem": "statvfs of each mount, network and FUSE mounts from a child with a deadline for each",
    "disk": "/proc/diskstats",
    "network": "/proc/net/dev, /proc/net/snmp, /proc/net/sockstat, /proc/sys/net/netfilter, /sys/class/net",
    "hardware": "adjtimex, /sys/class/hwmon, cpufreq, /proc/mdstat",
    "services": "one batched `systemctl show`",
    "cgroups": "memory.current, memory.max and memory.events of cgroup v2",
    "processes": "/proc/PID/stat of every process",
    "updates": "`apt-get --simulate`, /run/reboot-required, /boot",
    "probes": "TCP, ICMP, DNS and HTTP probes",
    "textfile": "`*.prom` files",
    "gpu": "NVML, in a process of its own, /proc/driver/nvidia",
    "kernel": "the kernel's log: the journal, else /dev/kmsg; Xids also from NVML",
    "redis": "INFO",
    "directories": "a walk with directory descriptors, one device, in a child of low priority",
    "logs": "the log tailer",
    "evaluation": "the evaluation framework's `performance_metrics` table and the monthly baseline",
    "backups": "the ledger",
    "audit": "the security audit",
    "self": "the agent itself",
}
"""Each family of collectors, and what it reads."""

_GPU = ("gpu", "UUID", "device", "modelName", "Hostname", "pci_bus_id")


def _system() -> Iterator[Metric]:
    def counter(name: str, unit: str, words: str, *labels: str) -> Metric:
        return Metric(name, "counter", unit, words, "system", labels)

    def gauge(name: str, unit: str, words: str) -> Metric:
        return Metric(name, "gauge", unit, words, "system")

    yield counter("node_cpu_seconds_total", "seconds", "Time each processor spent in each mode.", "cpu", "mode")
    for minutes in (1, 5, 15):
        yield gauge(f"node_load{minutes}", "", f"Tasks that run or wait for a processor or a disk, {minutes} min mean.")
    yield counter("node_context_switches_total", "", "Switches from one task to another.")
    yield counter("node_forks_total", "", "Processes and threads started since boot.")
    yield counter("node_intr_total", "", "Interrupts served since boot.")
    yield gauge("node_procs_running", "", "Tasks that run or could run.")
    yield gauge("node_procs_blocked", "", "Tasks that wait for a disk or another device and cannot be interrupted.")
    yield gauge("node_boot_time_seconds", "seconds", "When the host started, seconds since the epoch.")
    yield gauge("node_time_seconds", "seconds", "The host's clock, seconds since the epoch.")
    yield gauge("node_filefd_allocated", "", "Open files of the whole host.")
    yield gauge("node_filefd_maximum", "", "Open files that the host allows in all.")
    for name, words in _MEMORY.items():
        unit = "" if name.startswith("HugePages_") else "bytes"
        yield gauge(f"node_memory_{name}" + ("_bytes" if unit else ""), unit, words)
    for name, words in _VMSTAT.items():
        yield Metric(f"node_vmstat_{name}", "untyped", "", words, "system")
    for resource, kind, words in (
        ("cpu", "waiting", "some task waited for a processor"),
        ("memory", "waiting", "some task waited for memory"),
        ("memory", "stalled", "no task could go on for want of memory"),
        ("io", "waiting", "some task waited for a disk"),
        ("io", "stalled", "no task could go on for want of a disk"),
    ):
        yield counter(f"node_pressure_{resource}_{kind}_seconds_total", "seconds", f"Time in which {words}.")


_MEMORY: Mapping[str, str] = {
    "MemTotal": "Memory that the kernel can use.",
    "MemFree": "Memory that nothing uses, not even a cache.",
    "MemAvailable": "Memory that a new program could have without swapping: the figure to judge by.",
    "Buffers": "Cache of raw block devices.",
    "Cached": "Cache of files, shared memory included.",
    "SwapCached": "Memory that also has a copy in swap.",
    "Active": "Memory used lately, reclaimed last.",
    "Inactive": "Memory not used lately, reclaimed first.",
    "Unevictable": "Memory that can never be reclaimed.",
    "Mlocked": "Memory locked by programs.",
    "SwapTotal": "Swap space in all.",
    "SwapFree": "Swap space that is unused.",
    "Dirty": "File data that waits to be written.",
    "Writeback": "File data that is being written.",
    "AnonPages": "Memory of programs that no file backs.",
    "Mapped": "Files mapped into programs.",
    "Shmem": "Shared memory and tmpfs.",
    "Slab": "The kernel's own objects.",
    "SReclaimable": "The kernel's own objects that can be given up.",
    "SUnreclaim": "The kernel's own objects that cannot be given up.",
    "KernelStack": "Stacks of the kernel.",
    "PageTables": "Page tables.",
    "CommitLimit": "Memory that may be promised where overcommit is off.",
    "Committed_AS": "Memory promised to programs.",
    "VmallocUsed": "Memory the kernel mapped piecemeal.",
    "Percpu": "Memory the kernel holds for each processor.",
    "HardwareCorrupted": "Memory taken out of use after hardware errors.",
    "AnonHugePages": "Memory of programs in huge pages.",
    "HugePages_Total": "Huge pages reserved.",
    "HugePages_Free": "Huge pages reserved that are unused.",
    "HugePages_Rsvd": "Huge pages promised and not yet used.",
    "HugePages_Surp": "Huge pages above the reservation.",
    "Hugepagesize": "Size of one huge page.",
}
_VMSTAT: Mapping[str, str] = {
    "pgpgin": "KiB read from block devices.",
    "pgpgout": "KiB written to block devices.",
    "pswpin": "Pages read back from swap.",
    "pswpout": "Pages written to swap.",
    "pgfault": "Page faults of all kinds.",
    "pgmajfault": "Page faults that had to read from a disk.",
    "oom_kill": "Processes killed because memory ran out.",
}


def _filesystem() -> Iterator[Metric]:
    for name, unit, words, high in (
        ("size_bytes", "bytes", "Size of the file system.", None),
        ("free_bytes", "bytes", "Free space, what only root may use included.", None),
        ("avail_bytes", "bytes", "Free space for ordinary users.", None),
        ("files", "", "Inodes in all.", None),
        ("files_free", "", "Inodes that are free.", None),
        ("readonly", "", "1 where nothing can be written, by mount option or after an error.", 1.0),
        ("device_error", "", "1 where the file system did not answer; its other values are then absent.", 1.0),
    ):
        labels = ("device", "mountpoint", "fstype")
        yield Metric(f"node_filesystem_{name}", "gauge", unit, words, "filesystem", labels, 0.0, high)


def _disk() -> Iterator[Metric]:
    for name, unit, words in (
        ("reads_completed", "", "Reads completed."),
        ("reads_merged", "", "Reads joined with a neighbour before they were sent."),
        ("read_bytes", "bytes", "Bytes read."),
        ("read_time_seconds", "seconds", "Time that all reads took together."),
        ("writes_completed", "", "Writes completed."),
        ("writes_merged", "", "Writes joined with a neighbour before they were sent."),
        ("written_bytes", "bytes", "Bytes written."),
        ("write_time_seconds", "seconds", "Time that all writes took together."),
        ("io_time_seconds", "seconds", "Time in which at least one request was under way."),
        ("io_time_weighted_seconds", "seconds", "Time under way, counted once for each request."),
    ):
        yield Metric(f"node_disk_{name}_total", "counter", unit, words, "disk", ("device",))
    yield Metric("node_disk_io_now", "gauge", "", "Requests under way.", "disk", ("device",))


def _network() -> Iterator[Metric]:
    for way, words in (("receive", "received"), ("transmit", "sent")):
        for name, unit, what in (
            ("bytes", "bytes", f"Bytes {words}."),
            ("packets", "", f"Packets {words}."),
            ("errs", "", f"Packets that could not be {words} for an error."),
            ("drop", "", f"Packets dropped that were to be {words}."),
        ):
            yield Metric(f"node_network_{way}_{name}_total", "counter", unit, what, "network", ("device",))
    yield Metric("node_network_up", "gauge", "", "1 where the link is up.", "network", ("device",), 0.0, 1.0)
    yield Metric("node_network_speed_bytes", "gauge", "bytes", "Speed of the link, a second.", "network", ("device",))
    for name, words in (
        ("CurrEstab", "Connections that are open now."),
        ("ActiveOpens", "Connections opened from here."),
        ("PassiveOpens", "Connections opened from elsewhere."),
        ("InSegs", "Segments received."),
        ("OutSegs", "Segments sent."),
        ("RetransSegs", "Segments sent again."),
        ("InErrs", "Segments received with an error."),
        ("OutRsts", "Connections reset from here."),
    ):
        yield Metric(f"node_netstat_Tcp_{name}", "untyped", "", words, "network")
    for name, unit, words in (
        ("inuse", "", "TCP sockets in use."),
        ("orphan", "", "TCP sockets that no process holds any more."),
        ("tw", "", "TCP sockets that wait out their last two minutes."),
        ("alloc", "", "TCP sockets that exist in any state."),
        ("mem", "", "Pages held by TCP buffers."),
        ("mem_bytes", "bytes", "Bytes held by TCP buffers."),
    ):
        yield Metric(f"node_sockstat_TCP_{name}", "gauge", unit, words, "network")
    yield Metric("node_nf_conntrack_entries", "gauge", "", "Connections the firewall follows.", "network")
    yield Metric("node_nf_conntrack_entries_limit", "gauge", "", "Connections it can follow at most.", "network")


def _hardware() -> Iterator[Metric]:
    def gauge(name: str, unit: str, words: str, *labels: str, low: float | None = 0.0) -> Metric:
        return Metric(name, "gauge", unit, words, "hardware", labels, low)

    yield gauge("node_cpu_scaling_frequency_hertz", "hertz", "Clock of each processor.", "cpu")
    yield Metric("node_timex_sync_status", "gauge", "", "1 where the clock is kept in step.", "hardware", (), 0.0, 1.0)
    yield gauge("node_timex_offset_seconds", "seconds", "How far the clock is off its reference.", low=None)
    yield gauge("node_timex_maxerror_seconds", "seconds", "How far the clock may be off at most.")
    yield gauge("node_md_disks", "", "Disks of a RAID in each state.", "device", "state")
    yield gauge("node_md_disks_required", "", "Disks that a RAID should have.", "device")
    yield gauge("node_md_state", "", "1 for the state a RAID is in.", "device", "state")
    yield gauge("node_hwmon_temp_celsius", "celsius", "Temperature at a sensor.", "chip", "sensor", low=None)
    yield gauge("node_hwmon_temp_max_celsius", "celsius", "The sensor's own upper limit.", "chip", "sensor", low=None)
    words = "Temperature at which the sensor calls it critical."
    yield gauge("node_hwmon_temp_crit_celsius", "celsius", words, "chip", "sensor", low=None)


def _loads() -> Iterator[Metric]:
    def metric(name: str, kind: MetricType, unit: str, words: str, source: str, *labels: str) -> Metric:
        return Metric(name, kind, unit, words, source, labels)

    words = "Memory of a unit or container, its cache included."
    yield metric("container_memory_usage_bytes", "gauge", "bytes", words, "cgroups", "id")
    words = "What it may hold at most; absent where there is no limit. In a container `/` is the container."
    yield metric("container_spec_memory_limit_bytes", "gauge", "bytes", words, "cgroups", "id")
    words = "Processes in it killed because memory ran out."
    yield metric("container_oom_events_total", "counter", "", words, "cgroups", "id")
    words = "Processor time of all processes of a name since the agent started; only of those that use most."
    labels = ("groupname", "mode")
    yield metric("namedprocess_namegroup_cpu_seconds_total", "counter", "seconds", words, "processes", *labels)
    words = "Memory of all processes of a name; what they share counts for each."
    labels = ("groupname", "memtype")
    yield metric("namedprocess_namegroup_memory_bytes", "gauge", "bytes", words, "processes", *labels)
    yield metric("namedprocess_namegroup_num_procs", "gauge", "", "Processes of a name.", "processes", "groupname")


def _watched() -> Iterator[Metric]:
    yield Metric(
        "node_systemd_unit_state", "gauge", "", "1 for the state a unit is in.", "services", ("name", "state"), 0.0, 1.0
    )
    words = "Restarts that systemd made on its own."
    yield Metric("node_systemd_service_restart_total", "counter", "", words, "services", ("name",))
    yield Metric("probe_success", "gauge", "", "1 where the target answered.", "probes", ("target",), 0.0, 1.0)
    yield Metric("probe_duration_seconds", "gauge", "seconds", "How long the probe took.", "probes", ("target",))
    words = "The status of the answer by HTTP."
    yield Metric("probe_http_status_code", "gauge", "", words, "probes", ("target",))
    words = "When the certificate that was shown ends, seconds since the epoch."
    yield Metric("probe_ssl_earliest_cert_expiry", "gauge", "seconds", words, "probes", ("target",))
    words = "When a text file was written last."
    yield Metric("node_textfile_mtime_seconds", "gauge", "seconds", words, "textfile", ("file",))
    words = "1 where a text file could not be read."
    yield Metric("node_textfile_scrape_error", "gauge", "", words, "textfile", (), 0.0, 1.0)


def _gpu() -> Iterator[Metric]:
    for name, unit, words, high in (
        ("GPU_UTIL", "percent", "Time in which some kernel ran.", 100.0),
        ("MEM_COPY_UTIL", "percent", "Time in which memory was read or written.", 100.0),
        ("ENC_UTIL", "percent", "Use of the encoder.", 100.0),
        ("DEC_UTIL", "percent", "Use of the decoder.", 100.0),
        ("FB_USED", "MiB", "Memory in use; the total is used + free + reserved.", None),
        ("FB_FREE", "MiB", "Memory that is free.", None),
        ("FB_RESERVED", "MiB", "Memory that the driver keeps for itself.", None),
        ("GPU_TEMP", "celsius", "Temperature of the chip.", None),
        ("MEMORY_TEMP", "celsius", "Temperature of the memory.", None),
        ("POWER_USAGE", "watts", "Power drawn.", None),
        ("SM_CLOCK", "MHz", "Clock of the processors.", None),
        ("MEM_CLOCK", "MHz", "Clock of the memory.", None),
        ("PSTATE", "", "Performance state, 0 (fastest) to 15.", 15.0),
        ("RETIRED_SBE", "", "Memory pages retired after correctable errors.", None),
        ("RETIRED_DBE", "", "Memory pages retired after uncorrectable errors.", None),
        ("RETIRED_PENDING", "", "1 where a retirement waits for a reset.", 1.0),
        ("CORRECTABLE_REMAPPED_ROWS", "", "Memory rows replaced after correctable errors.", None),
        ("UNCORRECTABLE_REMAPPED_ROWS", "", "Memory rows replaced after uncorrectable errors.", None),
        ("ROW_REMAP_FAILURE", "", "1 where a row could not be replaced: the GPU needs service.", 1.0),
        ("ROW_REMAP_PENDING", "", "1 where a replacement waits for a reset.", 1.0),
        ("CLOCK_THROTTLE_REASONS", "", "Reasons for a lower clock, as a bit mask.", None),
    ):
        yield Metric(f"DCGM_FI_DEV_{name}", "gauge", unit, words, "gpu", _GPU, 0.0, high)
    for name, unit, words in (
        ("TOTAL_ENERGY_CONSUMPTION", "mJ", "Energy used since the driver was loaded."),
        ("PCIE_REPLAY_COUNTER", "", "Packets sent again on the PCIe link."),
        ("ECC_SBE_VOL_TOTAL", "", "Correctable memory errors since the driver was loaded."),
        ("ECC_DBE_VOL_TOTAL", "", "Uncorrectable memory errors since the driver was loaded."),
        ("ECC_SBE_AGG_TOTAL", "", "Correctable memory errors of the GPU's life."),
        ("ECC_DBE_AGG_TOTAL", "", "Uncorrectable memory errors of the GPU's life."),
        ("NVLINK_CRC_FLIT_ERROR_COUNT_TOTAL", "", "NVLink control errors."),
        ("NVLINK_CRC_DATA_ERROR_COUNT_TOTAL", "", "NVLink data errors."),
        ("NVLINK_REPLAY_ERROR_COUNT_TOTAL", "", "NVLink packets sent again."),
        ("NVLINK_RECOVERY_ERROR_COUNT_TOTAL", "", "NVLink recoveries."),
        ("POWER_VIOLATION", "ns", "Time slowed for power."),
        ("THERMAL_VIOLATION", "ns", "Time slowed for heat."),
    ):
        yield Metric(f"DCGM_FI_DEV_{name}", "counter", unit, words, "gpu", _GPU)


def _gpu_ours() -> Iterator[Metric]:
    def gauge(name: str, unit: str, words: str, *labels: str, high: float | None = None) -> Metric:
        return Metric(name, "gauge", unit, words, "gpu", (*_GPU, *labels), 0.0, high)

    yield gauge("gpu_up", "", "1 where the GPU answers; 0 where it is lost or the driver hangs.", high=1.0)
    words = "1 for the versions of driver, NVML and CUDA, as labels."
    versions = ("driver_version", "nvml_version", "cuda_version")
    yield Metric("gpu_driver_info", "info", "", words, "gpu", versions)
    words = "What the driver asks for: 0 nothing, 1 a reset, 2 a reboot, 3 drain its peers, 4 drain and reset it."
    yield gauge("gpu_recovery_action", "", words)
    yield gauge("gpu_nvlink_links", "", "NVLinks in each state, `up` and `down`.", "state")
    words = "Clock under full load, as a share of that of its `peers` under full load or of `itself` over a day."
    yield Metric("gpu_relative_speed_ratio", "gauge", "", words, "gpu", (*_GPU, "against"))
    yield gauge("gpu_throttled", "", "1 for each reason that holds the clock down.", "reason", high=1.0)
    yield gauge("gpu_temperature_limit_celsius", "celsius", "Temperature at which the GPU slows or stops.", "kind")
    yield gauge("gpu_power_limit_watts", "watts", "Power the GPU may draw.")
    yield gauge("gpu_pcie_link_width", "", "PCIe lanes in use.")
    yield gauge("gpu_pcie_link_width_max", "", "PCIe lanes that card and slot allow.")
    yield gauge("gpu_pcie_link_generation", "", "PCIe generation in use; it falls when the GPU idles.")
    yield gauge("gpu_pcie_link_generation_max", "", "PCIe generation that card and slot allow.")
    yield gauge("gpu_process_memory_bytes", "bytes", "GPU memory of one process.", "pid", "name", "user")
    yield gauge("gpu_orphaned_memory_bytes", "bytes", "GPU memory that no living process owns.")
    words = "1 where the installed driver is of another version than the loaded one, before programs fail."
    yield Metric("gpu_driver_mismatch", "gauge", "", words, "gpu", (), 0.0, 1.0)
    yield Metric("gpu_call_seconds", "gauge", "seconds", "How long a driver call took.", "gpu", ("call",))


def _kernel() -> Iterator[Metric]:
    words = "Lines of the kernel's log that mean trouble, by the pattern they match."
    yield Metric("kernel_messages_total", "counter", "", words, "kernel", ("pattern", "device", "server"))
    yield Metric("gpu_xid_errors_total", "counter", "", "Xid errors, by code.", "kernel", (*_GPU, "xid"))
    words = "Code of the last Xid error, 0 where there was none; gpu_xid_errors_total counts them."
    yield Metric("DCGM_FI_DEV_XID_ERRORS", "gauge", "", words, "kernel", _GPU)


def _redis() -> Iterator[Metric]:
    def gauge(name: str, unit: str, words: str, *labels: str, high: float | None = None) -> Metric:
        return Metric(f"redis_{name}", "gauge", unit, words, "redis", ("name", *labels), 0.0, high)

    yield gauge("up", "", "1 where the server answers and has its data; upkeep events says why not.", high=1.0)
    words = "1 with the reason where it does not: {}."
    reasons = "`unreachable`, `silent`, `untrusted`, `unauthorized`, `loading`, `full`, `refused` or `garbled`"
    yield gauge("exporter_last_scrape_error", "", words.format(reasons), "err", high=1.0)
    yield gauge("uptime_in_seconds", "seconds", "Time since the server started.")
    yield gauge("memory_used_bytes", "bytes", "Memory that the data and the server use.")
    yield gauge("memory_used_peak_bytes", "bytes", "The most memory used since start.")
    yield gauge("memory_used_rss_bytes", "bytes", "Memory as the kernel counts it.")
    yield gauge("memory_max_bytes", "bytes", "The limit on memory; 0 is none.")
    yield gauge("mem_fragmentation_ratio", "", "Memory as the kernel counts it over memory used; above 1 is waste.")
    words = "The same as a difference: judge by both. Negative where memory is swapped out."
    yield Metric("redis_mem_fragmentation_bytes", "gauge", "bytes", words, "redis", ("name",), None)
    yield gauge("allocator_frag_ratio", "", "Waste inside the allocator, as a quotient.")
    yield gauge("allocator_frag_bytes", "bytes", "Waste inside the allocator.")
    yield gauge("connected_clients", "", "Clients connected.")
    yield gauge("blocked_clients", "", "Clients that wait in a blocking command.")
    for name, words in (
        ("rejected_connections", "Clients turned away at the limit."),
        ("evicted_keys", "Keys evicted for want of memory."),
        ("expired_keys", "Keys whose time ran out."),
        ("keyspace_hits", "Look-ups that found their key."),
        ("keyspace_misses", "Look-ups that did not."),
        ("commands_processed", "Commands carried out."),
    ):
        yield Metric(f"redis_{name}_total", "counter", "", words, "redis", ("name",))
    yield gauge("db_keys", "", "Keys of a database.", "db")
    yield gauge("db_keys_expiring", "", "Keys of a database that will expire.", "db")
    yield gauge("rdb_last_save_timestamp_seconds", "seconds", "When a dump last succeeded.")
    yield gauge("rdb_last_bgsave_status", "", "1 where the last dump succeeded.", high=1.0)
    yield gauge("rdb_changes_since_last_save", "", "Changes not yet in a dump.")
    yield gauge("aof_last_write_status", "", "1 where the last write of the append-only file succeeded.", high=1.0)
    yield gauge("connected_slaves", "", "Replicas connected.")
    yield gauge("master_link_up", "", "1 where a replica hears its master.", high=1.0)
    words = "Version, mode and role of the server, as labels; always 1."
    yield Metric("redis_instance_info", "info", "", words, "redis", ("name", "redis_version", "redis_mode", "role"))


def _records() -> Iterator[Metric]:
    def gauge(name: str, unit: str, words: str, source: str, *labels: str, high: float | None = None) -> Metric:
        return Metric(name, "gauge", unit, words, source, labels, 0.0, high)

    def counter(name: str, unit: str, words: str, source: str, *labels: str) -> Metric:
        return Metric(name, "counter", unit, words, source, labels)

    yield gauge("directory_size_bytes", "bytes", "Blocks on disk, each inode once.", "directories", "path")
    yield gauge("directory_files", "", "Regular files, each inode once.", "directories", "path")
    words = "When the file that was changed first was changed."
    yield gauge("directory_oldest_timestamp_seconds", "seconds", words, "directories", "path")
    words = "When the file that was changed last was changed."
    yield gauge("directory_newest_timestamp_seconds", "seconds", words, "directories", "path")
    words = "All that was written before this instant is counted; of later writes in place some may not be."
    yield gauge("directory_verified_timestamp_seconds", "seconds", words, "directories", "path")
    yield gauge("directory_scan_seconds", "seconds", "How long the walk took.", "directories", "path")
    yield counter("log_matches_total", "", "Lines that matched a pattern.", "logs", "pattern", "file")
    yield counter("log_lines_total", "", "Lines read.", "logs", "file")
    yield counter("log_bytes_total", "bytes", "Bytes read.", "logs", "file")
    yield counter(
        "log_gaps_total", "", "Times that lines may have been lost before they could be read.", "logs", "file"
    )
    words = "Mean latency of the evaluations since the reading before."
    yield gauge("eval_latency_seconds", "seconds", words, "evaluation", "domain")
    yield gauge("eval_throughput", "", "Their mean throughput.", "evaluation", "domain")
    yield gauge("eval_error_ratio", "ratio", "Share of them that failed.", "evaluation", "domain", high=1.0)
    yield Metric("baseline_median", "gauge", "", "Median of last month.", "evaluation", ("metric",), None)
    yield gauge("baseline_mad", "", "Median distance from it.", "evaluation", "metric")
    words = "When a backup last succeeded."
    yield gauge("redis_backup_last_success_timestamp_seconds", "seconds", words, "backups", "name")
    yield gauge("redis_backup_size_bytes", "bytes", "Size of the last backup.", "backups", "name")
    yield gauge("redis_backups_verified", "", "Backups that were restored and compared.", "backups", "name")
    yield gauge("security_audit_score", "", "Score of the last audit, 100 at best.", "audit", high=100.0)
    yield gauge("security_audit_findings", "", "Findings of the last audit.", "audit", "severity")
    words = "Packages that have an update, of kind `security` and `other`."
    yield gauge("apt_upgrades_pending", "", words, "updates", "kind")
    yield gauge("node_reboot_required", "", "1 where an update waits for a reboot.", "updates", high=1.0)


def _self() -> Iterator[Metric]:
    def gauge(name: str, unit: str, words: str, *labels: str, high: float | None = None) -> Metric:
        return Metric(name, "gauge", unit, words, "self", labels, 0.0, high)

    yield gauge("up", "", "1 while the agent samples.", "job", high=1.0)
    words = "How long the collector's last reading took."
    yield gauge("upkeep_collector_duration_seconds", "seconds", words, "collector")
    words = "1 where the last reading succeeded; 0 where it failed or hangs."
    yield gauge("upkeep_collector_up", "", words, "collector", high=1.0)
    words = "Ticks at which the collector was due and still busy, or the agent was stopped."
    yield Metric("upkeep_ticks_missed_total", "counter", "", words, "self", ("collector",))
    yield Metric("upkeep_samples_total", "counter", "", "Values handed to the store.", "self")
    yield gauge("upkeep_rule_evaluation_seconds", "seconds", "How long a group's last evaluation took.", "group")
    yield Metric("upkeep_actions_total", "counter", "", "Actions ended.", "self", ("handler", "outcome"))
    for name, words in (("sent", "arrived"), ("failed", "did not arrive at one attempt"), ("dropped", "were given up")):
        help_text = f"Notifications that {words}."
        yield Metric(f"upkeep_notifications_{name}_total", "counter", "", help_text, "self", ("route",))
    yield gauge("upkeep_notifications_waiting", "", "Notifications on disk that have not arrived yet.", "route")
    yield gauge("upkeep_store_bytes", "bytes", "Size of the store's files.")
    yield gauge("upkeep_store_log_bytes", "bytes", "Size of the store's write-ahead logs; a reader may hold them.")
    yield gauge("upkeep_store_series", "", "Series that the store knows; `retention.max_series` bounds them.")
    words = "Values that were not stored, for their series were too many."
    yield Metric("upkeep_store_refused_values_total", "counter", "", words, "self")
    words = "Rows of samples that waited in memory and found no room there."
    yield Metric("upkeep_store_lost_rows_total", "counter", "", words, "self")
    words = "When the ledger was last copied and the copy found good, seconds since the epoch."
    yield gauge("upkeep_ledger_copy_last_success_timestamp_seconds", "seconds", words)
    yield Metric("upkeep_ledger_copy_failures_total", "counter", "", "Copies of the ledger that failed.", "self")
    yield gauge("upkeep_config_last_reload_successful", "", "1 where the last reload was taken over.", high=1.0)
    yield Metric("process_cpu_seconds_total", "counter", "seconds", "Processor time of the agent.", "self")
    yield gauge("process_resident_memory_bytes", "bytes", "Memory of the agent as the kernel counts it.")
    yield gauge("process_open_fds", "", "Open files of the agent.")


METRICS: Mapping[str, Metric] = {
    metric.name: metric
    for family in (
        _system,
        _filesystem,
        _disk,
        _network,
        _hardware,
        _loads,
        _watched,
        _gpu,
        _gpu_ours,
        _kernel,
        _redis,
        _records,
        _self,
    )
    for metric in family()
}
"""Every name the agent can sample, but those of text files."""


def nearest(name: str) -> str | None:
    """The known name that ``name`` was probably meant to be; None where nothing is near.

    A name that lacks only its unit (node_exporter's names before 0.16) is a known name's beginning.
    """
    for suffix in ("_bytes", "_seconds", "_total", "_seconds_total", "_bytes_total"):
        if name + suffix in METRICS:
            return name + suffix
    close = difflib.get_close_matches(name, METRICS, n=1, cutoff=0.75)
    return close[0] if close else None


def reference() -> str:
    """``docs/reference/metrics.md``, made from the table."""
    lines = [
        "# Metrics",
        "",
        "Made from the table in `agent/metrics.py`; a test compares. A value that cannot be read is absent, never 0.",
        "",
    ]
    for source, reads in SOURCES.items():
        lines += [f"## {source}", "", f"Read from {reads}.", ""]
        lines += ["| name | labels | type | unit | what it says |", "|---|---|---|---|---|"]
        lines += [_row(metric) for metric in METRICS.values() if metric.source == source]
        lines.append("")
    return "\n".join(lines)


def _row(metric: Metric) -> str:
    labels = ", ".join(f"`{label}`" for label in metric.labels)
    return f"| `{metric.name}` | {labels} | {metric.type} | {metric.unit} | {metric.help} |"


if __name__ == "__main__":
    print(reference(), end="")
