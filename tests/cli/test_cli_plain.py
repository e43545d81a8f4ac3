"""`inspect --json` and `verify --json` load nothing that checks documents, and print what their records write."""

import json
import os
from pathlib import Path

import pytest

from dfqs.cli.documents.inspect import InspectDocument
from dfqs.cli.documents.integrity import VerifyDocument
from dfqs.cli.main import run
from dfqs.cli.output import _json_text
from dfqs.gguf import GGMLType, KeyValue, string, u32
from dfqs.model.description import ModelDescription
from dfqs.model.facts import find_facts
from dfqs.model.files import open_model
from dfqs.records import Document, parse_record
from dfqs.shards.split import plan_split, split
from fixtures_moe import write_tiny_moe
from gguf_builder import SMALL_KEYS, write_small
from moe_families import FAMILIES
from v4_flash_stub import write_v4_flash_stub

ODD = (string("general.name", "a\x1b[31m\x7f\u2028\udcff"), string("general.license", "\udc80\U0001f600é"))


def as_the_record_writes(printed: str, form: type[Document], indent: int | None = 2) -> str:
    return _json_text(parse_record(printed, form), indent)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, smollm2_gguf: Path) -> list[Path]:
    directory = tmp_path_factory.mktemp("models")
    found = [smollm2_gguf, write_v4_flash_stub(directory / "v4.gguf")]
    found += [write_tiny_moe(directory / f"{name}.gguf", smollm2_gguf, name) for name in sorted(FAMILIES)[::6]]
    found += split(plan_split(found[-1], directory / "set", max_tensors=30))[:1]
    keys: list[KeyValue] = [string("general.architecture", "never-heard-of"), *ODD]
    found.append(write_small(directory / os.fsdecode(b"b\xff\x7f\x1b.gguf"), keys=keys))
    integers = [("token_embd.weight", (64, 4), GGMLType.I32)]
    found.append(write_small(directory / "table.gguf", integers, [string("general.architecture", "llama")]))
    for kind in ("adapter", "imatrix", "mmproj"):
        found.append(write_small(directory / f"{kind}.gguf", keys=[*SMALL_KEYS, string("general.type", kind)]))
    keys = [string("general.type", "adapter"), *ODD]
    return [*found, write_small(directory / "nameless.gguf", keys=keys)]


def test_inspect_prints_what_its_record_writes(models: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    for path in models:
        assert run(["inspect", str(path), "--json"]) == 0
        printed = capsys.readouterr().out
        assert printed == as_the_record_writes(printed, InspectDocument), path
        # What only further options ask for, through the record.
        assert run(["inspect", str(path), "--json", "--tokenizer"]) == 0
        asked = json.loads(capsys.readouterr().out)
        assert asked | {"tokenizer": None} == json.loads(printed)
    assert run(["inspect", *map(str, models[:2]), "--json"]) == 0
    first, second = capsys.readouterr().out.splitlines(keepends=True)
    assert as_the_record_writes(first, InspectDocument, None) == first
    assert as_the_record_writes(second, InspectDocument, None) == second


def test_all_that_a_description_says_is_among_it(models: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    path = models[1]
    assert run(["inspect", str(path), "--json"]) == 0
    described = open_model(path).description.model_dump(mode="json")

    found = json.loads(capsys.readouterr().out)

    assert list(found)[-len(described) :] == list(described)
    assert {key: found[key] for key in described} == described
    assert set(ModelDescription.model_fields) == set(vars(find_facts(open_model(path).spec, files=1, file_bytes=1)))


def test_verify_prints_what_its_record_writes(
    models: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    odd = next(path for path in models if "\udcff" in path.name)
    small = write_small(tmp_path / "small.gguf", keys=[*SMALL_KEYS, u32("\u2028\x7f", 1)])
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(small.read_bytes()[:-1])
    against = ["--against", str(split(plan_split(small, tmp_path / "set", max_tensors=1))[0])]
    codes = set()
    for arguments in ([odd], [small, "--hash"], [cut, "--hash"], [small, *against], [odd, *against], [models[0]]):
        codes.add(run(["verify", *map(str, arguments), "--json"]))
        printed = capsys.readouterr().out
        assert printed == as_the_record_writes(printed, VerifyDocument), arguments
    assert codes == {0, 1}
