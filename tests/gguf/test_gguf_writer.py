"""What the writer writes, and that it writes all of it or nothing."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import gguf
from dfqs.errors import FormatError, UsageError
from dfqs.gguf import GGMLType, KeyValue, TensorSource, ValueType, read_header, u32, write_gguf
from dfqs.gguf.file import GGUFFile
from dfqs.gguf.layout import squeeze_shape
from dfqs.gguf.quants import dequantize, quantize
from gguf_builder import SMALL_KEYS, tensor_bytes, write_small


def test_alignment_of_64_places_tensors_at_multiples_of_64(tmp_path: Path) -> None:
    tensors = [("a", (3,), GGMLType.F32), ("b", (5,), GGMLType.F16), ("c", (7,), GGMLType.F32)]
    path = write_small(tmp_path / "m.gguf", tensors, [u32("general.alignment", 64)], alignment=64)

    header = read_header(path)

    assert header.alignment == 64
    assert header.data_offset % 64 == 0
    assert [t.offset for t in header.tensors] == [0, 64, 128]
    assert header.file_size == header.end_of_data
    with GGUFFile(path) as file:
        assert file.read_tensor("b") == tensor_bytes("b", 10)


@pytest.mark.parametrize("given_bytes", [15, 17])
def test_tensor_source_that_gives_too_little_or_too_much_leaves_no_file(tmp_path: Path, given_bytes: int) -> None:
    source = TensorSource("t", (4,), GGMLType.F32, lambda: [bytes(given_bytes)])

    with pytest.raises(FormatError, match=f"'t': {given_bytes} bytes given, its shape needs 16"):
        write_gguf(tmp_path / "m.gguf", [], [source])

    assert list(tmp_path.iterdir()) == []


def test_existing_output_is_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_text("precious")

    with pytest.raises(UsageError, match="exists already"):
        write_small(path)

    assert path.read_text() == "precious"


@pytest.mark.parametrize(
    "key",
    [
        KeyValue("k", ValueType.UINT8, 256),
        KeyValue("k", ValueType.UINT32, -1),
        KeyValue("k", ValueType.STRING, 5),
        KeyValue("k", ValueType.ARRAY, [1, 2]),
        KeyValue("k", ValueType.ARRAY, [[1]], ValueType.ARRAY),
        KeyValue("k", ValueType.ARRAY, ["a", 1], ValueType.STRING),
    ],
)
def test_value_that_does_not_fit_its_type_is_refused_before_writing(tmp_path: Path, key: KeyValue) -> None:
    with pytest.raises(FormatError):
        write_gguf(tmp_path / "m.gguf", [*SMALL_KEYS, key], [])

    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["", "n" * 64, "é" * 32])
def test_tensor_name_that_llama_cpp_cannot_hold_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(FormatError, match="1 to 63 bytes"):
        write_gguf(tmp_path / "m.gguf", [], [TensorSource(name, (1,), GGMLType.F32, lambda: [bytes(4)])])


@pytest.mark.parametrize(
    "shape, written", [((4, 1, 1), (4,)), ((1,), (1,)), ((1, 1), (1,)), ((1, 3), (1, 3)), ((4, 1, 2), (4, 1, 2))]
)
def test_trailing_axes_of_one_are_dropped_as_llama_cpp_drops_them(
    shape: tuple[int, ...], written: tuple[int, ...]
) -> None:
    assert squeeze_shape(shape) == written


finite = st.floats(-(2.0**99), 2.0**99, width=32, allow_nan=False)


@pytest.mark.thorough
@given(st.lists(finite, min_size=64, max_size=64))
@settings(max_examples=60)
def test_q8_0_bytes_equal_the_public_package_so_that_artifacts_are_reproducible(values: list[float]) -> None:
    array = np.array(values, np.float32).reshape(2, 32)

    with np.errstate(all="ignore"):
        ours = quantize(array, GGMLType.Q8_0)
        theirs = gguf.quants.quantize(array, gguf.GGMLQuantizationType.Q8_0)

    assert ours == theirs.tobytes()


@pytest.mark.parametrize("type_", [GGMLType.F16, GGMLType.BF16, GGMLType.Q8_0, GGMLType.Q4_0, GGMLType.Q4_1])
def test_decoded_values_equal_the_public_package(type_: GGMLType) -> None:
    oracle_type = gguf.GGMLQuantizationType(int(type_))
    array = np.random.default_rng(1).standard_normal((3, 64)).astype(np.float32)
    data = gguf.quants.quantize(array, oracle_type)

    ours = dequantize(type_, data.tobytes(), (64, 3))

    np.testing.assert_array_equal(ours, gguf.quants.dequantize(data, oracle_type).reshape(3, 64))


def test_bf16_keeps_nan_and_infinity() -> None:
    values = np.array([np.nan, np.inf, -np.inf, 3.3895314e38], np.float32)

    back = dequantize(GGMLType.BF16, quantize(values, GGMLType.BF16), (4,))

    assert np.isnan(back[0])
    assert back[1] == np.inf
    assert back[2] == -np.inf


def test_low_bit_types_are_refused_here_and_not_decoded_wrongly() -> None:
    with pytest.raises(FormatError, match="IQ1_S cannot be decoded"):
        dequantize(GGMLType.IQ1_S, bytes(50), (256,))
    with pytest.raises(FormatError, match="shape"):
        dequantize(GGMLType.F32, bytes(5), (1,))
