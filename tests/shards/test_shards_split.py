"""Split: limits, refusals, and all shards or none."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dfqs.errors import UsageError
from dfqs.gguf import read_header
from dfqs.shards import merge, plan_merge
from dfqs.shards.split import plan_split, split
from shard_inputs import model_tensors, sha256, write_model, write_tiny


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_model(tmp_path / "model.gguf")


def test_limit_too_small_for_the_first_tensor_names_it(model: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"first tensor, token_embd\.weight, takes 10\.9 kB"):
        plan_split(model, tmp_path / "s", max_bytes=1000)


def test_tensor_larger_than_the_limit_gets_a_shard_of_its_own(model: Path, tmp_path: Path) -> None:
    plan = plan_split(model, tmp_path / "s", max_bytes=12_000)

    for shard in plan.shards:
        assert len(shard.tensors) == 1 or sum(t.length for t in shard.tensors) <= 12_000


@pytest.mark.parametrize(("options", "message"), [
    ({"max_bytes": 10**6, "max_tensors": 3}, "not both"),
    ({"max_tensors": 0}, "makes no sense"),
    ({"max_tensors": -1}, "makes no sense"),
])  # fmt: skip
def test_limits_that_make_no_sense_are_refused(
    model: Path, tmp_path: Path, options: dict[str, int], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        plan_split(model, tmp_path / "s", **options)  # type: ignore[arg-type]


def test_shard_is_not_split_again(model: Path, tmp_path: Path) -> None:
    paths = split(plan_split(model, tmp_path / "s", max_tensors=20))

    with pytest.raises(UsageError, match="is itself a shard"):
        plan_split(paths[0], tmp_path / "t")


def test_one_name_that_is_taken_stops_the_whole_set(model: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    taken = tmp_path / "out" / "s-00003-of-00003.gguf"
    taken.write_bytes(b"precious")

    with pytest.raises(UsageError, match="exists already"):
        split(plan_split(model, tmp_path / "out" / "s", max_tensors=20))

    assert [path.name for path in (tmp_path / "out").iterdir()] == [taken.name]
    assert taken.read_bytes() == b"precious"


def test_name_taken_while_writing_leaves_no_part_of_a_set(model: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    taken = tmp_path / "out" / "s-00001-of-00003.gguf"

    def take(done: int, total: int | None = None, note: str = "") -> None:
        taken.write_bytes(b"precious")

    with pytest.raises(UsageError, match="appeared while"):
        split(plan_split(model, tmp_path / "out" / "s", max_tensors=20), progress=take)

    assert [path.name for path in (tmp_path / "out").iterdir()] == [taken.name]
    assert taken.read_bytes() == b"precious"


def test_second_split_to_the_same_names_does_not_take_the_first_ones_files_for_abandoned(
    model: Path, tmp_path: Path
) -> None:
    plan = plan_split(model, tmp_path / "p", max_tensors=10)
    refused = []

    def other(done: int, total: int | None = None, note: str = "") -> None:
        with pytest.raises(UsageError, match="another dfqs is writing"):
            split(plan)
        refused.append(done)

    paths = split(plan, progress=other)

    assert refused
    assert all(path.exists() for path in paths)
    assert list(tmp_path.glob(".*")) == []


def test_two_splits_under_long_names_that_begin_alike_do_not_wait_for_each_other(model: Path, tmp_path: Path) -> None:
    one, another = (plan_split(model, tmp_path / ("p" * 100 + end), max_tensors=10) for end in "ab")
    written: list[Path] = []

    def other(done: int, total: int | None = None, note: str = "") -> None:
        if not written:
            written.extend(split(another))

    paths = split(one, progress=other)

    assert written and all(path.exists() for path in (*paths, *written))
    assert list(tmp_path.glob(".*")) == []


def test_directory_is_no_prefix(model: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is a directory; give a name"):
        plan_split(model, tmp_path)


def test_ctrl_c_leaves_no_shard(model: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()

    def interrupt(done: int, total: int | None = None, note: str = "") -> None:
        if "00002" in note:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        split(plan_split(model, tmp_path / "out" / "s", max_tensors=20), progress=interrupt)

    assert list((tmp_path / "out").iterdir()) == []


def test_long_prefix_does_not_make_shards_share_a_temporary_name(tmp_path: Path) -> None:
    model = write_tiny(tmp_path / "model.gguf")

    paths = split(plan_split(model, tmp_path / ("x" * 200), max_tensors=1))

    assert len({sha256(path) for path in paths}) == 6


@pytest.mark.thorough
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(limit=st.integers(1, 60), first_empty=st.booleans())
def test_split_then_merge_is_the_merge_whatever_the_limits(
    limit: int, first_empty: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("property")
    model = write_tiny(folder / "model.gguf") if limit < 10 else write_model(folder / "model.gguf")
    whole = split(plan_split(model, folder / "whole", max_tensors=100))
    merge(plan_merge(whole[0]), folder / "whole.gguf")

    paths = split(plan_split(model, folder / "s", max_tensors=limit, no_tensor_first_split=first_empty))
    merge(plan_merge(paths[0]), folder / "merged.gguf")

    assert sha256(folder / "merged.gguf") == sha256(folder / "whole.gguf")
    names = [tensor.name for path in paths for tensor in read_header(path).tensors]
    assert len(names) == len(set(names)) == (6 if limit < 10 else len(model_tensors()))
