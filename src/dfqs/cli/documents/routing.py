"""What `route trace` prints; the other verbs of `route` print what `dfqs.routing` found."""

from typing import Literal

from pydantic import Field

from dfqs.records import Document, Text
from dfqs.routing.identity import ModelIdentity
from dfqs.routing.trace import TraceHeader
from dfqs.runtime.loading import StreamFigures


class CaptureDocument(Document):
    """A trace, planned or written; what is not known is null."""

    schema_: Literal["dfqs.route-capture/1"] = Field(default="dfqs.route-capture/1", alias="schema")
    dry_run: bool
    model: ModelIdentity
    hash_layers: tuple[int, ...]
    """Those whose experts follow from the token alone."""
    prompts: int
    out: Text
    scores: bool
    """The router's scores are stored too."""
    trace_sha256: str | None
    tokens: int | None
    header: TraceHeader | None
    """Of the trace that was written."""
    streaming: StreamFigures | None = None
    """Of a model that is larger than its memory."""
