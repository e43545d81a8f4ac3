"""What a small or sparse file can cost: each reader at its limit and beyond it, in bounded memory."""

import hashlib
import os
from pathlib import Path

import pytest

from dfqs.errors import DfqsError, FormatError, UsageError
from dfqs.gguf import GGMLType, KeyValue, ValueType, array, encode_header, string, tensor_length, u32
from dfqs.quantize.imatrix_file import ImatrixFile, read_imatrix
from dfqs.quantize.imatrix_sums import MAX_SUMS
from dfqs.quantize.journal import KIND, MAX_JOURNAL_BYTES, Journal
from dfqs.quantize.logits_file import MAX_TOKENS, TOP, read_losses, require_storable
from dfqs.quantize.recipe import MAX_EXCEPTIONS, class_from_record, read_recipe
from dfqs.storage.lines import encode_line
from memory_limits import LIMIT_BYTES, Limited, peak_under_limit

T = GGMLType
Shapes = list[tuple[str, tuple[int, ...], GGMLType]]


def write_sparse(path: Path, keys: list[KeyValue], shapes: Shapes) -> Path:
    """A header, and a hole in place of its tensors."""
    header = encode_header(keys, shapes)
    path.write_bytes(header)
    with path.open("r+b") as file:
        file.truncate(len(header) + sum(tensor_length(type_, shape) + 32 for _, shape, type_ in shapes))
    return path


def limited(code: str) -> Limited:
    result = peak_under_limit(code)
    assert result.peak_bytes < LIMIT_BYTES
    return result


