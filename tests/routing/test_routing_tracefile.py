"""Trace files: what is written comes back, and nothing that was changed does."""

import hashlib
import json
import os
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dfqs.errors import FormatError, UsageError
from dfqs.routing.identity import as_words
from dfqs.routing.trace import TraceChunk, TraceHeader, join_chunks, pair_chunks
from dfqs.routing.tracefile import CHUNK, FRAME, MAGIC, MAX_CHUNK_BYTES, START, TraceReader, read_trace, write_trace
from routing_traces import make_chunk, make_header, make_trace, write

Part = bytes


def assert_same(a: TraceChunk, b: TraceChunk) -> None:
    assert (a.prompt, a.position) == (b.prompt, b.position)
    assert np.array_equal(a.tokens, b.tokens)
    assert np.array_equal(a.ids, b.ids)
    for left, right in ((a.probabilities, b.probabilities), (a.selection, b.selection)):
        assert (left is None) == (right is None)
        assert left is None or right is None or np.array_equal(left, right)


@given(st.integers(2, 300), st.integers(1, 4), st.integers(1, 3), st.lists(st.integers(1, 40), min_size=1, max_size=4))
@settings(max_examples=30)
def test_every_trace_comes_back_as_it_was_written(
    tmp_path_factory: pytest.TempPathFactory, experts: int, layers: int, used: int, lengths: list[int]
) -> None:
    scores = ((), ("probabilities",), ("probabilities", "selection"))[experts % 3]
    trace = make_trace(make_header(layers, experts, min(used, experts), scores=scores), *lengths)
    path = tmp_path_factory.mktemp("trace") / "t.route"

    digest = write_trace(path, trace.header, trace.chunks)

    with TraceReader(path) as reader:
        back = reader.read()
        assert reader.sha256 == digest
    assert back.header == trace.header
    for prompt, chunk in enumerate(trace.chunks):
        assert_same(join_chunks([c for c in back.chunks if c.prompt == prompt]), chunk)


def test_experts_beyond_255_take_two_bytes_and_keep_their_numbers(tmp_path: Path) -> None:
    header = make_header(1, 384, 1)
    ids = np.arange(384, dtype=np.uint16).reshape(1, 384, 1)
    path = tmp_path / "t.route"
    write_trace(path, header, [TraceChunk(0, 0, np.arange(384, dtype=np.int32), ids)])

    assert np.array_equal(read_trace(path).chunks[0].ids, ids)


@pytest.mark.thorough
def test_a_flip_of_any_byte_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "t.route", make_trace(make_header(scores=("probabilities",)), 5, 3))
    good = path.read_bytes()
    accepted = []
    for index in range(len(good)):
        path.write_bytes(good[:index] + bytes([good[index] ^ 0x10]) + good[index + 1 :])
        try:
            read_trace(path)
            accepted.append(index)
        except FormatError:
            pass

    assert accepted == []


def test_a_file_cut_anywhere_or_with_something_added_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "t.route", make_trace(make_header(), 5, 3))
    good = path.read_bytes()
    for length in range(len(good)):
        path.write_bytes(good[:length])
        with pytest.raises(FormatError):
            read_trace(path)
    path.write_bytes(good + b"\0")
    with pytest.raises(FormatError, match="after the end mark"):
        read_trace(path)


def rehashed(parts: list[Part]) -> bytes:
    """A file whose hashes are right, whatever its parts say: what a forger would make."""
    digest, out = hashlib.sha256(), b""
    for part in parts:
        digest.update(part)
        out += part + digest.digest()
    return out


def start_part(header: dict[str, Any]) -> Part:
    text = json.dumps(header).encode()
    return START.pack(MAGIC, len(text)) + text


def chunk_part(payload: bytes, tokens: int, prompt: int = 0, position: int = 0) -> Part:
    return FRAME.pack(CHUNK, len(payload), prompt, position, tokens) + payload


def end_part(prompts: int, chunks: int, tokens: int) -> Part:
    return FRAME.pack(b"END\0", 0, prompts, chunks, tokens)


HEADER = make_header().model_dump(mode="json")
IDS = b"\0\1" * 6
GOOD = zlib.compress(bytes(8) + IDS)
EXPERT_9 = zlib.compress(bytes(8) + b"\1\x09" * 6)


def lying(**changes: Any) -> dict[str, Any]:
    return {**HEADER, **changes}


