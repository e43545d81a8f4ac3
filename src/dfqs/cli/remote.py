"""Headers of a model on the Hub, for verbs that look at models: `hf:OWNER/NAME[@REVISION][:PATTERN]`.

Imported only when such a source is given: huggingface_hub is not on the way of a look at a local file.
"""

import re

from dfqs.errors import UsageError
from dfqs.gguf import Header
from dfqs.shards.pull import Hub, read_remote_headers

_SOURCE = re.compile(r"hf:(?P<repo>[^/@:]+/[^/@:]+)(?:@(?P<revision>[^:]+))?(?::(?P<pattern>.+))?")


def read_headers(source: str) -> tuple[Header, ...]:
    """The header of the model that is meant, or those of all its shards; some kilobytes of each file are fetched.

    Raises:
        UsageError: not such a source, no such repository, or several models are meant.
        DfqsError: as `read_remote_headers`.
    """
    match = _SOURCE.fullmatch(source)
    if match is None:
        raise UsageError(f"'{source}' is no source; write hf:OWNER/NAME, hf:OWNER/NAME@REVISION:PATTERN")
    _, _, headers = read_remote_headers(
        Hub(), match["repo"], revision=match["revision"] or "main", pattern=match["pattern"]
    )
    return headers
