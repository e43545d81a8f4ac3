"""`dfqs deploy --list` says what is here and what stands in the way, and never more than it knows."""

import json
from pathlib import Path, PurePosixPath

import pytest

from dfqs.cli.main import run
from dfqs.errors import UsageError
from dfqs.gguf import GGMLType, string
from dfqs.model.files import open_model
from dfqs.records import parse_record
from dfqs.shards.dialects import known_dialects
from dfqs.targets.catalogue import all_targets, find_target
from dfqs.targets.contract import LocalModel, Site
from dfqs.targets.listing import DeployListDocument, list_targets
from dfqs.targets.model import local_model
from gguf_builder import SMALL_KEYS, write_small

MODEL = LocalModel((PurePosixPath("/m/big.gguf"),), 62_000_000_000, "big", "big", "deepseek4", 65_536)
SITE = Site("linux", PurePosixPath("/home/u"), {})


def test_the_list_is_one_document_with_a_row_for_every_target(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    program = tmp_path / "llama-server"
    program.write_text("")
    program.chmod(0o755)
    path = write_small(tmp_path / "m.gguf")

    assert run(["deploy", "--list", str(path), "--json"]) == 0

    document = parse_record(capsys.readouterr().out, DeployListDocument)
    rows = {row.target: row for row in document.targets}
    assert list(rows) == [target.name for target in all_targets()]
    assert document.file_bytes == path.stat().st_size
    assert (rows["llama.cpp"].state, rows["llama.cpp"].installed) == ("ready", str(program))
    assert (rows["ollama"].state, rows["ollama"].installed) == ("not installed", None)
    assert rows["ollama"].disk_low_bytes == path.stat().st_size
    assert rows["ollama"].disk_high_bytes == 2 * path.stat().st_size
    assert rows["ollama"].disk_free_bytes is not None
    assert rows["pi"].dialect is None
    assert rows["jan"].dialect is not None and rows["jan"].dialect.build == "UNKNOWN"


def test_vllm_is_blocked_for_the_reference_architecture_with_the_plugins_version() -> None:
    site = Site("linux", PurePosixPath("/home/u"), {}, packages={"vllm-gguf-plugin": "0.0.5", "vllm": "0.14"})

    row = list_targets((find_target("vllm"),), site, MODEL, None).targets[0]

    assert row.state == "blocked"
    assert row.reason == "vllm-gguf-plugin 0.0.5 has no deepseek4: 'Unknown gguf model_type'"


def test_of_a_plugin_that_nobody_looked_at_nothing_is_claimed() -> None:
    site = Site("linux", PurePosixPath("/home/u"), {}, packages={"vllm-gguf-plugin": "0.3.0", "vllm": "0.20"})

    assert list_targets((find_target("vllm"),), site, MODEL, None).targets[0].state == "ready"


def test_hermes_is_blocked_below_the_context_that_it_asks_for() -> None:
    small = LocalModel(MODEL.paths, 1, "m", "m", "llama", 2048)

    row = list_targets((find_target("hermes"),), SITE, small, None).targets[0]

    assert row.state == "blocked" and "64,000 tokens; this one is 2,048" in str(row.reason)


def test_a_program_that_can_do_nothing_here_is_not_called_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    site = Site("linux", PurePosixPath("/"), {}, {"docker": PurePosixPath("/usr/bin/docker")})
    refused = Site(
        site.system, site.home, {}, site.programs, refusals={"docker-model-runner": "'docker model' says: no"}
    )
    docker = (find_target("docker-model-runner"),)

    assert list_targets(docker, site, MODEL, None).targets[0].state == "ready"
    assert list_targets(docker, refused, MODEL, None).targets[0].state == "blocked"


def test_a_file_of_a_forks_dialect_is_blocked_where_llama_cpp_is_inside(tmp_path: Path) -> None:
    keys = [string("general.architecture", "deepseek4"), *(k for k in SMALL_KEYS if not k.name.startswith("general."))]
    files = open_model(write_small(tmp_path / "fork.gguf", keys=keys, tensors=fork_tensors()))

    row = list_targets((find_target("jan"),), SITE, MODEL, files).targets[0]

    assert row.state == "blocked" and "dfqs repair --dialect upstream" in str(row.reason)


def fork_tensors() -> list[tuple[str, tuple[int, ...], GGMLType]]:
    dialect = next(dialect for dialect in known_dialects() if dialect.architecture == "deepseek4")
    name = next(name for name in [*dialect.tensors, *dialect.joined] if name.startswith("blk."))
    return [(name.replace("*", "0"), (64, 10), GGMLType.F32)]


def test_a_context_beyond_what_the_model_was_trained_for_is_refused(tmp_path: Path) -> None:
    files = open_model(write_small(tmp_path / "m.gguf"))
    with pytest.raises(UsageError, match="was trained for"):
        local_model(files, context_tokens=10_000_000)


def test_nothing_asked_for_is_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["deploy"]) == 2
    assert "--list" in capsys.readouterr().err


def test_the_golden_list_is_of_todays_targets() -> None:
    golden = Path(__file__).parents[1] / "golden" / "deploy-list-1.json"
    names = [row["target"] for row in json.loads(golden.read_text(encoding="utf-8"))["targets"]]

    assert names == [target.name for target in all_targets()]
