"""Which model is meant, what a repository may call its files, and headers that want to fill memory or lead astray."""

import json
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dfqs.cli.main import run
from dfqs.errors import DfqsError, FormatError, IntegrityError, NetworkError, ShardError, UsageError
from dfqs.integrity.manifest import read_manifest
from dfqs.pull import output_path, plan_pull
from dfqs.pull.hub import RemoteFile, is_safe_name
from dfqs.pull.selection import Choice, list_choices
from hub_server import COMMIT, FakeHub, git_sha1
from pull_cases import HASTY, Repository, single_model, write_repository
from shard_inputs import split_entries, text


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Path], bytes]:
    return write_repository(tmp_path_factory.mktemp("repository"))


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    with FakeHub() as hub:
        yield hub


@pytest.fixture
def shards_hub(made: tuple[list[Path], bytes]) -> Iterator[Repository]:
    shards, merged = made
    with FakeHub(files={path.name: path.read_bytes() for path in shards}) as hub:
        yield Repository(hub, shards, merged)


def plan_of(hub: FakeHub, pattern: str | None = None, revision: str = "main") -> Choice:
    client = Repository(hub, [], b"").client(hub.token)
    return plan_pull(client, hub.repo, revision=revision, pattern=pattern, retry=HASTY).choice


@pytest.mark.parametrize(
    ("pattern", "chosen"),
    [
        ("Q8_0", "model-Q8_0.gguf"),
        ("q4_k_m", "model-Q4_K_M.gguf"),
        ("*Q4_K_S*", "model-Q4_K_S.gguf"),
        ("model-Q4_K.gguf", "model-Q4_K.gguf"),
        ("Q4_K", "model-Q4_K.gguf"),
        ("mmproj", "mmproj-model.gguf"),
        ("sub/", "sub/model-IQ1_S.gguf"),
    ],
)
def test_a_pattern_leaves_the_model_that_is_meant(hub: FakeHub, pattern: str, chosen: str) -> None:
    names = ("Q8_0", "Q4_K", "Q4_K_M", "Q4_K_S")
    hub.files = {f"model-{name}.gguf": single_model() for name in names}
    hub.files |= {"mmproj-model.gguf": single_model(), "sub/model-IQ1_S.gguf": single_model()}

    assert plan_of(hub, pattern).name == chosen


def test_several_models_are_listed_and_none_is_guessed(hub: FakeHub) -> None:
    hub.files = {"a-Q8_0.gguf": single_model(), "a-Q4_0.gguf": single_model(), "mmproj-a.gguf": single_model()}

    with pytest.raises(UsageError, match=r"several models.*\n  a-Q4_0\.gguf .*kB\n  a-Q8_0\.gguf .*kB$"):
        plan_of(hub)
    with pytest.raises(UsageError, match=r"nothing in owner/model@main matches 'F16'; it has:\n"):
        plan_of(hub, "F16")


def test_a_companion_is_not_in_the_way_of_the_only_model(hub: FakeHub) -> None:
    hub.files = {"a-Q8_0.gguf": single_model(), "mmproj-a.gguf": single_model(), "imatrix.gguf": single_model()}

    assert plan_of(hub).name == "a-Q8_0.gguf"


def test_a_set_with_a_shard_missing_on_the_hub_is_refused(shards_hub: Repository) -> None:
    del shards_hub.hub.files["model-00002-of-00003.gguf"]

    with pytest.raises(ShardError, match="2 of 3 shards"):
        shards_hub.plan()


def test_a_set_that_claims_99999_shards_is_refused_without_counting_to_it(hub: FakeHub) -> None:
    hub.files = {"m-00001-of-60000.gguf": single_model(), "n-00001-of-99999.gguf": single_model()}

    with pytest.raises(ShardError, match="1 of 60,000"):
        plan_of(hub, "m")
    # Beyond what split.count can say it is no shard, and then fetched as what it is.
    assert not list_choices([RemoteFile("n-00001-of-99999.gguf", 1, "0" * 64, None)])[0].expected_files > 1


