"""How people name a model on the Hub, and what they mean: one parser for every verb that takes such a name.

OWNER/NAME                  OWNER/NAME@REVISION         OWNER/NAME:PATTERN       OWNER/NAME@REVISION:PATTERN
hf:OWNER/NAME...            hf.co/OWNER/NAME...         huggingface.co/OWNER/NAME...
https://huggingface.co/OWNER/NAME[/tree/REVISION[/FOLDER] | /blob/REVISION/FILE | /resolve/REVISION/FILE]
"""

import re
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from dfqs.errors import UsageError, printable

HUB_HOSTS = frozenset({"huggingface.co", "www.huggingface.co", "hf.co", "www.hf.co"})
_SHORT = re.compile(
    r"(?P<repo>[^/@:\s]+/[^/@:\s]+)(?:@(?P<revision>[^:\s]+))?(?::(?P<pattern>[^@]+?)(?:@(?P<late>[^:@\s]+))?)?"
)
_FILE = re.compile(
    r"(?P<repo>[^/@:\s]+/[^/@:\s]+)(?:@(?P<revision>refs/[^/:\s]+/[^/:\s]+|(?!refs/)[^/:\s]+))?"
    r"/(?P<file>[^:]+)"
)
"""`hf://OWNER/NAME@REVISION/FILE`, as file systems of the Hub write it."""
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)
_PULL_REQUEST = re.compile(r"refs/(?:pr|convert|heads|tags)/[^/]+")
_NO_MODELS = frozenset({"datasets", "spaces", "buckets", "collections", "docs", "blog", "papers", "api", "models"})
_FORMS = "write OWNER/NAME, OWNER/NAME@REVISION:PATTERN, or the address of a model's page on the Hub"


@dataclass(frozen=True, slots=True)
class HubAddress:
    """What is meant, as its name says."""

    repo: str
    """OWNER/NAME."""
    revision: str = "main"
    """A branch, tag or commit."""
    pattern: str | None = None
    """Which of its models: a part of the name, a shell pattern, or a file's whole path."""


def is_remote(source: str) -> bool:
    """Whether a name is that of something on a network, by its form alone: `hf:...`, a Hub host's name, `https://...`."""
    lower = source.lower()
    return lower.startswith("hf:") or bool(_SCHEME.match(source)) or lower.partition("/")[0] in HUB_HOSTS


def names_hub_model(source: str) -> bool:
    """Whether a name means a model of the Hub where no file has that name: as `is_remote`, or `OWNER/NAME:PATTERN`."""
    if is_remote(source):
        return True
    match = _SHORT.fullmatch(source)
    return match is not None and match["pattern"] is not None and not source.startswith((".", "/", "~"))


def parse_hub_address(text: str, *, endpoint: str = "https://huggingface.co") -> HubAddress:
    """What a name or an address means.

    Args:
        endpoint: the Hub in use; addresses on its host are understood too.

    Raises:
        UsageError: it is neither, or the address of something else.
    """
    if (scheme := _SCHEME.match(text)) is not None and scheme[0].lower() != "hf://":
        return _parse_url(text, endpoint)
    short = re.sub(r"^hf:(//)?", "", text, flags=re.IGNORECASE)
    host = short.partition("/")[0].lower()
    if host in HUB_HOSTS or (urlsplit(endpoint).netloc.lower() == host and short.count("/") > 1):
        return _parse_path(short.partition("/")[2], text)
    if scheme is not None and (file := _FILE.fullmatch(short)) is not None:
        return _checked(file["repo"], file["revision"] or "main", file["file"], text)
    match = _SHORT.fullmatch(short)
    if match is None:
        raise UsageError(f"'{printable(text, 200)}' is no repository; {_FORMS}")
    return _checked(match["repo"], match["revision"] or match["late"] or "main", match["pattern"], text)


def _parse_url(text: str, endpoint: str) -> HubAddress:
    try:
        parts = urlsplit(text)
        host, port = (parts.hostname or "").lower(), parts.port
    except ValueError:
        raise UsageError(f"'{printable(text, 200)}' is no address") from None
    own = urlsplit(endpoint)
    if parts.scheme.lower() not in ("http", "https") or not (
        (host in HUB_HOSTS and port in (None, 80, 443)) or (host, port) == (own.hostname, own.port)
    ):
        # Without what stands before the host: that can be a password.
        shown = printable(f"{parts.scheme}://{host}{parts.path}", 200)
        raise UsageError(
            f"{shown} is no address of the Hub ({printable(endpoint)}); models are read from local files and from there"
        )
    if parts.username is not None or parts.password is not None:
        raise UsageError("an address with a name or password in it is not used; set HF_TOKEN")
    return _parse_path(parts.path, text)


def _parse_path(path: str, text: str) -> HubAddress:
    """What stands after the host."""
    owner, _, rest = path.strip("/").partition("/")
    name, _, rest = rest.partition("/")
    if owner.lower() in _NO_MODELS:
        raise UsageError(
            f"'{printable(text, 200)}' is of the Hub's {printable(owner.lower())}, not of a model; {_FORMS}"
        )
    if not owner or not name:
        raise UsageError(f"'{printable(text, 200)}' names no model; {_FORMS}")
    if not rest:
        match = _SHORT.fullmatch(unquote(f"{owner}/{name}"))
        if match is None:
            raise UsageError(f"'{printable(text, 200)}' names no model; {_FORMS}")
        return _checked(match["repo"], match["revision"] or match["late"] or "main", match["pattern"], text)
    kind, _, rest = rest.partition("/")
    if kind in ("discussions", "commits", "settings", "edit", "raw", "commit") or not rest:
        if kind == "commit" and rest:
            return _checked(f"{owner}/{name}", rest.partition("/")[0], None, text)
        if kind not in ("raw",):
            return _checked(f"{owner}/{name}", "main", None, text)
    if kind not in ("tree", "blob", "resolve", "raw"):
        raise UsageError(f"'{printable(text, 200)}' is no page of a model's files; {_FORMS}")
    rest = unquote(rest.partition("?")[0])
    request = _PULL_REQUEST.match(rest)
    revision = request[0] if request is not None else rest.partition("/")[0]
    inside = rest[len(revision) :].strip("/")
    if kind == "tree":
        # A folder's name is text, whatever marks of a pattern are in it.
        folder = re.sub(r"([*?[])", r"[\1]", inside)
        return _checked(f"{owner}/{name}", revision, f"{folder}/*" if inside else None, text)
    if not inside:
        raise UsageError(f"'{printable(text, 200)}' names no file; {_FORMS}")
    return _checked(f"{owner}/{name}", revision, inside, text)


def _checked(repo: str, revision: str, pattern: str | None, text: str) -> HubAddress:
    repo = unquote(repo)
    if not all(value.isprintable() for value in (repo, revision, pattern or "")) or ".." in repo:
        raise UsageError(f"'{printable(text, 200)}' is no repository; {_FORMS}")
    return HubAddress(repo, revision, pattern)
