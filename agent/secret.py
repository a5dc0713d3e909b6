"""Secrets come from files or from systemd, and are read when they are needed: a changed one is in force at once."""

from __future__ import annotations

import os
import stat

from agent.errors import UpkeepError

MAX_BYTES = 16 * 1024


def read_secret(where: str) -> str:
    """The secret in a file, without the newline that editors put at its end.

    Parameters
    ----------
    where
        An absolute path, or the bare name of a systemd credential (``LoadCredential=``; systemd.exec(5)).

    Raises
    ------
    UpkeepError
        When it cannot be read, is empty or no text, or everybody on this host may read it.
    """
    path = where if where.startswith("/") else os.path.join(_credentials(where), where)
    try:
        with open(path, "rb") as file:
            status = os.fstat(file.fileno())
            raw = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise UpkeepError(f'cannot read the secret "{where}": {(error.strerror or str(error)).lower()}') from None
    if status.st_mode & stat.S_IRWXO:
        raise UpkeepError(f'cannot trust the secret "{where}": everybody may read it; run: chmod o= {path}')
    try:
        text = raw.decode().rstrip("\r\n")
    except UnicodeDecodeError:
        text = ""
    if not text or len(raw) > MAX_BYTES or not text.isprintable():
        raise UpkeepError(f'cannot use the secret "{where}": it must be one line of text')
    return text


def _credentials(name: str) -> str:
    folder = os.environ.get("CREDENTIALS_DIRECTORY")
    if not folder:
        raise UpkeepError(f'cannot read the secret "{name}": systemd gave this process no credentials')
    return folder
