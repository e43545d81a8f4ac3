"""No file gets a class's name for experts that the class did not find, and none with such a name is agreed with."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from dfqs.cli.main import run
from dfqs.errors import FormatError, UsageError
from dfqs.gguf import GGMLType, KeyValue, read_header, string, u16, u32
from dfqs.gguf.file import GGUFFile
from dfqs.model.classes import CLASSES, DeploymentClass
from dfqs.model.spec import Role
from dfqs.quantize.declared import class_findings
from dfqs.quantize.experts import expert_problems
from dfqs.quantize.recipe import recipe_record
from dfqs.shards.repair import plan_repair, repair
from gguf_builder import write_small

T = GGMLType
Tensor = tuple[str, tuple[int, ...], GGMLType]
EXPERTS = 3
IQ1 = CLASSES["IQ1_S-XL"]


def keys(experts: int = EXPERTS, *more: KeyValue) -> list[KeyValue]:
    counts = {"block_count": 2, "context_length": 64, "embedding_length": 256, "expert_count": experts}
    counts["expert_used_count"] = min(experts, 2)
    return [string("general.architecture", "llama"), *(u32(f"llama.{k}", v) for k, v in counts.items()), *more]


def stamp(class_: DeploymentClass) -> tuple[KeyValue, KeyValue]:
    return string("dfqs.class", class_.name), string("dfqs.recipe", json.dumps(recipe_record(class_)))


def layer(number: int, gate: str = "ffn_gate_exps", type_: GGMLType = T.F16) -> list[Tensor]:
    prefix = f"blk.{number}."
    return [
        (prefix + "ffn_norm.weight", (256,), T.F32),
        (prefix + "ffn_gate_inp.weight", (256, EXPERTS), T.F32),
        (prefix + f"{gate}.weight", (256, 8, EXPERTS), type_),
        (prefix + "ffn_down_exps.weight", (256, 8, EXPERTS), type_),
    ]


def lone(number: int, type_: GGMLType = T.F16) -> list[Tensor]:
    """The form of 2023: Mixtral's first files."""
    names = [f"blk.{number}.ffn_{part}.{expert}.weight" for expert in range(EXPERTS) for part in ("gate", "down", "up")]
    return [(f"blk.{number}.ffn_gate_inp.weight", (256, EXPERTS), T.F32), *((name, (256, 8), type_) for name in names)]


EMBEDDINGS: Tensor = ("token_embd.weight", (256, 10), T.F16)
DENSE: list[Tensor] = [EMBEDDINGS, ("blk.0.ffn_down.weight", (256, 8), T.F16), ("blk.0.attn_v.weight", (256, 8), T.F16)]
UNFOUND: dict[str, tuple[Sequence[Tensor], str]] = {
    "one tensor each": ([EMBEDDINGS, *lone(0), *lone(1)], "one expert each.*dfqs repair"),
    "one layer with one tensor each": ([EMBEDDINGS, *layer(0), *lone(1)], "one expert each.*dfqs repair"),
    "no tensor of that name at all": ([EMBEDDINGS, *DENSE[1:]], "3 experts a layer, and no tensor has the name of one"),
    "names of another converter": ([EMBEDDINGS, *layer(0, "experts_gate")[:3]], "no tensor has the name of one"),
    "some matrices under another name": ([EMBEDDINGS, *layer(0, "mlp_experts_w1")], "looks like 3 experts"),
    "experts under a dense name": ([EMBEDDINGS, *layer(0), ("blk.1.ffn_up.weight", (256, 8, 3), T.F16)], "dense layer"),
    "a layer without": ([EMBEDDINGS, *layer(0), *layer(1)[:2]], r"blk\.1'?: .*not the experts it chooses from"),
    "a layer without one of its matrices": ([EMBEDDINGS, *layer(0), *layer(1)[:3]], r"ffn_down_exps\.weight"),
    "one matrix under the name of many": (
        [EMBEDDINGS, *layer(0), ("blk.1.ffn_up_exps.weight", (256, 8), T.F16)],
        "one m",
    ),
}


