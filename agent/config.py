"""``upkeep.yaml`` as frozen dataclasses. Each field's metadata holds the words of docs/reference/configuration.md.

Every key has a default: an empty file is a working agent in observe mode. A field marked *later* is read and checked
but has no effect in this version, and ``upkeep check`` says so.
"""

from __future__ import annotations

import dataclasses
import glob
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from agent import yamlfile
from agent.errors import Fault, FaultyFilesError
from agent.located import (
    AbsPath,
    Duration,
    Faults,
    MappingNode,
    Node,
    Scalar,
    SequenceNode,
    Share,
    Size,
    build,
    did_you_mean,
    key_of,
    parse_duration,
    parse_path,
)
from agent.matching import LabelName, Matchers
from agent.model import Mode, Severity
from agent.overrides import Overrides, Places
from agent.roots import unsafe_root

DEFAULT_PATH = "/etc/upkeep/upkeep.yaml"
SHORTEST_INTERVAL_S = 0.1


def _root(node: Scalar) -> str:
    path = parse_path(node.text)
    problem = unsafe_root(path)
    if problem:
        raise ValueError(problem)
    return path


def _listen(node: Scalar) -> str:
    try:
        parts = urlsplit(f"//{node.text}")
        fine = bool(parts.hostname) and parts.port is not None and not parts.path
    except ValueError:
        fine = False
    if not fine:
        raise ValueError(f'cannot listen on "{node.text}": write ADDRESS:PORT, such as 127.0.0.1:9898')
    return node.text


def _zone(node: Scalar) -> str:
    from zoneinfo import available_timezones

    if node.text != "local" and node.text not in available_timezones():
        raise ValueError(f'unknown time zone "{node.text}"{did_you_mean(node.text, sorted(available_timezones()))}')
    return node.text


def _interval(node: Scalar) -> float:
    seconds = parse_duration(node.text)
    if seconds < SHORTEST_INTERVAL_S:
        raise ValueError(f'cannot run every "{node.text}": the shortest interval is 100ms')
    return seconds


def _smtp(node: Scalar) -> str:
    try:
        parts = urlsplit(node.text)
        fine = parts.scheme in ("smtp", "smtps") and bool(parts.hostname) and parts.port != 0
        fine = fine and not (parts.username or parts.path.strip("/") or parts.query)
    except ValueError:
        fine = False
    if not fine:
        shown = node.text.rpartition("@")[2]  # what stands before it may be a password
        raise ValueError(f'cannot send mail by "{shown}": write smtp://HOST:PORT or smtps://HOST:PORT')
    return node.text


def _http(node: Scalar) -> str:
    try:
        parts = urlsplit(node.text)
        fine = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        fine = False
    if not fine or not node.text.isascii() or not node.text.isprintable() or " " in node.text:
        raise ValueError(f'cannot use "{node.text}": write http://HOST/… or https://HOST/…')
    if parts.username or parts.password:
        raise ValueError(f'cannot use "{parts.hostname}" with a password in its URL: password_file names a file')
    return node.text


def _address(node: Scalar) -> str:
    if not re.fullmatch(r"[\w.!#$%&'*+/=?^`{|}~-]+@[a-zA-Z0-9.-]+", node.text, re.ASCII):
        raise ValueError(f'cannot write to "{node.text}": an address is NAME@HOST')
    return node.text


def _secret(node: Scalar) -> str:
    if re.fullmatch(r"[\w.-]+", node.text, re.ASCII) and node.text.strip("."):
        return node.text
    return parse_path(node.text)


def _redis(node: Scalar) -> str:
    try:
        parts = urlsplit(node.text)
        local = parts.scheme == "unix" and not parts.netloc.rpartition("@")[2] and len(parts.path) > 1
        remote = parts.scheme in ("redis", "rediss") and bool(parts.hostname) and parts.port != 0
        fine = (local or (remote and re.fullmatch(r"(/\d*)?", parts.path))) and not (parts.query or parts.fragment)
    except ValueError:
        fine = False
    if not fine:
        shown = node.text.rpartition("@")[2]  # what stands before it may be a password
        raise ValueError(f'cannot ask Redis at "{shown}": write redis://HOST:PORT, rediss://HOST:PORT or unix:///PATH')
    if parts.password:
        raise ValueError(
            f'cannot use "{parts.hostname or parts.path}" with a password in its URL: password_file names a file'
        )
    return node.text


