"""How many tensors an audit draws, and what that shows: by hand, by another's arithmetic, and by drawing."""

import random
from itertools import pairwise
from math import prod

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dfqs.errors import UsageError
from dfqs.gguf import GGMLType, tensor_length
from dfqs.quantize.audit import DEFAULT_LIMIT_BYTES
from dfqs.quantize.audit_sample import (
    RUNS,
    detection_probability,
    differing_tensors,
    draw_rows,
    draw_sample,
    sample_size,
)
from v4_flash_stub import v4_flash_tensors

NAMES = [f"blk.{n}.weight" for n in range(300)]


def test_of_three_hundred_tensors_the_draw_is_as_large_as_the_arithmetic_says() -> None:
    # By hand: of 300 with one that differs, n find it with probability n/300, so 95 % takes 285.
    assert sample_size(300, 1 / 300, 0.95) == 285
    assert detection_probability(300, 1, 285) == pytest.approx(0.95)
    # With three: 1 - (111 * 110 * 109) / (300 * 299 * 298) = 0.9502 for 189, and 188 are too few.
    assert sample_size(300, 0.01, 0.95) == 189
    assert detection_probability(300, 3, 188) < 0.95 <= detection_probability(300, 3, 189)


@given(st.integers(1, 3000), st.data())
def test_the_draw_is_the_smallest_that_shows_enough(population: int, data: st.DataObject) -> None:
    # Takes a second to load.
    from scipy.stats import hypergeom

    share, confidence = data.draw(st.floats(1e-6, 1)), data.draw(st.floats(0.01, 1))
    differing = differing_tensors(population, share)

    count = sample_size(population, share, confidence)

    assert 1 <= differing <= population and 1 <= count <= population - differing + 1
    assert detection_probability(population, differing, count) >= confidence
    if count > 1:
        assert detection_probability(population, differing, count - 1) < confidence
    assert detection_probability(population, differing, count) == pytest.approx(
        float(hypergeom.sf(0, population, differing, count))
    )


def test_one_tensor_in_three_hundred_is_drawn_as_often_as_is_said() -> None:
    swapped, runs = NAMES[137], 200
    drawn = [draw_sample(NAMES, confidence=0.95, share=1 / 300, seed=seed) for seed in range(runs)]

    found = sum(swapped in sample.names for sample in drawn)

    assert {sample.detection for sample in drawn} == {drawn[0].detection}
    assert drawn[0].detection == drawn[0].detection_of_one == pytest.approx(0.95)
    # 190 of 200 are expected; outside of 180 to 198 would be 3 standard deviations (3.1 each).
    assert 180 <= found <= 199


def test_a_draw_is_repeated_by_its_seed_whatever_the_order_of_the_tensors() -> None:
    shuffled = random.Random(5).sample(NAMES, len(NAMES))
    first = draw_sample(NAMES, confidence=0.9, share=0.02, seed=7)

    assert set(draw_sample(shuffled, confidence=0.9, share=0.02, seed=7).names) == set(first.names)
    assert set(draw_sample(NAMES, confidence=0.9, share=0.02, seed=8).names) != set(first.names)
    assert list(first.names) == [name for name in NAMES if name in first.names]


@pytest.mark.parametrize(("confidence", "share"), [(0, 0.1), (1.1, 0.1), (0.5, 0), (0.5, 2), (float("nan"), 0.1)])
def test_what_is_no_probability_is_refused(confidence: float, share: float) -> None:
    with pytest.raises(UsageError):
        draw_sample(NAMES, confidence=confidence, share=share, seed=0)


def test_nothing_to_draw_from_is_no_agreement() -> None:
    with pytest.raises(UsageError, match="nothing can be compared"):
        draw_sample([], confidence=0.95, share=0.01, seed=0)


@given(st.integers(1, 5000), st.integers(1, 4096), st.integers(1, 1 << 22), st.integers(0, 99))
def test_rows_are_apart_inside_the_tensor_and_within_the_limit(
    rows: int, row_bytes: int, limit: int, seed: int
) -> None:
    runs = draw_rows("t", rows, row_bytes, limit_bytes=limit, seed=seed)

    assert all(0 <= first < last <= rows for first, last in runs)
    assert all(last <= first for (_, last), (first, _) in pairwise(runs))
    taken = sum(last - first for first, last in runs)
    assert taken == rows or (len(runs) <= RUNS and taken * row_bytes <= max(limit, RUNS * row_bytes))
    assert draw_rows("t", rows, row_bytes, limit_bytes=None, seed=seed) == ((0, rows),)


def test_the_reference_model_is_audited_by_reading_gigabytes_and_not_hundreds_of_them() -> None:
    published = {name: (shape, type_) for name, shape, type_ in v4_flash_tensors(GGMLType.IQ1_S, GGMLType.Q8_0)}
    quantized = (GGMLType.IQ1_S, GGMLType.Q8_0)
    source = {
        name: (shape, GGMLType.BF16 if type_ in quantized else type_) for name, (shape, type_) in published.items()
    }
    sample = draw_sample(list(source), confidence=0.95, share=0.01, seed=1)

    def read(tensors: dict[str, tuple[tuple[int, ...], GGMLType]]) -> int:
        total = 0
        for name in sample.names:
            shape, type_ = source[name]
            row_bytes, rows = tensor_length(type_, shape[:1]), prod(shape[1:])
            runs = draw_rows(name, rows, row_bytes, limit_bytes=DEFAULT_LIMIT_BYTES, seed=1)
            own = tensors[name]
            total += sum(last - first for first, last in runs) * tensor_length(own[1], own[0][:1])
        return total

    assert (sample.population, len(sample.names), sample.differing) == (1328, 255, 14)
    assert sum(tensor_length(type_, shape) for shape, type_ in source.values()) > 560e9
    assert read(source) < 2.8e9 and read(published) < 1.2e9
