"""What a file is that does not begin as GGUF: people rename, proxies answer with pages, git leaves pointers."""

import errno
import os

from dfqs.errors import FormatError
from dfqs.gguf import FileSource
from dfqs.gguf.beginnings import SAMPLE_BYTES, NotGGUF, explain_beginning
from dfqs.gguf.layout import MAGIC
from dfqs.gguf.pieces import find_raw_pieces


def explain_not_gguf(source: FileSource) -> NotGGUF | None:
    """What the file is instead; None when it begins with the magic."""
    sample = source.read_at(0, SAMPLE_BYTES)
    if sample[: len(MAGIC)] == MAGIC:
        return None
    if not sample:
        return NotGGUF("empty", "the file is empty", "Its download or copy never began; fetch it again.", offset=0)
    if pieces := find_raw_pieces(source.path):
        fix = f"`dfqs repair {pieces.paths[0].name} -o OUT` joins them."
        if not pieces.complete:
            fix = f"Here are {pieces.joined_bytes:,} of its {pieces.expected_bytes:,} bytes; fetch the missing pieces."
        message = f"it is a raw piece; the first of {len(pieces.paths)} is {pieces.paths[0].name}"
        return NotGGUF("raw-piece", message, fix)
    if not any(sample[:64]):
        return _zeroes(source)
    if found := explain_beginning(sample):
        return found
    message = f"it does not begin with GGUF but with {sample[:8]!r}"
    return NotGGUF("not-gguf", message, "Its beginning is missing or it is no model; fetch it again.", offset=0)


def _zeroes(source: FileSource) -> NotGGUF:
    """A header of zeroes: an interrupted merge by a peer, or a preallocated download."""
    if _only_zeroes(source):
        message = f"all of its {source.size:,} bytes are zero: space was taken and nothing was written"
    else:
        message = "its header is zeroes and data follows; an interrupted llama-gguf-split --merge leaves that"
    fix = "Names and types of the tensors are nowhere in it; merge or fetch again (`dfqs merge` can be interrupted)."
    return NotGGUF("zeroes", message, fix, offset=0)


def _only_zeroes(source: FileSource) -> bool:
    position, step, zeroes = 0, 8 << 20, bytes(8 << 20)
    while position < source.size:
        try:
            position = os.lseek(source.fileno(), position, os.SEEK_DATA)
        except OSError as error:
            # ENXIO: nothing but a hole from here to the end.
            return error.errno == errno.ENXIO
        piece = source.read_at(position, step)
        if piece != zeroes[: len(piece)]:
            return False
        position += len(piece)
    return True


def explained(source: FileSource, error: FormatError) -> FormatError:
    """A reader's refusal of a file, in terms of what the file is instead, where that is known."""
    found = explain_not_gguf(source)
    if found is None:
        return error
    return FormatError(f"{found.message}. {found.fix}", path=source.name, offset=found.offset)