def _unit(node: Scalar) -> str:
    # systemd.unit(5), without globs and without what its commands would read as an option
    if not re.fullmatch(r"[\w:.\\@][\w:.\\@-]{0,254}", node.text, re.ASCII):
        raise ValueError(f'cannot watch the unit "{node.text}": write its whole name, such as nginx.service')
    known = node.text.endswith(_UNIT_KINDS)
    return node.text if known else f"{node.text}.service"


def _probe(node: Scalar) -> str:
    try:
        parts = urlsplit(node.text)
        port = parts.port != 0 and (parts.scheme != "tcp" or parts.port is not None)
        host = bool(parts.hostname) or (parts.scheme == "dns" and not parts.netloc)
        path = len(parts.path) > 1 if parts.scheme == "dns" else parts.scheme.startswith("http") or not parts.path
        fine = parts.scheme in ("icmp", "tcp", "dns", "http", "https") and port and host and path and not parts.username
    except ValueError:
        fine = False
    if not fine or not node.text.isascii() or not node.text.isprintable() or " " in node.text:
        shown = node.text.rpartition("@")[2]
        raise ValueError(
            f'cannot probe "{shown}": write icmp://HOST, tcp://HOST:PORT, dns://SERVER/NAME, dns:///NAME or http://HOST/'
        )
    return node.text


_UNIT_KINDS = (
    ".service", ".socket", ".target", ".timer", ".mount", ".automount", ".swap", ".path", ".slice", ".scope", ".device",
)  # fmt: skip


def _route_name(node: Scalar) -> str:
    if not re.fullmatch(r"[a-z0-9][a-z0-9_-]{0,63}", node.text):
        raise ValueError(f'cannot name a route "{node.text}": small letters, digits, _ and - only')
    return node.text


Smtp = Annotated[str, _smtp]
Http = Annotated[str, _http]
Address = Annotated[str, _address]
Secret = Annotated[str, _secret]
"""A file that holds a secret, or the bare name of a systemd credential."""
RedisUrl = Annotated[str, _redis]
Unit = Annotated[str, _unit]
Target = Annotated[str, _probe]
RouteName = Annotated[str, _route_name]
Root = Annotated[str, _root]
Listen = Annotated[str, _listen]
Zone = Annotated[str, _zone]
Interval = Annotated[float, _interval]


def _key(words: str, default: Any, *, later: bool = False) -> Any:
    """A documented field; mappings and lists get a fresh default each."""
    metadata = {"help": words, "later": later}
    if callable(default):
        return field(default_factory=default, metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True, slots=True)
class CollectorConfig:
    interval: Interval | None = _key("how often it runs; the default is `collect.interval`", None)


@dataclass(frozen=True, slots=True)
class SeldomConfig:
    interval: Interval | None = _key("how often it runs, in place of the pace named above", None)


@dataclass(frozen=True, slots=True)
class Gpu:
    interval: Interval | None = _key("how often the GPUs are read; the default is `collect.interval`", None)
    xid_file: AbsPath | None = _key(
        "a YAML file of what is different here: `xids: {94: {severity: info, advice: none}, 13: {ignore: true}}`", None
    )


@dataclass(frozen=True, slots=True)
class Directories:
    interval: Interval | None = _key("how often sizes are measured", 60.0)
    paths: tuple[AbsPath, ...] = _key(
        "trees whose size, files and age are measured; one that does not exist is absent, not an error",
        (
            "/tmp/evaluation_cache",
            "/tmp/model_cache",
            "/data/models",
            "/data/results",
            "/var/log/benchmark",
        ),
    )


