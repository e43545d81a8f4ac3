"""What the reader finds, against the public `gguf` package and by hand."""

import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import gguf
from dfqs.errors import FormatError, UsageError
from dfqs.gguf import BytesSource, GGMLType, KeyValue, ValueType, encode_header, parse_header, read_header, string
from dfqs.gguf.file import GGUFFile
from dfqs.gguf.types import BLOCKS
from gguf_builder import SMALL_TENSORS, tensor_bytes, write_small


def test_file_of_the_public_writer_reads_the_same_here(tmp_path: Path) -> None:
    path = tmp_path / "oracle.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_string("general.name", "naïve 模型")
    writer.add_array("a.strings", ["", "x", "yy" * 300])
    writer.add_array("a.floats", [0.5, -1.25])
    writer.add_array("a.bools", [True, False])
    writer.add_uint64("a.u64", 2**63 + 5)
    writer.add_int8("a.i8", -7)
    writer.add_bool("a.bool", True)
    weights = np.arange(6, dtype=np.float32).reshape(2, 3)
    writer.add_tensor("w", weights)
    writer.add_tensor("v", np.arange(5, dtype=np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    with GGUFFile(path) as file:
        metadata = file.header.metadata
        assert metadata["general.architecture"] == "llama"
        assert metadata["general.name"] == "naïve 模型"
        assert metadata["a.strings"] == ("", "x", "yy" * 300)
        assert metadata["a.floats"] == (0.5, -1.25)
        assert metadata["a.bools"] == (True, False)
        assert metadata["a.u64"] == 2**63 + 5
        assert metadata["a.i8"] == -7
        assert metadata["a.bool"] is True
        assert file.header.tensor("w").shape == (3, 2)
        np.testing.assert_array_equal(file.array("w"), weights)
        np.testing.assert_array_equal(file.array("v"), np.arange(5, dtype=np.float16))


def test_file_written_here_reads_the_same_with_the_public_reader(tmp_path: Path) -> None:
    path = write_small(tmp_path / "ours.gguf")

    oracle = gguf.GGUFReader(path)

    assert {t.name: (tuple(int(n) for n in t.shape), int(t.tensor_type)) for t in oracle.tensors} == {
        name: (shape, int(type_)) for name, shape, type_ in SMALL_TENSORS
    }
    for tensor in oracle.tensors:
        assert tensor.data.tobytes() == tensor_bytes(tensor.name, tensor.n_bytes)
    assert oracle.fields["llama.expert_count"].contents() == 3


def test_block_sizes_agree_with_the_public_package_so_that_no_tensor_is_cut_short() -> None:
    theirs = {t.name: sizes for t, sizes in gguf.GGML_QUANT_SIZES.items()}

    for type_, block in BLOCKS.items():
        # Q8_1 is only an intermediate of dot products; the public package has its old size, llama.cpp says 36.
        if type_.name in theirs and type_ is not GGMLType.Q8_1:
            assert tuple(block) == theirs[type_.name], type_.name
            assert int(gguf.GGMLQuantizationType[type_.name]) == int(type_)


def test_tensor_offsets_are_counted_by_hand() -> None:
    # magic 4, version 4, counts 16; one key: 8+1+4+4; tensor "a": 8+1+4+8+4+8, "b" the same.
    header = encode_header([KeyValue("k", ValueType.UINT32, 7)], [("a", (3,), GGMLType.F32), ("b", (1,), GGMLType.F32)])
    read = parse_header(BytesSource(header + bytes(36)))

    assert read.header_length == 24 + 17 + 2 * 33
    assert read.data_offset == 128 == len(header)
    assert [(t.offset, t.length) for t in read.tensors] == [(0, 12), (32, 4)]
    assert read.span(read.tensors[1]).offset == 160
    assert read.end_of_data == 192
    assert struct.unpack_from("<I", header, 24 + 13) == (7,)


def test_token_bytes_that_are_not_utf8_survive_a_round_trip() -> None:
    raw = b"\xff\xfe\x00tok"
    text = raw.decode("utf-8", "surrogateescape")

    header = parse_header(BytesSource(encode_header([string("k", text)], [])))

    assert header.metadata["k"] == text
    assert header.raw_entry(header.entries[0]).data.endswith(raw)


scalar_values = st.one_of(
    st.tuples(st.just(ValueType.UINT8), st.integers(0, 2**8 - 1)),
    st.tuples(st.just(ValueType.INT16), st.integers(-(2**15), 2**15 - 1)),
    st.tuples(st.just(ValueType.UINT64), st.integers(0, 2**64 - 1)),
    st.tuples(st.just(ValueType.INT64), st.integers(-(2**63), 2**63 - 1)),
    st.tuples(st.just(ValueType.FLOAT64), st.floats(allow_nan=False)),
    st.tuples(st.just(ValueType.BOOL), st.booleans()),
    st.tuples(st.just(ValueType.STRING), st.text()),
)


@pytest.mark.thorough
@given(st.lists(scalar_values, max_size=8), st.lists(st.text(), max_size=20))
@settings(max_examples=80)
def test_any_metadata_comes_back_as_it_was_written(values: list[tuple[ValueType, object]], strings: list[str]) -> None:
    keys = [KeyValue(f"k{i}", type_, value) for i, (type_, value) in enumerate(values)]
    keys.append(KeyValue("strings", ValueType.ARRAY, strings, ValueType.STRING))

    header = parse_header(BytesSource(encode_header(keys, [])))

    assert [header.metadata[f"k{i}"] for i in range(len(values))] == [value for _, value in values]
    assert header.metadata["strings"] == tuple(strings)
    assert b"".join(header.raw_entry(e).data for e in header.entries) == b"".join(k.encode() for k in keys)


def test_vocabulary_larger_than_one_read_is_stepped_over_exactly() -> None:
    tokens = [f"token{i}" * (1 + i % 7) for i in range(20_000)]
    keys = [KeyValue("t", ValueType.ARRAY, tokens, ValueType.STRING), string("after", "here")]

    header = parse_header(BytesSource(encode_header(keys, [])))

    assert header.metadata["after"] == "here"
    assert header.metadata["t"] == tuple(tokens)


def test_missing_directory_and_pipe_are_refused_in_words(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file"):
        read_header(tmp_path / "nothing.gguf")
    with pytest.raises(UsageError, match="is a directory"):
        read_header(tmp_path)
    with pytest.raises(UsageError, match="not a regular file"):
        read_header(Path("/dev/null"))


def test_reading_a_tensor_of_a_file_cut_after_opening_is_an_error_not_short_data(tmp_path: Path) -> None:
    path = write_small(tmp_path / "m.gguf")
    with GGUFFile(path) as file:
        with path.open("r+b") as handle:
            handle.truncate(file.header.file_size - 100)
        with pytest.raises(FormatError, match="too soon"):
            file.read_tensor("output.weight")


def test_importing_the_codec_does_not_cost_numpy() -> None:
    code = "import sys, dfqs.gguf; assert 'numpy' not in sys.modules and 'pydantic' not in sys.modules"

    subprocess.run([sys.executable, "-c", code], check=True)
