"""Mail: a message as a value, the bytes it becomes, and one conversation with an SMTP server.

A message is composed once, so that it is the same mail at every attempt, and read back before it may leave: a header
that was not meant is found here and not by a stranger. (Some Python 3.11 let a Subject inject a Bcc, CVE-2024-6923;
encoded words are therefore never taken over from data either.) SMTP alone carries it, never ``mail(1)``, whose ``~!``
runs commands.
"""

from __future__ import annotations

import asyncio
import contextlib
import email.message
import hashlib
import json
import re
import socket
import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.headerregistry import Address
from email.message import EmailMessage
from email.parser import BytesParser
from email.policy import SMTP
from email.utils import format_datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from agent.config import Mail
from agent.errors import DeliveryError, UpkeepError
from agent.secret import read_secret
from agent.spool import Entry, Spool
from agent.web import tls_context

TIMEOUT_S = 60.0
"""For one answer of the server; a tarpit may take that long over each."""
LONGEST_SUBJECT = 180

if TYPE_CHECKING:
    AnyMail = email.message.Message[Any, Any]

Say = Callable[[str], None]

_POLICY = SMTP.clone(max_line_length=76, cte_type="7bit")
_HOSTILE = re.compile(
    # C0 and C1 but newline and tab; marks that turn text around or hide it; surrogates that nothing can encode.
    "[\\x00-\\x08\\x0b-\\x1f\\x7f-\\x9f\\u200b-\\u200f\\u202a-\\u202e\\u2060-\\u2069\\ufeff\\ud800-\\udfff]"
)
_ANSI = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|.)?")


@dataclass(frozen=True, slots=True)
class Picture:
    """An image of the HTML part, named there as ``cid:NAME``."""

    name: str
    content: bytes
    subtype: str = "png"


@dataclass(frozen=True, slots=True)
class Message:
    """What a person is to read. Subject and bodies may hold anything: they are made harmless here.

    Attributes
    ----------
    key
        Its identity: two messages of one key are one mail, sent once.
    html
        Empty: the text alone.
    thread
        Mails of one thread stand together in a mailbox.
    list_id
        What a reader filters by, such as ``reports``; the sender's host is added.
    """

    key: str
    subject: str
    text: str
    html: str = ""
    pictures: tuple[Picture, ...] = ()
    thread: str = ""
    list_id: str = ""


# -- composing -------------------------------------------------------------------------------------------------------


def harmless(text: str) -> str:
    """Text without control characters, escape sequences, or marks that turn it around; newlines and tabs stay."""
    return _HOSTILE.sub("", _ANSI.sub("", text.replace("\r\n", "\n").replace("\r", "\n")))


def header_text(text: str, longest: int = LONGEST_SUBJECT) -> str:
    """One line for a header: harmless, without line breaks, and without what a reader would decode once more."""
    line = " ".join(harmless(text).split()).replace("=?", "= ?")
    return line if len(line) <= longest else f"{line[: longest - 1]}…"


def compose(message: Message, *, sender: str, to: Sequence[str], at: float) -> bytes:
    """The mail as it goes out: plain text, and HTML with its pictures beside it where there is any; ASCII throughout.

    Raises
    ------
    UpkeepError
        When what was made does not read back as what was meant; it may not be sent then.
    """
    domain = sender.rpartition("@")[2]
    mail = EmailMessage(policy=_POLICY)
    mail["From"] = Address("Upkeep", addr_spec=sender)
    mail["To"] = tuple(Address(addr_spec=each) for each in to)
    mail["Subject"] = header_text(message.subject)
    mail["Date"] = format_datetime(datetime.fromtimestamp(at, UTC))
    mail["Message-ID"] = _identity(message.key, domain)
    mail["Auto-Submitted"] = "auto-generated"
    if message.thread:
        mail["References"] = mail["In-Reply-To"] = _identity(message.thread, domain)
    if message.list_id:
        mail["List-Id"] = f"<{message.list_id}.upkeep.{domain}>"
    mail.set_content(harmless(message.text), cte="quoted-printable")
    if message.html:
        mail.add_alternative(harmless(message.html), subtype="html", cte="quoted-printable")
        related = mail.get_payload()[1]  # type: ignore[index]
        for picture in message.pictures:
            related.add_related(  # type: ignore[union-attr]
                picture.content, "image", picture.subtype, cid=f"<{picture.name}>", disposition="inline"
            )
    raw = mail.as_bytes()
    _read_back(raw, message, mail)
    return raw


