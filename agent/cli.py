"""``upkeep``: the words of the command line. What each does is in agent/commands, imported when it is asked for.

Exit status everywhere: 0 done, 1 the answer is no or something was refused, 2 wrong usage (75: another agent holds the
state directory).
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

from agent import __version__
from agent.errors import UpkeepError


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit status."""
    parser = make_parser()
    arguments = parser.parse_args(argv)
    if not hasattr(arguments, "run"):
        parser.print_help(sys.stderr)
        return 2
    module, _, function = arguments.run.partition(":")
    try:
        status: int = getattr(importlib.import_module(f"agent.commands.{module}"), function)(arguments)
        sys.stdout.flush()
    except UpkeepError as error:
        print(str(error), file=sys.stderr)
        return getattr(error, "exit_status", 1)
    except BrokenPipeError:
        # `upkeep events | head` is no error; the interpreter must not try to flush into the closed pipe again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return 130
    return status


def make_parser() -> argparse.ArgumentParser:
    """The whole command line; docs/reference/commands.md is made from it."""
    parser = argparse.ArgumentParser(
        prog="upkeep", description="Samples, watches, judges, repairs, proves and reports on this host."
    )
    parser.add_argument("--version", action="version", version=f"upkeep {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    _agent_commands(commands)
    _gpu_command(commands)
    _rule_commands(commands)
    _changing_rules(commands)
    _looking_commands(commands)
    _acting_commands(commands)
    _keeping_commands(commands)
    _other_commands(commands)
    return parser


Commands = argparse._SubParsersAction  # the one name argparse has for what add_subparsers gives


def _add(commands: Commands[argparse.ArgumentParser], name: str, run: str, words: str) -> argparse.ArgumentParser:
    command = commands.add_parser(name, help=words, description=f"{words[0].upper()}{words[1:]}.")
    command.add_argument(
        "--config", metavar="FILE", help="the configuration; else $UPKEEP_CONFIG, else /etc/upkeep/upkeep.yaml"
    )
    command.set_defaults(run=run)
    return command


def _json(command: argparse.ArgumentParser) -> argparse.ArgumentParser:
    command.add_argument("--json", action="store_true", help="JSON instead of a table")
    return command


def _since(command: argparse.ArgumentParser, default: str) -> None:
    command.add_argument("--since", default=default, metavar="D", help=f"how far back, such as 2h or 7d ({default})")
    command.add_argument("--limit", type=int, default=100, metavar="N", help="at most this many rows (100)")


def _agent_commands(commands: Commands[argparse.ArgumentParser]) -> None:
    run = _add(commands, "run", "run:run", "the agent, in the foreground")
    run.add_argument("--once", action="store_true", help="one pass of everything, then exit")
    run.add_argument("--verbose", "-v", action="store_true", help="log what is ordinary too")
    init = _add(commands, "init", "init:run", "write a commented configuration and a folder for rules")
    init.add_argument("directory", metavar="DIR", help="where; nothing that exists is overwritten")
    init.add_argument("--system", action="store_true", help="state in /var/lib/upkeep; else in DIR/state")
    ops = _add(commands, "ops", "ops:run", "the hands: the only code that deletes; or write their policy")
    ops.add_argument("what", nargs="?", choices=["serve", "policy"], default="serve", help="serve, or print the policy")


def _gpu_command(commands: Commands[argparse.ArgumentParser]) -> None:
    gpu = _json(_add(commands, "gpu", "gpu:run", "the GPU probe; list the GPUs; let go of the driver"))
    gpu.add_argument("what", nargs="?", choices=["serve", "list", "release"], default="serve", help="(serve)")
    gpu.add_argument("--for", dest="duration", metavar="D", help="release: for how long (10m); 0s ends it")


def _rule_commands(commands: Commands[argparse.ArgumentParser]) -> None:
    check = _json(
        _add(commands, "check", "check:run", "every fault of configuration, rules, patterns and jobs at once")
    )
    check.add_argument("files", nargs="*", metavar="FILE", help="`rules FILE…` as promtool does; none: all in use")
    check.add_argument("--strict", action="store_true", help="warnings count as errors")
    test = _json(_add(commands, "test", "test:run", "rule unit tests, in promtool's format"))
    test.add_argument("what", choices=["rules"], help="what to test")
    test.add_argument("files", nargs="+", metavar="FILE", help="test files")
    test.add_argument("--watch", action="store_true", help="test again whenever a test file or its rules are saved")
    query = _json(_add(commands, "query", "query:run", "evaluate PromQL over the store"))
    query.add_argument("expression", metavar="PROMQL")
    query.add_argument("--at", metavar="T", help="an instant: ISO time, epoch seconds, or an age such as 5m")
    query.add_argument("--start", metavar="T", help="the start of a range")
    query.add_argument("--end", metavar="T", help="the end of a range")
    query.add_argument("--step", metavar="D", default="1m", help="the step of a range (1m)")
    backtest = _json(_add(commands, "backtest", "backtest:run", "what rules would have done over this host's history"))
    backtest.add_argument("files", nargs="*", metavar="FILE", help="rule files; none: the rules in use")
    backtest.add_argument("--since", default="7d", metavar="D", help="how far back (7d)")
    backtest.add_argument("--end", metavar="T", help="the end of that time; else now")
    backtest.add_argument("--rule", metavar="NAME", help="only alerts of this name")
    explain = _json(
        _add(commands, "explain", "explain:run", "a rule, each part of its expression now, and why nothing happens")
    )
    explain.add_argument("rule", metavar="RULE", help="the alert's name")


def _changing_rules(commands: Commands[argparse.ArgumentParser]) -> None:
    rules = _json(
        _add(commands, "rules", "rules:run", "the rules in use, what is local about them, and how to change it")
    )
    rules.add_argument(
        "what",
        nargs="?",
        choices=["list", "diff", "edit", "undo"],
        default="list",
        help="`diff`: what is local; `edit`: check, test, compare, backtest, install, reload; `undo`: the set before",
    )
    rules.add_argument("file", nargs="?", metavar="FILE", help="the rule file to edit")
    rules.add_argument("--take", metavar="NEW", help="edit: take this text instead of starting $VISUAL or $EDITOR")
    rules.add_argument("--yes", action="store_true", help="do not ask")
    rule = _json(_add(commands, "rule", "rule:new", "write a rule of this site with its unit test"))
    rule.add_argument("what", choices=["new"])
    rule.add_argument("kind", choices=["disk-full", "directory-large", "unit-down", "probe-down"])
    rule.add_argument("--mount", metavar="DIR", help="disk-full: the mount point")
    rule.add_argument("--path", metavar="DIR", help="directory-large: the folder")
    rule.add_argument("--unit", metavar="NAME", help="unit-down: the systemd unit")
    rule.add_argument("--target", metavar="URL", help="probe-down: a target of collect.probes")
    rule.add_argument("--over", metavar="N", help="the threshold: 90%% of a disk, 10GiB in a folder")
    rule.add_argument("--down-to", metavar="SIZE", help="directory-large: clean it down to this, in observe mode")


def _looking_commands(commands: Commands[argparse.ArgumentParser]) -> None:
    sql = _json(
        _add(commands, "sql", "lookup:sql", "plain SQL over the store, read-only; without a statement, a shell")
    )
    sql.add_argument("statement", nargs="?", metavar="SELECT")
    _json(_add(commands, "status", "status:run", "alerts, collectors, last and next actions, brakes, disk used"))
    actions = _json(_add(commands, "actions", "lookup:actions", "what was done and what it achieved, newest first"))
    actions.add_argument("id", nargs="?", type=int, metavar="ID", help="one action with its plan and every item")
    actions.add_argument("--rule", help="only of this rule")
    actions.add_argument("--status", help="only with this status")
    _since(actions, "7d")
    events = _json(_add(commands, "events", "lookup:events", "what happened, newest first"))
    events.add_argument("--kind", help="only of this kind, such as log_match")
    events.add_argument("--severity", choices=["info", "warning", "error", "critical"], help="only of this severity")
    _since(events, "24h")
    alerts = _json(_add(commands, "alerts", "lookup:alerts", "alerts that stand, then those that ended"))
    alerts.add_argument("what", nargs="?", choices=["mark"], help="say whether an alert was useful")
    alerts.add_argument("id", nargs="?", metavar="ID", help="the alert to mark")
    alerts.add_argument("verdict", nargs="?", choices=["true", "false"], help="false: a false alarm")
    alerts.add_argument("--why", metavar="TEXT", help="the reason; a false alarm needs one")
    alerts.add_argument("--rule", help="only of this rule")
    _since(alerts, "7d")
    job = _json(_add(commands, "job", "job:run", "the calendar"))
    job.add_argument("what", choices=["list", "run"])
    job.add_argument("name", nargs="?", metavar="NAME", help="the job to run now")


def _acting_commands(commands: Commands[argparse.ArgumentParser]) -> None:
    plan = _json(_add(commands, "plan", "act:plan", "what a handler would change, item by item; changes nothing"))
    apply = _json(_add(commands, "apply", "act:apply", "plan, ask, do, verify; recorded like any action"))
    for command in (plan, apply):
        command.add_argument("handler", metavar="HANDLER")
        command.add_argument("parameters", nargs="*", metavar="KEY=VALUE", help="as in a rule's step")
    apply.add_argument("--yes", action="store_true", help="do not ask")
    pause = _add(commands, "pause", "act:pause", "stop all acting at once; watching goes on")
    pause.add_argument("--for", dest="duration", metavar="D", help="until then; else until resumed")
    _add(commands, "resume", "act:resume", "act again")
    silence = _json(_add(commands, "silence", "act:silence", "keep alerts from acting and telling"))
    silence.add_argument("what", choices=["add", "list", "end"])
    silence.add_argument(
        "subject", nargs="?", metavar="MATCHERS|ID", help='such as \'alertname="DiskFull",mountpoint="/data"\''
    )
    silence.add_argument("--for", dest="duration", metavar="D", help="how long")
    silence.add_argument("--every", metavar="CRON", help="again at each of these times, for that long")
    silence.add_argument("--zone", metavar="ZONE", help="the time zone of --every; else that of the configuration")
    silence.add_argument("--why", metavar="TEXT", help="the reason; required")
    notify = _json(_add(commands, "notify", "notify:run", "who is told of alerts, and a test that shows the dialogue"))
    notify.add_argument("what", choices=["list", "test"], help="the routes, or send each a marked message")
    notify.add_argument("route", nargs="?", metavar="ROUTE", help="only this one; `heartbeat` is the address asked")
    circuit = _add(
        commands, "circuit", "act:circuit", "let a handler act again that was stopped because it did not help"
    )
    circuit.add_argument("what", choices=["list", "close"])
    circuit.add_argument("name", nargs="?", metavar="HANDLER:RESOURCE")
    approve = _add(commands, "approve", "act:approve", "let an action that waits for a person go on")
    approve.add_argument("id", type=int, metavar="ID")


def _keeping_commands(commands: Commands[argparse.ArgumentParser]) -> None:
    state = _json(_add(commands, "state", "state:run", "save and restore the ledger and what was configured"))
    state.add_argument(
        "what",
        choices=["save", "list", "restore", "accept"],
        help="`list`: the nightly copies; `accept`: end the observing that follows a restore",
    )
    state.add_argument("file", nargs="?", metavar="FILE", help="the archive; to restore, a copy of the ledger too")
    state.add_argument("--dry-run", action="store_true", help="restore: look at the file and say what would be done")
    state.add_argument("--yes", action="store_true", help="restore: do not ask")
    state.add_argument(
        "--configuration", metavar="DIR", help="restore: write the saved configuration there, and nothing else"
    )
    forget = _json(
        _add(
            commands, "forget", "forget:run", "erase the stored lines of a pattern; without --yes, say which these are"
        )
    )
    forget.add_argument("--pattern", required=True, metavar="NAME", help="the pattern's name")
    forget.add_argument("--yes", action="store_true", help="erase them")
    export = _add(commands, "export", "export:run", "samples as OpenMetrics text or CSV")
    export.add_argument(
        "selectors", nargs="*", metavar="SELECTOR", help="such as 'node_load1' or '{job=\"x\"}'; none: all"
    )
    export.add_argument("--start", metavar="T", help="only from this instant on")
    export.add_argument("--end", metavar="T", help="only up to this instant")
    export.add_argument("--format", choices=["openmetrics", "csv"], default="openmetrics", help="(openmetrics)")
    export.add_argument("--out", metavar="FILE", help="a file, written whole or not at all; else standard output")
    import_ = _json(
        _add(commands, "import", "import_:run", "samples of OpenMetrics or Prometheus text, or a metrics.db")
    )
    import_.add_argument(
        "file", metavar="FILE", help="text with an instant on every line, or another agent's metrics.db"
    )


def _other_commands(commands: Commands[argparse.ArgumentParser]) -> None:
    logs = _json(_add(commands, "logs", "logs:run", "patterns over past logs, .gz too"))
    logs.add_argument("what", choices=["scan"])
    logs.add_argument("paths", nargs="+", metavar="PATH", help="files, folders or globs")
    logs.add_argument("--since", metavar="D", help="only files changed since, such as 7d")
    report = _add(commands, "report", "report:run", "a report as HTML and text")
    report.add_argument("period", choices=["daily", "weekly", "monthly"])
    report.add_argument("--out", metavar="DIR", help="where; else reports/ in the state directory")
    report.add_argument(
        "--end", metavar="DATE", help="the day after the last one covered, such as 2026-11-23; else now"
    )
    report.add_argument("--title", help="another title")
