"""Files among shards, or named like shards, that are something else: what they are is said, and what to do."""

from collections.abc import Callable
from pathlib import Path

import pytest

from dfqs.cli.main import run
from dfqs.errors import FormatError
from dfqs.gguf.pieces import find_raw_pieces
from dfqs.integrity.structure import verify_structure
from dfqs.shards import plan_merge
from dfqs.shards.repair import plan_repair, repair
from inplace_cases import make_shards
from shard_inputs import sha256, tiny_entries, tiny_tensors, write_shards

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"a" * 64 + b"\nsize 123456789\n"
FOREIGN = {
    "a pointer": (POINTER, r"Git LFS pointer to the file with SHA-256 aaaa.*git lfs pull"),
    "a web page": (b"<!DOCTYPE html><html>Not found", r"a web page.*fetch that again"),
    "an archive": (b"PK\x03\x04" + b"\1" * 100, "a ZIP archive"),
    "nothing": (b"", "the file is empty"),
    "zeroes": (bytes(9000), "bytes are zero"),
}


@pytest.mark.parametrize("what", FOREIGN)
@pytest.mark.parametrize("shard", [0, 1])
def test_shard_that_is_no_model_is_explained_by_merge_as_by_verify(what: str, shard: int, tmp_path: Path) -> None:
    shards = make_shards(tmp_path)
    data, said = FOREIGN[what]
    shards[shard].write_bytes(data)

    with pytest.raises(FormatError, match=rf"(?s){shards[shard].name}.*{said}") as refusal:
        plan_merge(shards[0])

    (finding,) = verify_structure(shards[shard]).findings
    assert finding.message in str(refusal.value) and finding.fix in str(refusal.value)


def cut(data: bytes, names: list[str], folder: Path) -> list[Path]:
    step = len(data) // len(names) + 1
    paths = [folder / name for name in names]
    for index, path in enumerate(paths):
        path.write_bytes(data[index * step : (index + 1) * step])
    return paths


@pytest.mark.parametrize(
    "name",
    [
        lambda n: f"m-{n:05d}-of-00003.gguf",
        lambda n: f"m.gguf.PART{n}OF3",
        lambda n: f"m.GGUF.Part-{n}-of-3",
        lambda n: f"m.gguf.part_{n}_of_3",
        lambda n: f"m_{n} of 3.gguf",
        lambda n: f"m2-{n:05d}-of-00003.GGUF",
        lambda n: f"m.gguf.A{'@ABC'[n]}",
    ],
)
def test_raw_pieces_are_known_by_every_form_of_their_names(name: Callable[[int], str], tmp_path: Path) -> None:
    whole = write_shards(tmp_path / "whole", tiny_entries(), [tiny_tensors()])[0]
    paths = cut(whole.read_bytes(), [name(number) for number in (1, 2, 3)], tmp_path)

    for path in paths:
        pieces = find_raw_pieces(path)
        assert pieces is not None and pieces.complete and list(pieces.paths) == paths
    repair(plan_repair(paths[0]), tmp_path / "out.gguf")
    assert sha256(tmp_path / "out.gguf") == sha256(whole)


def test_merge_of_raw_pieces_named_as_shards_says_what_joins_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = write_shards(tmp_path / "whole", tiny_entries(), [tiny_tensors()])[0]
    first, *_ = cut(whole.read_bytes(), [f"m-{number:05d}-of-00003.gguf" for number in (1, 2, 3)], tmp_path)

    assert run(["merge", str(first)]) == 3
    assert "raw pieces" in capsys.readouterr().err


def test_shard_cut_short_beside_a_pointer_is_no_raw_piece(tmp_path: Path) -> None:
    shards = make_shards(tmp_path)
    shards[0].write_bytes(shards[0].read_bytes()[:-100])
    shards[1].write_bytes(POINTER)

    assert find_raw_pieces(shards[0]) is None
