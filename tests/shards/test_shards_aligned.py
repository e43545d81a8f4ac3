"""Tensors laid to pages on request: the same model, which others read, and of which streaming keeps less in memory."""

from pathlib import Path

import numpy as np
import pytest

import gguf
from dfqs.errors import UsageError
from dfqs.gguf import GGMLType, read_header
from dfqs.gguf.file import GGUFFile
from dfqs.inplace import merge_inplace, plan_inplace
from dfqs.model.files import open_model
from dfqs.quantize.quantize import quantize
from dfqs.quantize.source import class_for, read_source
from dfqs.shards import merge, plan_merge
from dfqs.shards.split import plan_split, split
from dfqs.streaming.layout import PAGE_BYTES, plan_layout
from streaming_models import write_wide_moe


@pytest.fixture
def shards(tmp_path: Path, smollm2_gguf: Path) -> list[Path]:
    model = write_wide_moe(tmp_path / "m.gguf", smollm2_gguf, "qwen3moe")
    return list(split(plan_split(model, tmp_path / "s", max_tensors=20)))


def test_a_merge_to_pages_is_the_same_model_of_which_no_slice_shares_a_page(shards: list[Path], tmp_path: Path) -> None:
    plain, aligned = tmp_path / "plain.gguf", tmp_path / "aligned.gguf"
    merge(plan_merge(shards[0]), plain)
    merge(plan_merge(shards[0], alignment=PAGE_BYTES), aligned)

    assert read_header(plain).alignment == 32
    assert open_model(plain).hashes().content_sha256 == open_model(aligned).hashes().content_sha256
    before, after = plan_layout([read_header(plain)]), plan_layout([read_header(aligned)])
    assert len(before.borders) > 50
    assert after.borders == ()
    assert after.resident_bytes < before.resident_bytes
    header = read_header(aligned)
    assert header.alignment == PAGE_BYTES
    assert all(header.span(tensor).offset % PAGE_BYTES == 0 for tensor in header.tensors)

    reader = gguf.GGUFReader(aligned)
    with GGUFFile(plain) as file:
        for tensor in reader.tensors:
            assert np.array_equal(np.asarray(tensor.data).reshape(-1).view(np.uint8), _bytes(file, tensor.name))
    # And back: the key is gone again, and the bytes are the canonical ones.
    again = list(split(plan_split(aligned, tmp_path / "a", max_tensors=20)))
    merge(plan_merge(again[0], alignment=32), tmp_path / "back.gguf")
    assert (tmp_path / "back.gguf").read_bytes() == plain.read_bytes()


def _bytes(file: GGUFFile, name: str) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
    return np.frombuffer(file.read_tensor(name), np.uint8)


def test_in_place_data_cannot_move_to_pages_and_consuming_can(shards: list[Path], tmp_path: Path) -> None:
    plan = plan_merge(shards[0], alignment=PAGE_BYTES)
    with pytest.raises(UsageError, match=r"aligned to 32 bytes, the output to 4096; .* --consume needs little space"):
        plan_inplace(plan, tmp_path / "out.gguf", "in-place")
    wanted = tmp_path / "wanted.gguf"
    merge(plan, wanted)
    merge_inplace(plan_inplace(plan, tmp_path / "out.gguf", "consume"))
    assert (tmp_path / "out.gguf").read_bytes() == wanted.read_bytes()


def test_a_quantization_is_laid_to_pages_with_the_same_content(tmp_path: Path, smollm2_gguf: Path) -> None:
    source = read_source(write_wide_moe(tmp_path / "m.gguf", smollm2_gguf, "llama4"))
    class_ = class_for("Q8_0", source, has_imatrix=False)
    quantize(source, tmp_path / "plain.gguf", class_)
    quantize(source, tmp_path / "aligned.gguf", class_, align=PAGE_BYTES)

    plain, aligned = open_model(tmp_path / "plain.gguf"), open_model(tmp_path / "aligned.gguf")
    assert plain.hashes().content_sha256 == aligned.hashes().content_sha256
    assert aligned.header.alignment == PAGE_BYTES
    assert plan_layout(aligned.headers).borders == ()
    assert any(tensor.type is GGMLType.Q8_0 for tensor in aligned.tensors)


@pytest.mark.parametrize("alignment", [0, -4096, 16, 48, 1 << 17])
def test_an_alignment_that_no_reader_takes_is_refused(shards: list[Path], alignment: int) -> None:
    with pytest.raises(UsageError, match=r"a power of two from 32 \(GGUF's own\) to 65,536 bytes"):
        plan_merge(shards[0], alignment=alignment)
