"""`dfqs quantize` beside llama-quantize: the same input to the same types, hashing and reading back included."""

import functools
import sys
from pathlib import Path

from dfqs.gguf.file import GGUFFile
from dfqs.quantize.imatrix_file import write_imatrix
from speed.frame import DFQS, Arm, Goal, Place, Row, command
from speed.inputs import warm
from speed.random_moe import write_random_moe

CLASSES = {"Q8_0": "q8_0", "Q4_K-XL": "q4_k", "IQ1_S-XL": "iq1_s"}
"""One that the disk and the hashes decide, two that the kernels do."""
LAYERS = {"Q8_0": 24, "Q4_K-XL": 4, "IQ1_S-XL": 1}


def row(place: Place) -> Row:
    """Three classes; sizes such that each takes some seconds."""
    peer = place.peer("llama-quantize")
    arms: list[Arm] = []
    goals: list[Goal] = []
    for class_, expert_type in CLASSES.items():
        folder = place.scratch / class_
        folder.mkdir()
        model, imatrix, ours, theirs = (folder / f"{name}.gguf" for name in ("model", "imatrix", "ours", "theirs"))
        write_imatrix(imatrix, write_random_moe(model, layers=max(1, round(LAYERS[class_] * place.scale))))
        warm([model])
        gone, same = functools.partial(_gone, ours), functools.partial(_require_same_tensors, ours, theirs)
        line: list[str | Path] = [*DFQS, "quantize", model, ours, "--class", class_, "--imatrix", imatrix]
        arms.append(Arm(f"dfqs quantize {class_}", "ours", command(line, before=gone, after=same)))
        script = Path(__file__).parent.parent / "quantize_unread.py"
        unread = command([sys.executable, script, model, ours, class_, imatrix], before=gone, after=same)
        arms.append(Arm(f"{class_}, not read back", "ours", unread))
        if peer is None:
            continue
        other: list[str | Path] = [
            peer,
            "--imatrix",
            imatrix,
            "--tensor-type",
            f"ffn_(gate|up|down)_exps={expert_type}",
            model,
            theirs,
        ]
        run = command([*other, "Q8_0", "2"], before=functools.partial(_gone, theirs), sync=theirs)
        arms.append(Arm(f"llama-quantize {class_}", "peer", run))
        for name, most in ((f"dfqs quantize {class_}", 1.0), (f"{class_}, not read back", 0.95)):
            goals += [
                Goal(name, f"llama-quantize {class_}", "wall", most),
                Goal(name, f"llama-quantize {class_}", "cpu", most),
            ]
    base = f"{'llama-quantize' if peer else 'dfqs quantize'} Q8_0"
    conditions = (
        "Random weights in F16, importance given, 2 threads; all tensors equal after every round. dfqs hashes source "
        "and result, syncs, reads back and writes a manifest; the tool does none of these",
    )
    return Row("quantize", "Quantizing", tuple(arms), base, tuple(goals), conditions=conditions)


def _gone(path: Path) -> None:
    for left in (path, path.with_name(path.name + ".manifest.json")):
        left.unlink(missing_ok=True)


def _require_same_tensors(one: Path, other: Path) -> None:
    """The same types, the same bytes, once the peer had its turn."""
    if not other.exists():
        return
    with GGUFFile(one) as a, GGUFFile(other) as b:
        for t in a.header.tensors:
            if t.type is not b.header.tensor(t.name).type or a.read_tensor(t.name) != b.read_tensor(t.name):
                raise RuntimeError(f"{t.name} differs from what the peer made")
