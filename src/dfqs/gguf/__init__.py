"""The GGUF format: a lazy, bounds-checked reader and a writer.

`GGUFFile` and `dfqs.gguf.quants` need numpy and are imported from their own modules, and the writer is loaded when it
is asked for, so that a look at a header costs no more than reading it.
"""

from typing import TYPE_CHECKING

from dfqs.gguf.layout import TensorInfo, TensorSpan, align_up, tensor_length
from dfqs.gguf.metadata import KeyEntry
from dfqs.gguf.reader import Header, HeaderBudget, layout_problems, parse_header, read_header
from dfqs.gguf.source import ByteSource, BytesSource, FileSource
from dfqs.gguf.types import BLOCKS, Block, GGMLType, ValueType
from dfqs.gguf.values import KeyValue, RawKeyValue, Value, array, boolean, f32, i32, string, u16, u32, u64
from dfqs.on_demand import names_on_demand

if TYPE_CHECKING:
    from dfqs.gguf.writer import TensorSource, encode_header, write_gguf

__all__ = [
    "BLOCKS",
    "Block",
    "ByteSource",
    "BytesSource",
    "FileSource",
    "GGMLType",
    "Header",
    "HeaderBudget",
    "KeyEntry",
    "KeyValue",
    "RawKeyValue",
    "TensorInfo",
    "TensorSource",
    "TensorSpan",
    "Value",
    "ValueType",
    "align_up",
    "array",
    "boolean",
    "encode_header",
    "f32",
    "i32",
    "layout_problems",
    "parse_header",
    "read_header",
    "string",
    "tensor_length",
    "u16",
    "u32",
    "u64",
    "write_gguf",
]

_PLACES = dict.fromkeys(("TensorSource", "encode_header", "write_gguf"), "dfqs.gguf.writer")

__getattr__ = names_on_demand(__name__, _PLACES)
