"""Weights that are no numbers are found by their bits; scales of quantized weights by llama.cpp's own look at them."""

import numpy as np
import pytest

from dfqs.gguf.types import GGMLType
from dfqs.quantize.kernels import Kernels


class Library:
    """llama.cpp's check, counted."""

    def __init__(self) -> None:
        self.looked = 0

    def ggml_validate_row_data(self, type_: int, address: int, size: int) -> bool:
        self.looked += 1
        return True


def kernels(library: Library) -> Kernels:
    made = Kernels.__new__(Kernels)
    made._library = library  # type: ignore[assignment]
    return made


def encoded(type_: GGMLType, values: list[float]) -> bytes:
    wide = np.array(values, np.float32)
    if type_ is GGMLType.BF16:
        return (wide.view(np.uint32) >> 16).astype(np.uint16).tobytes()
    return wide.astype(np.float16).tobytes() if type_ is GGMLType.F16 else wide.tobytes()


PLAIN = pytest.mark.parametrize("type_", [GGMLType.F32, GGMLType.F16, GGMLType.BF16])


@PLAIN
@pytest.mark.parametrize("wrong", [[np.nan], [-np.nan], [np.inf], [-np.inf], [np.inf, -np.inf]])
@pytest.mark.parametrize("others", [1.0, -1.0, 0.0, -0.0])
def test_one_weight_that_is_no_number_is_found_among_many(type_: GGMLType, wrong: list[float], others: float) -> None:
    values = [others] * 500 + wrong + [others] * 11

    assert not kernels(Library()).is_valid(type_, encoded(type_, values))
    assert not kernels(Library()).is_valid(type_, encoded(type_, wrong))


@PLAIN
@pytest.mark.parametrize("sign", [1, -1])
def test_the_largest_numbers_are_numbers(type_: GGMLType, sign: int) -> None:
    largest = {GGMLType.F32: 3.4028234e38, GGMLType.F16: 65504.0, GGMLType.BF16: 3.3895313e38}[type_]
    library = Library()

    assert kernels(library).is_valid(type_, encoded(type_, [sign * largest] * 64))
    assert kernels(library).is_valid(type_, b"")
    assert library.looked == 0


def test_scales_of_quantized_weights_are_looked_at_as_they_are() -> None:
    library = Library()

    assert kernels(library).is_valid(GGMLType.Q8_0, bytes(34))
    assert library.looked == 1