@dataclass(frozen=True, slots=True)
class RedisInstance:
    name: str = _key("the name in labels, rules and backups", "main")
    url: RedisUrl = _key(
        "`redis://HOST:PORT`, `rediss://HOST:PORT` (TLS) or `unix:///PATH`; an ACL user stands before the host: "
        "`redis://USER@HOST`",
        "redis://127.0.0.1:6379/0",
    )
    password_file: Secret | None = _key("a file holding the password, or the name of a systemd credential", None)
    ca_file: AbsPath | None = _key("certificate authorities to trust in place of the host's own", None)
    cert_file: AbsPath | None = _key("the certificate to show where the server asks for one", None)
    key_file: AbsPath | None = _key("the key of that certificate", None)
    interval: Interval | None = _key("how often it is asked; the default is `collect.interval`", None)
    timeout: Duration = _key("how long one answer may take in all", 2.0)

    def __post_init__(self) -> None:
        if not self.name or not self.name.isprintable():
            raise ValueError(f'cannot name a server "{self.name}"')
        if (self.cert_file is None) != (self.key_file is None):
            raise ValueError('cannot show half of a certificate: give "cert_file" and "key_file"')
        if (self.ca_file or self.cert_file) and not self.url.startswith("rediss://"):
            raise ValueError(f'cannot use certificates with "{self.url}": TLS is rediss://')
        if "@" in self.url and self.password_file is None:
            raise ValueError('cannot sign in with half of it: a user needs a "password_file"')
        if not 0 < self.timeout <= 60:
            raise ValueError('cannot use this "timeout": it lies above 0 and ends at 1m')


@dataclass(frozen=True, slots=True)
class Services:
    interval: Interval | None = _key("how often the units are asked", 15.0)
    units: tuple[Unit, ...] = _key("systemd units whose state is sampled; a bare name is a service", ())


@dataclass(frozen=True, slots=True)
class Probes:
    interval: Interval | None = _key("how often each target is tried", 30.0)
    timeout: Duration = _key("how long an answer may take in all", 5.0)
    targets: tuple[Target, ...] = _key(
        "`icmp://HOST`, `tcp://HOST:PORT`, `dns://SERVER/NAME` (`dns:///NAME`: the host's own name server), "
        "`http://HOST/` or `https://HOST/`",
        (),
    )

    def __post_init__(self) -> None:
        if not 0 < self.timeout <= 60:
            raise ValueError('cannot use this "timeout": it lies above 0 and ends at 1m')


@dataclass(frozen=True, slots=True)
class Textfile:
    interval: Interval | None = _key("how often the folder is looked at", 15.0)
    directory: AbsPath = _key("a folder of `*.prom` files, node_exporter's convention", "/var/lib/upkeep/textfile")


@dataclass(frozen=True, slots=True)
class Evaluation:
    interval: Interval | None = _key("how often new rows are read", 60.0)
    database: AbsPath = _key("the evaluation framework's SQLite file", "/var/log/benchmark/metrics.db")


@dataclass(frozen=True, slots=True)
class Collect:
    interval: Interval = _key("how often each collector runs that names no interval of its own", 5.0)
    system: CollectorConfig | None = _key("CPU, load, memory, vmstat, pressure", CollectorConfig)
    filesystem: CollectorConfig | None = _key("size, free space and inodes of each mount", CollectorConfig)
    disk: CollectorConfig | None = _key("reads, writes and busy time of each block device", CollectorConfig)
    network: CollectorConfig | None = _key("bytes, packets, errors and drops of each interface", CollectorConfig)
    hardware: SeldomConfig | None = _key(
        "the clock's synchronisation, temperatures, clocks of processors, software RAID; every minute", SeldomConfig
    )
    cgroups: SeldomConfig | None = _key(
        "memory, limits and OOM kills of units and containers (cgroup v2); every 30s", SeldomConfig
    )
    processes: SeldomConfig | None = _key(
        "the programs that use most processor time and memory, by name; every 30s", SeldomConfig
    )
    updates: SeldomConfig | None = _key(
        "packages that have an update, and whether a reboot is due (apt); every hour", SeldomConfig
    )
    directories: Directories | None = _key("sizes of whole trees", Directories)
    gpu: Gpu | None = _key("GPUs through NVML, in a process of its own", Gpu)
    kernel: CollectorConfig | None = _key(
        "trouble in the kernel's log, Xids of GPUs included: the journal, else /dev/kmsg", CollectorConfig
    )
    redis: tuple[RedisInstance, ...] = _key("Redis servers, through INFO", ())
    services: Services | None = _key("systemd units", None)
    probes: Probes | None = _key("reachability of other hosts", None)
    textfile: Textfile | None = _key("samples that other programs write to files", None)
    evaluation: Evaluation | None = _key("the framework's `performance_metrics` table", None)

    def __post_init__(self) -> None:
        names = [instance.name for instance in self.redis]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f'repeated Redis "{name}": each has a name of its own')


