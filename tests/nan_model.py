"""A model of which every weight that can be is NaN: it loads, and computes not one number. Made anew, byte for byte, by
each test that wants it; `python tests/nan_model.py OUT.gguf` makes it by hand."""

import sys
from pathlib import Path

import numpy as np

from dfqs.gguf import GGMLType
from quantize_inputs import TENSORS, write_model


def write_all_nan(path: Path) -> Path:
    """Write it; 2 MB. Tensors of the one quantized type keep their numbers: their products with NaN are NaN."""
    floats = {
        name: np.full(shape[::-1], np.nan, np.float32) for name, shape, type_ in TENSORS if type_ is not GGMLType.Q8_0
    }
    return write_model(path, floats)


if __name__ == "__main__":
    write_all_nan(Path(sys.argv[1]))
