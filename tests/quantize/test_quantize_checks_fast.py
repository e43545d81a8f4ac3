"""Weights are looked at one by one only where their sum leaves a doubt."""

import numpy as np
import pytest

from dfqs.gguf.types import GGMLType
from dfqs.quantize.kernels import Float32, Kernels


class Library:
    """llama.cpp's check, counted."""

    def __init__(self) -> None:
        self.looked = 0
        self.answer = True

    def ggml_validate_row_data(self, type_: int, address: int, size: int) -> bool:
        self.looked += 1
        return self.answer


def kernels(library: Library) -> Kernels:
    made = Kernels.__new__(Kernels)
    made._library = library  # type: ignore[assignment]
    return made


@pytest.mark.parametrize("type_", [GGMLType.F32, GGMLType.F16, GGMLType.BF16])
def test_finite_weights_are_not_looked_at_one_by_one(type_: GGMLType) -> None:
    library = Library()
    values = np.random.default_rng(0).standard_normal((64, 32)).astype(np.float32)

    assert kernels(library).is_valid(type_, values.tobytes(), values)
    assert library.looked == 0


@pytest.mark.parametrize("wrong", [[np.nan], [np.inf], [-np.inf], [np.inf, -np.inf]])
@pytest.mark.parametrize("valid", [True, False])
def test_a_sum_that_is_no_number_is_left_to_llama_cpp_to_judge(wrong: list[float], valid: bool) -> None:
    values: Float32 = np.ones(4096, np.float32)
    values[7 : 7 + len(wrong)] = wrong
    library = Library()
    library.answer = valid

    assert kernels(library).is_valid(GGMLType.F32, values.tobytes(), values) is valid
    assert library.looked == 1


def test_finite_weights_whose_sum_is_too_large_are_not_refused_for_it() -> None:
    library = Library()
    values = np.full(4096, 3e38, np.float32)

    assert kernels(library).is_valid(GGMLType.F32, values.tobytes(), values)
    assert library.looked == 1


def test_scales_of_quantized_weights_are_looked_at_as_they_are() -> None:
    library = Library()
    values = np.ones(32, np.float32)

    assert kernels(library).is_valid(GGMLType.Q8_0, bytes(34), values)
    assert library.looked == 1
