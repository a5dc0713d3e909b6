"""Every command of docs/tutorial.md, in its order, as a reader would type them: two terminals, a home, a checkout.

What a reader sees is said beside each block in a comment that Markdown does not show: ``shows: TEXT`` (the output holds
it, tried again as a reader would), ``runs until: TEXT`` (a first terminal, which stays open), ``ends: TEXT`` (Ctrl-C
there).
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.running import REPOSITORY, until

PAGE = REPOSITORY / "docs" / "tutorial.md"
PATIENCE_S = 40.0

_STEP = re.compile(r"(?P<notes>(?:<!-- .* -->\n)*)```sh\n(?P<code>[\s\S]*?)```|<!-- ends:(?P<ends>.*)-->")
_NOTE = re.compile(r"<!-- ([a-z ]+): (.*) -->")


@dataclass(frozen=True, slots=True)
class Step:
    """A block of commands with what is said of it, or the end of what runs in the first terminal."""

    code: str
    shows: tuple[str, ...] = ()
    runs_until: str = ""
    ends: str | None = None


def steps() -> Iterator[Step]:
    for found in _STEP.finditer(PAGE.read_text(encoding="utf-8")):
        if found["code"] is None:
            yield Step("", ends=found["ends"].strip())
            continue
        notes = _NOTE.findall(found["notes"])
        shows = tuple(text for kind, text in notes if kind == "shows")
        yield Step(found["code"], shows, next((text for kind, text in notes if kind == "runs until"), ""))


def checkout(folder: Path) -> Path:
    """A copy of this checkout whose .venv says that everything is installed, and is the interpreter of this test."""
    made = folder / "checkout"
    for name in ("agent", "reports", "rules", "examples"):
        shutil.copytree(REPOSITORY / name, made / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("dev", "pyproject.toml", "requirements.lock", "requirements-dev.lock"):
        shutil.copy2(REPOSITORY / name, made / name)
    binaries = made / ".venv" / "bin"
    binaries.mkdir(parents=True)
    for name, words in (("python", ""), ("upkeep", "-P -m agent ")):
        (binaries / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" {words}"$@"\n')
        (binaries / name).chmod(0o755)
    stamp = "cat requirements.lock pyproject.toml | cksum > .venv/stamp-requirements.lock"
    subprocess.run(["sh", "-c", stamp], cwd=made, check=True)
    return made


class Terminals:
    """The reader's two: one shell that takes block after block, and one program that runs in the other."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._where = checkout(folder)
        home = folder / "home"
        home.mkdir()
        self._environment = {**os.environ, "HOME": str(home), "PYTHONPATH": str(self._where), "TZ": "UTC"}
        self._shell = subprocess.Popen(
            ["bash", "--norc", "-s"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=self._where,
            env=self._environment,
            start_new_session=True,
        )
        self._program: subprocess.Popen[bytes] | None = None
        self._blocks = 0
        self._exports = ""

    def type(self, code: str) -> str:
        """One block in the shell; its output, and it must not fail."""
        self._blocks += 1
        output, done = self._folder / f"{self._blocks}.out", self._folder / f"{self._blocks}.done"
        assert self._shell.stdin is not None
        script = self._folder / f"{self._blocks}.sh"
        script.write_text(code)
        line = f". '{script}' > '{output}' 2>&1; echo $? > '{done}.new'; mv '{done}.new' '{done}'\n"
        self._shell.stdin.write(line.encode())
        self._shell.stdin.flush()
        until(done.exists, f"the end of:\n{code}")
        if code.startswith("export "):
            self._exports += code
        text = output.read_text(errors="replace")
        assert done.read_text().strip() == "0", f"{code}\n{text}"
        return text

    def run(self, code: str, awaited: str) -> None:
        """A block in the first terminal, until it says what is awaited."""
        with (self._folder / "first.log").open("wb") as log:
            program = subprocess.Popen(
                ["bash", "-c", f"{self._exports}\nexec {code}"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self._where,
                env=self._environment,
                start_new_session=True,
            )
        self._program = program
        until(lambda: awaited in self.log() or program.poll() is not None, f'"{awaited}" of: {code}', 60.0)
        assert program.poll() is None, self.log()

    def interrupt(self) -> str:
        """Ctrl-C in the first terminal; what it had said."""
        assert self._program is not None
        os.killpg(self._program.pid, signal.SIGINT)
        assert self._program.wait(timeout=10) == 0, self.log()
        return self.log()

    def log(self) -> str:
        return (self._folder / "first.log").read_text(errors="replace")

    def close(self) -> None:
        for process in (self._program, self._shell):
            if process is None:
                continue
            if process.stdin is not None:
                process.stdin.close()
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            process.wait()


@pytest.fixture
def terminals(tmp_path: Path) -> Iterator[Terminals]:
    made = Terminals(tmp_path)
    yield made
    made.close()


def follow(step: Step, terminals: Terminals) -> None:
    if step.ends is not None:
        assert step.ends in terminals.interrupt()
    elif step.runs_until:
        terminals.run(step.code, step.runs_until)
    else:
        deadline = time.monotonic() + PATIENCE_S
        output = terminals.type(step.code)
        while not all(text in re.sub("  +", "  ", output) for text in step.shows):
            assert time.monotonic() < deadline, f"{step.code}\nshows: {step.shows}\n{output}\n{terminals.log()[-3000:]}"
            time.sleep(0.3)
            output = terminals.type(step.code)


@pytest.mark.slow
def test_a_reader_gets_through_the_tutorial(terminals: Terminals, tmp_path: Path) -> None:
    found = list(steps())
    assert len(found) > 15
    for step in found:
        follow(step, terminals)
    cache = tmp_path / "home" / "upkeep-lab" / "cache"
    left = {path.name for path in cache.iterdir()}
    assert "result-6.bin" in left, "what was open stayed"
    assert len(left) <= 2
    assert "Traceback" not in terminals.log()