LIES: dict[str, tuple[list[Part], str]] = {
    "no such format": ([start_part(lying(format="dfqs.route-trace/2"))], "format"),
    "an unknown key": ([start_part(lying(password="x"))], "password"),
    "layers out of order": ([start_part(lying(layers=[2, 1, 0]))], "ascend"),
    "layers outside the model": ([start_part(lying(layers=[0, 1, 99]))], "ascend"),
    "a hash layer that does not route": ([start_part(lying(hash_layers=[7]))], "hash-routed"),
    "more used than there are": ([start_part(lying(model={**HEADER["model"], "experts_used": 9}))], "makes no sense"),
    "a million experts": ([start_part(lying(model={**HEADER["model"], "experts": 10**6}))], "makes no sense"),
    "a name that moves the cursor": ([start_part(lying(model={**HEADER["model"], "name": "a\x1b[2J"}))], "printable"),
    "a name without end": ([start_part(lying(model={**HEADER["model"], "name": "a" * 201}))], "printable"),
    "a hash that is none": ([start_part(lying(model={**HEADER["model"], "router_sha256": "c"}))], "router_sha256"),
    "a token count too large": ([start_part(HEADER), chunk_part(GOOD, 2**31)], "impossible"),
    "no tokens": ([start_part(HEADER), chunk_part(GOOD, 0)], "impossible"),
    "fewer bytes than the tokens take": ([start_part(HEADER), chunk_part(GOOD, 3)], "does not hold"),
    "more bytes than the tokens take": ([start_part(HEADER), chunk_part(GOOD, 1)], "does not hold"),
    "bytes after the compressed ones": ([start_part(HEADER), chunk_part(GOOD + b"x", 2)], "does not hold"),
    "not compressed": ([start_part(HEADER), chunk_part(b"plain", 2)], "decompressed"),
    "an expert that there is not": (
        [start_part(HEADER), chunk_part(EXPERT_9, 2)],
        "expert 9",
    ),
    "an expert twice": ([start_part(HEADER), chunk_part(zlib.compress(bytes(20)), 2)], "twice"),
    "a negative token": ([start_part(HEADER), chunk_part(zlib.compress(b"\xff" * 8 + IDS), 2)], "negative"),
    "a start in the middle": ([start_part(HEADER), chunk_part(GOOD, 2, position=5)], "does not follow"),
    "a prompt left out": ([start_part(HEADER), chunk_part(GOOD, 2, prompt=1)], "does not follow"),
    "a wrong end mark": ([start_part(HEADER), chunk_part(GOOD, 2), end_part(1, 1, 3)], "does not agree"),
    "no end mark": ([start_part(HEADER), chunk_part(GOOD, 2)], "interrupted"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_lie_with_correct_hashes_is_refused_by_name(lie: str, tmp_path: Path) -> None:
    parts, message = LIES[lie]
    path = tmp_path / "t.route"
    path.write_bytes(rehashed(parts))

    with pytest.raises(FormatError, match=message):
        read_trace(path)


def test_the_forger_s_tools_make_a_good_file_when_they_do_not_lie(tmp_path: Path) -> None:
    path = tmp_path / "t.route"
    path.write_bytes(rehashed([start_part(HEADER), chunk_part(GOOD, 2), end_part(1, 1, 2)]))

    assert read_trace(path).tokens == 2


@pytest.mark.thorough
def test_a_compressed_bomb_takes_no_more_memory_than_its_chunk_may(tmp_path: Path) -> None:
    bomb = zlib.compress(bytes(200 << 20), 9)
    path = tmp_path / "t.route"
    path.write_bytes(rehashed([start_part(HEADER), chunk_part(bomb, (1 << 20))]))

    tracemalloc.start()
    with pytest.raises(FormatError):
        read_trace(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert peak < 2 * MAX_CHUNK_BYTES


def test_a_header_length_that_lies_is_not_allocated(tmp_path: Path) -> None:
    path = tmp_path / "t.route"
    path.write_bytes(START.pack(MAGIC, 0xFFFFFFFF))

    with pytest.raises(FormatError, match="impossible"):
        read_trace(path)


def test_a_trace_is_read_from_a_pipe_where_nothing_can_be_sought(tmp_path: Path) -> None:
    trace = make_trace(make_header(), 40, 3)
    data = write(tmp_path / "t.route", trace).read_bytes()
    assert len(data) < 1 << 16, "fits into the pipe, so that one thread can do both"
    reading, writing = os.pipe()
    os.write(writing, data)
    os.close(writing)

    found = read_trace(Path(f"/dev/fd/{reading}"))

    os.close(reading)
    assert [len(chunk) for chunk in found.chunks] == [40, 3]


def test_a_model_s_name_that_no_trace_may_hold_is_made_printable() -> None:
    name = as_words("bell\a " + "long" * 100)

    assert name.startswith("bell\\x07 long")
    assert make_header(model={"name": name}).model.name == name


def test_other_files_are_no_traces(tmp_path: Path) -> None:
    path = tmp_path / "t.route"
    for content in (b"", b"GGUF", b"PK\x03\x04" + bytes(100)):
        path.write_bytes(content)
        with pytest.raises(FormatError, match="not a routing trace"):
            read_trace(path)
    with pytest.raises(UsageError, match="no such file"):
        read_trace(tmp_path / "missing.route")


@pytest.mark.parametrize(
    "spoil",
    [
        lambda c: TraceChunk(c.prompt, c.position, c.tokens, c.ids + 7),
        lambda c: TraceChunk(c.prompt, c.position, c.tokens, c.ids[:2]),
        lambda c: TraceChunk(c.prompt, c.position, c.tokens, c.ids.astype(np.int32) - 3),
        lambda c: TraceChunk(1, c.position, c.tokens, c.ids),
        lambda c: TraceChunk(c.prompt, 1, c.tokens, c.ids),
    ],
)
def test_a_writer_refuses_what_a_reader_would_and_leaves_no_file(
    spoil: Callable[[TraceChunk], TraceChunk], tmp_path: Path
) -> None:
    header = make_header()
    with pytest.raises(ValueError):
        write_trace(tmp_path / "t.route", header, [spoil(make_chunk(header, 4))])

    assert list(tmp_path.iterdir()) == []


def v4_flash_sized() -> tuple[TraceHeader, list[TraceChunk]]:
    """10,000 tokens x 43 layers x 6 of 256 experts, routed at random: nothing for a compressor to find."""
    header = make_header(43, 256, 6)
    rng = np.random.default_rng(0)
    chunks = []
    for start in range(0, 10_000, 500):
        ids = rng.integers(0, 250, (43, 500, 1)) + rng.permuted(np.tile(np.arange(6), (43, 500, 1)), axis=-1)
        tokens = rng.integers(0, 129_280, 500, dtype=np.int32)
        chunks.append(TraceChunk(0, start, tokens, ids.astype(np.uint8)))
    return header, chunks


@pytest.mark.thorough
def test_ten_thousand_tokens_of_the_reference_model_stay_below_3_mb_and_are_read_in_bounded_memory(
    tmp_path: Path,
) -> None:
    header, chunks = v4_flash_sized()
    path = tmp_path / "t.route"
    write_trace(path, header, chunks)
    size = path.stat().st_size

    tracemalloc.start()
    with TraceReader(path) as reader:
        count = sum(len(chunk) for chunk in reader.chunks())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert count == 10_000
    assert size < 3_000_000
    assert peak < 2_000_000


def test_traces_cut_differently_pair_up_token_by_token() -> None:
    header = make_header(scores=("probabilities",))
    whole = make_chunk(header, 10)
    cut = [whole.part(0, 3), whole.part(3, 4), whole.part(4, 10)]

    pairs = list(pair_chunks([whole.part(0, 6), whole.part(6, 10)], cut))

    assert [len(a) for a, _ in pairs] == [3, 1, 2, 4]
    for a, b in pairs:
        assert_same(a, b)
    assert_same(join_chunks([a for a, _ in pairs]), whole)


def test_pairing_says_where_tokens_part() -> None:
    header = make_header()
    a = make_chunk(header, 10)
    tokens = a.tokens.copy()
    tokens[7] = 12345
    b = TraceChunk(0, 0, tokens, a.ids)

    with pytest.raises(UsageError, match=r"prompt 0, position 7 holds token \d+ in the first and 12345 in the second"):
        list(pair_chunks([a], [b]))
    with pytest.raises(UsageError, match=r"the second ends where the other goes on \(prompt 0, position 6\)"):
        list(pair_chunks([a], [a.part(0, 6)]))
    with pytest.raises(UsageError, match=r"prompt 1 at position 0 in the first is prompt 0"):
        list(pair_chunks([TraceChunk(1, 0, a.tokens, a.ids)], [a]))