@pytest.mark.parametrize(
    "name",
    [
        "../evil.gguf",
        "/etc/evil.gguf",
        "a/../../evil.gguf",
        "a\\..\\evil.gguf",
        "nul\0.gguf",
        "\x1b[2Jx.gguf",
        "a//b.gguf",
    ],
)
def test_names_that_lead_out_or_speak_to_the_terminal_are_left_out(hub: FakeHub, name: str) -> None:
    data = single_model()
    hub.files = {"good.gguf": data}
    entry = {"size": len(data), "lfs": {"size": len(data), "sha256": hub.sha256("good.gguf"), "pointerSize": 1}}
    hub.listing_override = [{"rfilename": name, **entry}]

    assert not is_safe_name(name)
    with pytest.raises(UsageError, match=r"no GGUF files \(1 with names"):
        plan_of(hub)


@given(st.text(min_size=1))
def test_a_safe_name_joined_to_a_directory_stays_in_it(name: str) -> None:
    if is_safe_name(name):
        joined = (Path("/base") / name).resolve()
        assert joined.is_relative_to("/base")
        assert name.isprintable()


@pytest.mark.parametrize(
    "entry",
    [
        {"size": None},
        {"size": -5},
        {"size": 10, "lfs": {"size": 10, "sha256": "../../x", "pointerSize": 1}},
        {"size": 10, "blobId": "zz"},
        {"size": 10},
        {"size": "10", "blobId": "0" * 40},
        {"size": 1e9, "blobId": "0" * 40},
        {"size": True, "blobId": "0" * 40},
        {"size": 1 << 70, "blobId": "0" * 40},
        {"size": 10, "blobId": 7},
        {"size": 10, "lfs": {"size": "10", "sha256": "0" * 64, "pointerSize": 1}},
        {"size": 10, "lfs": {"size": 10, "sha256": 7, "pointerSize": 1}},
    ],
)
def test_files_without_a_size_or_hash_to_check_are_not_fetched(hub: FakeHub, entry: dict[str, object]) -> None:
    hub.files = {"m.gguf": b"x"}
    hub.listing_override = [{"rfilename": "m.gguf", **entry}]

    with pytest.raises(UsageError, match="no GGUF files"):
        plan_of(hub)


def test_a_name_from_the_repository_becomes_one_file_in_the_directory(tmp_path: Path) -> None:
    def choice(name: str) -> Choice:
        return Choice(name, (RemoteFile(name, 1, "0" * 64, None),), 1)

    assert output_path(tmp_path, choice("deep/er/m-00001-of-00001.gguf")) == tmp_path / "m.gguf"
    assert output_path(tmp_path, choice("deep/er/m.gguf")) == tmp_path / "m.gguf"
    assert output_path(tmp_path / "x.gguf", choice("m.gguf")) == tmp_path / "x.gguf"
    for name in (".hidden.gguf", "-o.gguf", "long" * 60 + ".gguf"):
        with pytest.raises(UsageError, match="name the file with -o"):
            output_path(tmp_path, choice(name))


def header_that_claims(tensors: int, keys: int) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, tensors, keys)


@pytest.mark.parametrize(
    "head",
    [
        header_that_claims(1 << 62, 1),
        header_that_claims(2_000_000, 1),
        header_that_claims(1, 1 << 20),
        header_that_claims(0, 1) + text("k") + struct.pack("<IIQ", 9, 8, 1 << 61),
        header_that_claims(0, 1) + text("k") + struct.pack("<IQ", 8, 1 << 40),
    ],
)
def test_headers_that_claim_too_much_are_refused_after_a_few_kilobytes(hub: FakeHub, head: bytes) -> None:
    hub.files = {"m.gguf": head + bytes(4 << 20)}

    with pytest.raises((FormatError, IntegrityError)):
        plan_of(hub)

    assert hub.sent_bytes < 1 << 20


