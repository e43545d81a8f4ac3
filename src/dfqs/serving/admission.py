"""Who may ask: names that a request may call this server by, pages that may call it, and what they may send.

A browser runs pages of strangers beside the model. It tells which name it was given for this machine (`Host`: a name
that a stranger owns may point at 127.0.0.1) and which page asks (`Origin`); both are checked against lists.
"""

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass
from urllib.parse import urlsplit

from dfqs.errors import UsageError, printable
from dfqs.serving.http_head import HttpRefusal, RequestHead

ANY = "*"
_BODY_TYPES = ("application/json", "multipart/form-data")


@dataclass(frozen=True, slots=True)
class Admission:
    """What is let in.

    Args:
        beyond_this_machine: listening on more than loopback. Then an address written in numbers is a name too: a
            stranger's page cannot be behind one of ours.
        hosts: further names (`models.example.lan`); `*`: every name.
        origins: further pages (`https://tools.example.lan`); `*`: every page.
    """

    beyond_this_machine: bool = False
    hosts: frozenset[str] = frozenset()
    origins: frozenset[str] = frozenset()

    def check(self, head: RequestHead) -> None:
        """
        Raises:
            HttpRefusal: the request is not let in.
        """
        authority = head.get("host") or ""
        name = host_name(authority)
        if name is None or not self._knows(name):
            raise HttpRefusal(
                403, f"'{printable(authority)}' is not a name of this server; whoever runs it can add it (--allow-host)"
            )
        origin = head.get("origin")
        if origin is not None and not self.allows_origin(origin, authority):
            raise HttpRefusal(
                403,
                f"pages of {printable(origin)} may not use this server; whoever runs it can let them (--allow-origin)",
            )
        if origin is None and head.method == "POST" and head.get("sec-fetch-site") in ("cross-site", "same-site"):
            raise HttpRefusal(403, "a page of another site may not use this server")
        if head.method == "POST" and head.body_bytes != 0:
            kind = (head.get("content-type") or "").partition(";")[0].strip().lower()
            if kind not in _BODY_TYPES:
                raise HttpRefusal(415, "the body is JSON: send it with the header 'Content-Type: application/json'")

    def allows_origin(self, origin: str, authority: str) -> bool:
        """Whether a page of `origin` may ask for `authority`: one of this machine, of this server, or of the list."""
        if ANY in self.origins or origin.lower() in self.origins:
            return True
        try:
            parts = urlsplit(origin)
        except ValueError:
            return False
        if parts.scheme not in ("http", "https") or parts.path or parts.query or parts.fragment:
            return False
        name = host_name(parts.netloc)
        if name is None:
            return False
        return is_loopback_name(name) or parts.netloc.lower() == authority.lower()

    def _knows(self, name: str) -> bool:
        if ANY in self.hosts or name in self.hosts or is_loopback_name(name):
            return True
        return self.beyond_this_machine and _address(name) is not None


def make_admission(
    beyond_this_machine: bool, hosts: Iterable[str], origins: Iterable[str], bound: str = "localhost"
) -> Admission:
    """Rules with the names and pages that a user lists.

    Args:
        bound: what is listened on; where it is a name, that is one of this server's.

    Raises:
        UsageError: one of them is no name, or no origin.
    """
    own = host_name(bound)
    names = set() if own is None or _address(own) is not None else {own}
    for host in hosts:
        name = host if host == ANY else host_name(host)
        if name is None:
            raise UsageError(f"'{printable(host)}' is no host name; write it like models.example.lan")
        names.add(name)
    pages = set()
    for origin in origins:
        parts = urlsplit(origin)
        if origin != ANY and (parts.scheme not in ("http", "https") or host_name(parts.netloc) is None):
            raise UsageError(f"'{printable(origin)}' is no origin; write it like https://tools.example.lan")
        pages.add(origin if origin == ANY else f"{parts.scheme}://{parts.netloc}".lower())
    return Admission(beyond_this_machine, frozenset(names), frozenset(pages))


def host_name(authority: str) -> str | None:
    """The name in `name:port`, in lower case, without the port, brackets or a dot at its end; None: it is none."""
    if not authority or any(c in authority for c in "@/\\?#, \t%"):
        return None
    name, port = authority, ""
    if authority.startswith("["):
        name, bracket, rest = authority[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")) or _address(name) is None:
            return None
        port = rest[1:]
    elif ":" in authority:
        name, _, port = authority.partition(":")
    if port and not (port.isascii() and port.isdigit() and len(port) <= 5):
        return None
    return name.lower().removesuffix(".") or None


def is_loopback_name(name: str) -> bool:
    """Whether `name` can only mean this machine, whoever answers for names."""
    address = _address(name)
    return name == "localhost" or name.endswith(".localhost") or (address is not None and address.is_loopback)


def _address(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(name)
    except ValueError:
        return None
