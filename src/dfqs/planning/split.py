"""A model on a GPU and on the CPU: the split that people make by hand (`-ngl`, `--n-cpu-moe`), computed and not run.

Source: llama.cpp b11549. `-ngl N` takes the last N of all layers and the output, in this order from the end; the
embedding stays on the CPU. `--n-cpu-moe N` keeps tensors named `ffn_{up,down,gate,gate_up}_(ch)exps` of the first N
layers there (common/arg.cpp). Where the output shares the embedding's tensor, it is loaded twice.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from dfqs.gguf.layout import TensorInfo
from dfqs.model.spec import tensor_layer
from dfqs.planning.document import GpuSplit
from dfqs.runtime.memory import MemoryNeed
from dfqs.streaming.budget import PROGRAM_BYTES

RESERVE_BYTES = 600_000_000
"""Of VRAM, left to the driver and the display: an assumption, for want of a GPU to ask."""
_KEPT_BY_OPTION = re.compile(r"\.ffn_(up|down|gate|gate_up)_(ch|)exps")
_EMBEDDING = "token_embd.weight"


@dataclass(frozen=True, slots=True)
class LayerBytes:
    """Weights by where the two options can put them."""

    dense: tuple[int, ...]
    """Of each layer, without its experts."""
    experts: tuple[int, ...]
    """Of each layer."""
    output: int
    """What goes to the GPU with the last layer; the embedding again, where the output shares it."""
    all_bytes: int
    """Each tensor once."""


def weigh_layers(tensors: Sequence[TensorInfo]) -> LayerBytes:
    """Add tensors up by layer. Pure."""
    layers = 1 + max((layer for t in tensors if (layer := tensor_layer(t.name)) is not None), default=-1)
    dense, experts, output = [0] * layers, [0] * layers, 0
    for tensor in tensors:
        layer = tensor_layer(tensor.name)
        if layer is None:
            output += tensor.length if tensor.name != _EMBEDDING else 0
        elif _KEPT_BY_OPTION.search(tensor.name):
            experts[layer] += tensor.length
        else:
            dense[layer] += tensor.length
    if not any(tensor.name == "output.weight" for tensor in tensors):
        output += sum(tensor.length for tensor in tensors if tensor.name == _EMBEDDING)
    return LayerBytes(tuple(dense), tuple(experts), output, sum(tensor.length for tensor in tensors))


def split_model(weights: LayerBytes, need: MemoryNeed, vram_bytes: int, memory_bytes: int) -> GpuSplit:
    """The split that puts as much on the GPU as fits, dense parts of all layers first.

    Args:
        need: of the context, by the CPU build: its caches go with their layers, its compute buffer with any of them.
        memory_bytes: of RAM that may be taken.
    """
    layers = len(weights.dense)
    room = vram_bytes - RESERVE_BYTES
    everywhere = need.compute_bytes + need.output_bytes

    def on_gpu(gpu_layers: int, cpu_moe: int) -> tuple[int, int]:
        """(weights, context) with the last `gpu_layers` on it, the experts of the first `cpu_moe` left out."""
        first = layers - gpu_layers
        taken = sum(weights.dense[first:]) + sum(weights.experts[max(first, cpu_moe) :]) + weights.output
        return taken, need.kv_bytes * gpu_layers // max(layers, 1) + everywhere

    def made(gpu_layers: int, cpu_moe: int, *, fits: bool) -> GpuSplit:
        taken, context = on_gpu(gpu_layers, cpu_moe) if gpu_layers else (0, 0)
        stays = weights.all_bytes - min(taken, weights.all_bytes)
        ram = stays + (need.context_bytes - context if context < need.context_bytes else 0) + PROGRAM_BYTES
        arguments = ["-ngl", str(gpu_layers + 1 if gpu_layers else 0)]
        if cpu_moe and gpu_layers:
            arguments += ["--n-cpu-moe", str(cpu_moe)]
        return GpuSplit(
            vram_bytes=vram_bytes,
            context_tokens=need.context_tokens,
            fits=fits,
            gpu_layers=gpu_layers + 1 if gpu_layers else 0,
            cpu_moe_layers=cpu_moe if gpu_layers else 0,
            arguments=tuple(arguments),
            gpu_weights_bytes=taken,
            gpu_context_bytes=context,
            reserve_bytes=RESERVE_BYTES,
            ram_bytes=ram,
            fits_ram=ram <= memory_bytes,
        )

    routed = 1 + max((layer for layer, size in enumerate(weights.experts) if size), default=-1)
    for cpu_moe in range(routed + 1):
        if sum(on_gpu(layers, cpu_moe)) <= room:
            return made(layers, cpu_moe, fits=True)
    for gpu_layers in range(layers - 1, 0, -1):
        if sum(on_gpu(gpu_layers, routed)) <= room:
            return made(gpu_layers, routed, fits=True)
    return made(0, 0, fits=False)


def least_vram_bytes(weights: LayerBytes, need: MemoryNeed) -> int:
    """VRAM that holds all of a model but its experts, with its context."""
    return sum(weights.dense) + weights.output + need.context_bytes + RESERVE_BYTES