@dataclass(frozen=True, slots=True)
class Logs:
    paths: tuple[AbsPath, ...] = _key("globs of log files; `*` stays within one folder, `**` goes deeper", ())
    store_lines: Literal["full", "redacted", "none"] = _key(
        "what of a matching line is stored: all of it; all but its secrets; only that it matched. A file of several "
        "entries gets the strictest",
        "redacted",
    )
    redact_emails: bool = _key("e-mail addresses are taken out too", False)


@dataclass(frozen=True, slots=True)
class Limits:
    actions_per_hour: int = _key("at most this many actions of one handler in an hour", 6)
    files_per_action: int = _key("a larger plan is cut to this many files, oldest use first", 100_000)
    bytes_per_action: Size = _key("a larger plan is cut to this many bytes", 200 * 1024**3)
    percent_per_action: Share = _key(
        "a plan that would remove more than this share of what is under its path is refused", 1.0
    )


@dataclass(frozen=True, slots=True)
class RemediationConfig:
    roots: tuple[Root, ...] = _key("the only trees that may be changed; none by default, so nothing can be", ())
    limits: Limits = _key("the most that one action, or one hour of actions, may change", Limits)
    boot_grace: Duration = _key("no action in the first minutes after the host has booted", 300.0)
    disabled_handlers: tuple[str, ...] = _key("handlers that never act, whatever a rule says", ())


@dataclass(frozen=True, slots=True)
class Retention:
    raw: Duration = _key(
        "how long samples keep their full resolution; they are packed after a day, bit by bit", 7 * 86400.0
    )
    minutes: Duration = _key("how long minute rows (min, max, mean, last, count) are kept", 30 * 86400.0)
    hours: Duration = _key("how long hour rows are kept", 2 * 365 * 86400.0)
    events: Duration = _key("how long events are kept", 90 * 86400.0)
    max_size: Size = _key(
        "what both database files may hold on disk, and no more than a tenth of what was free there at the first "
        "start. When it is reached, the oldest rows go of whatever is furthest above its share: samples half, minutes "
        "3/16, events 1/8, hours and ledger 1/16 each; an unused share is free for the others",
        1024**3,
    )
    max_series: int = _key(
        "a new series is refused when there are so many, or half as many of its metric; one without rows is forgotten",
        20_000,
    )


