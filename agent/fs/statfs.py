"""Answer ``statvfs`` for mounts that may hang, each question in a thread of its own.

Lines of standard input are ``ID PATH``, the path in hexadecimal. Answers come in any order: ``ID SIZE FREE AVAIL
FILES FILES_FREE READONLY`` (bytes, inodes, 0 or 1), or ``ID error TEXT``. The end of the input is the end.
"""

from __future__ import annotations

import _thread
import os
import sys


def answer(question: str) -> str:
    """The answer to one line, both without their line ends; returns when the file system does."""
    number, path = question.split()
    try:
        status = os.statvfs(os.fsdecode(bytes.fromhex(path)))
    except OSError as error:
        return f"{number} error {error.strerror}"
    unit = status.f_frsize
    figures = (status.f_blocks * unit, status.f_bfree * unit, status.f_bavail * unit, status.f_files, status.f_ffree)
    return f"{number} {' '.join(map(str, figures))} {int(bool(status.f_flag & os.ST_RDONLY))}"


def _reply(question: str) -> None:
    line = answer(question) + "\n"
    try:
        os.write(1, line.encode())
    except BrokenPipeError:
        os._exit(0)


def main() -> None:
    """Serve until the agent closes the pipe; then leave at once, whatever still hangs."""
    for question in sys.stdin:
        _thread.start_new_thread(_reply, (question,))
    os._exit(0)


if __name__ == "__main__":
    main()
