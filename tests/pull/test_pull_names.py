"""What is meant by a name or an address, and files that are shards, pieces or models whatever they are called."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_pull_selection import plan_of, point_to

from dfqs.cli.main import run
from dfqs.errors import DfqsError, ShardError, UsageError
from dfqs.gguf.numbered_names import place_of
from dfqs.gguf.pieces import find_raw_pieces
from dfqs.pull.hub import RemoteFile
from dfqs.pull.selection import list_choices
from dfqs.shards.hub_address import HubAddress, is_remote, parse_hub_address
from hub_server import FakeHub
from pull_cases import ENTRIES, Repository, single_model, tensors, write_repository
from shard_inputs import pack_model, split_entries


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Path], bytes]:
    return write_repository(tmp_path_factory.mktemp("repository"))


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    with FakeHub() as hub:
        yield hub


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("o/m", ("main", None)),
        ("o/m@v1", ("v1", None)),
        ("o/m@refs/pr/3", ("refs/pr/3", None)),
        ("o/m:IQ1_S", ("main", "IQ1_S")),
        ("o/m@v1:IQ1_S", ("v1", "IQ1_S")),
        ("o/m:IQ1_S@v1", ("v1", "IQ1_S")),
        ("hf:o/m", ("main", None)),
        ("hf:o/m@v1:*Q4*", ("v1", "*Q4*")),
        ("hf://o/m", ("main", None)),
        ("hf://o/m@v1/sub/x.gguf", ("v1", "sub/x.gguf")),
        ("hf://o/m@refs/pr/1", ("refs/pr/1", None)),
        ("hf://o/m@refs/pr/1/x.gguf", ("refs/pr/1", "x.gguf")),
        ("hf.co/o/m:Q4_K_M", ("main", "Q4_K_M")),
        ("huggingface.co/o/m", ("main", None)),
        ("https://huggingface.co/o/m", ("main", None)),
        ("https://huggingface.co/o/m/", ("main", None)),
        ("HTTPS://HuggingFace.co/o/m", ("main", None)),
        ("https://hf.co/o/m:Q8_0", ("main", "Q8_0")),
        ("http://www.huggingface.co/o/m?library=gguf#files", ("main", None)),
        ("https://huggingface.co/o/m/tree/main", ("main", None)),
        ("https://huggingface.co/o/m/tree/v1/UD-Q4_K_XL", ("v1", "UD-Q4_K_XL/*")),
        ("https://huggingface.co/o/m/tree/refs%2Fpr%2F1", ("refs/pr/1", None)),
        ("https://huggingface.co/o/m/blob/main/sub/x-00001-of-00002.gguf", ("main", "sub/x-00001-of-00002.gguf")),
        ("https://huggingface.co/o/m/resolve/v1/x.gguf?download=true", ("v1", "x.gguf")),
        ("https://huggingface.co/o/m/blob/main/a%20b.gguf", ("main", "a b.gguf")),
        ("https://huggingface.co/o/m/discussions/4", ("main", None)),
        ("https://mirror.example:8080/o/m/tree/v2", ("v2", None)),
        ("hf.co/o/m/resolve/main/x.gguf", ("main", "x.gguf")),
    ],
)
def test_a_model_is_found_by_every_form_of_its_name(text: str, meant: tuple[str, str | None]) -> None:
    assert parse_hub_address(text, endpoint="https://mirror.example:8080") == HubAddress("o/m", *meant)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "m",
        "hf:",
        "hf:m",
        "/m",
        "o/",
        "a/b/c",
        "o/m:",
        "o/m@",
        "../m",
        "https://x/y",
        "https://huggingface.co",
        "https://huggingface.co/o",
        "https://huggingface.co/datasets/o/m",
        "https://huggingface.co/spaces/o/m",
        "https://huggingface.co/o/m/wiki/x",
        "https://huggingface.co/o/m/blob/main",
        "https://huggingface.co.evil.example/o/m",
        "https://huggingface.co:8443/o/m",
        "https://user:secret@huggingface.co/o/m",
        "https://huggingface.co@evil.example/o/m",
        "https://[::1/o/m",
        "https://huggingface.co:x/o/m",
        "ftp://huggingface.co/o/m",
        "file:///etc/passwd",
        "o/m\x1b[2J",
        "https://huggingface.co/o/m/blob/main/\x1b[2J.gguf",
        "https://evil.example/\x1b[2J",
    ],
)
def test_what_is_no_name_of_a_model_is_a_sentence_that_is_safe_to_print(text: str) -> None:
    with pytest.raises(UsageError) as refused:
        parse_hub_address(text)

    assert str(refused.value).isprintable()
    assert "secret" not in str(refused.value)


def test_a_local_path_is_not_taken_for_an_address() -> None:
    assert not any(is_remote(name) for name in ("m.gguf", "/a/m.gguf", "./hf/m.gguf", "owner/model", "hfx.co/a/b"))
    assert all(is_remote(name) for name in ("hf:o/m", "https://x/y", "hf.co/o/m", "huggingface.co/o/m"))


def test_inspect_understands_an_address_and_says_the_truth_of_another(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.files = {"m-Q8_0.gguf": single_model(), "m-IQ1_S.gguf": single_model()}
    point_to(hub, monkeypatch)

    assert run(["inspect", f"{hub.endpoint}/owner/model/blob/main/m-IQ1_S.gguf", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["source"] == "m-IQ1_S.gguf"
    assert run(["inspect", "https://x/y"]) == 2
    said = capsys.readouterr().err
    assert "no address of the Hub" in said and "no such file" not in said


def test_pull_takes_the_card_s_own_form(hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.files = {"m-Q8_0.gguf": single_model(), "m-IQ1_S.gguf": single_model()}
    point_to(hub, monkeypatch)

    assert run(["pull", "owner/model:IQ1_S", "-o", str(tmp_path), "--no-cache"]) == 0
    assert (tmp_path / "m-IQ1_S.gguf").exists()
    assert run(["pull", "owner/model:IQ1_S", "Q8_0", "-o", str(tmp_path)]) == 2


def test_a_repository_s_names_are_text_on_the_terminal_and_no_markup(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.files = {"a[/x].gguf": single_model(), "[bold]b-[red.gguf": single_model()}
    point_to(hub, monkeypatch)
    tricky = tmp_path / "[/y]"
    tricky.mkdir(parents=True)

    assert run(["pull", "owner/model", "-o", str(tricky), "--no-cache"]) == 2
    assert run(["pull", "owner/model", "a[/x].gguf", "-o", str(tricky), "--plan"]) == 0
    assert "a[/x].gguf" in capsys.readouterr().out
    assert run(["pull", "owner/model", "a[/x].gguf", "-o", str(tricky), "--no-cache"]) == 0
    assert "x].gguf" in capsys.readouterr().out
    assert (tricky / "x].gguf").read_bytes() == hub.files["a[/x].gguf"]


SHARD_NAMES = [
    "m-{:05d}-of-00003.GGUF",
    "m-{}-of-3.gguf",
    "m-{:05d}-OF-00003.gguf",
    "m.part{}of3.gguf",
    "m_{:02d}_of_03.gguf",
    "m.gguf.part{}of3",
]


@pytest.mark.thorough
@pytest.mark.parametrize("start", [0, 1])
@pytest.mark.parametrize("pattern", SHARD_NAMES)
def test_shards_under_other_names_are_never_called_a_whole_model(
    made: tuple[list[Path], bytes], hub: FakeHub, pattern: str, start: int
) -> None:
    hub.files = {pattern.format(i + start): path.read_bytes() for i, path in enumerate(made[0])}

    with pytest.raises(DfqsError, match=r"shard|split\.count|broken"):
        plan_of(hub)
    for name in hub.files:
        with pytest.raises(DfqsError):
            plan_of(hub, name)


@pytest.mark.parametrize("name", ["model.gguf", "m-Q8_0.GGUF", "m-2-of-3.gguf"])
def test_one_shard_alone_is_no_model_whatever_it_is_called(
    made: tuple[list[Path], bytes], hub: FakeHub, name: str
) -> None:
    hub.files = {name: made[0][1].read_bytes()}

    with pytest.raises(ShardError, match=r"one shard of 3 and no whole model"):
        plan_of(hub)


def test_a_numbered_file_that_is_a_whole_model_is_one(hub: FakeHub) -> None:
    hub.files = {"tune-1-of-2.gguf": single_model(), "tune-2-of-2.gguf": single_model()}

    with pytest.raises(UsageError, match=r"models of their own.*\n  tune-1-of-2\.gguf"):
        plan_of(hub)


PIECE_NAMES = [
    ("x.gguf.part{}of3", "123"),
    ("x.gguf.PART{}OF3", "123"),
    ("x.GGUF.{:0>3}", "012"),
    ("x.gguf.{:0>3}", "123"),
    ("x.gguf.a{}", "abc"),
    ("x.gguf-split-{}", "abc"),
    ("x.gguf.part-{:0>5}-of-00003", "123"),
    ("x-{:0>5}-of-00003.gguf", "123"),
    ("x.part{}of3.gguf", "123"),
    ("x_{} of 3.gguf", "123"),
]


@pytest.mark.parametrize(("pattern", "marks"), PIECE_NAMES)
def test_raw_pieces_are_fetched_into_the_one_file_that_they_are(
    hub: FakeHub, tmp_path: Path, pattern: str, marks: str
) -> None:
    data = single_model()
    third = len(data) // 3
    cuts = [data[:third], data[third : 2 * third], data[2 * third :]]
    hub.files = {pattern.format(mark): piece for mark, piece in zip(marks, cuts, strict=True)}
    hub.files |= {"README.md": b"x", "x.gguf.md": b"x", "x.gguf.sha256": b"x"}
    repository = Repository(hub, [], data)

    plan = repository.plan()
    repository.pull(tmp_path / "m.gguf", plan)

    assert plan.joined and plan.file_bytes == len(data)
    assert (tmp_path / "m.gguf").read_bytes() == data


@pytest.mark.parametrize(("pattern", "marks"), PIECE_NAMES)
def test_pieces_that_a_pull_joins_are_known_by_the_same_names_on_a_disk(
    tmp_path: Path, pattern: str, marks: str
) -> None:
    data = single_model()
    third = len(data) // 3
    paths = [tmp_path / pattern.format(mark) for mark in marks]
    for path, piece in zip(paths, (data[:third], data[third : 2 * third], data[2 * third :]), strict=True):
        path.write_bytes(piece)

    for path in paths:
        found = find_raw_pieces(path)
        assert found is not None and found.complete and list(found.paths) == paths


def test_a_missing_piece_is_said(hub: FakeHub) -> None:
    data = single_model()
    hub.files = {"x.gguf.part1of3": data[:20_000], "x.gguf.part3of3": data[20_000:]}
    with pytest.raises(ShardError, match="2 of 3 pieces"):
        plan_of(hub)
    hub.files = {"x.gguf.aa": data[:20_000], "x.gguf.ac": data[20_000:]}
    with pytest.raises(ShardError, match="2 of 3 pieces"):
        plan_of(hub)
    hub.files = {"x.gguf.aa": data[:20_000], "x.gguf.ab": data[20_000:-500]}
    with pytest.raises(ShardError, match="broken on the Hub"):
        plan_of(hub)


def test_two_sets_with_one_prefix_are_told_apart_and_each_can_be_chosen(
    made: tuple[list[Path], bytes], hub: FakeHub
) -> None:
    hub.files = {path.name: path.read_bytes() for path in made[0]}
    hub.files |= {f"model-{i:05d}-of-00005.gguf": b"x" for i in range(1, 6)} | {"model.gguf": single_model()}

    with pytest.raises(UsageError) as refused:
        plan_of(hub)
    assert [line.split("  ")[1] for line in str(refused.value).splitlines()[1:]] == [
        "model-*-of-00003.gguf",
        "model-*-of-00005.gguf",
        "model.gguf",
    ]
    assert len(plan_of(hub, "model-*-of-00003.gguf").files) == 3
    assert len(plan_of(hub, "model-00002-of-00003.gguf").files) == 3
    assert len(plan_of(hub, "model.gguf").files) == 1


def test_a_name_listed_twice_is_described_in_two_ways_and_not_used(hub: FakeHub) -> None:
    hub.files = {"m.gguf": single_model()}
    (entry,) = hub.siblings()
    hub.listing_override = [entry, {**entry, "size": 5, "lfs": {**entry["lfs"], "size": 5}}]

    with pytest.raises(UsageError, match="no GGUF files"):
        plan_of(hub)


def test_every_listed_name_belongs_to_one_choice() -> None:
    names = ["a.gguf", "a.GGUF", "b-00001-of-00001.gguf", "c-1-of-1.gguf", "d.gguf.aa", "d.gguf.ab", "e.gguf.1"]
    choices = list_choices([RemoteFile(name, 1, "0" * 64, None) for name in names])

    assert sorted(file.name for choice in choices for file in choice.files) == sorted(set(names) - {"e.gguf.1"})
    assert len({choice.name for choice in choices}) == len(choices)
    assert place_of("x-" + "9" * 5000 + "-of-3.gguf") is None


def test_a_whole_model_with_a_count_left_over_is_fetched_and_the_fix_is_said(hub: FakeHub) -> None:
    entries = [*ENTRIES, *split_entries(0, 3, 6)]
    hub.files = {"m.gguf": pack_model(entries, tensors()[:6])}

    plan = Repository(hub, [], b"").plan()

    assert any("calls itself one of 3 shards; `dfqs repair" in note for note in plan.notes)