@pytest.mark.parametrize("case", UNFOUND)
def test_a_class_is_not_put_on_experts_that_it_does_not_find(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tensors, reason = UNFOUND[case]
    model = write_small(tmp_path / "m.gguf", tensors, keys())

    assert run(["quantize", str(model), str(tmp_path / "out.gguf"), "--class", "IQ1_S-XL"]) == 2

    with pytest.raises(UsageError, match=reason):
        raise UsageError(capsys.readouterr().err.replace("\n", " "))
    assert [path.name for path in tmp_path.iterdir()] == ["m.gguf"]


@pytest.mark.parametrize("case", UNFOUND)
def test_verify_does_not_agree_with_such_a_label(case: str, tmp_path: Path) -> None:
    tensors, _ = UNFOUND[case]
    model = write_small(tmp_path / "m.gguf", tensors, keys(EXPERTS, *stamp(IQ1)))

    assert any("it says class IQ1_S-XL, but " in finding.message for finding in class_findings(read_header(model)))


def test_a_dense_model_is_of_no_class_of_experts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It was Q8_0 under the name of one bit."""
    model = write_small(tmp_path / "m.gguf", DENSE, keys(0))
    stamped = write_small(tmp_path / "stamped.gguf", DENSE, keys(0, *stamp(IQ1)))

    assert run(["quantize", str(model), str(tmp_path / "out.gguf"), "--class", "IQ1_S-XL"]) == 2
    assert "a dense model: IQ1_S-XL is about routed experts" in capsys.readouterr().err
    assert "a dense model" in class_findings(read_header(stamped))[0].message
    assert list(expert_problems(CLASSES["Q8_0"], 0, read_header(model).tensors)) == []


def test_a_shard_is_not_blamed_for_what_stands_in_another(tmp_path: Path) -> None:
    more = (*stamp(IQ1), u16("split.count", 2), u16("split.no", 0))
    shard = write_small(tmp_path / "m-00001-of-00002.gguf", [("token_embd.weight", (256, 10), T.Q8_0)], keys(3, *more))

    assert class_findings(read_header(shard)) == ()


def test_a_class_that_says_nothing_of_experts_does_not_look_for_them(tmp_path: Path) -> None:
    class_ = DeploymentClass("attention only", {Role.ATTENTION: T.Q8_0})
    model = write_small(tmp_path / "m.gguf", [EMBEDDINGS, *lone(0)], keys())

    assert list(expert_problems(class_, EXPERTS, read_header(model).tensors)) == []


@pytest.mark.parametrize("type_", [T.F16, T.Q8_0, T.Q4_K])
def test_repair_stacks_lone_experts_byte_for_byte(
    type_: GGMLType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lone_model = write_small(tmp_path / "m.gguf", [EMBEDDINGS, *lone(0, type_), *lone(1, type_)[::-1]], keys())

    assert run(["repair", str(lone_model), "-o", str(tmp_path / "out.gguf")]) == 0

    assert "18 tensors of one expert each become 6 stacked ones" in capsys.readouterr().out
    with GGUFFile(lone_model) as before, GGUFFile(tmp_path / "out.gguf") as after:
        assert after.header.tensor("blk.1.ffn_up_exps.weight").shape == (256, 8, EXPERTS)
        for number in (0, 1):
            for part in ("gate", "up", "down"):
                parts = [before.read_tensor(f"blk.{number}.ffn_{part}.{expert}.weight") for expert in range(EXPERTS)]
                assert after.read_tensor(f"blk.{number}.ffn_{part}_exps.weight") == b"".join(parts)
        assert after.read_tensor("token_embd.weight") == before.read_tensor("token_embd.weight")
        assert list(expert_problems(IQ1, EXPERTS, after.header.tensors)) == []


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda tensors: tensors[:-1], "expert 2 is missing"),
        (lambda tensors: [*tensors, ("blk.0.ffn_up.3.weight", (256, 8), T.F16)], "4 experts stand there"),
        (lambda tensors: [*tensors[:-1], ("blk.0.ffn_up.2.weight", (256, 8), T.Q8_0)], "cannot be one tensor"),
        (lambda tensors: [*tensors[:-1], ("blk.0.ffn_up.2.weight", (256, 9), T.F16)], "cannot be one tensor"),
        (lambda tensors: [*tensors, ("blk.0.ffn_up.02.weight", (256, 8), T.F16)], "stands twice"),
        (lambda tensors: [*tensors, ("blk.0.ffn_up_exps.weight", (256, 8, 3), T.F16)], "stands beside"),
    ],
)
def test_experts_that_are_not_all_there_are_not_stacked(change: Any, reason: str, tmp_path: Path) -> None:
    model = write_small(tmp_path / "m.gguf", change(lone(0)), keys())

    with pytest.raises(FormatError, match=reason):
        repair(plan_repair(model), tmp_path / "out.gguf")
    assert not (tmp_path / "out.gguf").exists()