@dataclass(frozen=True, slots=True)
class Mail:
    smtp: Smtp = _key("`smtp://HOST:PORT`, or `smtps://HOST:PORT` for TLS from the first byte", "smtp://localhost:25")
    encryption: Literal["auto", "required", "none"] = _key(
        "`required`: no mail without verified TLS; `none`: in the clear; `auto`: required, but to this host's loopback",
        "auto",
    )
    username: str | None = _key("who signs in; absent: nobody does", None)
    password_file: Secret | None = _key("a file holding the password, or the name of a systemd credential", None)
    ca_file: AbsPath | None = _key("certificate authorities to trust in place of the host's own", None)
    from_: Address = _key("the sender's address", "upkeep@localhost")
    to: tuple[Address, ...] = _key("who gets reports, and notifications where a route names nobody", ())

    def __post_init__(self) -> None:
        if (self.username is None) != (self.password_file is None):
            raise ValueError('cannot sign in with half of it: give "username" and "password_file"')


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An HTTP address and how to speak to it: TLS is verified, no redirect is followed, no proxy used unless named."""

    url: Http | None = _key("`https://HOST/PATH`", None)
    url_file: Secret | None = _key("a file holding the address, where the address itself is a secret", None)
    username: str | None = _key("for basic authentication, with `password_file`", None)
    password_file: Secret | None = _key("a file holding the password, or the name of a systemd credential", None)
    token_file: Secret | None = _key("a file holding a bearer token", None)
    ca_file: AbsPath | None = _key("certificate authorities to trust in place of the host's own", None)
    proxy: Http | None = _key("an HTTP proxy; the environment's are not looked at", None)
    timeout: Duration = _key("how long one request may take in all", 10.0)

    def __post_init__(self) -> None:
        if (self.url is None) == (self.url_file is None):
            raise ValueError('cannot tell where to send: give either "url" or "url_file"')
        if (self.username is None) != (self.password_file is None):
            raise ValueError('cannot sign in with half of it: give "username" and "password_file"')
        if self.timeout <= 0:
            raise ValueError('cannot use 0 as "timeout": no request would end well')


@dataclass(frozen=True, slots=True)
class SlackEndpoint(Endpoint):
    channel: str | None = _key("a channel, where the receiver lets the sender choose", None)


@dataclass(frozen=True, slots=True)
class MailRoute:
    to: tuple[Address, ...] = _key("who gets them; none: `mail.to`", ())


@dataclass(frozen=True, slots=True)
class Route:
    """One way to somebody, for the alerts that belong there; exactly one of the last four keys says which."""

    name: RouteName = field(metadata={"help": "its name in commands, events and metrics"})
    severities: tuple[Severity, ...] = _key("only alerts whose label `severity` is one of these; none: all", ())
    match: Matchers | None = _key('only alerts with these labels, such as `team="gpu",mountpoint=~"/data.*"`', None)
    tell: Literal["auto", "all", "unattended"] = _key(
        "`unattended`: an alert is told once no remediation is at work on it; `all`: as soon as it fires; `auto`: "
        "`all` to an Alertmanager, `unattended` to people",
        "auto",
    )
    group_by: tuple[str, ...] = _key(
        "alerts with the same values of these labels are told together; `...`: each alone", ("alertname",)
    )
    group_wait: Duration = _key("how long a new group waits for company", 30.0)
    group_interval: Duration = _key("how often a group that changes is told again at most", 300.0)
    repeat_interval: Duration = _key("how often a group that does not change is told again", 4 * 3600.0)
    send_resolved: bool = _key("tell the end of what was told", True)
    mail: MailRoute | None = _key("by mail, through the server in `mail`", None)
    webhook: Endpoint | None = _key("as JSON, in the form of Alertmanager's webhook, version 4", None)
    slack: SlackEndpoint | None = _key("as JSON that Slack, Mattermost and Rocket.Chat read", None)
    alertmanager: Endpoint | None = _key(
        "to an Alertmanager's API, version 2, which groups and repeats by itself", None
    )

    def __post_init__(self) -> None:
        ways = [self.mail, self.webhook, self.slack, self.alertmanager]
        if sum(way is not None for way in ways) != 1:
            raise ValueError(f'cannot use route "{self.name}": give one of mail, webhook, slack, alertmanager')
        if self.group_interval < 1:
            raise ValueError('cannot use less than 1s as "group_interval"')


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """That the agent lives, said again and again, so that somebody else notices its silence."""

    every: Duration = _key("how often", 60.0)
    alertmanager: bool = _key(
        "as the alert `UpkeepHeartbeat`, which always fires, on each route to an Alertmanager", True
    )
    ask: Endpoint | None = _key("an address that is asked (GET), as dead man's switches want it", None)

    def __post_init__(self) -> None:
        if self.every < 1:
            raise ValueError('cannot use less than 1s as "every"')
        if self.alertmanager and self.every > 120:
            raise ValueError('cannot use more than 2m as "every": an Alertmanager would think the agent silent')


@dataclass(frozen=True, slots=True)
class Notifications:
    routes: tuple[Route, ...] = _key(
        "who is told of which alerts; none, but `mail.to`: mail for warning, error and critical", ()
    )
    labels: Mapping[LabelName, str] = _key(
        "added to each alert that lacks them, as Prometheus' `external_labels`; `instance` is the host's name",
        dict,
    )
    external_url: Http | None = _key("where people reach this agent's pages; absent: `listen`", None)
    heartbeat: Heartbeat | None = _key("sign of life; off unless written", None)
    spool_size: Size = _key("what may wait on disk for one receiver; beyond, the oldest goes", 50 * 1024**2)
    spool_age: Duration = _key("how long it may wait", 7 * 86400.0)

    def __post_init__(self) -> None:
        names = [route.name for route in self.routes]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f'repeated route "{name}": each has a name of its own')


@dataclass(frozen=True, slots=True)
class Backups:
    directory: AbsPath = _key("where Redis backups are written", "/var/backups/redis")
    keep: Duration = _key("how long they are kept", 30 * 86400.0)


@dataclass(frozen=True, slots=True)
class S3:
    bucket: str = _key("the bucket", "")
    prefix: str = _key("what each object's name begins with", "")
    endpoint: str | None = _key("another endpoint than Amazon's", None)


@dataclass(frozen=True, slots=True)
class RemoteWrite:
    url: str = _key("where samples are sent", "")


@dataclass(frozen=True, slots=True)
class Config:
    mode: Mode = _key("`observe` plans and records, `ask` waits for `upkeep approve`, `act` carries out", Mode.OBSERVE)
    state_dir: str = _key("metrics.db, ledger.db, reports and spool", "/var/lib/upkeep")
    shipped_rules: bool = _key("load the rules that come with the agent", True)
    rule_files: tuple[str, ...] = _key("globs of rule files, relative to this file", ("rules.d/*.yaml",))
    overrides: Overrides = _key("what this site changes about rules, by their names", dict)
    listen: Listen | None = _key("`ADDRESS:PORT` of /metrics and the status page; absent: no socket at all", None)
    collect: Collect = _key("what is sampled, and how often", Collect)
    logs: tuple[Logs, ...] = _key("log files that are watched", lambda: (Logs(("/var/log/benchmark/*.log",)),))
    remediation: RemediationConfig = _key("what may be changed, and how much of it", RemediationConfig)
    retention: Retention = _key("how long what is kept", Retention)
    mail: Mail | None = _key("where reports and notifications go", None)
    notify: Notifications = _key("who is told of alerts, and how", Notifications)
    backups: Backups | None = _key("Redis backups", None, later=True)
    s3: S3 | None = _key("a second place for backups", None, later=True)
    remote_write: tuple[RemoteWrite, ...] = _key("Prometheus servers that get a copy of each sample", (), later=True)
    timezone: Zone = _key("an IANA zone for schedules and display, or `local`", "local")


@dataclass(frozen=True, slots=True)
class LoadedConfig:
    """A configuration, where it came from, and the rule files it names (resolved, in order)."""

    config: Config
    path: str
    rule_files: tuple[str, ...]
    warnings: tuple[Fault, ...]
    override_places: Places = field(default_factory=dict)


def load(path: str | None = None, *, apart: bool = True) -> LoadedConfig:
    """Read and check one configuration.

    Parameters
    ----------
    path
        The file; else ``$UPKEEP_CONFIG``, else ``/etc/upkeep/upkeep.yaml``. The last may be missing: all defaults.
    apart
        Parse it in a limited child, as whatever lives long must (:func:`agent.yamlfile.read`).

    Raises
    ------
    FaultyFilesError
        With everything that is wrong with it.
    """
    chosen = path or os.environ.get("UPKEEP_CONFIG")
    if chosen is None and not os.path.exists(DEFAULT_PATH):
        return LoadedConfig(Config(), DEFAULT_PATH, (), ())
    chosen = os.path.abspath(chosen or DEFAULT_PATH)
    parsed = yamlfile.read([chosen], apart=apart)[chosen]
    config, faults = from_node(chosen, parsed.root, parsed.faults)
    if config is None or any(not fault.warning for fault in faults):
        raise FaultyFilesError([fault for fault in faults if not fault.warning])
    return LoadedConfig(config, chosen, _rule_files(config, chosen), tuple(faults), override_places(parsed.root))


def from_node(path: str, root: Node | None, found: Sequence[Fault]) -> tuple[Config | None, list[Fault]]:
    """The configuration in a parsed file and all its faults, warnings included."""
    faults = Faults(path)
    faults.found.extend(found)
    if root is None and faults.errors:
        return None, faults.found
    config = build(Config, root, faults)
    if config is not None:
        _check_later(Config, config, root, faults)
        _check_mail(config, root, faults)
        config = _resolve(config, path)
    return config, faults.found


def override_places(root: Node | None) -> Places:
    """Where each override stands in a parsed file."""
    written = root.get("overrides") if isinstance(root, MappingNode) else None
    entries = written.entries if isinstance(written, MappingNode) else ()
    return {key.text: (key.line, key.column) for key, _ in entries}


def looks_like_config(root: Node | None) -> bool:
    """Whether a file's top keys are those of a configuration rather than of a rule file."""
    known = {key_of(item) for item in fields(Config)}
    return isinstance(root, MappingNode) and any(key.text in known for key, _ in root.entries)


