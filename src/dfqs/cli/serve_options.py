"""Options that `dfqs serve` alone has."""

from pathlib import Path
from typing import Annotated

import typer

from dfqs.errors import UsageError
from dfqs.units import parse_size

_LEAST_BODY_BYTES, _MOST_BODY_BYTES = 1 << 10, 1 << 30

ApiKeyOption = Annotated[
    str | None, typer.Option("--api-key", help="Ask clients for this key.", envvar="DFQS_API_KEY", show_default=False)
]
WithoutKey = Annotated[
    bool, typer.Option("--without-key", help="Listen beyond this machine though no --api-key is asked for.")
]
DeterministicOption = Annotated[
    bool,
    typer.Option(
        "--deterministic",
        help="Compute each request by itself and from its beginning: the same answer whatever else is asked.",
    ),
]
ContextOption = Annotated[
    int | None,
    typer.Option("--ctx", help="Context of a request, in tokens.", min=1, show_default="as trained, at most 8192"),
]
AllowHost = Annotated[
    list[str] | None,
    typer.Option("--allow-host", help="A name that clients call this server by; * for any.", show_default=False),
]
AllowOrigin = Annotated[
    list[str] | None,
    typer.Option("--allow-origin", help="A page that may use the model; * for any.", show_default=False),
]
Queue = Annotated[
    int, typer.Option("--queue", help="Requests that may wait for their turn; others are told to come later.", min=0)
]
MaxTokens = Annotated[
    int | None,
    typer.Option("--max-tokens", help="Of an answer; who asks for more is refused.", min=1, show_default="the context"),
]
MaxBody = Annotated[
    str | None, typer.Option("--max-body", help="Of a request: 1MB.", show_default="32 MiB; less with --ram")
]
TimeLimit = Annotated[
    float | None,
    typer.Option("--time-limit", help="Seconds for a request, waiting included.", min=0.1, show_default="none"),
]
PromptCacheOption = Annotated[
    Path | None,
    typer.Option(
        "--prompt-cache",
        help="Keep computed prompts in this directory, and go on from them after a restart.",
        show_default=False,
        file_okay=False,
    ),
]
PromptCacheSize = Annotated[str, typer.Option("--prompt-cache-size", help="Of all kept prompts; the oldest make room.")]
Grace = Annotated[
    float, typer.Option("--grace", help="Seconds for answers under way when it is stopped.", min=0, max=3600)
]
Restarts = Annotated[
    int,
    typer.Option(
        "--restarts", help="Times in a row that llama.cpp is started again when it died, without an answer.", min=0
    ),
]
StallLimit = Annotated[
    float,
    typer.Option(
        "--stall-limit",
        help="Seconds without a sign of work, after which llama.cpp is ended and started again; 0: never.",
        min=0,
    ),
]


def read_body_limit(text: str | None) -> int | None:
    """
    Raises:
        UsageError: no size, or one that no request fits into or no memory holds.
    """
    if text is None:
        return None
    found = parse_size(text)
    if not _LEAST_BODY_BYTES <= found <= _MOST_BODY_BYTES:
        raise UsageError(f"--max-body is from {_LEAST_BODY_BYTES:,} to {_MOST_BODY_BYTES:,} bytes; {found:,} is not")
    return found


def read_prompt_cache(directory: Path | None, size: str, deterministic: bool) -> tuple[Path | None, int]:
    """
    Raises:
        UsageError: no size, or prompts are to be kept that are not gone on from.
    """
    if directory is not None and deterministic:
        raise UsageError("--deterministic computes each prompt from its beginning; leave --prompt-cache out")
    return directory, parse_size(size)
