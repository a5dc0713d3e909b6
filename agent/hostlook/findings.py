"""What of a look matters most: pure, from a :class:`Look` to three sentences and what the agent would do about each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from agent.commands.common import size
from agent.fs.survey import MIB, WORTH_BYTES, FolderLook
from agent.hostlook.answers import figure
from agent.hostlook.seen import Finding, Look, MountLook, UnitLook, age, percent


def findings(seen: Look, *, reboot_required: bool, memory: Mapping[str, int]) -> tuple[Finding, ...]:
    """The three things most worth saying of a host: what fails, what is too large, what can be had back, calm facts."""
    found = [
        *_of_mounts(seen.mounts),
        *_of_logs(seen.folders),
        *(finding for folder in seen.folders for finding in _of_folder(folder, seen.at)),
        *_of_redis(seen.redis.info),
        *_of_units(seen.units),
        *_of_updates(reboot_required),
        *_calm(seen.mounts, memory),
    ]
    return tuple(sorted(found, key=lambda finding: (-finding.urgency, -finding.bytes))[:3])


def _of_mounts(mounts: Sequence[MountLook]) -> Iterator[Finding]:
    for mount in mounts:
        if not mount.answered:
            yield Finding(f"{mount.path}: the file system does not answer", "alert; nothing on it is touched", 3)
        elif mount.fill >= 0.8:
            text = f"{mount.path} is {percent(mount.fill)} full, {size(mount.avail_bytes)} left"
            would = "alert below 10 % free, and forecast when it is full"
            yield Finding(text, would, 3 if mount.fill >= 0.9 else 2, mount.size_bytes - mount.free_bytes)
        if mount.inode_fill >= 0.8:
            text = f"{mount.path} has used {percent(mount.inode_fill)} of its inodes"
            yield Finding(text, "alert below 10 % free", 3 if mount.inode_fill >= 0.9 else 2)


def _of_logs(trees: Sequence[FolderLook]) -> Iterator[Finding]:
    """The one tree of logs with most to save: they lie in one another."""
    logs = [folder for folder in trees if folder.kind == "log" and folder.old_bytes >= WORTH_BYTES and folder.gain]
    for folder in sorted(logs, key=lambda folder: -folder.old_bytes)[:1]:
        saved = folder.old_bytes * (folder.gain or 0.0)
        text = f"{folder.path}: {_old(folder)} of logs older than {age(folder.old_after_s)}"
        yield Finding(text, f"gzip them and save about {size(saved)}; observed only", 1, saved)


def _of_folder(folder: FolderLook, at: float) -> Iterator[Finding]:
    if folder.error_lines:
        cuda = f", {folder.cuda_lines:,} of them CUDA out of memory" if folder.cuda_lines else ""
        where = f"the last {size(folder.error_bytes)} of {_count(folder.error_files, 'log')} written within a day"
        text = f"{folder.path}: {_count(folder.error_lines, 'ERROR line')} in {where}{cuda}"
        yield Finding(text, "make each new one an event within milliseconds, and alert", 3 if folder.cuda_lines else 2)
    if folder.kind in ("cache", "temporary") and folder.old_bytes >= WORTH_BYTES:
        yield _to_clean(folder, at)


def _to_clean(folder: FolderLook, at: float) -> Finding:
    had = _old(folder)
    verb = "written" if folder.by_writing else "used"
    text = f"{folder.path}: {had} in {_count(folder.old_files, 'file')} not {verb} for {age(folder.old_after_s)}"
    if not folder.partial and folder.newest_at is not None and at - folder.newest_at >= folder.old_after_s:
        text = f"{folder.path}: {had}, nothing in it {verb} for {age(at - folder.newest_at)}"
    if folder.limit_bytes and folder.bytes > folder.limit_bytes:
        text += f", and over its limit of {size(folder.limit_bytes)}"
        return Finding(text, "clean it, oldest use first; observed only", 2, folder.old_bytes)
    would = f"free up to {size(folder.old_bytes)} by clean_cache, once a rule asks for it"
    return Finding(text, would, 1, folder.old_bytes)


def _of_redis(info: Mapping[str, str]) -> Iterator[Finding]:
    if info.get("rdb_last_bgsave_status", "ok") != "ok":
        yield Finding("Redis could not write its last snapshot", "alert; a restart now would lose data", 3)
    limit, used = figure(info, "maxmemory"), figure(info, "used_memory")
    if limit and used > 0.9 * limit:
        text = f"Redis uses {percent(used / limit)} of its {size(limit)}"
        yield Finding(text, "alert before keys are lost", 2, used)
    spare = figure(info, "mem_fragmentation_bytes")
    if spare > 100 * MIB and figure(info, "mem_fragmentation_ratio") > 1.5:
        yield Finding(f"Redis holds {size(spare)} in fragments", "purge them; observed only", 1, spare)


def _of_units(units: tuple[UnitLook, ...] | str) -> Iterator[Finding]:
    for unit in () if isinstance(units, str) else units:
        if unit.state == "failed":
            yield Finding(f"the unit {unit.name} has failed", "alert; restarted only where a rule says so", 3)


def _of_updates(reboot_required: bool) -> Iterator[Finding]:
    if reboot_required:
        yield Finding("a reboot is required by an update", "say so in the report; only a person reboots", 2)
    else:
        yield Finding("no reboot is asked for by an update", "say so in the report when one is", 0, -3)


def _calm(mounts: Sequence[MountLook], memory: Mapping[str, int]) -> Iterator[Finding]:
    """What is well, for a host with little else to say."""
    asked = [mount for mount in mounts if mount.answered]
    if asked and asked[0].fill < 0.8:
        text = f"every file system is below 80 %: the fullest is {asked[0].path} at {percent(asked[0].fill)}"
        yield Finding(text, "alert below 10 % free, or a day before it is full")
    if memory:
        text = f"{percent(memory['MemAvailable'] / memory['MemTotal'])} of memory is available"
        yield Finding(text, "alert below 10 %, before the kernel stops a process", 0, -1)
    inodes = max((mount for mount in asked if mount.files), key=lambda mount: mount.inode_fill, default=None)
    if inodes and inodes.inode_fill < 0.8:
        text = f"inodes are plenty: {inodes.path} has used {percent(inodes.inode_fill)} of its own"
        yield Finding(text, "alert below 10 % free", 0, -2)


def _old(folder: FolderLook) -> str:
    return f"{'at least ' if folder.partial else ''}{size(folder.old_bytes)}"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
