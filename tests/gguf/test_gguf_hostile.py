"""Every way a header can lie is a FormatError with a place, and costs neither memory nor a crash."""

import struct
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dfqs.errors import FormatError
from dfqs.gguf import BytesSource, GGMLType, encode_header, parse_header, read_header, string, tensor_length, u32
from gguf_builder import write_small


def head(tensors: int = 0, keys: int = 0, version: int = 3, magic: bytes = b"GGUF") -> bytes:
    return magic + struct.pack("<IQQ", version, tensors, keys)


def text(data: bytes) -> bytes:
    return struct.pack("<Q", len(data)) + data


def tensor(name: bytes = b"t", shape: tuple[int, ...] = (4,), type_: int = 0, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, type_, offset)


HUGE = 2**64 - 1
LIES = {
    "empty file": (b"", "the file is empty"),
    "text file": (b"hello, this is text", r"not a GGUF file \(starts with 'hell'\)"),
    "zeroed header": (bytes(64), "all zeroes: its header was never written"),
    "cut in the magic": (b"GG", "not a GGUF file"),
    "cut in the counts": (head()[:12], "needs 20 bytes"),
    "version 1": (head(version=1) + bytes(64), "GGUF version 1"),
    "version 99": (head(version=99) + bytes(64), "GGUF version 99"),
    "big-endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
    "more keys than bytes": (head(keys=HUGE), "24 bytes hold 1; is it cut short"),
    "more tensors than bytes": (head(tensors=HUGE), "claims .* tensors"),
    # Bytes for them are there; in memory they would take gigabytes.
    "a million tensors": (head(tensors=10**6) + bytes(33 * 10**6), "claims 1,000,000 tensors"),
    "a million keys": (head(keys=10**6) + bytes(14 * 10**6), "claims 1,000,000 keys"),
    "key without name": (head(keys=1) + text(b"") + bytes(20), "a key is 0 bytes long"),
    "key name longer than the file": (head(keys=1) + struct.pack("<Q", HUGE) + bytes(20), "a key is .* bytes long"),
    "key name not text": (head(keys=1) + text(b"\xff\xfe") + bytes(20), "not UTF-8"),
    "key name with an end in it": (head(keys=1) + text(b"k\0x") + bytes(20), "holds a zero byte"),
    "tensor name with an end in it": (head(tensors=1) + text(b"t\0x") + bytes(40), "holds a zero byte"),
    "key twice": (head(keys=2) + 2 * (text(b"k") + struct.pack("<IB", 0, 1)), "'k': the key stands twice"),
    "unknown value type": (head(keys=1) + text(b"k") + struct.pack("<I", 77) + bytes(20), "value type 77"),
    "string longer than the file": (
        head(keys=1) + text(b"k") + struct.pack("<IQ", 8, HUGE) + bytes(20),
        "'k': a string needs",
    ),
    "array of arrays": (head(keys=1) + text(b"k") + struct.pack("<IIQ", 9, 9, 1) + bytes(20), "array of arrays"),
    "array longer than the file": (
        head(keys=1) + text(b"k") + struct.pack("<IIQ", 9, 4, HUGE) + bytes(20),
        "values of UINT32 needs",
    ),
    "more strings than bytes": (
        head(keys=1) + text(b"k") + struct.pack("<IIQ", 9, 8, 2**40) + bytes(20),
        "claims .* strings",
    ),
    "alignment zero": (head(keys=1) + text(b"general.alignment") + struct.pack("<II", 4, 0), "not a power of two"),
    "alignment 33": (head(keys=1) + text(b"general.alignment") + struct.pack("<II", 4, 33), "not a power of two"),
    "alignment of another type": (
        head(keys=1) + text(b"general.alignment") + struct.pack("<IB", 0, 32),
        "must be UINT32",
    ),
    "tensor name too long": (head(tensors=1) + tensor(b"n" * 64), "64 bytes long, it must have 1 to 63"),
    "tensor twice": (head(tensors=2) + tensor() + tensor(offset=32) + bytes(99), "'t': the tensor stands twice"),
    "five axes": (head(tensors=1) + tensor(shape=(1, 1, 1, 1, 1)), "has 5 axes"),
    "four thousand million axes": (head(tensors=1) + text(b"t") + struct.pack("<I", 2**32 - 1) + bytes(64), "axes"),
    "dimension zero": (head(tensors=1) + tensor(shape=(4, 0)), "not positive"),
    "product overflow": (head(tensors=1) + tensor(shape=(2**32, 2**32)), "2\\^63 elements"),
    "bytes overflow": (head(tensors=1) + tensor(shape=(2**62, 1)), "2\\^63 bytes"),
    "retired tensor type": (head(tensors=1) + tensor(type_=4), "tensor type 4 is unknown"),
    "row not in blocks": (head(tensors=1) + tensor(shape=(100,), type_=int(GGMLType.IQ1_S)), "not a multiple of IQ1_S"),
    "offset overflow": (head(tensors=1) + tensor(offset=HUGE), "does not fit in 63 bits"),
}


