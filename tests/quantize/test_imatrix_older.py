"""llama.cpp's older importance files (.dat): read with the same bits, and a file that lies is refused."""

import struct
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from dfqs.cli.main import run
from dfqs.errors import FormatError, UsageError
from dfqs.quantize.imatrix_file import ImatrixFile, merge_imatrices, read_imatrix
from quantize_inputs import vector_imatrix

Entries = Mapping[str, tuple[int, NDArray[np.float32]]]
SEEN: Entries = {
    "blk.0.ffn_up_exps.weight": (7, np.arange(1, 65, dtype=np.float32)),
    "output.weight": (3, np.full(32, 0.3, np.float32)),
}


def old_bytes(entries: Entries = SEEN, trailer: bytes = struct.pack("<ii", 9, 6) + b"my.txt") -> bytes:
    """The file as the old llama-imatrix wrote it."""
    out = struct.pack("<i", len(entries))
    for name, (calls, values) in entries.items():
        out += struct.pack("<i", len(name)) + name.encode()
        out += struct.pack("<ii", calls, len(values)) + values.astype("<f4").tobytes()
    return out + trailer


def write_old(path: Path, data: bytes | None = None) -> Path:
    path.write_bytes(old_bytes() if data is None else data)
    return path


def test_an_older_file_gives_the_importance_that_llama_quantize_takes_from_it(tmp_path: Path) -> None:
    """It divides values by calls, in float32: another rounding would make another model."""
    with ImatrixFile(write_old(tmp_path / "old.dat")) as file:
        experts = file.importance("blk.0.ffn_up_exps.weight", (32, 8, 2))
        output = file.importance("output.weight", (32, 10))
        assert (file.datasets, file.chunks) == (("my.txt",), 9)
        assert file.importance("blk.9.attn_q.weight", (32, 8)) is None

    values = SEEN["blk.0.ffn_up_exps.weight"][1]
    assert experts is not None and np.array_equal(experts, (values / np.float32(7)).reshape(2, 32))
    assert output is not None and np.array_equal(output[0], np.full(32, 0.3, np.float32) / np.float32(3))


def test_the_trailer_is_optional_as_the_oldest_files_have_none(tmp_path: Path) -> None:
    for trailer in (b"", struct.pack("<i", 4), struct.pack("<ii", 4, 0)):
        assert len(read_imatrix(write_old(tmp_path / "old.dat", old_bytes(trailer=trailer))).entries) == 2


def test_an_older_file_becomes_a_new_one_without_any_other_tool(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old, new = write_old(tmp_path / "old.dat"), tmp_path / "new.gguf"

    assert run(["imatrix", "--add", str(old), "-o", str(new)]) == 0

    assert "what each of them saw is not known" in capsys.readouterr().err
    with ImatrixFile(old) as a, ImatrixFile(new) as b:
        one, other = (file.importance("blk.0.ffn_up_exps.weight", (32, 8, 2)) for file in (a, b))
    assert one is not None and other is not None and np.array_equal(one, other)
    assert read_imatrix(new).one_count_for_all


def test_what_does_not_say_what_each_expert_saw_is_not_added_to_what_does(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="does not say what each expert saw"):
        merge_imatrices([vector_imatrix(), read_imatrix(write_old(tmp_path / "old.dat"))])


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"abc",
        struct.pack("<i", 0),
        struct.pack("<i", -1),
        struct.pack("<i", 2**31 - 1) + bytes(100),
        struct.pack("<i", 3) + bytes(100),
        struct.pack("<ii", 1, 2**31 - 1) + bytes(100),
        struct.pack("<ii", 1, 1) + b"\xff" + struct.pack("<iif", 1, 1, 1.0),
        struct.pack("<ii", 1, 1) + b"w" + struct.pack("<iif", -1, 1, 1.0),
        struct.pack("<ii", 1, 1) + b"w" + struct.pack("<iif", 1, 2**31 - 1, 1.0),
        struct.pack("<ii", 1, 1) + b"w" + struct.pack("<iif", 1, -1, 1.0),
        struct.pack("<i", 2) + 2 * (struct.pack("<i", 1) + b"w" + struct.pack("<iif", 1, 1, 1.0)),
        old_bytes()[:-1],
        old_bytes() + b"more",
        old_bytes(trailer=struct.pack("<ii", -1, 0)),
        b"PK\x03\x04" + bytes(1000),
    ],
)
def test_what_is_neither_format_is_refused_with_its_place(data: bytes, tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"neither a GGUF importance matrix nor an older one"):
        ImatrixFile(write_old(tmp_path / "old.dat", data))


@pytest.mark.thorough
@given(st.data())
def test_an_older_file_with_any_bytes_changed_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    mutable = bytearray(old_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        mutable[data.draw(st.integers(0, len(mutable) - 1))] = data.draw(st.integers(0, 255))
    path = write_old(tmp_path_factory.getbasetemp() / "mutated.dat", bytes(mutable))

    try:
        read_imatrix(path)
    except (FormatError, UsageError) as error:
        assert str(error).isprintable()
