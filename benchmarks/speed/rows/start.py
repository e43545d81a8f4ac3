"""`dfqs inspect` as a whole process: what somebody waits who looks at a file."""

from speed.frame import DFQS, Arm, Goal, Place, Row, command
from speed.inputs import warm, write_model


def row(place: Place) -> Row:
    """Bare Python is the limit: the interpreter has to start."""
    model = write_model(place.scratch / "model.gguf", 2, rows=8)
    warm([model])
    python = [DFQS[0], "-c", "pass"]
    arms = (
        Arm("python -c pass", "limit", command(python)),
        Arm("dfqs inspect", "ours", command([*DFQS, "inspect", model])),
        Arm("dfqs inspect --json", "ours", command([*DFQS, "inspect", model, "--json"])),
        Arm("dfqs verify", "ours", command([*DFQS, "verify", model])),
        Arm("dfqs --help", "ours", command([*DFQS, "--help"])),
    )
    # 0.12 s in all: a share of nothing, and seconds on top.
    goals = tuple(Goal(arm.name, "python -c pass", "wall", 0.0, 0.12) for arm in arms[1:4])
    condition = "A header with 129,280 tokens; goals are seconds in all, not shares"
    return Row("start", "Starting", arms, "python -c pass", goals, conditions=(condition,))
