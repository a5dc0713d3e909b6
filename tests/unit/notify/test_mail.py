"""Mail: harmless whatever it says, read back before it leaves, and through a real SMTP server with TLS and AUTH."""

from __future__ import annotations

import email
import email.policy
import re
from email.message import EmailMessage
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from agent import mail
from agent.config import Mail
from agent.errors import DeliveryError, UpkeepError
from agent.mail import Message, Picture, compose, harmless, header_text
from agent.spool import Spool
from tests.support.receivers import Certificate, Mailbox, certificate, smtp_server

T0 = 1_700_000_000.0
PIXEL = b"\x89PNG\r\n\x1a\n" + bytes(40)
FROM, TO = "upkeep@host.example", ("sre@example.com",)


def read(raw: bytes) -> EmailMessage:
    made = email.message_from_bytes(raw, policy=email.policy.default)
    assert isinstance(made, EmailMessage)
    return made


HOSTILE = (
    "=?UTF-8?Q?=0A?=Bcc: x@evil.example",
    "a\r\nBcc: x@evil.example\r\n\r\nbody",
    "a\nX-Evil: 1",
    "a\x0bb\x0cc\x1dd\x85e\u2028f\u2029g",
    "\u202egnp.exe\u202c \u2066x\u2069 \ufeff",
    "\x1b]0;title\x07\x1b[31mred\x1b[0m \x1b(B",
    "\ud800 lone",
    "=?utf-8?b?" + "QmNj" * 200 + "?=",
    "\0" * 10,
    "x" * 100_000,
    ".\r\n.\r\nQUIT",
    "From someone\n>From",
    '<script>alert(1)</script>"><img src=x onerror=alert(1)>',
)


@settings(deadline=None)
@given(
    st.text(alphabet=st.characters(), max_size=300)
    | st.lists(st.sampled_from(HOSTILE), min_size=1, max_size=3).map(" ".join)
)
@example(HOSTILE[0])
@example(HOSTILE[1])
def test_whatever_it_says_a_mail_has_its_own_headers_and_no_other(text: str) -> None:
    raw = compose(Message(text, text, text, html=f"<p>{text}</p>", thread=f"t{text}"), sender=FROM, to=TO, at=T0)
    made = read(raw)
    assert sorted(name.lower() for name in made) == sorted(
        ["from", "to", "subject", "date", "message-id", "auto-submitted", "in-reply-to", "references",
         "mime-version", "content-type"]
    )  # fmt: skip
    assert made["To"] == TO[0]
    assert re.fullmatch(rb"[\t\r\n -~]*", raw)
    assert max(len(line) for line in raw.split(b"\r\n")) <= 998
    assert b"\nBcc:" not in raw.replace(b"\r\n", b"\n").split(b"\n\n", 1)[0]
    for part in made.walk():
        if part.get_content_maintype() == "text":
            assert not re.search("[\x00-\x08\x0b-\x1f\u202a-\u202e\u2066-\u2069]", part.get_content().replace("\r", ""))


def test_a_subject_is_one_line_of_a_readable_length() -> None:
    assert header_text("disk\r\n\tfull  now") == "disk full now"
    assert header_text("=?x") == "= ?x"
    assert len(header_text("x" * 5000)) == mail.LONGEST_SUBJECT
    assert harmless("\x1b[1mbold\x1b[0m\tand\r\nplain") == "bold\tand\nplain"


def test_a_report_is_text_and_html_with_its_pictures_beside_it() -> None:
    report = Message("weekly 2026-47", "Weekly: all well", "Sinnvoll: äöü €\n", "<img src='cid:cpu' alt='12 %'>",
                     (Picture("cpu", PIXEL), Picture("disk", PIXEL)), list_id="reports")  # fmt: skip
    made = read(compose(report, sender=FROM, to=("a@example.com", "b@example.com"), at=T0))
    assert [part.get_content_type() for part in made.walk()] == [
        "multipart/alternative", "text/plain", "multipart/related", "text/html", "image/png", "image/png",
    ]  # fmt: skip
    assert [part["Content-ID"] for part in made.walk() if part["Content-ID"]] == ["<cpu>", "<disk>"]
    assert made["List-Id"] == "<reports.upkeep.host.example>"
    assert made["Auto-Submitted"] == "auto-generated"
    assert made["Date"].datetime.timestamp() == T0
    assert made["To"] == "a@example.com, b@example.com"
    body = made.get_body(("plain",))
    assert body is not None
    assert body.get_content().replace("\r\n", "\n") == "Sinnvoll: äöü €\n"


def test_the_same_key_is_the_same_mail() -> None:
    def identity(key: str) -> str:
        return str(read(compose(Message(key, "s", "t"), sender=FROM, to=TO, at=T0))["Message-ID"])

    assert identity("a") == identity("a") != identity("b")


def test_a_mail_that_reads_back_otherwise_is_not_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    # An email package as Python 3.11.7 has it: a subject that brings a header of its own.
    monkeypatch.setattr(EmailMessage, "as_bytes", _with_a_header_more)
    with pytest.raises(UpkeepError, match=r'cannot send "s": its headers read back as .*bcc'):
        compose(Message("k", "s", "t"), sender=FROM, to=TO, at=T0)


_as_bytes = EmailMessage.as_bytes


def _with_a_header_more(self: EmailMessage, *arguments: object) -> bytes:
    return b"Bcc: x@evil.example\r\n" + _as_bytes(self)


# -- through a server ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def localhost(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return certificate(tmp_path_factory.mktemp("tls"))


@pytest.fixture
def password(tmp_path: Path) -> str:
    path = tmp_path / "password"
    path.write_text("open sesame\n")
    path.chmod(0o600)
    return str(path)


