"""What a quantized file says of itself: llama.cpp's keys, and dfqs's own.

`general.file_type`, `general.quantization_version` and `quantize.imatrix.*` are the keys that llama-quantize writes
(`include/llama.h`: enum llama_ftype). The `dfqs.` keys say by which recipe, from what, and with what tool.
"""

from dataclasses import dataclass
from pathlib import Path

from dfqs import __version__
from dfqs.errors import FormatError
from dfqs.gguf.reader import Header
from dfqs.gguf.types import GGMLType
from dfqs.gguf.values import KeyValue, RawKeyValue, string, u32
from dfqs.model.classes import DeploymentClass
from dfqs.model.making import CLASS_KEY, IMATRIX_KEY, RECIPE_KEY, SOURCE_KEY, VERSION_KEY
from dfqs.quantize.mixtures import MIXTURES
from dfqs.quantize.recipe import recipe_record
from dfqs.records import canonical_json
from dfqs.shards.layout import QUANTIZE_ORDER, split_keys

QUANTIZATION_VERSION = 2
"""ggml's `GGML_QNT_VERSION`."""

FILE_TYPES: dict[GGMLType, int] = {
    GGMLType.F32: 0,
    GGMLType.F16: 1,
    GGMLType.Q4_0: 2,
    GGMLType.Q4_1: 3,
    GGMLType.Q8_0: 7,
    GGMLType.Q5_0: 8,
    GGMLType.Q5_1: 9,
    GGMLType.Q2_K: 10,
    GGMLType.Q3_K: 12,
    GGMLType.Q4_K: 15,
    GGMLType.Q5_K: 17,
    GGMLType.Q6_K: 18,
    GGMLType.IQ2_XXS: 19,
    GGMLType.IQ2_XS: 20,
    GGMLType.IQ3_XXS: 23,
    GGMLType.IQ1_S: 24,
    GGMLType.IQ4_NL: 25,
    GGMLType.IQ3_S: 26,
    GGMLType.IQ2_S: 28,
    GGMLType.IQ4_XS: 30,
    GGMLType.IQ1_M: 31,
    GGMLType.BF16: 32,
    GGMLType.TQ1_0: 36,
    GGMLType.TQ2_0: 37,
    GGMLType.MXFP4: 38,
}
"""llama.cpp's number for a file whose experts have that type."""

_REPLACED = ("general.file_type", "general.quantization_version")
_DROPPED_PREFIXES = ("split.", "quantize.imatrix.")
_DROPPED = frozenset({CLASS_KEY, RECIPE_KEY, IMATRIX_KEY, SOURCE_KEY, VERSION_KEY})


@dataclass(frozen=True, slots=True)
class ImatrixOrigin:
    """The importance matrix that was used."""

    path: Path
    sha256: str
    dataset: str | None
    entries: int
    chunks: int | None
    unseen_experts: int
    """(layer, expert) pairs to be quantized that no input reached: all their columns weigh the same."""
    silent_weights: int = 0
    """Weights to be quantized for which it has nothing but zeroes: all their columns weigh the same."""


def result_keys(source: Header, class_: DeploymentClass, imatrix: ImatrixOrigin | None) -> list[KeyValue | RawKeyValue]:
    """Keys of the result: the source's, except those that speak of its own making, and those of this one.

    The source's content hash is known only when all of it has been read: its place holds zeros (`content_hash_slot`).
    """
    mixture = MIXTURES.get(class_.name)
    file_type = mixture.file_type if mixture else FILE_TYPES.get(class_.expert_type or GGMLType.Q8_0, 0)
    fixed = {
        "general.quantization_version": u32("general.quantization_version", QUANTIZATION_VERSION),
        "general.file_type": u32("general.file_type", file_type),
    }
    keys: list[KeyValue | RawKeyValue] = []
    for entry in source.entries:
        if entry.name in _REPLACED:
            keys.append(fixed.pop(entry.name))
        elif entry.name not in _DROPPED and not entry.name.startswith(_DROPPED_PREFIXES):
            keys.append(source.raw_entry(entry))
    keys += fixed.values()
    if imatrix is not None:
        keys.append(string("quantize.imatrix.file", imatrix.path.name))
        if imatrix.dataset is not None:
            keys.append(string("quantize.imatrix.dataset", imatrix.dataset))
        keys.append(u32("quantize.imatrix.entries_count", imatrix.entries))
        if imatrix.chunks is not None:
            keys.append(u32("quantize.imatrix.chunks_count", imatrix.chunks))
    keys.append(string(CLASS_KEY, class_.name))
    keys.append(string(RECIPE_KEY, recipe_text(class_)))
    if imatrix is not None:
        keys.append(string(IMATRIX_KEY, imatrix.sha256))
    keys.append(string(SOURCE_KEY, "0" * 64))
    keys.append(string(VERSION_KEY, __version__))
    return keys


def recipe_text(class_: DeploymentClass) -> str:
    """The recipe as it stands in the file."""
    return canonical_json(recipe_record(class_)).decode()


def shard_keys(index: int, count: int, tensors: int, source: Header) -> list[KeyValue | RawKeyValue]:
    """Keys of output shard `index`."""
    keys: list[KeyValue | RawKeyValue] = [*split_keys(index, count, tensors, QUANTIZE_ORDER)]
    if index and "general.alignment" in source.metadata:
        keys.append(source.raw_entry(source.metadata.entry("general.alignment")))
    return keys


def content_hash_slot(header: bytes) -> int:
    """Where in an encoded header the 64 digits of the source's content hash stand."""
    entry = string(SOURCE_KEY, "0" * 64).encode()
    position = header.find(entry)
    if position < 0 or header.find(entry, position + 1) >= 0:
        raise FormatError("the key for the source's content hash does not stand once", name=SOURCE_KEY)
    return position + len(entry) - 64
