"""One handle on a model: the same of a file and of its shards, and no more read than is asked for."""

import json
from pathlib import Path

import pytest

from dfqs.cli.main import run
from dfqs.errors import FormatError, ShardError, UsageError
from dfqs.evaluate.subject import describe_subject, known_subject
from dfqs.gguf import FileSource, string, u64
from dfqs.integrity import hash_model
from dfqs.model import hashes
from dfqs.model.description import ModelDescription
from dfqs.model.facts import find_facts
from dfqs.model.files import open_files, open_model
from dfqs.shards.split import plan_split, split
from dfqs.storage.hashing import hash_file
from gguf_builder import SMALL_KEYS, write_small
from shard_inputs import write_model

OF_FILES = {"files", "file_bytes"}


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    return write_model(tmp_path / "whole.gguf")


@pytest.fixture
def first(whole: Path) -> Path:
    return split(plan_split(whole, whole.with_name("shard"), max_tensors=20))[0]


def test_a_set_of_shards_is_described_and_hashed_as_the_file_that_they_were_made_of(whole: Path, first: Path) -> None:
    one, many = open_model(whole), open_model(first)

    assert len(many.paths) > 2
    assert many.description.files == len(many.paths)
    assert many.description.file_bytes == many.file_bytes == sum(path.stat().st_size for path in many.paths)
    assert many.description.model_dump(exclude=OF_FILES) == one.description.model_dump(exclude=OF_FILES)
    assert (many.hashes().file_sha256, many.hashes().content_sha256) == (None, hash_model(whole).content_sha256)
    assert one.hashes() == hash_model(whole)
    assert (many.name, many.kind) == (one.name, one.kind)


def test_bytes_are_read_when_identity_is_asked_for_and_then_once(first: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[Path] = []

    def counting(path: Path, **options: object) -> object:
        hashed.append(path)
        return hash_model(path, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(hashes, "hash_model", counting)
    model = open_model(open_model(first))
    assert model.description.parameters > 0
    assert hashed == []

    told: list[tuple[int, int | None]] = []
    model.hashes(progress=lambda done, total=None, note="": told.append((done, total)))
    model.hashes()
    model.hashes(file=False)

    assert hashed == list(model.paths)
    assert told == sorted(told)
    assert told[-1] == (model.file_bytes, model.file_bytes)


def test_hashes_of_each_file_and_of_the_whole_come_from_one_reading(
    first: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = open_model(first)
    whole = open_model(first).hashes().content_sha256
    read: list[Path] = []

    def counting(path: Path, **options: object) -> object:
        read.append(path)
        return hash_model(path, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(hashes, "hash_model", counting)

    parts = model.file_hashes()

    assert model.hashes().content_sha256 == whole and model.hashes().file_sha256 is None
    assert [part.file_sha256 for part in parts] == [hash_file(path) for path in model.paths]
    assert model.file_hashes() == parts
    assert read == list(model.paths)


def test_headers_of_a_large_file_cost_its_header_and_not_its_tensors(
    whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    read_at = FileSource.read_at

    def counting(self: FileSource, offset: int, length: int) -> bytes:
        read.append(offset)
        return read_at(self, offset, length)

    monkeypatch.setattr(FileSource, "read_at", counting)
    model = open_model(whole)
    assert model.description.architecture

    assert max(read) <= model.header.data_offset


def test_what_inspect_prints_is_the_record_that_a_report_holds(first: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = open_model(first)
    assert run(["inspect", str(first), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)

    subject = describe_subject(model, model.hashes())
    assert subject.model is not None
    described = subject.model.model_dump(mode="json")
    assert {name: printed[name] for name in described} == described
    assert ModelDescription.model_validate(json.loads(json.dumps(described))) == model.description


def test_a_run_knows_its_model_again_until_any_of_its_files_is_another(first: Path, tmp_path: Path) -> None:
    subject = describe_subject(open_model(first), open_model(first).hashes())
    directory = tmp_path / "out" / "run-1"
    directory.mkdir(parents=True)
    document = {
        "schema": "dfqs.run-record/1", "subject": subject.model_dump(mode="json"), "threads": 1,
        "curve_lengths": [256], "decode_repeats": 1,
        "conditions": {"suite": "s", "prompt_sets": {}, "items": {}, "context_lengths": [256], "max_tokens": {},
                       "thinking": None, "template_sha256": None, "numerics": None, "runtime": None,
                       "code_python": None},
    }  # fmt: skip
    (directory / "run.json").write_text(json.dumps(document))

    assert known_subject(open_model(first), tmp_path / "out") == subject
    last = open_model(first).paths[-1]
    last.write_bytes(last.read_bytes())
    assert known_subject(open_model(first), tmp_path / "out") is None


def test_what_is_no_model_can_be_opened_and_is_refused_where_one_is_needed(tmp_path: Path) -> None:
    adapter = open_model(write_small(tmp_path / "a.gguf", keys=(*SMALL_KEYS, string("adapter.type", "lora"))))

    assert adapter.kind.code == "adapter"
    for needed in (adapter.require_model, adapter.require_loadable, lambda: adapter.spec, lambda: adapter.description):
        with pytest.raises(UsageError, match="LoRA adapter, not a model"):
            needed()


def test_a_set_with_a_shard_missing_is_no_model_but_what_is_there_can_be_looked_at(first: Path) -> None:
    paths = open_model(first).paths
    paths[-1].unlink()

    with pytest.raises(ShardError, match="1 of"):
        open_model(first)
    assert open_files(paths[:-1]).paths == paths[:-1]


@pytest.mark.parametrize("value", [2**63, 2**64 - 1])
def test_a_number_as_large_as_a_header_can_hold_is_described_and_not_a_defect_of_ours(
    value: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = [key for key in SMALL_KEYS if key.name != "llama.context_length"]
    path = write_small(tmp_path / "m.gguf", keys=(*keys, u64("llama.context_length", value)))

    assert run(["inspect", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["context_tokens"] == value


def test_words_that_are_no_utf_8_and_sums_beyond_64_bits_end_in_text_and_in_a_sentence(tmp_path: Path) -> None:
    path = write_small(tmp_path / "m.gguf", keys=(*SMALL_KEYS, string("general.description", "odd \udcff")))
    model = open_model(path)

    assert model.description.description == r"odd \udcff"
    with pytest.raises(FormatError, match="what no model is"):
        find_facts(model.spec, files=1, file_bytes=2**64, source_name=str(path))
