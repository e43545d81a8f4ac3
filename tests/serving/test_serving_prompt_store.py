"""Prompts kept on disk: whole, of this model, written by this user, or computed again. Never read by llama.cpp else."""

import hashlib
import os
import struct
from pathlib import Path

import pytest

from dfqs.errors import IntegrityError, UsageError
from dfqs.serving.dispatch import read_lengths
from dfqs.serving.prompt_store import KeptPrompt, PromptStore

OWNER = hashlib.sha256(b"model and settings").hexdigest()
CACHES = bytes(range(256)) * 40


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DFQS_CACHE", str(tmp_path / "cache"))


def store(tmp_path: Path, limit_bytes: int = 1 << 20, owner: str = OWNER) -> PromptStore:
    return PromptStore(tmp_path / "prompts", owner, limit_bytes)


def write_as_llama_server(kept: PromptStore, slot: int, tokens: int, *, media: int = 0) -> None:
    packed = struct.pack(f"<iII{tokens}iI", -1, 1, tokens, *range(tokens), media)
    head = struct.pack("<III", 0x67677371, 2, len(packed) // 4)
    (kept.directory / kept.name_for_saving(slot)).write_bytes(head + packed + CACHES)


def keep(kept: PromptStore, slot: int = 0, tokens: int = 20, wanted: int | None = 16) -> Path:
    write_as_llama_server(kept, slot, tokens)
    kept.keep(slot, wanted)
    return kept.directory / f"{OWNER[:16]}-{slot}.prompt"


def test_what_is_read_back_is_the_beginning_that_was_wanted_and_nothing_is_left_beside_it(tmp_path: Path) -> None:
    with store(tmp_path) as kept:
        path = keep(kept)
        assert list(kept.read()) == [KeptPrompt(path, 0, 16)]
        head = struct.pack("<III16i", 0x67677371, 2, 16, *range(16))
        assert path.read_bytes().startswith(head + CACHES + b"\n")
        assert {each.suffix for each in kept.directory.iterdir()} == {".prompt", ".lock"}
        # As llama-server writes it again: in the place of the one before.
        keep(kept, tokens=40, wanted=None)
        assert list(kept.read()) == [KeptPrompt(path, 0, 40)]


@pytest.mark.thorough
def test_every_changed_byte_and_every_cut_is_found_before_llama_cpp_reads_it(tmp_path: Path) -> None:
    with store(tmp_path) as kept:
        path = keep(kept)
        whole = path.read_bytes()
        for place in (*range(0, len(whole) - 400, 997), *range(len(whole) - 400, len(whole))):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
            (found,) = kept.read()
            assert isinstance(found, str) and "is left alone, and its prompt is computed again: " in found, place
        for length in (0, 1, 100, len(whole) // 2, len(whole) - 1):
            path.write_bytes(whole[:length])
            assert [type(found) for found in kept.read()] == [str]
        path.write_bytes(whole + b"\n")
        assert [type(found) for found in kept.read()] == [str]
        path.write_bytes(whole)
        assert list(kept.read()) == [KeptPrompt(path, 0, 16)]


def test_what_a_stranger_wrote_or_another_model_left_is_not_restored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with store(tmp_path) as kept:
        path = keep(kept)
    # The same beginning of a name, another model.
    with store(tmp_path, owner=OWNER[:16] + "0" * 48) as other:
        (found,) = other.read()
        assert isinstance(found, str) and "it is of another model, or of other settings" in found
    monkeypatch.setenv("DFQS_CACHE", str(tmp_path / "stranger"))
    with store(tmp_path) as kept:
        (found,) = kept.read()
        assert isinstance(found, str) and "this user's dfqs did not write it" in found
        path.unlink()
        path.symlink_to("/etc/passwd")
        (found,) = kept.read()
        assert isinstance(found, str) and "is a link" in found
        path.unlink()
        os.mkfifo(path)
        assert [type(found) for found in kept.read()] == [str]


def test_all_that_is_kept_stays_within_the_limit_and_the_oldest_make_room(tmp_path: Path) -> None:
    with store(tmp_path, limit_bytes=25_000) as kept:
        paths = [keep(kept, slot) for slot in range(2)]
        os.utime(paths[0], (1, 1))
        paths.append(keep(kept, 2))
        assert [path.exists() for path in paths] == [False, True, True]
        assert kept.kept_bytes() <= 25_000
    with store(tmp_path, limit_bytes=1000) as kept:
        write_as_llama_server(kept, 3, 20)
        assert kept.keep(3, 16) == 0
        assert not list(kept.directory.glob("*.save"))


@pytest.mark.parametrize(
    "data", [b"", b"GGUF", b"\x71\x73\x67\x67" + bytes(7), struct.pack("<III", 0x67677371, 2, 1 << 30)]
)
def test_what_is_no_prompt_of_llama_server_is_not_kept(tmp_path: Path, data: bytes) -> None:
    with store(tmp_path) as kept:
        (kept.directory / kept.name_for_saving(0)).write_bytes(data)
        with pytest.raises(IntegrityError, match="not what llama-server writes"):
            kept.keep(0, 16)
        write_as_llama_server(kept, 0, 20, media=1)
        with pytest.raises(IntegrityError):
            kept.keep(0, 16)
        assert list(kept.read()) == []


def test_two_servers_of_a_model_do_not_write_over_each_other(tmp_path: Path) -> None:
    with store(tmp_path), pytest.raises(UsageError, match="is used by another server of this model"):
        store(tmp_path).__enter__()
    with store(tmp_path) as kept:
        assert kept.directory.stat().st_mode & 0o777 == 0o700


def test_a_place_that_others_write_in_is_none(tmp_path: Path) -> None:
    (tmp_path / "prompts").mkdir(mode=0o777)
    (tmp_path / "prompts").chmod(0o777)
    with pytest.raises(UsageError, match="others may write in it"):
        store(tmp_path).__enter__()
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UsageError, match="cannot keep prompts"):
        PromptStore(tmp_path / "file", OWNER, 1).__enter__()


def test_lengths_are_read_where_llama_server_tells_them_and_not_out_of_a_text() -> None:
    timings = b'"timings":{"cache_n":5,"prompt_n":7,"prompt_ms":1.5,"predicted_n":9,"predicted_ms":2}}'
    assert read_lengths(b"x" * 100 + timings) == (12, 9)
    assert read_lengths(b'{"usage":{"input_tokens":12,"output_tokens":3}}') == (12, 3)
    said = rb'{"content":"\"cache_n\":5,\"prompt_n\":7,\"predicted_n\":9"}'
    assert read_lengths(said) is None
    assert read_lengths(b"") is None
