"""One HTTP request, blocking: TLS verified, redirects not followed, no proxy but a named one, little read back.

``http.client`` and not the ``aiohttp`` of the pages: a notification a minute needs no pool, and this costs the agent
one import of the standard library where a route exists, and nothing where none does.
"""

from __future__ import annotations

import base64
import http.client
import re
import ssl
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from urllib.parse import urlsplit

from agent import __version__
from agent.config import Endpoint
from agent.errors import DeliveryError, UpkeepError
from agent.secret import read_secret

MOST_READ_BYTES = 16 * 1024
LONGEST_RETRY_AFTER_S = 3600.0

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Answer:
    """``headers`` have their names in lower case; ``text`` is the beginning of the body."""

    status: int
    reason: str
    headers: Mapping[str, str]
    text: str


def ask(
    endpoint: Endpoint, method: str, *, path: str = "", body: bytes | None = None, say: Say = lambda line: None
) -> Answer:
    """Ask once; any answer of the 200s is a good one.

    Parameters
    ----------
    path
        Added to the endpoint's own.
    body
        JSON.
    say
        Told each line of the dialogue, secrets masked.

    Raises
    ------
    DeliveryError
        When the receiver cannot be reached, cannot be trusted, or does not want it.
    """
    try:
        answer = _exchange(endpoint, method, path, body, say)
    except ssl.SSLCertVerificationError as error:
        raise DeliveryError(f"cannot trust {_host(endpoint)}: {error.verify_message}") from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        words = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise DeliveryError(f"cannot reach {_host(endpoint)}: {words.lower()}") from None
    if 200 <= answer.status < 300:
        return answer
    words = f"{_host(endpoint)} answered {answer.status} {answer.reason}".rstrip()
    if 300 <= answer.status < 400:
        words += ": redirects are not followed"
    elif answer.text:
        words += f": {_line(answer.text)}"
    passing = answer.status in (408, 425, 429) or answer.status >= 500
    raise DeliveryError(words, refused=not passing, retry_after_s=retry_after_s(answer.headers, time.time()))


def retry_after_s(headers: Mapping[str, str], at: float) -> float:
    """The seconds of a ``Retry-After`` header (RFC 9110, 10.2.3), as a number or a date; 0 without one."""
    text = headers.get("retry-after", "").strip()
    try:
        wanted = float(text) if re.fullmatch(r"\d{1,9}", text) else parsedate_to_datetime(text).timestamp() - at
    except (TypeError, ValueError, IndexError, OverflowError):
        return 0.0
    return min(max(0.0, wanted), LONGEST_RETRY_AFTER_S)


def _exchange(endpoint: Endpoint, method: str, path: str, body: bytes | None, say: Say) -> Answer:
    url = endpoint.url or read_secret(endpoint.url_file or "")
    shown = url if endpoint.url else _masked(url)
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UpkeepError(f'cannot use the address in "{endpoint.url_file}": write http://HOST/… or https://HOST/…')
    connection, through = _connection(endpoint, parts.scheme, parts.hostname, parts.port)
    target = parts.path.rstrip("/") + path if path else parts.path or "/"
    target += f"?{parts.query}" if parts.query else ""
    if through and parts.scheme == "http":
        target = f"http://{parts.netloc}{target}"
    headers, masked = _headers(endpoint, body)
    say(f"> {method} {shown}{path}{f' through {through}' if through else ''}")
    for name, value in headers.items():
        say(f"> {name}: {masked.get(name, value)}")
    if body is not None:
        say(f"> {body.decode()}")
    try:
        connection.request(method, target, body=body, headers=headers)
        response = connection.getresponse()
        text = response.read(MOST_READ_BYTES).decode(errors="replace")
    finally:
        connection.close()
    held = {name.lower(): value for name, value in response.getheaders()}
    say(f"< {response.status} {response.reason}")
    for line in text.splitlines()[:10]:
        say(f"< {_line(line)}")
    return Answer(response.status, response.reason, held, text)


def _connection(endpoint: Endpoint, scheme: str, host: str, port: int | None) -> tuple[http.client.HTTPConnection, str]:
    """A connection that opens when it is used, and the proxy it goes through."""
    chosen = port or (443 if scheme == "https" else 80)
    first, first_port, through = host, chosen, ""
    if endpoint.proxy:
        proxy = urlsplit(endpoint.proxy)
        if proxy.scheme != "http":
            raise UpkeepError(f'cannot use the proxy "{endpoint.proxy}": write http://HOST:PORT')
        first, first_port, through = proxy.hostname or "", proxy.port or 3128, proxy.netloc
    if scheme == "http":
        return http.client.HTTPConnection(first, first_port, timeout=endpoint.timeout), through
    context = tls_context(endpoint.ca_file)
    secured = http.client.HTTPSConnection(first, first_port, timeout=endpoint.timeout, context=context)
    if through:
        secured.set_tunnel(host, chosen)
    return secured, through


def tls_context(ca_file: str | None) -> ssl.SSLContext:
    """What verifies certificates and names, against the host's authorities or those of one file.

    Raises
    ------
    UpkeepError
        When the file cannot be used.
    """
    try:
        return ssl.create_default_context(cafile=ca_file)
    except OSError as error:
        raise UpkeepError(f'cannot use "{ca_file}" as certificate authorities: {error.strerror or error}') from None


def _headers(endpoint: Endpoint, body: bytes | None) -> tuple[dict[str, str], dict[str, str]]:
    """The request's headers, and those that are shown otherwise than they are."""
    headers = {"User-Agent": f"upkeep/{__version__}", "Accept": "*/*"}
    if body is not None:
        headers["Content-Type"] = "application/json"
    if endpoint.token_file:
        headers["Authorization"] = f"Bearer {read_secret(endpoint.token_file)}"
        return headers, {"Authorization": "Bearer ***"}
    if endpoint.username and endpoint.password_file:
        pair = f"{endpoint.username}:{read_secret(endpoint.password_file)}"
        headers["Authorization"] = f"Basic {base64.b64encode(pair.encode()).decode()}"
        return headers, {"Authorization": "Basic ***"}
    return headers, {}


def _host(endpoint: Endpoint) -> str:
    """Who is asked, for people; never the path, which may be a secret."""
    return urlsplit(endpoint.url).netloc if endpoint.url else f"the address in {endpoint.url_file}"


def _masked(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}/***"


def _line(text: str) -> str:
    """The first line of what a stranger says, printable and short."""
    first = next(iter(text.strip().splitlines()), "")
    return "".join(each if each.isprintable() else "�" for each in first)[:200]
