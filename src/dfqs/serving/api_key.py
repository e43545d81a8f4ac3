"""The key of a server: asked for before a body is read, and compared in a time that tells nothing of it."""

import hmac
import re
from dataclasses import dataclass

from dfqs.errors import UsageError
from dfqs.serving.http_head import HttpRefusal, RequestHead

_KEY = re.compile(r"[\x21-\x7e]+")
_OPEN = ("/health", "/v1/health")
"""Answered whoever asks; so are the files of the web page, in which a key is typed."""
_ASKED = ("/metrics",)
"""Of what is only read, that which the front answers itself; the model's server asks for the rest."""


@dataclass(frozen=True, slots=True)
class ApiKey:
    """What clients have to show. Printable ASCII without spaces, as a header carries it."""

    text: str

    def check(self, head: RequestHead) -> None:
        """
        Raises:
            HttpRefusal: another key was shown, or none where one is needed.
        """
        if head.path in _OPEN or head.method == "OPTIONS":
            return
        shown = head.get("authorization") or head.get("x-api-key") or ""
        reads = head.method in ("GET", "HEAD") and head.path not in _ASKED
        if not shown and reads:
            return
        # As llama-server has it, which asks again.
        if not hmac.compare_digest(shown.removeprefix("Bearer ").encode("latin-1"), self.text.encode()):
            raise HttpRefusal(401, "Invalid API Key")


def make_key(text: str | None) -> ApiKey | None:
    """
    Raises:
        UsageError: no client can show this key.
    """
    if text is None:
        return None
    if not _KEY.fullmatch(text):
        raise UsageError("the API key is empty, or has a space or another character that no key has")
    return ApiKey(text)
