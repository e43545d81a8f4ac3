"""One question to the Hub's API and its answer, whole, within bounds; refusals are told apart by status and code."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urljoin, urlsplit

import httpx
from huggingface_hub import constants

from dfqs import __version__
from dfqs.errors import NetworkError
from dfqs.pull.bounded import bounded_client, exchange
from dfqs.records import parse_json

LIMIT_BYTES = 8 << 20
"""Of one answer. A repository of 3,000 shards is described in 1.4 MB; what is made of it takes 40 times the text."""
_HUGE_SIZE = re.compile(rb'("size"\s*:\s*)-?\d{20,}')
_MAX_REDIRECTS = 5
_REDIRECTS = frozenset({301, 302, 303, 307, 308})


@dataclass(frozen=True, slots=True)
class Answer:
    """What the Hub said."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    """Empty for a refusal, whose page is not read."""
    url: str
    """Where the answer came from: a renamed repository is redirected to."""
    location: str | None
    """Where else the Hub sends us: a file's storage."""

    @property
    def refusal(self) -> str | None:
        """The Hub's own code for why not."""
        return self.headers.get("X-Error-Code")

    def json(self) -> Any:
        """Raises FormatError where the body is not usable JSON."""
        # A size that no integer holds makes one file unusable, not the whole list.
        return parse_json(_HUGE_SIZE.sub(rb"\1null", self.body))


class MetadataClient:
    """Asks the Hub. Connections are kept for the next question, from whatever thread."""

    def __init__(self, token: str | None, seconds: float) -> None:
        self._token = token
        self._seconds = seconds
        self._client = bounded_client(
            timeout=seconds,
            # Nothing compressed: a small answer could become a large one.
            headers={"User-Agent": f"dfqs/{__version__}", "Accept-Encoding": "identity"},
            follow_redirects=False,
        )

    def ask(self, method: str, url: str) -> Answer:
        """One answer, from first byte to last in the client's seconds, redirects inside the Hub followed.

        Raises:
            SlowAnswer, LongAnswer: beyond the bounds.
            NetworkError: redirects without end, a compressed answer, or HF_HUB_OFFLINE is set.
            httpx.TransportError, httpx.InvalidURL: the Hub cannot be reached.
        """
        if constants.HF_HUB_OFFLINE:
            raise NetworkError("HF_HUB_OFFLINE is set; unset it to fetch from the Hub")
        with exchange(self._seconds, LIMIT_BYTES):
            for _ in range(_MAX_REDIRECTS):
                headers = {"Authorization": f"Bearer {self._token}"} if self._token else {}
                with self._client.stream(method, url, headers=headers) as response:
                    location = response.headers.get("Location")
                    if response.status_code in _REDIRECTS and location is not None:
                        following = urljoin(url, location)
                        if origin(following) == origin(url):
                            url = following
                            continue
                        location = following
                    return Answer(response.status_code, response.headers, _body(response), url, location)
        raise NetworkError(f"{url} redirects without end")


def origin(url: str) -> tuple[str, str | None, int | None]:
    """Scheme, host and port: whom a token may be sent to."""
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port


def _body(response: httpx.Response) -> bytes:
    if response.status_code != 200:
        return b""
    if response.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise NetworkError("the answer is compressed, though that was not asked for")
    # The bound on what comes over the wire is one on this too.
    return b"".join(response.iter_raw())
