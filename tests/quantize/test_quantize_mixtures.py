"""llama-quantize's mixtures: the types that the tool gives, and no file that is the input under another name."""

import json
from pathlib import Path
from typing import Any

import pytest

from dfqs.cli.main import run
from dfqs.errors import UsageError
from dfqs.gguf import GGMLType, KeyValue, f32, read_header, string, u32
from dfqs.model.spec import Role
from dfqs.quantize.declared import class_findings
from dfqs.quantize.mixtures import MIXTURES, mixture_class
from dfqs.quantize.plan import plan_quantization
from dfqs.quantize.quantize import quantize
from dfqs.quantize.recipe import class_from_record, parse_recipe, recipe_record
from dfqs.quantize.source import class_for, read_source
from gguf_builder import write_small

T = GGMLType
RECORDED: dict[str, Any] = json.loads(
    (Path(__file__).parents[1] / "vectors" / "quantize" / "llama_quantize_mixtures.json").read_text()
)
Tensor = tuple[str, tuple[int, ...], GGMLType]
WIDTH = 256


def write_llama(path: Path, shape: dict[str, Any], type_: GGMLType = T.F16) -> Path:
    """A llama of that depth and those heads; only shapes matter."""
    keys: list[KeyValue] = [
        string("general.architecture", "llama"),
        f32("llama.attention.layer_norm_rms_epsilon", 1e-5),
        string("tokenizer.ggml.model", "no_vocab"),
    ]
    counts = {
        "block_count": shape["layers"],
        "embedding_length": WIDTH,
        "context_length": 64,
        "attention.head_count": shape["heads"],
        "attention.head_count_kv": shape["kv_heads"],
    }
    if shape["experts"]:
        counts |= {"expert_count": shape["experts"], "expert_used_count": 2}
    keys += [u32(f"llama.{name}", value) for name, value in counts.items()]
    tensors: list[Tensor] = [("token_embd.weight", (WIDTH, 32), type_), ("output_norm.weight", (WIDTH,), T.F32)]
    if not shape["tied"]:
        tensors.append(("output.weight", (WIDTH, 32), type_))
    shared = WIDTH * shape["kv_heads"] // shape["heads"]
    for layer in range(shape["layers"]):
        rows = {"attn_q": WIDTH, "attn_k": shared, "attn_v": shared, "attn_output": WIDTH}
        tensors += [(f"blk.{layer}.{name}.weight", (WIDTH, count), type_) for name, count in rows.items()]
        tensors.append((f"blk.{layer}.ffn_norm.weight", (WIDTH,), T.F32))
        for part in ("gate", "up", "down"):
            if shape["experts"]:
                tensors.append((f"blk.{layer}.ffn_{part}_exps.weight", (WIDTH, WIDTH, shape["experts"]), type_))
            else:
                tensors.append((f"blk.{layer}.ffn_{part}.weight", (WIDTH, WIDTH), type_))
        if shape["experts"]:
            tensors.append((f"blk.{layer}.ffn_gate_inp.weight", (WIDTH, shape["experts"]), T.F32))
    return write_small(path, tensors, keys)


def runs_of(types: list[tuple[str, str]]) -> dict[str, str]:
    """Matrix -> its types from layer to layer, equal neighbours counted: `3*Q6_K 18*Q4_K`."""
    layers: dict[str, list[list[Any]]] = {}
    for name, type_ in types:
        stem = name.split(".", 2)[2] if name.startswith("blk.") else name
        runs = layers.setdefault(stem, [])
        if runs and runs[-1][1] == type_:
            runs[-1][0] += 1
        else:
            runs.append([1, type_])
    return {stem: " ".join(f"{count}*{type_}" for count, type_ in runs) for stem, runs in layers.items()}


@pytest.mark.thorough
@pytest.mark.parametrize("case", RECORDED["models"])
def test_every_matrix_gets_the_type_that_llama_quantize_gives_it(case: str, tmp_path: Path) -> None:
    recorded = RECORDED["models"][case]
    model = write_llama(tmp_path / "m.gguf", recorded["shape"])
    header = read_header(model)
    path_of = {tensor.name: tensor for tensor in header.tensors}

    for name, by_imatrix in recorded["mixtures"].items():
        for has_imatrix, expected in by_imatrix.items():
            class_ = mixture_class(MIXTURES[name], header, header.tensors, has_imatrix=has_imatrix == "imatrix")
            plan = plan_quantization([header.tensors], class_)
            quantized = [t for t in plan.tensors if t.role not in (Role.NORM, Role.ROUTER)]
            assert runs_of([(t.name, t.type.name) for t in quantized]) == expected, (name, has_imatrix)
            kept = [t for t in plan.tensors if t.role in (Role.NORM, Role.ROUTER)]
            assert all(t.type is path_of[t.name].type for t in kept)


