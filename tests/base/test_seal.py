"""Records that this user's dfqs wrote are told from those of anybody else."""

import threading
from pathlib import Path

import pytest

from dfqs.errors import UsageError
from dfqs.storage import seal as seal_module
from dfqs.storage.seal import KEY_BYTES, Sealer, key_path


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DFQS_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_seal_holds_for_its_data_and_purpose_only() -> None:
    seal = Sealer("merge").make_seal(b"record")

    assert Sealer("merge").is_sealed(b"record", seal)
    assert not Sealer("merge").is_sealed(b"other record", seal)
    assert not Sealer("pull").is_sealed(b"record", seal)
    assert not Sealer("merge").is_sealed(b"record", "\N{SNOWMAN}")


def test_key_is_this_users_alone() -> None:
    Sealer("merge").make_seal(b"record")

    assert key_path().stat().st_mode & 0o777 == 0o600
    assert key_path().stat().st_size == KEY_BYTES
    assert [path.name for path in key_path().parent.iterdir()] == ["journal-key"]


def test_without_the_key_nothing_is_sealed_and_asking_makes_none() -> None:
    seal = Sealer("merge").make_seal(b"record")
    key_path().unlink()

    assert not Sealer("merge").is_sealed(b"record", seal)
    assert not key_path().exists()
    Sealer("merge").make_seal(b"record")
    assert not Sealer("merge").is_sealed(b"record", seal)


def test_many_that_begin_at_once_share_one_key() -> None:
    seals: list[str] = []
    threads = [threading.Thread(target=lambda: seals.append(Sealer("merge").make_seal(b"r"))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(seals) == 8 and len(set(seals)) == 1


@pytest.mark.parametrize("damage", ["readable", "short", "long", "link", "folder"])
def test_key_that_others_could_know_is_not_used(damage: str, tmp_path: Path) -> None:
    Sealer("merge").make_seal(b"record")
    path = key_path()
    if damage == "readable":
        path.chmod(0o644)
    elif damage in ("short", "long"):
        path.write_bytes(bytes(KEY_BYTES + (1 if damage == "long" else -1)))
    else:
        path.unlink()
        if damage == "link":
            path.symlink_to("/dev/zero")
        else:
            path.mkdir()

    with pytest.raises(UsageError, match="journal-key"):
        Sealer("merge").make_seal(b"record")


def test_cache_that_cannot_be_made_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("DFQS_CACHE", str(tmp_path / "file" / "cache"))

    with pytest.raises(UsageError, match="set DFQS_CACHE"):
        Sealer("merge").make_seal(b"record")


def test_relative_cache_home_is_ignored_as_its_specification_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "here")

    assert key_path() == Path.home() / ".cache/dfqs/journal-key"


def test_long_journal_is_not_read_with_a_look_at_the_key_for_every_line(monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[Path] = []
    read = seal_module._read_key

    def counted() -> bytes | None:
        looks.append(key_path())
        return read()

    monkeypatch.setattr(seal_module, "_read_key", counted)
    sealer = Sealer("merge")

    seals = [sealer.make_seal(b"%d" % number) for number in range(100)]
    made = len(looks)
    reader = Sealer("merge")

    assert all(reader.is_sealed(b"%d" % number, seal) for number, seal in enumerate(seals))
    assert made <= 2 and len(looks) == made + 1
