"""Giving program code back: less is resident, and everything still runs."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import asyncio, hashlib, json, re, sqlite3, ssl, sys
from agent import memory

def resident_kib():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("RssFile:"))

before = resident_kib()
given = memory.give_back_code()
after = resident_kib()
digest = hashlib.sha256(b"x").hexdigest()
found = sqlite3.connect(":memory:").execute("SELECT sum(value) FROM json_each('[1, 2, 3]')").fetchone()[0]
asyncio.run(asyncio.sleep(0))
print(json.dumps({"before": before, "after": after, "given": given, "digest": digest, "sum": found}))
"""


def test_code_is_given_back_and_comes_back_when_it_is_run() -> None:
    import hashlib
    import json

    done = subprocess.run([sys.executable, "-P", "-c", PROGRAM], capture_output=True, text=True, check=True)
    told = json.loads(done.stdout)
    assert told["after"] < told["before"] - 1024
    assert told["given"] > 1024 * 1024
    assert (told["digest"], told["sum"]) == (hashlib.sha256(b"x").hexdigest(), 6)
