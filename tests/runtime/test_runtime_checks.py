"""What is refused before llama.cpp sees a file, and the label that a demonstration model carries."""

from pathlib import Path

import pytest

from dfqs.errors import FormatError, ShardError, UsageError
from dfqs.gguf import GGMLType, KeyValue, TensorSource, string, u16, write_gguf
from dfqs.runtime.checks import check_model


def write_model(path: Path, *keys: KeyValue) -> Path:
    data = bytes(4 * 32)
    tensor = TensorSource("blk.0.attn_norm.weight", (32,), GGMLType.F32, lambda: iter([data]))
    write_gguf(path, [string("general.architecture", "llama"), *keys], [tensor])
    return path


def write_shard(path: Path, number: int, count: int) -> Path:
    return write_model(path, u16("split.no", number), u16("split.count", count))


def test_a_single_file_is_its_own_shard(tmp_path: Path) -> None:
    path = write_model(tmp_path / "model.gguf")

    assert check_model(path).paths == (path,)
    assert check_model(path).file_bytes == path.stat().st_size


def test_a_merged_file_is_not_taken_for_a_shard(tmp_path: Path) -> None:
    path = write_shard(tmp_path / "merged.gguf", 0, 0)

    assert check_model(path).paths == (path,)


def test_the_first_shard_stands_for_its_set(tmp_path: Path) -> None:
    shards = tuple(write_shard(tmp_path / f"m-{i + 1:05}-of-00003.gguf", i, 3) for i in range(3))

    assert check_model(shards[0]).paths == shards
    assert check_model(shards[0]).file_bytes == sum(shard.stat().st_size for shard in shards)


def test_a_later_shard_is_refused_and_the_first_is_named(tmp_path: Path) -> None:
    write_shard(tmp_path / "m-00001-of-00002.gguf", 0, 2)
    second = write_shard(tmp_path / "m-00002-of-00002.gguf", 1, 2)

    with pytest.raises(UsageError, match=r"shard 2 of 2; give the first one, m-00001-of-00002\.gguf"):
        check_model(second)


def test_a_missing_shard_is_named_before_llama_cpp_looks_for_it(tmp_path: Path) -> None:
    first = write_shard(tmp_path / "m-00001-of-00003.gguf", 0, 3)
    write_shard(tmp_path / "m-00003-of-00003.gguf", 2, 3)

    with pytest.raises(ShardError, match=r"1 of 3 shards missing: m-00002-of-00003\.gguf"):
        check_model(first)


def test_a_shard_that_was_renamed_is_refused_because_llama_cpp_goes_by_names(tmp_path: Path) -> None:
    with pytest.raises(ShardError, match="a shard must be named like"):
        check_model(write_shard(tmp_path / "renamed.gguf", 0, 3))


def test_a_damaged_later_shard_is_found_before_loading(tmp_path: Path) -> None:
    first = write_shard(tmp_path / "m-00001-of-00002.gguf", 0, 2)
    second = write_shard(tmp_path / "m-00002-of-00002.gguf", 1, 2)
    second.write_bytes(second.read_bytes()[:-1])

    with pytest.raises(FormatError, match=r"m-00002-of-00002\.gguf"):
        check_model(first)


def test_what_is_no_model_is_refused_with_its_name(tmp_path: Path) -> None:
    (tmp_path / "empty.gguf").touch()
    (tmp_path / "text.gguf").write_text("hello, I am text and not a model\n")

    with pytest.raises(FormatError, match=r"text\.gguf.*not a GGUF file"):
        check_model(tmp_path / "text.gguf")
    with pytest.raises(FormatError, match=r"empty\.gguf"):
        check_model(tmp_path / "empty.gguf")
    with pytest.raises(UsageError, match="no such file"):
        check_model(tmp_path / "nowhere.gguf")


def test_a_model_is_called_by_its_name_or_else_by_its_file(tmp_path: Path) -> None:
    named = write_model(tmp_path / "a.gguf", string("general.name", "A \x1b[1mmodel"))
    nameless = write_model(tmp_path / "b.gguf", string("general.name", "  "))

    assert (check_model(named).name, check_model(nameless).name) == ("A \\x1b[1mmodel", "b")


def test_only_a_model_of_dfqs_carries_a_label_not_one_that_somebody_quantized_with_it(tmp_path: Path) -> None:
    description = string("general.description", "embedded demonstration model")
    class_ = string("dfqs.class", "IQ1_S-XL")
    ours = write_model(tmp_path / "ours.gguf", description, class_, string("dfqs.embedded.attribution", "of another"))
    theirs = write_model(tmp_path / "theirs.gguf", description, class_)

    assert check_model(ours).label == "embedded demonstration model"
    assert check_model(theirs).label is None
