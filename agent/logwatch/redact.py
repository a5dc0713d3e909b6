"""Secrets taken out of text before it is stored: what has the shape of one, and what a word beside it says is one.

RE2 looks for them, so that no line can hold it up. What is found is replaced by ``[redacted]``; the name beside it
stays, so that the line can still be understood.
"""

from __future__ import annotations

import re2

REDACTED = "[redacted]"

# "tokens=512" and "pass=3" are no secrets: behind the word only what still names one.
_NAMES = (
    r"(?:pass(?:word|wd|phrase|code)|_pass|pwd|secret|token|api[ _-]?key|access[ _-]?key|private[ _-]?key|credentials?|"
    r"authorization|cookie|signature|sig|session[ _-]?id|account[ _-]?key)(?:[_-]?(?:id|key|value|string))?\d*"
)
_SHAPES = (
    # A private key from its first line on: the rest of a record that holds one is the key.
    r"-----BEGIN [A-Z ]{0,30}PRIVATE KEY-----(?s:.)*",
    r"\beyJ[\w-]{8,}\.[\w-]{8,}(?:\.[\w-]*)?",  # JSON Web Token
    r"\b(?:AKIA|ASIA|ABIA|ACCA|AROA|AIDA)[A-Z0-9]{16}\b",  # AWS
    r"\bAIza[\w-]{30,}|\bya29\.[\w.-]{10,}|\bGOCSPX-[\w-]{20,}",  # Google
    r"\bhf_[A-Za-z0-9]{16,}",  # Hugging Face
    r"\b(?:sk|pk|rk)-[\w-]{16,}|\b[sr]k_(?:live|test)_\w{10,}",  # OpenAI, Anthropic; Stripe
    r"\bnvapi-[\w-]{16,}",
    r"\bgh[pousr]_\w{16,}|\bgithub_pat_\w{16,}|\bglpat-[\w-]{16,}|\bnpm_\w{20,}|\bpypi-[\w-]{20,}",
    r"\bxox[a-z]-[\w-]{10,}|hooks\.slack\.com/services/[\w/-]+",
)
_NAMED = (
    # NAME = VALUE, NAME: VALUE, "NAME": "VALUE", --NAME VALUE; a quoted value goes to its closing quote.
    r"((?i:\b[\w.-]*" + _NAMES + r"[\"']?\s*(?:=>|[:=])\s*|--[\w-]*" + _NAMES + r"\s+))"
    r"(?:\"(?:[^\"\\]|\\.)*\"?|'(?:[^'\\]|\\.)*'?|(?i:(?:bearer|basic|token|digest)\s+)?[^\s\"',;&)}\]]+)"
)
_SCHEME = r"((?i:\b(?:bearer|basic)\s+))[\w.~+/=-]{8,}"
_URL = r"(\b[A-Za-z][\w+.-]*://)[^\s/\"'<>]+@"
_EMAIL = r"[\w.!#$%&*+/=?^`{|}~-]+@[\w-]+(?:\.[\w-]+)+"


def _compiled(*alternatives: str) -> re2._Regexp:
    options = re2.Options()
    options.max_mem = 64 << 20
    options.log_errors = False
    return re2.compile("|".join(alternatives), options)


# Each alternative has at most one group: what stays. A URL's is the first.
_URLS = 1
_SECRETS = _compiled(_URL, *_SHAPES, _NAMED, _SCHEME)
_SECRETS_AND_ADDRESSES = _compiled(_URL, *_SHAPES, _NAMED, _SCHEME, _EMAIL)


def spans(text: str, *, emails: bool = False) -> list[tuple[int, int]]:
    """Where in ``text`` the secrets are, in order; e-mail addresses too where asked."""
    found = []
    for match in (_SECRETS_AND_ADDRESSES if emails else _SECRETS).finditer(text):
        start, end = match.span()
        kept = match.lastindex
        if kept is not None:
            start = match.end(kept)
        if kept == _URLS:
            end -= 1  # the @ stays
        if end > start:
            found.append((start, end))
    return found


def redact(text: str, *, emails: bool = False) -> str:
    """``text`` without its secrets."""
    parts: list[str] = []
    at = 0
    for start, end in spans(text, emails=emails):
        parts += [text[at:start], REDACTED]
        at = end
    return "".join([*parts, text[at:]])
