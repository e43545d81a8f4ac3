"""A file in a fork's words becomes the model that it is, bit for bit, or is refused by name of what nothing tells."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

import embedded_jobs
from dfqs.cli.main import run
from dfqs.errors import AlreadyDone, FormatError, UsageError
from dfqs.gguf import KeyValue, ValueType, f32, parse_header, u32
from dfqs.integrity import hash_model
from dfqs.runtime import Worker
from dfqs.shards.dialect_formulas import Untold, evaluate
from dfqs.shards.dialects import known_dialects, known_upstream, split_layer
from dfqs.shards.repair import plan_repair, repair
from dialect_models import NISPARKS_LACKS, write_nisparks, write_renamed
from fixtures_deepseek4 import Geometry, write_tiny_deepseek4
from gguf_builder import write_small
from runtime_functions import WORKER_ENV
from shared_files import build_once

GEOMETRY = Geometry(experts=6, experts_used=2, compress_ratios=(0, 4, 128), hash_layers=1)


@pytest.fixture(scope="session")
def upstream(tmp_path_factory: pytest.TempPathFactory, smollm2_gguf: Path) -> Path:
    """A random deepseek4 of three layers, one of each kind, in llama.cpp's words."""
    return build_once(
        tmp_path_factory, "three-layers.gguf", lambda path: write_tiny_deepseek4(path, smollm2_gguf, GEOMETRY)
    )


def translated(path: Path) -> Path:
    out = path.with_name("translated.gguf")
    repair(plan_repair(path, "upstream"), out)
    return out


def keys_of(path: Path) -> dict[str, object]:
    return {name: value for name, value in parse_header(path).metadata.items() if name.startswith("deepseek4.")}


@pytest.mark.parametrize("joined", [False, True])
def test_a_file_of_the_fork_gives_the_logits_of_the_model_that_it_is(
    tmp_path: Path, upstream: Path, *, joined: bool
) -> None:
    fork = write_nisparks(upstream, tmp_path / "fork.gguf", joined=joined)
    out = translated(fork)
    tokens = list(range(1000, 1200))

    with Worker(env=WORKER_ENV, threads=1) as worker:
        meant = worker.call(embedded_jobs.logits, upstream, tokens)
        found = worker.call(embedded_jobs.logits, out, tokens)

    assert np.array_equal(meant, found)
    assert hash_model(out).content_sha256 == hash_model(upstream).content_sha256
    assert keys_of(out) == keys_of(upstream)


def test_every_key_that_the_fork_lacks_comes_back_with_its_type_and_value(tmp_path: Path, upstream: Path) -> None:
    out = translated(write_nisparks(upstream, tmp_path / "fork.gguf"))
    before, after = parse_header(upstream), parse_header(out)

    for name in NISPARKS_LACKS:
        assert before.same_value(after, f"deepseek4.{name}"), name
    assert "deepseek4.rope.freq_base_swa" not in after.metadata


def test_what_llama_cpp_says_already_is_left_alone(
    tmp_path: Path, upstream: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(AlreadyDone, match="nothing to do"):
        plan_repair(upstream, "upstream")

    code = run(["repair", "--dialect", "upstream", str(upstream), "-o", str(tmp_path / "out.gguf"), "--json"])

    document = json.loads(capsys.readouterr().out)
    assert (code, document["done_already"], document["output"]) == (0, True, None)
    assert not list(tmp_path.iterdir())


def test_the_form_is_repaired_on_the_way(tmp_path: Path, upstream: Path) -> None:
    fork = write_nisparks(upstream, tmp_path / "fork.gguf")
    with fork.open("ab") as file:
        file.write(b"left over")

    assert translated(fork).stat().st_size < fork.stat().st_size + 4096
    trailing = tmp_path / "trailing.gguf"
    trailing.write_bytes(upstream.read_bytes() + b"x")
    assert plan_repair(trailing, "upstream").file_bytes == upstream.stat().st_size


@pytest.mark.parametrize("name", ["attention.sliding_window", "attention.indexer.top_k", "swiglu_clamp_exp"])
def test_what_no_weight_tells_is_refused_by_name(tmp_path: Path, upstream: Path, name: str) -> None:
    fork = write_renamed(upstream, tmp_path / "fork.gguf", {}, without=[f"deepseek4.{name}"])

    with pytest.raises(FormatError, match="it is missing") as caught:
        plan_repair(fork, "upstream")

    assert caught.value.name == f"deepseek4.{name}"


def test_constants_of_a_fork_are_not_given_to_a_file_that_is_not_its(tmp_path: Path, upstream: Path) -> None:
    lacking = ["deepseek4.hyper_connection.sinkhorn_iterations", "deepseek4.hyper_connection.epsilon"]
    plain = write_renamed(upstream, tmp_path / "plain.gguf", {}, without=lacking)

    with pytest.raises(FormatError, match="hyper_connection") as caught:
        plan_repair(plain, "upstream")

    assert caught.value.name == lacking[0]


def test_keys_of_two_dialects_that_disagree_are_not_chosen_between(tmp_path: Path, upstream: Path) -> None:
    other = f32("deepseek4.attention.compress_rope_freq_base", 10_000.0)
    fork = write_nisparks(upstream, tmp_path / "fork.gguf", extra=[other])
    with pytest.raises(FormatError, match="do not agree"):
        plan_repair(fork, "upstream")

    same = f32("deepseek4.attention.compress_rope_freq_base", 160_000.0)
    agreeing = write_nisparks(upstream, tmp_path / "agreeing.gguf", extra=[same])
    out = translated(agreeing)

    assert keys_of(out) == keys_of(upstream)


def test_a_tensor_under_both_names_is_not_chosen_between(tmp_path: Path, upstream: Path) -> None:
    twice = {r"blk\.0\.attn_norm\.weight": "output_hc_base.weight", r"output_hc_base\.weight": "hc_head_base"}
    fork = write_renamed(upstream, tmp_path / "fork.gguf", twice)

    with pytest.raises(FormatError, match="under another dialect's"):
        plan_repair(fork, "upstream")


def test_a_missing_tensor_is_found_before_anything_is_written(
    tmp_path: Path, upstream: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fork = tmp_path / "fork.gguf"
    write_nisparks(
        write_renamed(upstream, tmp_path / "less.gguf", {}, keep=lambda name: name != "blk.1.ffn_norm.weight"), fork
    )
    out = tmp_path / "out.gguf"

    code = run(["repair", "--dialect", "upstream", str(fork), "-o", str(out)])

    assert code == 3
    assert "blk.1.ffn_norm.weight" in " ".join(capsys.readouterr().err.split())
    assert not out.exists()


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        (u32("deepseek4.attention.head_count", 7), "cannot be divided"),
        (KeyValue("deepseek4.attention.key_length", ValueType.STRING, "256"), "no attention.key_length"),
        (u32("deepseek4.block_count", 4_000_000_000), "how many layers"),
    ],
)
def test_keys_that_lie_end_in_a_sentence(tmp_path: Path, upstream: Path, entry: KeyValue, expected: str) -> None:
    fork = write_nisparks(upstream, tmp_path / "fork.gguf", extra=[entry])

    with pytest.raises(FormatError, match=expected):
        plan_repair(fork, "upstream")