def imatrix_of(path: Path, sums: int) -> Path:
    keys = [string("general.type", "imatrix"), u32("imatrix.chunk_count", 1), u32("imatrix.chunk_size", 512)]
    shapes: Shapes = [("w.in_sum2", (256, sums // 256), T.F32), ("w.counts", (1,), T.F32), ("w.in_sum", (sums,), T.F32)]
    return write_sparse(path, keys, shapes)


def test_an_importance_matrix_at_the_limit_is_read_and_beyond_it_refused(tmp_path: Path) -> None:
    """A sparse file of some kilobytes took 11 GB."""
    at, beyond = imatrix_of(tmp_path / "at.gguf", MAX_SUMS), imatrix_of(tmp_path / "beyond.gguf", 1 << 31)

    code = f"""
from pathlib import Path
from dfqs.errors import FormatError
from dfqs.quantize.imatrix_file import ImatrixFile, read_imatrix
with ImatrixFile(Path({str(at)!r})) as file:
    assert file.importance("w", (256, 8, {MAX_SUMS // 256})) is not None
    assert len(file.silent("w", (256, 8, {MAX_SUMS // 256}))) == {MAX_SUMS // 256}
try:
    read_imatrix(Path({str(at)!r}))
except FormatError as error:
    print(error)
"""
    assert "every sum in it is zero" in limited(code).stdout
    with pytest.raises(FormatError, match=r"claims 2,147,483,648 sums; no weight has more"):
        read_imatrix(beyond)


def test_many_weights_that_are_holes_cost_no_memory(tmp_path: Path) -> None:
    shapes: Shapes = [
        (f"w{i}{end}", (size,), T.F32) for i in range(12) for end, size in ((".in_sum2", MAX_SUMS), (".counts", 1))
    ]
    path = write_sparse(tmp_path / "i.gguf", [string("general.type", "imatrix")], shapes)

    code = f"""
from pathlib import Path
from dfqs.errors import FormatError
from dfqs.quantize.imatrix_file import read_imatrix
try:
    read_imatrix(Path({str(path)!r}))
except FormatError as error:
    print(error)
"""
    assert "every sum in it is zero" in limited(code).stdout


@pytest.mark.parametrize(
    "key",
    [
        array("imatrix.datasets", ValueType.STRING, ["x" * 100] * 100_000),
        array("imatrix.chunk_count", ValueType.UINT32, [1] * 1_000_000),
        string("imatrix.chunk_size", "x" * 1_000_000),
    ],
    ids=["datasets", "chunks", "chunk size"],
)
def test_keys_of_an_importance_matrix_are_asked_for_their_type_first(key: KeyValue, tmp_path: Path) -> None:
    shapes: Shapes = [("w.in_sum2", (4,), T.F32), ("w.counts", (1,), T.F32)]
    path = write_sparse(tmp_path / "i.gguf", [string("general.type", "imatrix"), key], shapes)

    with pytest.raises(FormatError, match="imatrix"), ImatrixFile(path) as file:
        _ = (file.datasets, file.chunks, file.chunk_tokens)


def logits_of(path: Path, tokens: int, top: int = TOP, **more: str) -> Path:
    keys: list[KeyValue] = [
        string("general.type", "dfqs-logits"),
        string("dfqs.logits.format", "dfqs.logits/1"),
        *(string(f"dfqs.logits.{name}", more.get(name, "x")) for name in ("model", "text_sha256", "numerics")),
        *(u32(f"dfqs.logits.{name}", 512) for name in ("vocabulary", "window_tokens", "stride_tokens")),
    ]
    shapes: Shapes = [("targets", (tokens,), T.I32), ("nll", (tokens,), T.F32)]
    shapes += [("top_ids", (top, tokens), T.I32), ("top_logprobs", (top, tokens), T.F32)]
    return write_sparse(path, keys, shapes)


def test_stored_logits_at_the_limit_are_read_and_compared_within_the_memory_allowed(tmp_path: Path) -> None:
    path = logits_of(tmp_path / "l.gguf", MAX_TOKENS)

    result = limited(f"""
from dataclasses import replace
from pathlib import Path
from dfqs.quantize.logits_file import divergence, read_losses
losses = read_losses(Path({str(path)!r}))
few = replace(losses, top_logprobs=losses.top_logprobs[:20_000])
print(len(losses.nll), divergence(few, few.top_logprobs).shape)
""")
    assert result.stdout.split()[0] == str(MAX_TOKENS), result.stderr[-300:]


@pytest.mark.parametrize(("tokens", "top"), [(MAX_TOKENS + 1, 1), (1 << 30, 1), (1000, 1 << 20)])
def test_stored_logits_beyond_the_limit_are_refused_before_they_are_read(tokens: int, top: int, tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="more than are ever stored"):
        read_losses(logits_of(tmp_path / "l.gguf", tokens, top))


def test_nothing_is_stored_that_would_not_be_read_again() -> None:
    require_storable(MAX_TOKENS)
    with pytest.raises(UsageError, match="use --max-tokens"):
        require_storable(MAX_TOKENS + 1)


HEAD = encode_line({"schema": KIND.schema, "fingerprint": "f"}, sealer=KIND.sealer())[0]


def whole(text: bytes) -> bytes:
    """A line whose checksum fits, and that nobody sealed."""
    rest = b"0" * 32 + b" " + text
    return hashlib.sha256(rest).hexdigest()[:16].encode() + b" " + rest + b"\n"


@pytest.mark.parametrize(
    "rest",
    [
        b"\n" * (MAX_JOURNAL_BYTES - len(HEAD)),
        b"[" * (MAX_JOURNAL_BYTES - len(HEAD) - 1) + b"\n",
        whole(b"[" * 1000 + b"]" * 1000),
        whole(b'{"tensor": "\\ud800", "source_sha256": "' + b"0" * 64 + b'", "sha256": "' + b"0" * 64 + b'"}'),
        whole(b'{"tensor": "\xff"}'),
        whole(b'{"tensor": 1e999}'),
        whole(b'{"tensor": ' + b"9" * 5000 + b"}"),
        whole(b'{"tensor": "a", "source_sha256": [], "sha256": {}}'),
        whole(b'{"tensor": "a", "source_sha256": "' + b"0" * 64 + b'", "sha256": "' + b"0" * 64 + b'"}'),
        whole(b'{"complete": true}'),
    ],
    ids=range(10),
)
def test_a_line_that_no_run_of_ours_wrote_is_not_believed(rest: bytes, tmp_path: Path) -> None:
    (tmp_path / "journal").write_bytes(HEAD + rest)

    state = Journal(tmp_path / "journal", "f")
    state.close()

    assert state.finished == {} and not state.complete


@pytest.mark.parametrize(
    "first", [b"[" * 100_000 + b"\n", b"\xff\xfe\n", b'{"format": NaN}\n', b"{}\n", b"\n"], ids=range(5)
)
def test_a_file_that_is_no_journal_is_not_written_over(first: bytes, tmp_path: Path) -> None:
    (tmp_path / "journal").write_bytes(first)

    with pytest.raises(UsageError, match="is no journal of a quantization; move it away"):
        Journal(tmp_path / "journal", "f")

    assert (tmp_path / "journal").read_bytes() == first


def test_a_journal_beyond_the_limit_is_refused_and_at_it_costs_little(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    path.write_bytes(HEAD)
    with path.open("r+b") as file:
        file.truncate(1 << 40)
    with pytest.raises(FormatError, match="larger than"):
        Journal(path, "f")

    path.write_bytes(HEAD + b"\n" * (MAX_JOURNAL_BYTES - len(HEAD)))
    limited(f"from pathlib import Path; from dfqs.quantize.journal import *; Journal(Path({str(path)!r}), 'f')")


@pytest.mark.thorough
def test_a_class_of_gigabytes_in_a_model_is_a_finding(tmp_path: Path) -> None:
    """`dfqs.class` of 250 MB took 3.9 GB."""
    for name, keys in {
        "list": [array("dfqs.class", ValueType.UINT8, [0] * 50_000_000)],
        "text": [string("dfqs.class", "x" * 50_000_000)],
        "recipe": [string("dfqs.class", "IQ1_S-XL"), string("dfqs.recipe", "[" * 50_000_000)],
    }.items():
        path = write_sparse(
            tmp_path / "m.gguf", [string("general.architecture", "llama"), *keys], [("x", (32,), T.F32)]
        )
        result = limited(f"""
from pathlib import Path
from dfqs.gguf import read_header
from dfqs.quantize.declared import class_findings
print(class_findings(read_header(Path({str(path)!r})))[0].message[:200])
""")
        said = ("must be a string", "longer than", "cannot be read", "bytes")
        assert any(word in result.stdout for word in said), name


@pytest.mark.parametrize(
    "record",
    [
        {"name": "a\u009bb", "types": {"router": "F64"}},
        {"name": "a\x1b[2J", "types": {}},
        {"name": "x" * 65, "types": {}},
        {"name": "", "types": {}},
        {"name": "x", "types": {}, "exceptions": [{"tensors": "\u009b", "type": "Q8_0"}]},
        {"name": "x", "types": {}, "exceptions": [{"tensors": "*" * 1000, "type": "Q8_0"}]},
        {"name": "x", "types": {}, "exceptions": [{"tensors": "*", "type": "Q8_0"}] * (MAX_EXCEPTIONS + 1)},
        {"name": "x", "types": {"\u009b": "Q8_0"}},
        {"name": "x", "types": {"router": "\u009b"}},
    ],
)
def test_a_recipe_in_a_file_cannot_speak_to_the_terminal_or_go_on_for_ever(record: object) -> None:
    with pytest.raises(DfqsError) as refused:
        class_from_record(record)
    assert str(refused.value).isprintable()


def test_a_recipe_that_is_a_pipe_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "r.toml")

    with pytest.raises(UsageError, match="not a regular file"):
        read_recipe(tmp_path / "r.toml")
