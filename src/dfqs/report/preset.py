"""`preset.ini` of a published model: settings that `llama serve -hf OWNER/NAME` takes from the repository. Pure.

Source: llama.cpp's docs/preset.md and its list of the options that a preset from a network may set (common/preset.cpp,
ggml-org/llama.cpp#17859). Others are refused there, and so never written here.
"""

from dfqs.model.description import ModelDescription
from dfqs.report.schema import Report

PRESET_NAME = "preset.ini"
PRESET_MARK = "; Written by dfqs publish."
ALLOWED = frozenset(
    """model-url hf-repo hf-repo-draft hf-repo-v hf-file-v mmproj-url pooling jinja batch-size ubatch-size cache-reuse
    chat-template-kwargs mmap""".split()  # noqa: SIM905
)
"""Besides options of sampling, which are a matter of taste: none was measured, so none is set."""


def render_preset(model: ModelDescription, report: Report | None) -> str:
    """The file. Batch sizes are those under which scores were measured."""
    settings: dict[str, str] = {}
    if model.chat_template:
        settings["jinja"] = "true"
    numerics = report.conditions.score.numerics if report is not None else None
    if numerics is not None:
        settings["batch-size"] = str(numerics.batch)
        settings["ubatch-size"] = str(numerics.ubatch)
    assert ALLOWED.issuperset(settings)
    return "\n".join([PRESET_MARK, *(f"{name} = {value}" for name, value in settings.items())]) + "\n"