def test_a_joined_tensor_that_cannot_be_halved_is_refused(tmp_path: Path, upstream: Path) -> None:
    odd = {r"blk\.0\.attn_sinks\.weight": "blk.0.ffn_gate_up_exps.weight", r"output_hc_fn\.weight": "hc_head_fn"}
    fork = write_renamed(upstream, tmp_path / "fork.gguf", odd)

    with pytest.raises(FormatError, match="equal parts"):
        plan_repair(fork, "upstream")


def test_of_other_architectures_no_dialects_are_known(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="only of deepseek4"):
        plan_repair(write_small(tmp_path / "small.gguf"), "upstream")


def test_second_spellings_of_keys_become_the_first(tmp_path: Path, upstream: Path) -> None:
    (other,) = (dialect for dialect in known_dialects() if dialect.name == "other key names")
    values = parse_header(upstream).metadata
    extra = []
    for old, new in other.keys.items():
        if (value := values.get(f"deepseek4.{new}")) is not None:
            entry = values.entry(f"deepseek4.{new}")
            extra.append(KeyValue(f"deepseek4.{old}", entry.type, value, entry.element_type))
    lacking = [f"deepseek4.{new}" for new in other.keys.values()]
    spelled = write_renamed(upstream, tmp_path / "spelled.gguf", {}, lacking, extra)

    assert len(extra) > 10
    assert keys_of(translated(spelled)) == keys_of(upstream)


def test_the_runtime_that_refuses_it_is_told_with_the_way_out(
    tmp_path: Path, upstream: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fork = write_nisparks(upstream, tmp_path / "fork.gguf")

    assert run(["inspect", str(fork), "--runtimes", "--json"]) == 0

    own = json.loads(capsys.readouterr().out)["loaders"][0]
    assert own["verdict"] == "FAILED"
    assert "repair --dialect upstream" in own["evidence"]


SHAPES = {"a.weight": (6, 4), "blk.0.b": (8,), "blk.1.b": (8,), "blk.0.c": (1, 4), "blk.2.c": (1, 128)}


@pytest.mark.parametrize(
    ("formula", "value"),
    [
        ("a.weight[0]", 6),
        ("a.weight[0] * a.weight[1] / blk.*.b[0]", 3),
        ("key:block_count * a.weight[1]", 12),
        ("leading blk.*.b", 2),
        ("leading blk.*.d", 0),
        ("each blk.*.c[1]", (4, 0, 128)),
    ],
)
def test_formulas(formula: str, value: int | tuple[int, ...]) -> None:
    assert evaluate(formula, SHAPES, {"block_count": 3}.get) == value


@pytest.mark.parametrize(
    "formula",
    [
        "x[0]",
        "a.weight[2]",
        "a.weight[0] / a.weight[1]",
        "blk.*.c[1]",
        "leading blk.*.c",
        "each blk.*.d[0]",
        "key:other",
    ],
)
def test_what_a_formula_lacks_is_no_number(formula: str) -> None:
    with pytest.raises(Untold):
        evaluate(formula, SHAPES, {"block_count": 3}.get)


def test_the_table_names_only_what_llama_cpp_has(upstream: Path) -> None:
    """A target that is misspelled would make a tensor that nobody asks for."""
    header = parse_header(upstream)
    names = {split_layer(tensor.name)[0] for tensor in header.tensors}
    for dialect in known_dialects():
        targets: Sequence[str] = [
            *dialect.tensors.values(),
            *(name for part in dialect.joined.values() for name in part),
        ]
        assert set(targets) <= names
        assert dialect.marks <= dialect.tensors.keys() | {""}
    for name in (*known_upstream()["deepseek4"].needed, *known_upstream()["deepseek4"].derived):
        assert f"deepseek4.{name}" in header.metadata, name
