"""The demonstration model: SmolLM2-135M's feed-forward layers split into experts, written as a GGUF, kept in the cache.

Each layer's 1,536 neurons become 6 experts of 256, of which 5 are used: rows of 256 are what 1-bit blocks need, and
fewer than 5 of 6 make a model of this size fall apart (docs/embedded-model.md has the figures). For the same reason
the width is padded from 576 to 768 with zeroes. An RMS norm over the padded width takes the mean over 768 values where
it should be 576; the norms' weights and their epsilon make up for that, exactly.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.resources import files
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dfqs.embedded.dense import CHUNK_TOKENS, DenseModel, Float32, attention, read_dense_model, rms_norm, swiglu
from dfqs.embedded.experts import ExpertLayer, fit_layer
from dfqs.embedded.source import SOURCE_SHA256, cached_source
from dfqs.gguf import GGMLType, KeyValue, RawKeyValue, TensorSource, f32, string, u32, write_gguf
from dfqs.gguf.quants import quantize
from dfqs.progress import Progress, no_progress
from dfqs.records import sha256_of
from dfqs.storage.atomic import check_output_path, write_bytes_atomic
from dfqs.storage.cache import cache_directory, cache_lock
from dfqs.storage.hashing import hash_file

VERSION = 2
"""Part of the cache's key: raised when a change of the code makes other bytes. (Settings are in the key themselves.)"""
EXPERTS = 6
EXPERTS_USED = 5
PADDED_WIDTH = 768
WEIGHT_TYPE = GGMLType.Q8_0
CALIBRATION_TOKENS = 12_288
ROUTER_SPREAD = 0.01
"""Standard deviation of the router's scores in the file. llama.cpp weighs chosen experts by a softmax over the scores;
with scores this close the weights are 1/k to a percent, which is what the experts were fitted for, and the order of
the scores, which is what chooses, stays."""
NAME = "SmolLM2-135M-MoE-6x (dfqs demonstration)"
DESCRIPTION = (
    "Demonstration model of dfqs: SmolLM2-135M-Instruct with its feed-forward layers split into 6 experts, 5 used. "
    "Made to show and test the program; its scores say nothing about any other model, least of all the reference model."
)
LICENSE_NOTE = "Derived from HuggingFaceTB/SmolLM2-135M-Instruct (Apache-2.0); changed by dfqs."
BASE_MODEL = "SmolLM2-135M-Instruct"
BASE_ORGANIZATION = "HuggingFaceTB"

_KEPT = ("general.type", "general.languages", "general.quantization_version")
_Q8_0_FILE_TYPE = 7


@dataclass(frozen=True, slots=True)
class EmbeddedModel:
    """A demonstration model that was built."""

    path: Path
    layers: tuple[ExpertLayer, ...]
    """How each layer was split, and how well."""


def cached_embedded_model(progress: Progress = no_progress) -> Path:
    """The demonstration model, from the cache or built into it (about a minute on 2 cores).

    Args:
        progress: in layers while it is built, in bytes while it is checked.

    Raises:
        NetworkError: its source is not in the cache and could not be fetched.
        UsageError: the cache's directory cannot be written.
        SpaceError: no room for it.
    """
    path = cache_directory() / f"smollm2-135m-moe-v{VERSION}-{cache_key()}.gguf"
    if _is_as_recorded(path, progress):
        return path
    # Two processes that want it build it once; the second finds it when its turn comes.
    with cache_lock("model"):
        if not _is_as_recorded(path, progress):
            build_embedded_model(path, cached_source(progress), overwrite=True, progress=progress)
            write_bytes_atomic(_record_of(path), f"{_hash(path, progress)}\n".encode(), overwrite=True)
    return path


def cache_key() -> str:
    """Hash of all that decides the model's bytes but the code (`VERSION` is for that) and the machine."""
    settings = [VERSION, SOURCE_SHA256, EXPERTS, EXPERTS_USED, PADDED_WIDTH, WEIGHT_TYPE.name, ROUTER_SPREAD]
    settings += [CALIBRATION_TOKENS, hashlib.sha256(read_calibration(CALIBRATION_TOKENS).tobytes()).hexdigest()]
    settings += [NAME, DESCRIPTION, LICENSE_NOTE]
    return sha256_of(settings)[:12]


def _record_of(path: Path) -> Path:
    return path.with_suffix(".sha256")


def _is_as_recorded(path: Path, progress: Progress) -> bool:
    record = _record_of(path)
    if not (path.is_file() and record.is_file()):
        return False
    return record.read_bytes().strip() == _hash(path, progress).encode()


def _hash(path: Path, progress: Progress) -> str:
    return hash_file(path, progress=progress, note="checking the cached model")


def build_embedded_model(
    path: Path, source: Path | None = None, *, overwrite: bool = False, progress: Progress = no_progress
) -> EmbeddedModel:
    """Fit every layer and write the model. The same bytes every time on one machine with one number of BLAS threads.

    Args:
        source: the dense model; the cached one by default.
        progress: in layers.

    Raises:
        UsageError: `path` exists and `overwrite` is false, or its directory cannot be written.
        SpaceError: no room for it.
    """
    check_output_path(path, overwrite=overwrite)
    model = read_dense_model(source if source is not None else cached_source(progress))
    layers = tuple(fit_layers(model, read_calibration(CALIBRATION_TOKENS), progress))
    write_gguf(path, list(_keys(model)), list(_tensors(model, layers)), overwrite=overwrite)
    return EmbeddedModel(path, layers)


