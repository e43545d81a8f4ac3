"""What kind of GGUF a file is: a model, or one of the other things that are kept in this format.

Sources: the GGUF specification (`general.type`); llama.cpp's `llama-adapter.cpp` (adapters and control vectors),
`tools/mtmd/clip.cpp` (projectors), `tools/imatrix`; older files say it by their architecture or their keys alone.
"""

from dataclasses import dataclass

from dfqs.errors import FormatError, UsageError
from dfqs.gguf.reader import Header


@dataclass(frozen=True, slots=True)
class FileKind:
    """One kind of GGUF."""

    code: str
    """For programs."""
    word: str
    """With its article: "a LoRA adapter"."""
    use: str
    """What it is for, and what to give in its place; a sentence."""


MODEL = FileKind("model", "a model", "")
ADAPTER = FileKind(
    "adapter",
    "a LoRA adapter",
    "It changes a model and is none: give the model that it was trained for, or merge the two (llama-export-lora).",
)
PROJECTOR = FileKind(
    "projector",
    "a multimodal projector",
    "It turns images or sound into a model's tokens (llama-server --mmproj); give the language model beside it.",
)
IMATRIX = FileKind(
    "imatrix", "an importance matrix", "It says which weights matter; `dfqs quantize MODEL OUT --imatrix` takes it."
)
CONTROL_VECTOR = FileKind(
    "control-vector",
    "a control vector",
    "It steers a model and is none (llama-cli --control-vector); give the model that it was made for.",
)
VOCABULARY = FileKind(
    "vocabulary", "a vocabulary without weights", "It serves to test tokenizers; give the file that has the weights."
)
LOGITS = FileKind(
    "logits", "a record of logits", "`dfqs perplexity MODEL --reference` compares a model with it; give the model."
)
DATASET = FileKind("dataset", "a dataset for training", "Models are trained on it; give a model.")
OTHER_KINDS = (ADAPTER, PROJECTOR, IMATRIX, CONTROL_VECTOR, VOCABULARY, LOGITS, DATASET)
_BY_TYPE = {
    "model": MODEL,
    "adapter": ADAPTER,
    "lora": ADAPTER,
    "mmproj": PROJECTOR,
    "projector": PROJECTOR,
    "clip-vision": PROJECTOR,
    "imatrix": IMATRIX,
    "vocab": VOCABULARY,
    "dataset": DATASET,
}
_BY_ARCHITECTURE = {"clip": PROJECTOR, "controlvector": CONTROL_VECTOR, "imatrix": IMATRIX}
_BY_KEY = {
    "adapter.type": ADAPTER,
    "adapter.lora.alpha": ADAPTER,
    "controlvector.model_hint": CONTROL_VECTOR,
    "imatrix.chunk_count": IMATRIX,
    "dfqs.logits.format": LOGITS,
}


def file_kind(header: Header) -> FileKind:
    """What a file is, by what it says of itself; a later shard counts as what its set is, a model."""
    metadata = header.metadata
    try:
        architecture, kind = metadata.text("general.architecture"), metadata.text("general.type")
    except FormatError:
        # Too long to be a word that means anything.
        return MODEL
    for key, value in _BY_KEY.items():
        if key in metadata:
            return value
    # The architecture first: a projector made before there was a `general.type` for it says "model".
    for found in (_BY_ARCHITECTURE.get(architecture or ""), _BY_TYPE.get(kind or "")):
        if found is not None and found is not MODEL:
            return found
    shard = (metadata.integer("split.count") or 0) > 1
    if not header.tensors and not shard and "tokenizer.ggml.tokens" in metadata:
        return VOCABULARY
    return MODEL


def require_model(header: Header) -> None:
    """Make sure that a file is a model.

    Raises:
        UsageError: it is something else; says what, and what to do.
    """
    kind = file_kind(header)
    if kind is not MODEL:
        raise UsageError(f"{header.source_name} is {kind.word}, not a model. {kind.use}")
