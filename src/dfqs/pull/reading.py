"""A model on the Hub whose bytes are read where they lie: its headers, and any range of its files."""

from dfqs.gguf.reader import Header
from dfqs.gguf.source import ByteSource
from dfqs.pull.headers import read_remote_headers
from dfqs.pull.hub import Hub
from dfqs.pull.ranges import RangeClient, RemoteSource
from dfqs.pull.retry import RetryPolicy
from dfqs.storage.closing import Closing

CONNECTIONS = 8


class RemoteFiles(Closing):
    """The files of one model of a repository, pinned to a commit; for a `with` block.

    Ranges are not held against a hash, which the Hub has of whole files alone: what they say is as good as the server.

    Raises:
        As `read_remote_headers`.
    """

    def __init__(
        self,
        hub: Hub,
        repo: str,
        *,
        revision: str = "main",
        pattern: str | None = None,
        retry: RetryPolicy | None = None,
    ) -> None:
        listing, choice, headers = read_remote_headers(hub, repo, revision=revision, pattern=pattern, retry=retry)
        self.headers: tuple[Header, ...] = headers
        self._client = RangeClient(hub, listing, retry=retry, connections=CONNECTIONS)
        groups = [(file,) for file in choice.files] if len(headers) > 1 else [choice.files]
        self.sources: tuple[ByteSource, ...] = tuple(
            # Every byte may be read, and read again.
            RemoteSource(self._client, group, 1 << 62)
            for group in groups
        )

    def close(self) -> None:
        self._client.close()
