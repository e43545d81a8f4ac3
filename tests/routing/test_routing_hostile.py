"""Traces made to take memory or time, or to say what makes trouble later."""

import hashlib
import json
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from dfqs.errors import FormatError, UsageError
from dfqs.routing.coherence import diff_traces, uniform_chance_jaccard
from dfqs.routing.stats import measure_stats
from dfqs.routing.trace import Trace, TraceChunk, TraceHeader
from dfqs.routing.tracefile import CHUNK, END, FRAME, MAGIC, MAX_CHUNK_BYTES, MAX_TOKEN_BYTES, START, read_trace
from memory_limits import peak_under_limit
from routing_traces import make_header, make_trace, write


def sealed(parts: list[bytes]) -> bytes:
    """Parts with the hashes that a writer would put behind each."""
    digest, out = hashlib.sha256(), b""
    for part in parts:
        digest.update(part)
        out += part + digest.digest()
    return out


def header_part(text: bytes) -> bytes:
    return START.pack(MAGIC, len(text)) + text


def hostile(path: Path, header: TraceHeader) -> Path:
    """A trace whose chunk is as large as any (where that takes no minutes), and compresses to nearly nothing."""
    slow = not header.scores and header.model.experts_used > 1
    count = 16 if slow else MAX_CHUNK_BYTES // header.token_bytes
    layers, used = len(header.layers), header.model.experts_used
    raw = np.zeros(count, "<i4").tobytes()
    raw += np.broadcast_to(np.arange(used, dtype=header.id_dtype), (layers, count, used)).tobytes()
    raw += b"".join(np.full(layers * count * header.model.experts, 0.25, "<f4").tobytes() for _ in header.scores)
    payload = zlib.compress(raw, 9)
    parts = [header_part(header.model_dump_json().encode())]
    parts.append(FRAME.pack(CHUNK, len(payload), 0, 0, count) + payload)
    path.write_bytes(sealed([*parts, FRAME.pack(END, 0, 1, 1, count)]))
    return path


def shapes() -> Iterator[tuple[str, TraceHeader]]:
    both = ("probabilities", "selection")
    yield "one expert of two, no scores", make_header(1, 2, 1)
    yield "many layers", make_header(4096, 8, 2)
    yield "tokens as large as any", make_header(MAX_TOKEN_BYTES // (8 * 65_536) - 1, 65_536, 1, scores=both)
    yield "many experts and scores", make_header(8, 2048, 8, scores=both)
    yield "many experts used", make_header(1, 2048, 1024)
    yield "many blocks", make_header(512, 128, 8, scores=both)


@pytest.mark.thorough
@pytest.mark.parametrize(("name", "header"), list(shapes()), ids=lambda value: value if isinstance(value, str) else "")
def test_no_trace_takes_more_memory_than_the_limit(name: str, header: TraceHeader, tmp_path: Path) -> None:
    path = hostile(tmp_path / "t.route", header)
    code = f"""
from pathlib import Path
from dfqs.errors import DfqsError
from dfqs.routing.coherence import diff_traces
from dfqs.routing.stats import measure_stats
path = Path({str(path)!r})
print(diff_traces(path, path).tokens)
"""
    assert path.stat().st_size < 1 << 20

    found = peak_under_limit(code)

    assert (found.returncode, found.stderr) == (0, ""), name
    counted = peak_under_limit(code.replace("print(diff_traces(path, path).tokens)", STATS))
    assert (counted.returncode, counted.stderr) == (0, ""), name


STATS = """
# The first tokens show what all of them take; all would take minutes.
import dfqs.routing.stats as stats
counted, add = [], stats.StatsTally.add
def some(self, block):
    if len(counted) == 2:
        raise SystemExit
    counted.append(add(self, block))
stats.StatsTally.add = some
try:
    measure_stats(path)
except DfqsError as error:
    assert "bounded memory" in str(error), error
"""


@pytest.mark.parametrize(
    "text",
    [
        b"[" * 100_000,
        b'{"format":' * 50_000,
        b'{"layers": [' + b"1e999," * 10 + b"0]}",
        b'{"layers": [' + b"9" * 5000 + b"]}",
        b'{"format": "\\ud800"}',
        b'{"format": "\\u009b31m"}',
        b"\xff\xfe",
        b"null",
        b"",
    ],
)
def test_a_header_of_any_json_is_refused_in_a_sentence(text: bytes, tmp_path: Path) -> None:
    path = tmp_path / "t.route"
    path.write_bytes(sealed([header_part(text)]))

    with pytest.raises(FormatError) as refused:
        read_trace(path)

    assert str(refused.value).isprintable()


def test_tokens_larger_than_a_writer_writes_are_refused(tmp_path: Path) -> None:
    header = make_header(40, 65_536, 1, scores=("probabilities",))
    path = tmp_path / "t.route"
    path.write_bytes(sealed([header_part(header.model_dump_json().encode())]))

    with pytest.raises(FormatError, match="bytes each are impossible"):
        read_trace(path)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_scores_that_are_no_numbers_are_neither_written_nor_read(value: float, tmp_path: Path) -> None:
    header = make_header(2, 4, 2, scores=("probabilities",))
    trace = make_trace(header, 4)
    scores = trace.chunks[0].probabilities
    assert scores is not None
    scores[1, 2, 3] = value
    with pytest.raises(ValueError, match="not a number"):
        write(tmp_path / "t.route", trace)
    chunk = trace.chunks[0]
    raw = chunk.tokens.astype("<i4").tobytes() + chunk.ids.tobytes() + scores.tobytes()
    payload = zlib.compress(raw)
    frame = FRAME.pack(CHUNK, len(payload), 0, 0, 4) + payload
    path = tmp_path / "foreign.route"
    path.write_bytes(sealed([header_part(json.dumps(header.model_dump(mode="json")).encode()), frame]))

    with pytest.raises(FormatError, match="a router score is not a number"):
        read_trace(path)


def test_the_chance_of_a_huge_model_is_known_at_once() -> None:
    """Its binomials as whole numbers took minutes."""
    assert 0.33 < uniform_chance_jaccard(65_536, 32_768) < 0.34
    assert uniform_chance_jaccard(65_536, 65_536) == 1.0


def test_experts_that_cannot_be_counted_are_refused_before_they_are(tmp_path: Path) -> None:
    for layers, experts, used in ((1, 4096, 1), (4096, 64, 1), (4, 2048, 1024)):
        header = make_header(layers, experts, used)
        ids = np.tile(np.arange(used, dtype=header.id_dtype), (layers, 1, 1))
        trace = make_trace(make_header(), 1)
        whole = TraceChunk(0, 0, trace.chunks[0].tokens, ids)
        path = tmp_path / f"{experts}.route"
        write(path, Trace(header, (whole,)))
        with pytest.raises(UsageError, match="bounded memory"):
            measure_stats(path)
        assert diff_traces(path, path).overall.jaccard == 1.0