def _identity(key: str, domain: str) -> str:
    return f"<{hashlib.sha256(key.encode(errors='replace')).hexdigest()[:32]}@{domain}>"


def _read_back(raw: bytes, message: Message, meant: EmailMessage) -> None:
    """Refuse a mail that another parser would read otherwise than it was written."""
    read = BytesParser(policy=_POLICY).parsebytes(raw)
    problem = ""
    if _names(read) != _names(meant):
        problem = f"its headers read back as {', '.join(_names(read))}"
    elif any(" ".join(str(read[name]).split()) != " ".join(str(meant[name]).split()) for name in ("From", "To")):
        problem = "its addresses read back otherwise"
    elif not raw.isascii() or b"\0" in raw:
        problem = "it is not ASCII"
    elif sum(1 for _ in read.walk()) != sum(1 for _ in meant.walk()):
        problem = "its parts read back otherwise"
    elif _body(read) != harmless(message.text).rstrip("\n"):
        problem = "its text reads back otherwise"
    if problem:
        raise UpkeepError(f'cannot send "{header_text(message.subject, 60)}": {problem}')


def _names(mail: AnyMail) -> list[str]:
    return [name.lower() for name, _ in mail.items()]


def _body(mail: AnyMail) -> str:
    part = mail.get_body(("plain",)) if isinstance(mail, EmailMessage) else None
    return str(part.get_content()).replace("\r\n", "\n").rstrip("\n") if part is not None else ""


# -- the spool -------------------------------------------------------------------------------------------------------


def spool(state_dir: Path, *, max_bytes: int, max_age_s: float) -> Spool:
    """Where whole mails wait, such as reports; any process of the agent's user may put one there."""
    return Spool(state_dir / "spool" / "mail", max_bytes=max_bytes, max_age_s=max_age_s)


def enqueue(waiting: Spool, message: Message, settings: Mail, *, to: Sequence[str], at: float) -> list[Entry]:
    """Make a message wait for each of its readers; one that was sent to a reader before is not sent there again.

    Returns
    -------
    list of Entry
        What had to go to make room.
    """
    mail = compose(message, sender=settings.from_, to=to, at=at).decode("ascii")
    gone: list[Entry] = []
    for reader in dict.fromkeys(to):
        content = json.dumps({"to": reader, "mail": mail}).encode()
        gone += waiting.put(f"{message.key}\n{reader}", content, at)
    return gone


def waiting_mail(content: bytes) -> tuple[bytes, str]:
    """The mail and its reader in an entry that :func:`enqueue` made."""
    held = json.loads(content)
    return str(held["mail"]).encode("ascii"), str(held["to"])


# -- sending ---------------------------------------------------------------------------------------------------------


def send(mail: bytes, settings: Mail, to: str, say: Say = lambda line: None) -> None:
    """Hand one mail to the server for one reader; blocking, in a thread of its own.

    Parameters
    ----------
    say
        Told each line of the dialogue, secrets masked.

    Raises
    ------
    DeliveryError
        When the server cannot be reached, cannot be trusted, or does not take it.
    """
    with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
        runner.run(_send(mail, settings, to, say))


