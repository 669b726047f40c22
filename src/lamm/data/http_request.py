"""Ask a web server once for a file, or for the rest of it, and say what its answer means.

An answer is the file, a fault that may pass, or a fault that won't; `lamm.data.fetch` decides what
to do about each. Only the standard library is used.
"""

from __future__ import annotations

import email.utils
import http.client
import re
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from email.message import Message
from typing import Final

from lamm import __version__

USER_AGENT: Final = f"LaMM/{__version__} (downloads data sets for neural network potentials)"
_PASSING_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504})
"""Answers that another attempt may turn into the file."""
_CONTENT_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+|\*)")


class PassingError(Exception):
    """A fault that may be over at the next attempt."""

    def __init__(self, text: str, wait: float = 0.0) -> None:
        super().__init__(text)
        self.wait = wait
        """Seconds that the server asks for."""


class BeyondEndError(PassingError):
    """There is nothing after what has arrived, and yet it isn't the whole: it's another file."""


class FinalError(Exception):
    """A fault that no further attempt will change."""

    def __init__(self, text: str, *, missing: bool = False) -> None:
        super().__init__(text)
        self.missing = missing
        """Whether the server has no such file."""


@dataclass(frozen=True)
class Version:
    """What a server says of a file: enough to tell whether it is still the same one."""

    url: str
    size: int | None = None
    etag: str | None = None
    modified: str | None = None

    @property
    def condition(self) -> str | None:
        """For `If-Range`, which takes no weak ETag."""
        if self.etag and not self.etag.startswith("W/"):
            return self.etag
        return self.modified

    def same_as(self, other: Version) -> bool:
        """Whether two answers speak of one version, as far as both say."""
        pairs = (
            (self.size, other.size),
            (self.etag, other.etag),
            (self.modified, other.modified),
        )
        return all(mine is None or theirs is None or mine == theirs for mine, theirs in pairs)


class _Http(urllib.request.OpenerDirector):
    """Opens http and https, through proxies and redirections, and nothing else such as file:."""

    def __init__(self) -> None:
        super().__init__()
        for handler in (
            urllib.request.ProxyHandler(),
            urllib.request.HTTPHandler(),
            urllib.request.HTTPSHandler(),
            urllib.request.HTTPRedirectHandler(),
            urllib.request.HTTPDefaultErrorHandler(),
            urllib.request.HTTPErrorProcessor(),
            urllib.request.UnknownHandler(),
        ):
            self.add_handler(handler)


@contextmanager
def opened(
    url: str, have: int, known: Version | None, timeout: float
) -> Iterator[http.client.HTTPResponse]:
    """Ask for the bytes from `have` on; 200 and 206 are answers, all else is a fault."""
    headers = {"User-Agent": USER_AGENT, "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
        if known is not None and known.condition:
            headers["If-Range"] = known.condition
    request = urllib.request.Request(url, headers=headers)
    try:
        answer = _Http().open(request, timeout=timeout)
    except urllib.error.HTTPError as error:
        with error:
            raise _status_fault(error.code, error.headers) from None
    except urllib.error.URLError as error:
        if isinstance(error.reason, ssl.SSLCertVerificationError):
            raise FinalError(f"the certificate is not valid ({error.reason})") from error
        raise PassingError(f"no connection ({error.reason})") from error
    except (http.client.HTTPException, OSError) as error:
        raise PassingError(f"no answer ({error or type(error).__name__})") from error
    with answer:
        if answer.status not in (200, 206):
            raise FinalError(f"the server answers {answer.status}, expected the file")
        yield answer


def _status_fault(status: int, headers: Message) -> Exception:
    """What a status other than success means for the download."""
    text = f"the server answers {status} {http.client.responses.get(status, '')}".rstrip()
    if status in _PASSING_STATUS:
        return PassingError(text, _asked_wait(headers.get("Retry-After")))
    if status == 416:
        return BeyondEndError("the file at the source is shorter than what had arrived")
    if status in (404, 410):
        text += ": the file isn't there any more, or the address is wrong"
        return FinalError(text, missing=True)
    if status in (401, 403):
        text += ": the file isn't open to everybody"
    return FinalError(text)


def _asked_wait(text: str | None) -> float:
    """Seconds of a `Retry-After`, which is a number or a date."""
    if text is None:
        return 0.0
    if text.strip().isdigit():
        return float(text)
    with suppress(ValueError, TypeError):
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    return 0.0


def version_of(url: str, answer: http.client.HTTPResponse) -> Version:
    """What an answer says of the whole file."""
    headers = answer.headers
    if answer.status == 206:
        match = _CONTENT_RANGE.fullmatch(headers.get("Content-Range", "").strip())
        size = int(match[2]) if match and match[2] != "*" else None
    else:
        length = headers.get("Content-Length", "")
        size = int(length) if length.isdigit() else None
    return Version(url, size, headers.get("ETag"), headers.get("Last-Modified"))


def first_byte(headers: Message) -> int | None:
    """Number of the first byte that a 206 brings."""
    match = _CONTENT_RANGE.fullmatch(headers.get("Content-Range", "").strip())
    return int(match[1]) if match else None