DENSE = {"layers": 16, "heads": 4, "kv_heads": 1, "experts": 0, "tied": False}


@pytest.mark.thorough
def test_a_dense_model_gets_a_recipe_that_is_one_and_verify_agrees(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = write_zeroes(tmp_path / "m.gguf")

    assert run(["quantize", str(model), str(tmp_path / "out.gguf"), "--class", "q4_k_m"]) == 0
    assert run(["verify", str(tmp_path / "out.gguf")]) == 0

    assert "Q4_K_M, and every tensor is as its recipe says" in capsys.readouterr().out
    header = read_header(tmp_path / "out.gguf")
    assert header.metadata["general.file_type"] == 15
    assert header.tensor("blk.0.attn_v.weight").type is T.Q6_K
    assert header.tensor("blk.0.attn_q.weight").type is T.Q4_K


def write_zeroes(path: Path) -> Path:
    write_llama(path, DENSE)
    header = read_header(path)
    with path.open("r+b") as file:
        file.truncate(header.data_offset)
        file.truncate(header.file_size)
    return path


@pytest.mark.thorough
def test_a_mixtures_name_on_another_recipe_is_seen(tmp_path: Path) -> None:
    model = write_zeroes(tmp_path / "m.gguf")
    quantize(model, tmp_path / "out.gguf", class_for("Q4_K_M", read_source(model), has_imatrix=False))
    right = read_header(tmp_path / "out.gguf")
    assert class_findings(right) == ()

    record = json.loads(str(right.metadata["dfqs.recipe"]))
    record["exceptions"] = record["exceptions"][1:]
    keys = [right.raw_entry(e) for e in right.entries if e.name != "dfqs.recipe"]
    tensors = [(t.name, t.shape, t.type) for t in right.tensors]
    write_small(tmp_path / "wrong.gguf", tensors, [*keys, string("dfqs.recipe", json.dumps(record))])  # type: ignore[list-item]

    findings = [finding.message for finding in class_findings(read_header(tmp_path / "wrong.gguf"))]
    assert findings[0] == "it says class Q4_K_M, but its recipe is another"


def test_a_mixture_survives_being_written_into_a_file(tmp_path: Path) -> None:
    model = read_source(write_llama(tmp_path / "m.gguf", DENSE))
    for name in MIXTURES:
        class_ = class_for(name.lower(), model, has_imatrix=True)
        assert class_from_record(json.loads(json.dumps(recipe_record(class_)))) == class_


def test_a_recipe_may_not_take_a_mixtures_name() -> None:
    with pytest.raises(UsageError, match="'q4_k_m' is a built-in class"):
        parse_recipe({"name": "q4_k_m", "types": {"attention": "Q8_0"}})


def test_an_architecture_with_rules_of_its_own_is_refused(tmp_path: Path) -> None:
    falcon = write_small(tmp_path / "f.gguf", keys=[string("general.architecture", "falcon")])

    with pytest.raises(UsageError, match="Falcon by rules of its own"):
        class_for("Q4_K_M", read_source(falcon), has_imatrix=False)


@pytest.mark.parametrize(
    ("type_", "class_name", "reason"),
    [
        (T.Q8_0, "Q8_0", "nothing would change: every tensor is what Q8_0 would make of it"),
        (T.Q4_0, "Q6_K", "nothing is gained, and detail is lost"),
        (T.Q4_0, "Q8_0", "nothing is gained, and detail is lost"),
    ],
)
def test_a_class_that_changes_nothing_or_grows_the_file_is_refused_unless_forced(
    type_: GGMLType, class_name: str, reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Twins of a model were made so, and offered for deletion later."""
    tensors = [("token_embd.weight", (256, 8), type_), ("blk.0.attn_q.weight", (256, 256), type_)]
    counts = {"block_count": 1, "context_length": 64, "embedding_length": 256}
    keys = [string("general.architecture", "llama"), *(u32(f"llama.{k}", v) for k, v in counts.items())]
    model = write_small(tmp_path / "m.gguf", tensors, keys)
    zeroed = bytearray(model.read_bytes())
    zeroed[read_header(model).data_offset :] = bytes(len(zeroed) - read_header(model).data_offset)
    model.write_bytes(zeroed)
    command = ["quantize", str(model), "--class", class_name, "--allow-requantize"]

    assert run([*command, str(tmp_path / "out.gguf")]) == 2
    assert reason in capsys.readouterr().err and not (tmp_path / "out.gguf").exists()
    assert run([*command, "--dry-run"]) == 0
    warned = capsys.readouterr().err
    assert "the real run needs --force: " in warned and reason in warned
    assert run([*command, str(tmp_path / "out.gguf"), "--force"]) == 0