def _resolve(config: Config, path: str) -> Config:
    """A relative state directory is relative to the file, so that one checkout can hold a whole sandbox."""
    folder = os.path.dirname(path)
    return dataclasses.replace(config, state_dir=os.path.normpath(os.path.join(folder, config.state_dir)))


def _rule_files(config: Config, path: str) -> tuple[str, ...]:
    folder = os.path.dirname(path)
    found: list[str] = []
    for pattern in config.rule_files:
        matches = sorted(glob.glob(os.path.join(folder, pattern)))
        # A plain name that is not there must be said; a glob that matches nothing is an empty set.
        found.extend(matches if matches or glob.has_magic(pattern) else [os.path.join(folder, pattern)])
    return tuple(dict.fromkeys(found))


def _check_later(cls: type, value: object, node: Node | None, faults: Faults) -> None:
    if not isinstance(node, MappingNode):
        return
    for item in fields(cls):
        written = node.get(key_of(item))
        if written is None:
            continue
        inner = getattr(value, item.name)
        if item.metadata.get("later"):
            faults.add(written, f'"{key_of(item)}" has no effect in this version', warning=True)
        elif hasattr(inner, "__dataclass_fields__"):
            _check_later(type(inner), inner, written, faults)


def routes(config: Config) -> tuple[Route, ...]:
    """The routes in force: those written, else mail to `mail.to` for what is not merely worth knowing."""
    if config.notify.routes or config.mail is None or not config.mail.to:
        return config.notify.routes
    return (
        Route(name="mail", severities=tuple(each for each in Severity if each is not Severity.INFO), mail=MailRoute()),
    )


def _check_mail(config: Config, root: Node | None, faults: Faults) -> None:
    """A route by mail needs a server, and somebody to write to."""
    for index, route in enumerate(config.notify.routes):
        if route.mail is None or (config.mail is not None and (route.mail.to or config.mail.to)):
            continue
        place = _at(root, "notify", "routes", index)
        lacks = 'there is no "mail"' if config.mail is None else 'neither it nor "mail" says to whom'
        faults.add(place, f'cannot use route "{route.name}": {lacks}')


def _at(node: Node | None, *path: str | int) -> Node | None:
    for step in path:
        if isinstance(node, MappingNode) and isinstance(step, str):
            node = node.get(step)
        elif isinstance(node, SequenceNode) and isinstance(step, int):
            node = node.items[step]
    return node


def documented(cls: type) -> Mapping[str, str]:
    """Key → words of one dataclass, for the reference."""
    return {key_of(item): str(item.metadata["help"]) for item in fields(cls)}
