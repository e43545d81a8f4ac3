"""Files with bytes changed, in places that matter: every reader answers with findings or an error of our own."""

import contextlib
import random
import struct
from pathlib import Path

import pytest

from dfqs.errors import DfqsError, FormatError
from dfqs.find import find_models
from dfqs.gguf import GGMLType, ValueType, array, i32, parse_header, string, u16, u32
from dfqs.gguf.file import GGUFFile
from dfqs.gguf.quants import dequantize
from dfqs.gguf.shard import read_model_shards
from dfqs.gguf.types import BLOCKS
from dfqs.integrity import verify_structure
from dfqs.model.classes import recognise_class
from dfqs.model.spec import read_model_spec
from dfqs.quantize.declared import class_findings
from dfqs.shards.repair import plan_repair
from gguf_builder import SMALL_KEYS, SMALL_TENSORS, write_small

ROUNDS = 400
KEYS = (
    *SMALL_KEYS,
    string("tokenizer.ggml.model", "gpt2"),
    array("tokenizer.ggml.tokens", ValueType.STRING, [str(n) for n in range(10)]),
    array("tokenizer.ggml.token_type", ValueType.INT32, [1] * 10),
    array("llama.attention.head_count", ValueType.INT32, [2]),
    u16("split.no", 0),
    u16("split.count", 0),
    i32("split.tensors.count", len(SMALL_TENSORS)),
    string("dfqs.class", "Q8_0"),
    string("dfqs.recipe", '{"name": "Q8_0", "types": {}}'),
    u32("general.file_type", 7),
)


def read_everything(path: Path) -> None:
    """What the verbs of this area do with a file; anything but an error of ours is a fault of theirs."""
    verify_structure(path)
    find_models([path.parent], hash_candidates=False)
    with contextlib.suppress(DfqsError):
        header = parse_header(path)
        class_findings(header)
        recognise_class(read_model_spec(header))
    with contextlib.suppress(DfqsError):
        read_model_shards(path)
    with contextlib.suppress(DfqsError):
        plan_repair(path)
    with contextlib.suppress(DfqsError), GGUFFile(path) as file:
        for tensor in file.header.tensors:
            with contextlib.suppress(DfqsError):
                file.dequantized(tensor.name)


def mutate(data: bytes, places: list[int], rng: random.Random) -> bytes:
    """Change types, counts, lengths and values: numbers that stand in a header, put in place of each other."""
    out = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at = rng.choice(places)
        kind = rng.randrange(4)
        if kind == 0:
            struct.pack_into("<I", out, at, rng.choice([*range(14), 2**31, 2**32 - 1]))
        elif kind == 1:
            struct.pack_into("<Q", out, at, rng.choice([0, 1, 2, 64, 2**32, 2**63, 2**64 - 1]))
        elif kind == 2:
            out[at] = rng.randrange(256)
        else:
            source = rng.choice(places)
            out[at : at + 8] = out[source : source + 8]
    return bytes(out)


@pytest.mark.thorough
def test_numbers_of_a_header_exchanged_or_made_absurd_end_in_no_stranger(tmp_path: Path) -> None:
    path = write_small(tmp_path / "m.gguf", keys=KEYS)
    data = path.read_bytes()
    header = parse_header(path)
    # After the magic: the counts, the fields of every key and of every tensor.
    places = [4, 8, 16, *(entry.start + 8 + len(entry.name) for entry in header.entries)]
    places += [entry.value_start for entry in header.entries] + [entry.start for entry in header.entries]
    places += list(range(header.entries[-1].end, header.header_length - 8, 4))
    rng = random.Random(9)
    for round_ in range(ROUNDS):
        path.write_bytes(mutate(data, places, rng))
        try:
            read_everything(path)
        except Exception as error:
            raise AssertionError(f"round {round_}: {type(error).__name__}: {error}") from error


def test_a_number_of_shards_that_is_a_bool_is_refused(tmp_path: Path) -> None:
    """Found by fuzzing: `split.count` of type BOOL."""
    path = write_small(tmp_path / "m.gguf", keys=[*SMALL_KEYS, u16("split.count", 2)])
    data = path.read_bytes()
    at = data.index(b"split.count") + len(b"split.count")
    path.write_bytes(data[:at] + struct.pack("<I", ValueType.BOOL) + data[at + 4 : at + 5] + data[at + 6 :])

    read_everything(path)
    with pytest.raises(FormatError, match="must be a whole number"):
        read_model_shards(path)


@pytest.mark.parametrize("type_", sorted(set(GGMLType)))
def test_a_type_that_cannot_be_decoded_here_is_said_to_be_so_whatever_its_blocks(type_: GGMLType) -> None:
    """Found by fuzzing: a tensor of I8 with an odd row was a ValueError of numpy's."""
    block = BLOCKS[type_]
    columns = block.elements * 3
    try:
        values = dequantize(type_, bytes(3 * block.bytes), (columns,))
    except FormatError as error:
        assert "cannot be decoded" in str(error)
    else:
        assert values.shape == (columns,)
