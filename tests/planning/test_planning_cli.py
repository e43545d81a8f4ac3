"""`dfqs plan` and `dfqs inspect --runtimes`: sources near and far, models that nobody knows, words that are none."""

import json
from pathlib import Path
from typing import Any

import pytest

from dfqs.cli.main import run
from dfqs.gguf import encode_header, read_header, string
from dfqs.planning.document import PlanDocument
from fixtures_moe import write_tiny_moe
from hub_server import FakeHub


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory, smollm2_gguf: Path) -> Path:
    return write_tiny_moe(tmp_path_factory.mktemp("plan") / "tiny.gguf", smollm2_gguf, "qwen3moe")


def planned(capsys: pytest.CaptureFixture[str], *words: object, code: int = 0) -> dict[str, Any]:
    assert run(["plan", *(str(word) for word in words), "--json"]) == code
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert json.loads(PlanDocument.model_validate(document).model_dump_json()) == document
    return document


def test_every_cache_type_is_planned_for_and_a_context_beyond_the_trained_one_is_capped(
    tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    document = planned(capsys, tiny, "--ctx", "512,1k", "--ctx", "1M", "--kv", "f16,q8_0/f16", "--ram", "4GB")

    rows = [(r["context_tokens"], r["profile"], r["settings"]["type_k"]) for r in document["contexts"]]
    assert rows == [
        (tokens, *rest)
        for tokens in (512, 1024, 4096)
        for rest in (("default", "f16"), ("default", "q8_0"), ("deterministic", "f16"))
    ]
    assert {r["verdict"] for r in document["contexts"]} == {"FITS"}
    assert document["loaders"][0]["verdict"] == "PASSED" and document["loaders"][0]["asked"]
    assert document["memory_of"] == "given" and document["disk"]["fetch_bytes"] == 0


def test_a_model_on_the_hub_is_planned_for_by_its_header_alone(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    near = planned(capsys, tiny, "--ctx", "512", "--ram", "4GB")
    with FakeHub(files={"m-F16.gguf": tiny.read_bytes()}) as hub:
        # What HF_ENDPOINT does in a process of its own.
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.endpoint)
        template = hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
        far = planned(capsys, f"{hub.endpoint}/owner/model/blob/main/m-F16.gguf", "--ctx", "512", "--ram", "4GB")

    assert far["contexts"] == near["contexts"]
    assert far["disk"]["fetch_bytes"] == tiny.stat().st_size
    assert (far["source"], near["source"]) == ("m-F16.gguf", str(tiny))


def test_a_header_that_cannot_be_reached_ends_in_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["plan", "https://example.invalid/x/y"]) == 2
    assert "is no address of the Hub" in capsys.readouterr().err
    assert run(["plan", "/nowhere/m.gguf"]) == 2
    assert "/nowhere/m.gguf" in capsys.readouterr().err


def test_a_hub_that_nobody_answers_for_ends_in_what_to_look_at(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("dfqs.pull.hub.time.sleep", lambda _: None)

    assert run(["plan", "hf:owner/name"]) == 3
    said = capsys.readouterr().err
    assert "http://127.0.0.1:9 cannot be reached: " in said
    assert "look at this machine's network and at HF_ENDPOINT" in said


@pytest.mark.parametrize("left", [0.5, 1.0], ids=["in the header", "in the data"])
def test_a_first_shard_that_is_cut_short_says_to_fetch_it_again(
    left: float, tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cut = tmp_path / "m-00001-of-00001.gguf"
    cut.write_bytes(tiny.read_bytes()[: int(read_header(tiny).data_offset * left) + 1])

    assert run(["plan", str(cut)]) == 3
    said = capsys.readouterr().err
    assert "m-00001-of-00001.gguf at byte" in said and "fetch or copy it again" in said


def test_an_unknown_architecture_is_named_and_told_of_as_far_as_its_header_goes(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    header = read_header(tiny)
    keys = [header.raw_entry(e) for e in header.entries if not e.name.startswith(("general.arch", "qwen3moe."))]
    path = tmp_path / "new.gguf"
    encoded = encode_header(
        [string("general.architecture", "newmoe"), *keys], [(t.name, t.shape, t.type) for t in header.tensors]
    )
    path.write_bytes(encoded + tiny.read_bytes()[header.data_offset :])

    document = planned(capsys, path, "--ctx", "512", "--ram", "4GB", code=1)

    assert "newmoe" in document["unknown"]
    assert document["architecture"] == "newmoe" and document["tensor_bytes"] > 0
    (only,) = document["contexts"]
    assert (only["verdict"], only["total_bytes"]) == ("UNKNOWN", None)
    assert document["loaders"][0]["verdict"] == "FAILED"
    small = planned(capsys, path, "--ctx", "512", "--ram", "1MB", code=1)
    assert small["contexts"][0]["verdict"] == "DOES NOT FIT"
    assert run(["plan", str(path), "--ram", "4GB"]) == 1
    said = capsys.readouterr().out
    assert "unknown model architecture: 'newmoe'" in said and "Its weights are" in said


def test_what_does_not_fit_says_what_binds_and_exits_with_1(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = planned(capsys, tiny, "--ctx", "512", "--ram", "10MB", code=1)

    assert {r["verdict"] for r in document["contexts"]} == {"DOES NOT FIT"}
    assert all(r["least_bytes"] > 200_000_000 and r["advice"] for r in document["contexts"])


@pytest.mark.parametrize(
    "words",
    [
        ["--ctx", "many"],
        ["--ctx", ","],
        ["--ctx", ",".join(str(n) for n in range(1, 60))],
        ["--kv", "q3_7"],
        ["--ram", "much"],
        ["--vram", "0"],
        ["--disk-rate", "fast"],
        ["--flash-attention", "perhaps"],
        ["--directory", "/nowhere"],
    ],
)
def test_words_that_mean_nothing_are_refused(tiny: Path, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["plan", str(tiny), *words]) == 2
    assert capsys.readouterr().out == ""


def test_inspect_asks_only_when_told_to(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["inspect", str(tiny), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["loaders"] is None
    assert run(["inspect", str(tiny), "--json", "--runtimes"]) == 0
    assert json.loads(capsys.readouterr().out)["loaders"][0]["verdict"] == "PASSED"
    assert run(["inspect", str(tiny), "--runtimes"]) == 0
    assert "PASSED (asked)" in capsys.readouterr().out
