"""What find offers to free is a copy in everything that matters, and what it means to keep loads."""

import json
from pathlib import Path

import pytest

from dfqs.cli.main import run
from dfqs.find import find_models
from dfqs.gguf import KeyValue, string, u32
from gguf_builder import SMALL_KEYS, write_small
from shard_inputs import tiny_entries, tiny_tensors, write_shards

TEMPLATE = "tokenizer.chat_template"


def write(path: Path, *keys: KeyValue) -> Path:
    replaced = {key.name for key in keys}
    return write_small(path, keys=[*(key for key in SMALL_KEYS if key.name not in replaced), *keys])


def test_the_same_tensors_with_another_chat_template_are_no_copies_and_the_key_is_named(tmp_path: Path) -> None:
    write(tmp_path / "a.gguf", string(TEMPLATE, "one"))
    write(tmp_path / "b.gguf", string(TEMPLATE, "two"))
    write(tmp_path / "c.gguf")

    result = find_models([tmp_path])

    assert result.same == ()
    assert result.freeable_bytes == 0
    (found,) = result.same_tensors
    assert found.keys == (TEMPLATE,)
    assert len(found.models) == 3


@pytest.mark.parametrize("hashed", [True, False])
def test_names_and_provenance_make_no_difference(hashed: bool, tmp_path: Path) -> None:
    write(tmp_path / "a.gguf", string("general.name", "a"), string("general.url", "https://a"))
    write(tmp_path / "b.gguf", string("general.name", "b"), string("general.quantized_by", "b"), u32("dfqs.version", 1))

    result = find_models([tmp_path], hash_candidates=hashed)

    assert result.same_tensors == ()
    assert result.freeable_bytes > 0


def test_two_copies_of_one_and_one_of_another_free_one(tmp_path: Path) -> None:
    a = write(tmp_path / "a.gguf", string(TEMPLATE, "one"))
    write(tmp_path / "b.gguf", string(TEMPLATE, "one"))
    write(tmp_path / "c.gguf", string(TEMPLATE, "two"))

    result = find_models([tmp_path])

    assert [len(group.models) for group in result.same] == [2]
    assert result.freeable_bytes == a.stat().st_blocks * 512
    assert [len(group.models) for group in result.same_tensors] == [2]


def test_copies_of_which_none_loads_are_not_offered_for_one_that_does(tmp_path: Path) -> None:
    write(tmp_path / "a.gguf", string("llama.context_length", "128"))
    write(tmp_path / "b.gguf", string("llama.context_length", "128"))
    write(tmp_path / "c.gguf")

    result = find_models([tmp_path])

    (group,) = result.same
    assert all(defect is not None and "llama.context_length" in defect for defect in group.defects)
    assert result.freeable_bytes == 0
    assert result.same_tensors[0].keys == ("llama.context_length",)


def test_a_set_of_shards_that_does_not_load_is_not_the_copy_that_is_kept(tmp_path: Path) -> None:
    tensors = tiny_tensors()
    first = write_shards(tmp_path / "whole", tiny_entries(), [tensors[:2], tensors[2:]])
    second = write_shards(tmp_path / "renamed", tiny_entries(), [tensors[:2], tensors[2:]])
    with second[1].open("ab") as file:
        file.write(bytes(1 << 20))

    (group,) = find_models([tmp_path]).same

    assert sum(defect is None for defect in group.defects) == 1
    kept = sum(path.stat().st_blocks * 512 for path in first)
    assert group.freeable_bytes == sum(model.disk_bytes for model in group.models) - kept


def test_the_command_line_says_which_keys_differ_and_finds_names_in_a_pipe(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    deep = tmp_path / ("a-folder-with-a-long-name-" * 4)
    deep.mkdir()
    write(deep / "a-model-with-quite-a-long-name-of-its-own-Q4_K_M.gguf", string(TEMPLATE, "one"))
    write(deep / "b.gguf", string(TEMPLATE, "two"))

    assert run(["find", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert run(["find", str(tmp_path), "--json"]) == 0
    record = json.loads(capsys.readouterr().out)

    assert f"they differ in {TEMPLATE}; all are needed" in shown
    row = next(line for line in shown.splitlines() if "a-model-with-quite-a-long-name-of-its-own-Q4_K_M.gguf" in line)
    assert str(deep) in row
    assert record["same_tensors"][0]["differing_keys"] == [TEMPLATE]


def test_one_model_is_not_called_models(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "a.gguf")

    assert run(["find", str(tmp_path)]) == 0
    assert "1 model, " in capsys.readouterr().out
