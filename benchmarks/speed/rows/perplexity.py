"""`dfqs perplexity` beside llama-perplexity: as many tokens scored, in windows of 512."""

from pathlib import Path

from speed.frame import DFQS, Arm, Goal, Place, Row, command
from speed.native import CONDITIONS, THREADS, model, same_library, write_text


def row(place: Place) -> Row:
    """The tool scores the last 255 of each 512 tokens; dfqs as many, from the first token on."""
    chunks = max(1, round(4 * place.scale))
    text = write_text(place.scratch / "text.txt")
    line: list[str | Path] = [
        *DFQS,
        "perplexity",
        model(),
        "--text",
        text,
        "--max-tokens",
        str(255 * chunks + 1),
        "--threads",
        THREADS,
    ]
    environment = same_library(place, "llama-perplexity")
    arms = [Arm("dfqs perplexity", "ours", command(line, environment=environment))]
    peer = place.peer("llama-perplexity")
    if peer is not None:
        other: list[str | Path] = [peer, "-m", model(), "-f", text, "-c", "512", "--chunks", str(chunks), "-t", THREADS]
        arms.append(Arm("llama-perplexity", "peer", command(other)))
    goals = (Goal("dfqs perplexity", "llama-perplexity", "cpu", 0.9),) if peer is not None else ()
    more = (f"{255 * chunks:,} tokens scored by both; dfqs scores the first window whole, and keeps the 128 likeliest "
            "tokens of each",)  # fmt: skip
    return Row("perplexity", "Perplexity", tuple(arms), arms[-1].name, goals, conditions=CONDITIONS + more)