async def _send(mail: bytes, settings: Mail, to: str, say: Say) -> None:
    import aiosmtplib

    parts = urlsplit(settings.smtp)
    host = parts.hostname or "localhost"
    at_once = parts.scheme == "smtps"
    port = parts.port or (465 if at_once else 25)
    required = settings.encryption == "required" or (settings.encryption == "auto" and not _is_loopback(host))
    where = f"{host}:{port}"
    try:
        context = tls_context(settings.ca_file) if at_once or required else None
        # Looked up here, where it can be left behind: a loop would do it in a thread that the interpreter waits for.
        opened = socket.create_connection((host, port), TIMEOUT_S)
        opened.setblocking(False)
        say(f"* connected to {where}{', TLS' if at_once else ''}")
        server = aiosmtplib.SMTP(
            hostname=host, sock=opened, use_tls=at_once, start_tls=False, tls_context=context, timeout=TIMEOUT_S,
            local_hostname=_own_name(),
        )  # fmt: skip
        try:
            _hear(say, await server.connect())
            await _converse(server, mail, settings, to, context if required and not at_once else None, say)
        finally:
            transport = server.transport
            server.close()
            if transport is not None:
                transport.abort()  # type: ignore[attr-defined]
            for _ in range(3):  # connections end in the loop's next rounds, and this loop has none after this
                await asyncio.sleep(0)
            with contextlib.suppress(OSError):
                opened.close()
    except ssl.SSLCertVerificationError as error:
        raise DeliveryError(f"cannot trust {where}: {error.verify_message}") from None
    except aiosmtplib.SMTPResponseException as error:
        said = header_text(error.message)
        # The connection is fine and this mail is not wanted; trouble with signing in concerns all mail.
        mail_alone = 500 <= error.code < 600 and isinstance(
            error, aiosmtplib.SMTPDataError | aiosmtplib.SMTPRecipientRefused | aiosmtplib.SMTPSenderRefused
        )
        raise DeliveryError(f"{where} answered {error.code} {said}", refused=mail_alone) from None
    except (OSError, aiosmtplib.SMTPException, ValueError) as error:
        cause = error.__cause__ if isinstance(error.__cause__, ssl.SSLError) else error
        if isinstance(cause, ssl.SSLCertVerificationError):
            raise DeliveryError(f"cannot trust {where}: {cause.verify_message}") from None
        words = getattr(cause, "strerror", None) or str(cause) or type(cause).__name__
        raise DeliveryError(f"cannot reach {where}: {header_text(words).lower()}") from None


async def _converse(  # type: ignore[no-untyped-def]
    server, mail: bytes, settings: Mail, to: str, start_tls: ssl.SSLContext | None, say: Say
) -> None:
    say("> EHLO")
    _hear(say, await server.ehlo())
    if start_tls is not None:
        if not server.supports_extension("starttls"):
            raise DeliveryError("the server offers no STARTTLS, and without it nothing is sent")
        say("> STARTTLS")
        _hear(say, await server.starttls(tls_context=start_tls))
        say("> EHLO")
        _hear(say, await server.ehlo())
    if settings.username and settings.password_file:
        say(f"> AUTH {settings.username} ***")
        _hear(say, await server.login(settings.username, read_secret(settings.password_file)))
    say(f"> MAIL FROM:<{settings.from_}>")
    _hear(say, await server.mail(settings.from_))
    say(f"> RCPT TO:<{to}>")
    _hear(say, await server.rcpt(to))
    say(f"> DATA ({len(mail)} bytes)")
    _hear(say, await server.data(mail))
    say("> QUIT")
    with contextlib.suppress(Exception):  # it has the mail; how it says farewell changes nothing
        _hear(say, await server.quit())


def _hear(say: Say, answer: tuple[int, str]) -> None:
    code, text = answer
    for line in text.splitlines() or [""]:
        say(f"< {code} {header_text(line)}")


def _is_loopback(host: str) -> bool:
    return host in ("localhost", "::1") or re.fullmatch(r"127\.\d+\.\d+\.\d+", host) is not None


def _own_name() -> str:
    """A name for EHLO without asking any name server."""
    name = socket.gethostname()
    return name if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.-]*", name) else "localhost"