@pytest.mark.thorough
def test_a_header_that_goes_on_and_on_is_left_before_it_fills_memory(hub: FakeHub) -> None:
    # An array of 40 MB that is really there: legal, but no shard after the first has one.
    entries = [*split_entries(1, 2, 3)]
    array = text("k") + struct.pack("<IIQ", 9, 0, 40 << 20) + bytes(40 << 20)
    late = b"GGUF" + struct.pack("<IQQ", 3, 0, 4) + b"".join(entries) + array
    first = b"GGUF" + struct.pack("<IQQ", 3, 0, 3) + b"".join(split_entries(0, 2, 3))
    hub.files = {"m-00001-of-00002.gguf": first + bytes(-len(first) % 32), "m-00002-of-00002.gguf": late}

    with pytest.raises(IntegrityError, match="header is larger than any"):
        plan_of(hub)

    assert hub.sent_bytes < 12 << 20


def test_many_small_headers_cannot_add_up_to_more_tensors_than_any_model_has(
    shards_hub: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dfqs.pull import headers

    monkeypatch.setattr(headers, "MAX_TENSORS", 15)

    with pytest.raises(FormatError, match="in all its files"):
        shards_hub.plan()


@pytest.mark.parametrize("size", [0, 3, 23, 100])
def test_a_tiny_or_cut_file_is_an_error_with_a_name_and_no_traceback(hub: FakeHub, size: int) -> None:
    hub.files = {"m.gguf": single_model()[:size] or b"x"}

    with pytest.raises(DfqsError, match=r"m\.gguf"):
        plan_of(hub)


def test_a_file_that_is_truncated_on_the_hub_is_refused_before_it_is_fetched(hub: FakeHub) -> None:
    hub.files = {"m.gguf": single_model()[:-5000]}

    with pytest.raises(ShardError, match="broken on the Hub"):
        plan_of(hub)


def test_shards_that_do_not_belong_together_are_refused_before_data(shards_hub: Repository) -> None:
    files = shards_hub.hub.files
    files["model-00002-of-00003.gguf"] = files["model-00003-of-00003.gguf"]

    with pytest.raises(ShardError):
        shards_hub.plan()


def test_errors_of_the_hub_are_sentences(hub: FakeHub) -> None:
    hub.files = {"m.gguf": single_model()}
    client = Repository(hub, [], b"").client()

    with pytest.raises(UsageError, match=r"no repository other/thing@main, or it is private; then HF_TOKEN must be"):
        plan_pull(client, "other/thing", retry=HASTY)
    with pytest.raises(UsageError, match="no revision owner/model@nope"):
        plan_of(hub, revision="nope")
    with pytest.raises(UsageError, match="not a repository's name"):
        plan_pull(client, "a/b/c", retry=HASTY)
    hub.gated = True
    with pytest.raises(UsageError, match=r"gated: accept its conditions at http.*owner/model.* and set HF_TOKEN"):
        plan_of(hub)


def test_the_hub_itself_may_falter_and_is_asked_again(hub: FakeHub) -> None:
    hub.files = {"m.gguf": single_model()}
    hub.api_troubles = [(503, {}), (429, {"Retry-After": "0"}), (500, {})]

    assert plan_of(hub).name == "m.gguf"
    hub.api_troubles = [(503, {})] * 9
    with pytest.raises(NetworkError, match="HTTP 503"):
        plan_of(hub)


def test_a_hub_that_is_not_there_is_named() -> None:
    with FakeHub() as gone:
        client = Repository(gone, [], b"").client()
    with pytest.raises(NetworkError, match=r"http://127\.0\.0\.1:\d+ cannot be reached"):
        plan_pull(client, "owner/model", retry=HASTY)


def point_to(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    """What HF_ENDPOINT does in a process of its own."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
    template = hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


def test_command_line_pulls_verifies_and_records_where_from(
    shards_hub: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    point_to(shards_hub.hub, monkeypatch)
    out = tmp_path / "m.gguf"

    assert run(["pull", "owner/model@main", "-o", str(out), "--no-cache", "--json"]) == 0

    record = json.loads(capsys.readouterr().out)
    manifest = read_manifest(tmp_path / "m.gguf.manifest.json")
    assert out.read_bytes() == shards_hub.merged
    assert record["content_sha256"] == manifest.content_sha256
    assert (manifest.provenance.repo, manifest.provenance.commit) == ("owner/model", COMMIT)
    assert manifest.provenance.shards is not None
    assert [s.sha256 for s in manifest.provenance.shards] == [shards_hub.hub.sha256(p.name) for p in shards_hub.shards]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.gguf", "m.gguf.manifest.json"]
    assert run(["verify", str(out), "--manifest", str(tmp_path / "m.gguf.manifest.json")]) == 0


def test_a_model_on_the_hub_is_inspected_like_its_merge_for_some_kilobytes(
    shards_hub: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    point_to(shards_hub.hub, monkeypatch)
    local = tmp_path / "m.gguf"
    local.write_bytes(shards_hub.merged)

    assert run(["inspect", "hf:owner/model@main:model", "--json"]) == 0
    remote = json.loads(capsys.readouterr().out)
    assert run(["inspect", str(local), "--json"]) == 0
    merged = json.loads(capsys.readouterr().out)

    assert (remote["parameters"], remote["roles"]) == (merged["parameters"], merged["roles"])
    assert shards_hub.hub.sent_bytes <= 3 * (64 << 10) + 72
    assert run(["inspect", "hf:owner"]) == 2


def test_plan_shows_and_fetches_no_data(
    shards_hub: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    point_to(shards_hub.hub, monkeypatch)

    assert run(["pull", "owner/model", "-o", str(tmp_path / "m.gguf"), "--plan", "--json"]) == 0

    record = json.loads(capsys.readouterr().out)
    assert (record["fits"], record["dry_run"], record["commit"]) == (True, True, COMMIT)
    assert record["remote_bytes"] == shards_hub.remote_bytes
    assert shards_hub.hub.sent_bytes <= 3 * (64 << 10) + 72
    assert list(tmp_path.iterdir()) == []
    assert run(["pull", "owner/model", "-o", str(tmp_path / "m.gguf"), "--plan"]) == 0
    assert "it fits" in capsys.readouterr().out
    assert run(["pull", "no-slash", "-o", str(tmp_path)]) == 2


def test_shards_in_the_local_cache_are_used_checked_and_not_fetched(
    shards_hub: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    cache = tmp_path / "cache"
    snapshot = cache / "models--owner--model" / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    blobs = cache / "models--owner--model" / "blobs"
    blobs.mkdir()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    good, bad, missing = (path.name for path in shards_hub.shards)
    for name, data in ((good, shards_hub.hub.files[good]), (bad, bytes(len(shards_hub.hub.files[bad])))):
        (blobs / name).write_bytes(data)
        (snapshot / name).symlink_to(blobs / name)
    plan = shards_hub.plan()
    result = shards_hub.pull(tmp_path / "m.gguf", plan, use_cache=True)

    fetched = {request.name for request in shards_hub.hub.data_requests}
    assert (tmp_path / "m.gguf").read_bytes() == shards_hub.merged
    assert fetched == {bad, missing}
    assert result.cached_bytes == len(shards_hub.hub.files[good]) + len(shards_hub.hub.files[bad])
    assert all("had come wrong" in line and bad in line for line in result.refetched_chunks)


def test_git_hashes_of_the_fake_hub_are_git_s_own() -> None:
    # `printf 'hello\n' | git hash-object --stdin`
    assert git_sha1(b"hello\n") == "ce013625030ba8dba906f756967f9e9ca394464a"