def read_calibration(count: int) -> NDArray[np.uint16]:
    """Token ids of the calibration text: whole chunks of conversation, prose, code and maths, interleaved.

    The text was generated by SmolLM2-135M-Instruct itself, so that nothing has to be shipped but its own words.
    """
    data = files("dfqs.embedded").joinpath("calibration.u16").read_bytes()
    return np.frombuffer(data, "<u2")[: count // CHUNK_TOKENS * CHUNK_TOKENS]


def fit_layers(model: DenseModel, tokens: NDArray[np.uint16], progress: Progress) -> Iterator[ExpertLayer]:
    """Fit layer after layer; each sees what the layers before it, already routed, give it."""
    x = model.weights["token_embd.weight"][tokens].copy()
    for layer in range(model.layers):
        progress(layer, model.layers, "fitting experts")
        x += attention(model, layer, x)
        normed = rms_norm(x, model.weights[f"blk.{layer}.ffn_norm.weight"], model.norm_epsilon)
        gate, up, down = model.ffn(layer)
        hidden = swiglu(normed, gate, up)
        fitted, output = fit_layer(normed, hidden, hidden @ down.T, down, EXPERTS, EXPERTS_USED, seed=layer)
        x += output
        yield fitted
    progress(model.layers, model.layers, "fitting experts")


def _keys(model: DenseModel) -> Iterator[KeyValue | RawKeyValue]:
    yield string("general.architecture", "llama")
    yield string("general.name", NAME)
    yield string("general.description", DESCRIPTION)
    yield string("general.license", "apache-2.0")
    yield u32("general.base_model.count", 1)
    yield string("general.base_model.0.name", BASE_MODEL)
    yield string("general.base_model.0.organization", BASE_ORGANIZATION)
    yield string("general.base_model.0.repo_url", f"https://huggingface.co/{BASE_ORGANIZATION}/{BASE_MODEL}")
    yield string("dfqs.embedded.attribution", LICENSE_NOTE)
    yield string("dfqs.embedded.source_sha256", SOURCE_SHA256)
    yield u32("dfqs.embedded.version", VERSION)
    yield u32("general.file_type", _Q8_0_FILE_TYPE)
    changed = [
        u32("llama.embedding_length", PADDED_WIDTH),
        u32("llama.feed_forward_length", model.ffn_length // EXPERTS),
        u32("llama.expert_count", EXPERTS),
        u32("llama.expert_used_count", EXPERTS_USED),
        f32("llama.attention.layer_norm_rms_epsilon", model.norm_epsilon * model.width / PADDED_WIDTH),
        # Stated, because llama.cpp would derive them from the padded width.
        u32("llama.attention.key_length", model.head_length),
        u32("llama.attention.value_length", model.head_length),
        u32("llama.rope.dimension_count", model.head_length),
    ]
    replaced = {key.name for key in changed}
    for entry in model.header.entries:
        of_the_source = entry.name.startswith("general.") and entry.name not in _KEPT
        if not of_the_source and entry.name not in replaced:
            yield model.header.raw_entry(entry)
    yield from changed


def _tensors(model: DenseModel, layers: Sequence[ExpertLayer]) -> Iterator[TensorSource]:
    for name, weights in model.weights.items():
        parts = name.split(".")
        if name.endswith("norm.weight"):
            yield _source(name, GGMLType.F32, partial(_padded_norm, weights), (PADDED_WIDTH,))
        elif len(parts) == 4 and parts[2] in ("ffn_gate", "ffn_up", "ffn_down"):
            yield from _expert_tensors(name, weights, layers[int(parts[1])])
        else:
            # attn_output writes into the residual stream, everything else reads from it.
            axis = 0 if "attn_output" in name else 1
            shape = list(weights.shape)
            shape[axis] = PADDED_WIDTH
            yield _source(name, WEIGHT_TYPE, partial(_pad, weights, axis), tuple(shape[::-1]))


def _expert_tensors(name: str, weights: Float32, layer: ExpertLayer) -> Iterator[TensorSource]:
    """One tensor of all experts, and with `ffn_gate` the router."""
    members = [np.flatnonzero(layer.labels == expert) for expert in range(EXPERTS)]
    length = len(members[0])
    stacked_name = name.replace(".weight", "_exps.weight")
    if "ffn_down" in name:
        # llama.cpp weighs each chosen expert by about 1/k; the sum needs them whole.
        def stacked() -> Float32:
            return np.stack([_pad(layer.down[:, index], 0) for index in members]) * np.float32(EXPERTS_USED)

        yield _source(stacked_name, WEIGHT_TYPE, stacked, (length, PADDED_WIDTH, EXPERTS))
        return
    yield _source(
        stacked_name,
        WEIGHT_TYPE,
        lambda: np.stack([_pad(weights[i], 1) for i in members]),
        (PADDED_WIDTH, length, EXPERTS),
    )
    if "ffn_gate" in name:
        scale = np.float32(ROUTER_SPREAD / layer.score_deviation)
        router = name.replace("ffn_gate", "ffn_gate_inp")
        yield _source(router, GGMLType.F32, lambda: _pad(layer.router * scale, 1), (PADDED_WIDTH, EXPERTS))


def _source(name: str, type_: GGMLType, values: Callable[[], Float32], shape: tuple[int, ...]) -> TensorSource:
    def read() -> Iterable[bytes]:
        yield quantize(values(), type_)

    return TensorSource(name, shape, type_, read)


def _padded_norm(weights: Float32) -> Float32:
    """A norm's weights, scaled so that the mean over the padded width does what the mean over the width did."""
    return _pad(weights, 0) * np.float32(np.sqrt(len(weights) / PADDED_WIDTH))


def _pad(weights: Float32, axis: int) -> Float32:
    """Zeroes at the end of an axis up to the padded width."""
    padding = [(0, 0)] * weights.ndim
    padding[axis] = (0, PADDED_WIDTH - weights.shape[axis])
    return np.pad(weights, padding)