def sent(mailbox: Mailbox, settings: Mail, dialogue: list[str] | None = None) -> None:
    raw = compose(Message("k", "Disk full", "text\n.\nend\n"), sender=settings.from_, to=TO, at=T0)
    mail.send(raw, settings, TO[0], dialogue.append if dialogue is not None else lambda line: None)


def test_over_starttls_with_a_password_that_nobody_sees(localhost: Certificate, password: str) -> None:
    dialogue: list[str] = []
    with smtp_server(Mailbox(), secured=localhost, login=("sre", "open sesame")) as mailbox:
        settings = Mail(smtp=f"smtp://localhost:{mailbox.port}", encryption="required", username="sre",
                        password_file=password, ca_file=str(localhost.certificate), from_=FROM)  # fmt: skip
        sent(mailbox, settings, dialogue)
        [(sender, readers, content)] = mailbox.mails
    assert (sender, readers) == (FROM, list(TO))
    body = read(content).get_body(("plain",))
    assert body is not None
    assert body.get_content().replace("\r\n", "\n") == "text\n.\nend\n"
    text = "\n".join(dialogue)
    assert "> STARTTLS" in text
    assert "> AUTH sre ***" in text
    assert "sesame" not in text
    assert dialogue[-2:] == ["> QUIT", "< 221 Bye"]


def test_over_tls_from_the_first_byte(localhost: Certificate) -> None:
    with smtp_server(Mailbox(), secured=localhost, at_once=True) as mailbox:
        sent(mailbox, Mail(smtp=f"smtps://localhost:{mailbox.port}", ca_file=str(localhost.certificate), from_=FROM))
        assert len(mailbox.mails) == 1


def test_in_the_clear_to_loopback_or_where_it_was_said() -> None:
    with smtp_server(Mailbox()) as mailbox:
        sent(mailbox, Mail(smtp=f"smtp://127.0.0.1:{mailbox.port}", from_=FROM))
        sent(mailbox, Mail(smtp=f"smtp://localhost:{mailbox.port}", encryption="none", from_=FROM))
        assert len(mailbox.mails) == 2


def refused(mailbox: Mailbox, settings: Mail) -> DeliveryError:
    with pytest.raises(DeliveryError) as caught:
        sent(mailbox, settings)
    return caught.value


def test_without_starttls_nothing_is_sent_where_it_is_required() -> None:
    with smtp_server(Mailbox()) as mailbox:
        error = refused(mailbox, Mail(smtp=f"smtp://localhost:{mailbox.port}", encryption="required", from_=FROM))
        assert mailbox.mails == []
    assert "offers no STARTTLS" in str(error)


@pytest.mark.parametrize("at_once", [False, True])
def test_a_certificate_of_nobody_known_is_not_trusted(localhost: Certificate, at_once: bool) -> None:
    with smtp_server(Mailbox(), secured=localhost, at_once=at_once) as mailbox:
        scheme = "smtps" if at_once else "smtp"
        error = refused(mailbox, Mail(smtp=f"{scheme}://localhost:{mailbox.port}", encryption="required", from_=FROM))
        assert mailbox.mails == []
    assert "cannot trust localhost" in str(error)
    assert not error.refused


def test_a_certificate_of_another_name_is_not_trusted(tmp_path: Path) -> None:
    other = certificate(tmp_path, "mail.example.com")
    with smtp_server(Mailbox(), secured=other) as mailbox:
        settings = Mail(smtp=f"smtp://localhost:{mailbox.port}", encryption="required",
                        ca_file=str(other.certificate), from_=FROM)  # fmt: skip
        assert "cannot trust" in str(refused(mailbox, settings))


def test_a_wrong_password_is_trouble_of_all_mail_and_is_not_in_its_words(localhost: Certificate, password: str) -> None:
    with smtp_server(Mailbox(), secured=localhost, login=("sre", "another")) as mailbox:
        settings = Mail(smtp=f"smtp://localhost:{mailbox.port}", encryption="required", username="sre",
                        password_file=password, ca_file=str(localhost.certificate), from_=FROM)  # fmt: skip
        error = refused(mailbox, settings)
    assert "535" in str(error)
    assert "sesame" not in str(error)
    assert not error.refused


@pytest.mark.parametrize(
    ("verb", "answer", "alone"),
    [
        ("RCPT", "550 no such user", True),
        ("DATA", "554 content rejected", True),
        ("RCPT", "451 greylisted, come back", False),
        ("DATA", "452 disk full", False),
    ],
)
def test_what_the_server_says_decides_whether_this_mail_or_all_wait(verb: str, answer: str, alone: bool) -> None:
    with smtp_server(Mailbox(answers={verb: [answer]})) as mailbox:
        error = refused(mailbox, Mail(smtp=f"smtp://127.0.0.1:{mailbox.port}", from_=FROM))
        assert mailbox.mails == []
    assert answer in str(error)
    assert error.refused is alone


def test_nobody_there_is_said() -> None:
    error = refused(Mailbox(), Mail(smtp="smtp://127.0.0.1:1", from_=FROM))
    assert str(error) == "cannot reach 127.0.0.1:1: connection refused"


def test_a_report_waits_once_for_each_reader_whoever_makes_it_again(tmp_path: Path) -> None:
    waiting = Spool(tmp_path / "mail", max_bytes=1 << 20, max_age_s=1e6)
    settings = Mail(from_=FROM)
    for turn in range(2):
        mail.enqueue(
            waiting, Message("weekly", f"made {turn}", "t"), settings, to=("a@b.example", "c@d.example"), at=T0
        )
    held = [mail.waiting_mail(waiting.read(entry)) for entry in waiting.entries()]
    assert sorted(reader for _, reader in held) == ["a@b.example", "c@d.example"]
    assert {str(read(raw)["Subject"]) for raw, _ in held} == {"made 1"}
