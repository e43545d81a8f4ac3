"""A file that says it is of a class is held to it."""

import json
from pathlib import Path

import pytest

from dfqs.cli.main import run
from dfqs.gguf import GGMLType, KeyValue, read_header, string, u32
from dfqs.model.classes import CLASSES, DeploymentClass, LayerException
from dfqs.model.spec import Role
from dfqs.quantize.declared import LISTED, class_findings
from dfqs.quantize.recipe import class_from_record, recipe_record
from gguf_builder import write_small

T = GGMLType
TENSORS = (
    ("token_embd.weight", (256, 10), T.Q8_0),
    ("blk.0.ffn_norm.weight", (256,), T.F32),
    ("blk.0.ffn_gate_exps.weight", (256, 8, 3), T.IQ1_S),
    # 288 is no whole number of blocks: the class itself makes IQ4_NL of it.
    ("blk.0.ffn_down_exps.weight", (288, 8, 3), T.IQ4_NL),
)


def keys(class_: DeploymentClass, name: str | None = None, recipe: str | None = None) -> list[KeyValue]:
    return [
        string("general.architecture", "llama"),
        u32("llama.block_count", 1),
        string("dfqs.class", class_.name if name is None else name),
        string("dfqs.recipe", json.dumps(recipe_record(class_)) if recipe is None else recipe),
    ]


def messages(path: Path) -> list[str]:
    return [f"{finding.name}: {finding.message}" for finding in class_findings(read_header(path))]


def test_a_file_of_its_class_has_no_findings_even_where_rows_fall_back(tmp_path: Path) -> None:
    path = write_small(tmp_path / "m.gguf", TENSORS, keys(CLASSES["IQ1_S-XL"]))

    assert messages(path) == []


def test_a_tensor_of_another_type_contradicts_the_label(tmp_path: Path) -> None:
    tensors = [(n, s, T.Q4_K if "gate_exps" in n else t) for n, s, t in TENSORS]
    path = write_small(tmp_path / "m.gguf", tensors, keys(CLASSES["IQ1_S-XL"]))

    assert messages(path) == ["blk.0.ffn_gate_exps.weight: is Q4_K, class IQ1_S-XL has IQ1_S"]


def test_a_built_in_name_on_another_recipe_is_seen(tmp_path: Path) -> None:
    path = write_small(tmp_path / "m.gguf", TENSORS, keys(CLASSES["IQ1_S-XL"], name="Q8_0"))

    assert messages(path)[0] == "dfqs.recipe: it says class Q8_0, but its recipe is another"


@pytest.mark.parametrize(
    "recipe",
    [
        "",
        "{",
        "[]",
        '{"types": 3}',
        '{"name": "x", "types": {"nobody": "Q8_0"}}',
        '{"name": "x", "types": {"norms": "Q99"}}',
        '{"name": "x", "types": {}, "exceptions": [3]}',
        '{"name": "x", "types": {}, "exceptions": [{"layers": "all", "type": "Q8_0"}]}',
        "[" * 100_000,
    ],
)
def test_a_recipe_that_cannot_be_read_is_a_finding_and_not_a_crash(recipe: str, tmp_path: Path) -> None:
    path = write_small(tmp_path / "m.gguf", TENSORS, keys(CLASSES["Q8_0"], recipe=recipe))

    assert len(messages(path)) == 1
    assert "its recipe cannot be read" in messages(path)[0]


def test_many_contradictions_are_counted_not_listed(tmp_path: Path) -> None:
    tensors = [(f"blk.{i}.attn_q.weight", (32, 2), T.F16) for i in range(50)]
    path = write_small(tmp_path / "m.gguf", tensors, keys(CLASSES["Q8_0"]))

    assert len(messages(path)) == LISTED + 1
    assert messages(path)[-1].endswith("and 40 more tensors likewise")


def test_a_file_that_declares_nothing_is_held_to_nothing(tmp_path: Path) -> None:
    assert messages(write_small(tmp_path / "m.gguf")) == []


def test_a_recipe_comes_back_from_metadata_as_it_was() -> None:
    exception = LayerException(T.IQ1_M, Role.ROUTED_EXPERT, "blk.*", frozenset({1, 5}))
    class_ = DeploymentClass("mix", {Role.ATTENTION: T.Q8_0}, (exception, LayerException(T.F16, None, "x")))

    assert class_from_record(json.loads(json.dumps(recipe_record(class_)))) == class_


def test_verify_and_inspect_name_the_recipe_that_a_file_declares(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class_ = DeploymentClass("of my own", {Role.ROUTED_EXPERT: T.IQ1_S})
    path = write_small(tmp_path / "m.gguf", TENSORS, keys(class_))

    run(["verify", str(path)])
    verified = capsys.readouterr().out
    assert "of my own, and every tensor is as its recipe says" in verified and "closest" not in verified
    assert run(["inspect", str(path)]) == 0
    assert run(["inspect", str(path), "--json"]) == 0

    table, record = capsys.readouterr().out.split("{", 1)
    assert "Declared Class   of my own" in table
    assert json.loads("{" + record)["declared_class"] == "of my own"


def test_verify_fails_a_file_with_a_wrong_label(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_small(tmp_path / "m.gguf", TENSORS, keys(CLASSES["IQ2_XXS-XL"]))

    assert run(["verify", str(path)]) == 1

    assert "is IQ1_S, class IQ2_XXS-XL has IQ2_XXS" in capsys.readouterr().out
