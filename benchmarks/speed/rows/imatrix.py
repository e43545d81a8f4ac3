"""`dfqs imatrix` beside llama-imatrix: the same model, text, chunks and library."""

from pathlib import Path

from speed.frame import DFQS, Arm, Goal, Place, Row, command
from speed.native import CONDITIONS, THREADS, model, same_library, write_text


def row(place: Place) -> Row:
    """2,048 tokens in chunks of 512."""
    chunks = max(1, round(4 * place.scale))
    tokens, text = str(512 * chunks), write_text(place.scratch / "text.txt")
    ours, theirs = (place.scratch / f"{name}.gguf" for name in ("ours", "theirs"))
    line: list[str | Path] = [
        *DFQS,
        "imatrix",
        model(),
        "-o",
        ours,
        "--corpus",
        text,
        "--tokens",
        tokens,
        "--max-tokens",
        tokens,
    ]
    line += ["--min-samples", "1", "--threads", THREADS]
    environment = same_library(place, "llama-imatrix")
    arms = [Arm("dfqs imatrix", "ours", command(line, before=lambda: ours.unlink(True), environment=environment))]
    peer = place.peer("llama-imatrix")
    if peer is not None:
        other: list[str | Path] = [
            peer,
            "-m",
            model(),
            "-f",
            text,
            "-o",
            theirs,
            "-c",
            "512",
            "--chunks",
            str(chunks),
            "-t",
            THREADS,
        ]
        arms.append(Arm("llama-imatrix", "peer", command(other)))
    goals = (Goal("dfqs imatrix", "llama-imatrix", "cpu", 1.0),) if peer is not None else ()
    return Row("imatrix", "Importance matrix", tuple(arms), arms[-1].name, goals, conditions=CONDITIONS)
