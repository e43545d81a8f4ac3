"""A model on the Hub, for verbs that look at models: `hf:OWNER/NAME[@REVISION][:PATTERN]`, or its address.

Imported only when such a source is given: huggingface_hub is not on the way of a look at a local file.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from dfqs.cli.output import warn
from dfqs.gguf.reader import Header
from dfqs.gguf.shard import Shard
from dfqs.gguf.source import ByteSource
from dfqs.model.files import ModelFiles
from dfqs.pull import Hub, RetryPolicy, hub_endpoint, read_remote_headers
from dfqs.pull.reading import RemoteFiles
from dfqs.shards.hub_address import parse_hub_address


def patient_hub() -> Hub:
    """The Hub, whose silences are told on stderr."""
    return Hub(retry=RetryPolicy(tell=warn))


def open_remote_model(source: str) -> ModelFiles:
    """The model that is meant, by the headers of all its files; some kilobytes of each file are fetched.

    Raises:
        UsageError: not such a source, no such repository, or several models are meant.
        DfqsError: as `read_remote_headers`.
    """
    address = parse_hub_address(source, endpoint=hub_endpoint())
    _, _, headers = read_remote_headers(patient_hub(), address.repo, revision=address.revision, pattern=address.pattern)
    return _model(headers)


@contextmanager
def open_remote_bytes(source: str) -> Iterator[tuple[ModelFiles, tuple[ByteSource, ...]]]:
    """The same, with the bytes of each of its files to be read where they lie.

    Raises:
        As `open_remote_model`.
    """
    address = parse_hub_address(source, endpoint=hub_endpoint())
    with RemoteFiles(patient_hub(), address.repo, revision=address.revision, pattern=address.pattern) as files:
        yield _model(files.headers), files.sources


def _model(headers: Sequence[Header]) -> ModelFiles:
    return ModelFiles(tuple(Shard(header.source_name, header) for header in headers))