@pytest.mark.parametrize("data, message", LIES.values(), ids=LIES)
def test_lie_is_named_with_its_place(data: bytes, message: str) -> None:
    with pytest.raises(FormatError, match=message) as caught:
        parse_header(BytesSource(data, "liar.gguf"))

    assert caught.value.path == "liar.gguf"
    assert caught.value.offset is not None


LAYOUT_LIES = {
    "overlap": ((0, 0), "overlaps the tensor before it"),
    "gap": ((0, 64), "leaves a gap"),
    "misaligned": ((0, 30), "not a multiple of the alignment 32"),
    "first not at zero": ((32, 64), "leaves a gap"),
}


@pytest.mark.parametrize("offsets, message", LAYOUT_LIES.values(), ids=LAYOUT_LIES)
def test_tensors_that_do_not_lie_end_to_end_are_refused(offsets: tuple[int, int], message: str) -> None:
    data = head(tensors=2) + tensor(b"a", (8,), 0, offsets[0]) + tensor(b"b", (8,), 0, offsets[1])

    with pytest.raises(FormatError, match=message):
        read_header(BytesSource(data + bytes(1000)))


def test_one_byte_missing_at_the_end_is_noticed_with_the_tensor_that_lacks_it(tmp_path: Path) -> None:
    # F32 rows of 8 fill the alignment exactly, so that the last byte of the file is the last byte of the tensor.
    path = write_small(tmp_path / "m.gguf", [("a", (8,), GGMLType.F32), ("last", (8,), GGMLType.F32)], [u32("k", 1)])
    path.write_bytes(path.read_bytes()[:-1])

    with pytest.raises(FormatError, match=r"m\.gguf at byte .*'last': ends 1 byte past the end of the file"):
        read_header(path)


def test_hostile_string_in_a_large_sparse_file_does_not_fill_memory(tmp_path: Path) -> None:
    path = tmp_path / "sparse.gguf"
    path.write_bytes(head(keys=1) + text(b"k") + struct.pack("<IQ", 8, 50 << 30))
    with path.open("r+b") as file:
        file.truncate(60 << 30)

    tracemalloc.start()
    with pytest.raises(FormatError, match="larger than"):
        parse_header(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert peak < 1 << 20


def test_message_shows_control_characters_of_a_hostile_name_escaped() -> None:
    data = head(tensors=1) + tensor(b"\x1b]0;owned\x07", type_=4)

    with pytest.raises(FormatError) as caught:
        parse_header(BytesSource(data))

    assert "\x1b" not in str(caught.value)
    assert "\\x1b]0;owned" in str(caught.value)


GOOD = encode_header(
    [string("general.architecture", "llama"), u32("a", 1)], [("x", (64,), GGMLType.F16), ("y", (32, 2), GGMLType.Q8_0)]
) + bytes(256)


@pytest.mark.thorough
@given(st.integers(0, len(GOOD) - 1), st.integers(0, 255))
@settings(max_examples=400)
def test_any_byte_changed_gives_a_header_or_a_format_error(position: int, value: int) -> None:
    data = bytearray(GOOD)
    data[position] = value
    try:
        header = read_header(BytesSource(bytes(data)))
    except FormatError:
        return
    assert header.end_of_data <= header.file_size + header.alignment


@given(st.binary(max_size=200))
@settings(max_examples=200)
def test_arbitrary_bytes_after_the_magic_give_a_format_error_or_a_header(data: bytes) -> None:
    try:
        parse_header(BytesSource(b"GGUF\x03\x00\x00\x00" + data))
    except FormatError as error:
        assert str(error)


@given(st.integers(0, len(GOOD)))
@settings(max_examples=150)
def test_file_cut_anywhere_inside_its_tensors_is_never_accepted(length: int) -> None:
    last = read_header(BytesSource(GOOD))
    end = last.span(last.tensors[-1]).end
    if length >= end:
        return
    with pytest.raises(FormatError):
        read_header(BytesSource(GOOD[:length]))


def test_expert_tensor_length_by_hand() -> None:
    # 4096 x 2048 x 256 weights of IQ1_S: 2^31 / 256 blocks of 50 bytes.
    assert tensor_length(GGMLType.IQ1_S, (4096, 2048, 256)) == 2**31 // 256 * 50


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"a" * 64 + b"\nsize 9\n", "Git LFS pointer"),
        (b"<!DOCTYPE html><html>Sign in</html>", "web page"),
        (b"PK\x03\x04" + bytes(200), "ZIP archive"),
        (b"\x40\0\0\0\0\0\0\0{" + b'"a":1}', "safetensors"),
        (b"tjgg\x03\0\0\0", "GGJT"),
        (b"GGUF" + (4).to_bytes(4, "little") + bytes(16), "newer than this program|GGUF version 4"),
    ],
)
def test_every_reader_says_what_a_file_is_instead(content: bytes, said: str, tmp_path: Path) -> None:
    """Not only verify: who runs a pointer of Git LFS is told to fetch the file."""
    path = tmp_path / "m.gguf"
    path.write_bytes(content)

    with pytest.raises(FormatError, match=said):
        read_header(path)
