"""The search for settings, the split between GPU and CPU, the envelope, the table of programs: on made-up numbers."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dfqs.errors import RuntimeFailure, UsageError
from dfqs.gguf import GGMLType, encode_header, read_header, string, u32
from dfqs.gguf.layout import TensorInfo
from dfqs.planning.envelope import ENVELOPE, EnvelopeNeeds, check_envelope
from dfqs.planning.fit import Search, levers_for
from dfqs.planning.loaders import judge_loaders, known_loaders
from dfqs.planning.split import RESERVE_BYTES, split_model, weigh_layers
from dfqs.runtime.memory import MemoryNeed, MemoryPart
from dfqs.runtime.requests import ContextSettings
from dfqs.streaming.budget import PROGRAM_BYTES
from dfqs.units import parse_tokens
from v4_flash_stub import write_v4_flash_stub

MB, GB = 1_000_000, 1_000_000_000
WEIGHTS = 10 * GB


def pretended(settings: ContextSettings) -> MemoryNeed:
    """A runtime with a cache of 10 kB a token (half in q8_0), windows of as much again, and a compute buffer of 2 B
    (16 B without flash attention) a token of the context and of the ubatch."""
    tokens = settings.n_ctx or 0
    flash = settings.flash_attention != "off"
    if settings.type_v != "f16" and not flash:
        raise RuntimeFailure("quantized V cache was requested, but this requires Flash Attention")
    cache = tokens * 10_000 // (1 if settings.type_k == "f16" else 2)
    window = tokens * 10_000 if settings.swa_full else 5 * MB
    compute = tokens * settings.n_ubatch * (2 if flash else 16)
    parts = (MemoryPart("kv", "full attention", cache), MemoryPart("kv", "sliding window", window))
    return MemoryNeed(tokens, WEIGHTS, cache + window, compute, 0, (), parts, flash)


def fits_in(memory_bytes: int) -> Callable[[MemoryNeed], bool]:
    return lambda need: need.total_bytes + PROGRAM_BYTES <= memory_bytes


def test_what_fits_whatever_the_settings_stands_on_none() -> None:
    asked = ContextSettings(n_ctx=1000)

    found = Search(pretended).find(asked, levers_for(asked), fits_in(11 * GB))

    assert found is not None and found.needed == ()
    assert found.settings == replace(asked, flash_attention="on")


def test_only_settings_that_are_needed_are_changed_and_each_says_what_it_would_be_otherwise() -> None:
    asked = ContextSettings(n_ctx=100_000, swa_full=True, flash_attention="off")

    # 10 + 1.0 GB of caches, 1.0 of windows, 0.82 of compute: windows have to go, flash attention need not come.
    found = Search(pretended).find(asked, levers_for(asked), fits_in(12_200 * MB))

    assert found is not None
    assert found.settings == replace(asked, swa_full=False)
    assert [(s.name, s.value, s.changed) for s in found.needed] == [("swa_full", "off", True)]
    assert found.needed[0].otherwise_bytes == WEIGHTS + 2 * GB + 100_000 * 512 * 16 + PROGRAM_BYTES


def test_settings_that_the_runtime_refuses_are_mended_and_its_words_kept() -> None:
    asked = ContextSettings(n_ctx=1000, flash_attention="off", type_k="q8_0", type_v="q8_0")
    search = Search(pretended)

    found = search.find(asked, levers_for(asked), fits_in(11 * GB))

    assert "requires Flash Attention" in search.refusals[asked]
    assert found is not None and found.settings.flash_attention == "on"
    assert [(s.name, s.otherwise_bytes) for s in found.needed] == [("flash_attention", None)]


def test_deterministic_numerics_are_never_touched() -> None:
    asked = ContextSettings(n_ctx=1_000_000, flash_attention="off", swa_full=True)
    levers = levers_for(asked, deterministic=True)

    assert Search(pretended).find(asked, levers, fits_in(12 * GB)) is None
    found = Search(pretended).shorter(asked, levers, fits_in(12 * GB))
    assert found is not None
    assert found[0] == replace(asked, n_ctx=125_000, swa_full=False, n_ubatch=64)


@given(
    tokens=st.integers(512, 2_000_000),
    memory=st.integers(10_300 * MB, 60 * GB),
    flash=st.sampled_from(["auto", "on", "off"]),
    full=st.booleans(),
    ubatch=st.sampled_from([64, 256, 512, 2048]),
)
def test_found_settings_fit_and_no_needed_one_can_be_turned_back(
    tokens: int, memory: int, flash: str, full: bool, ubatch: int
) -> None:
    asked = ContextSettings(n_ctx=tokens, n_ubatch=ubatch, flash_attention=flash, swa_full=full)
    levers, fits = levers_for(asked), fits_in(memory)

    found = Search(pretended).find(asked, levers, fits)

    everything = replace(asked, swa_full=False, flash_attention="on", n_ubatch=min(ubatch, 64), type_k="q8_0")
    assert (found is None) == (not fits(pretended(replace(everything, type_v="q8_0"))))
    if found is None:
        return
    assert fits(found.need) and found.need == pretended(found.settings)
    for setting in found.needed:
        lever = next(lever for lever in levers if lever.name == setting.name)
        try:
            assert not fits(pretended(replace(found.settings, **lever.plain)))
        except RuntimeFailure:
            assert setting.otherwise_bytes is None


def tensors(layers: int) -> tuple[TensorInfo, ...]:
    shapes = {"token_embd.weight": 100, "output.weight": 100}
    for layer in range(layers):
        shapes |= {f"blk.{layer}.attn_q.weight": 10, f"blk.{layer}.ffn_up_exps.weight": 1000}
    return tuple(TensorInfo(n, (size,), GGMLType.I8, 0, size * MB) for n, size in shapes.items())


def test_a_gpu_takes_dense_parts_first_and_then_as_many_layers_experts_as_fit() -> None:
    need = MemoryNeed(8192, 4240 * MB, 40 * MB, 60 * MB, 0)
    weights = weigh_layers(tensors(4))

    # Output 100, attention 40, caches 40, compute 60, reserve 600: 840; with one layer's experts 1,840.
    split = split_model(weights, need, 1840 * MB, 10 * GB)
    assert (split.fits, split.arguments) == (True, ("-ngl", "5", "--n-cpu-moe", "3"))
    assert (split.gpu_weights_bytes, split.gpu_context_bytes) == (1140 * MB, 100 * MB)
    assert split.ram_bytes == 3100 * MB + PROGRAM_BYTES

    # One byte less: no layer's experts.
    assert split_model(weights, need, 1840 * MB - 1, 10 * GB).cpu_moe_layers == 4
    # Too little for the dense part: only the last layers, with their share of the caches.
    few = split_model(weights, need, 100 * MB + 60 * MB + 2 * 20 * MB + RESERVE_BYTES, 10 * GB)
    assert few.arguments == ("-ngl", "3", "--n-cpu-moe", "4")
    none = split_model(weights, need, RESERVE_BYTES, 10 * GB)
    assert (none.fits, none.arguments, none.ram_bytes) == (False, ("-ngl", "0"), 4240 * MB + 100 * MB + PROGRAM_BYTES)


def test_an_embedding_that_is_the_output_too_is_counted_on_the_gpu_as_well() -> None:
    tied = tuple(t for t in tensors(1) if t.name != "output.weight")

    assert weigh_layers(tied).output == 100 * MB
    assert weigh_layers(tied).all_bytes == 1110 * MB


def test_the_envelope_is_the_specifications_table() -> None:
    assert [(r.component, r.minimum_bytes // GB, r.recommended_bytes // GB) for r in ENVELOPE] == [
        ("RAM", 80, 128),
        ("GPU VRAM", 22, 24),
        ("storage", 60, 150),
    ]
    rows = check_envelope(EnvelopeNeeds(80 * GB, "", None, "", 60 * GB + 1, ""))
    assert [r.holds for r in rows] == [True, True, None, None, False, True]


def test_other_programs_are_judged_by_what_they_are_known_to_need_and_never_passed_unasked(tmp_path: Path) -> None:
    header = read_header(write_v4_flash_stub(tmp_path / "v4.gguf"))

    found = {v.loader: v for v in judge_loaders(header, header.tensors)}

    assert len(found) == len(known_loaders())
    ds4 = found["antirez/ds4"]
    assert ds4.verdict == "FAILED" and "deepseek4.rope.scaling.original_context_length" in ds4.evidence
    assert found["vLLM (vllm-gguf-plugin 0.0.5)"].verdict == "FAILED"
    assert found["ikawrakow/ik_llama.cpp"].verdict == "UNKNOWN"
    assert {v.verdict for v in found.values()} <= {"FAILED", "UNKNOWN"} and not any(v.asked for v in found.values())


def test_a_value_that_a_program_does_not_take_is_told_with_the_one_it_takes(tmp_path: Path) -> None:
    row = next(loader for loader in known_loaders() if loader.name == "antirez/ds4").needs["deepseek4"]
    keys = [string("general.architecture", "deepseek4"), *(u32(f"deepseek4.{k}", 7) for k in row.keys)]
    path = tmp_path / "m.gguf"
    path.write_bytes(encode_header(keys, [(name, (32,), GGMLType.F32) for name in row.tensors]))
    with path.open("ab") as file:
        file.truncate(path.stat().st_size + 128 * len(row.tensors))
    header = read_header(path)

    found = next(v for v in judge_loaders(header, header.tensors) if v.loader == "antirez/ds4")

    assert found.verdict == "FAILED"
    assert "original_context_length = 7 (it takes 65536)" in found.evidence


@pytest.mark.parametrize(("text", "tokens"), [("8192", 8192), ("8k", 8192), ("64K", 65_536), ("1M", 1_048_576)])
def test_lengths_of_contexts_count_in_powers_of_two(text: str, tokens: int) -> None:
    assert parse_tokens(text) == tokens


@pytest.mark.parametrize("text", ["", "0", "-1", "8kk", "1e6", "8 000", "٣", "0k", "2048M", "9" * 40, "\x1b[2J"])
def test_what_is_no_length_is_refused_in_a_sentence(text: str) -> None:
    with pytest.raises(UsageError, match="is no number of tokens; write it like"):
        parse_tokens(text)
