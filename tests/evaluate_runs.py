"""An evaluation's subject and conditions, for tests that need some."""

from dfqs.evaluate.conditions import Numerics, ScoreConditions
from dfqs.evaluate.store import Subject

SUBJECT = Subject(kind="file", name="m", location="/a/m.gguf", file_bytes=5, file_sha256="00")
CONDITIONS = ScoreConditions(
    suite="quick",
    prompt_sets={"reasoning": "aa"},
    items={"reasoning": 4},
    context_lengths=(1024,),
    max_tokens={"reasoning": 512},
    thinking="off",
    template_sha256=None,
    numerics=Numerics(),
    runtime="r 1",
    code_python="3.11.2",
)
