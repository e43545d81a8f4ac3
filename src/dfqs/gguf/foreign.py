"""What a file is that does not begin as GGUF: people rename, proxies answer with pages, git leaves pointers."""

import codecs
import errno
import os
import re
from dataclasses import dataclass

from dfqs.errors import FormatError
from dfqs.gguf import FileSource
from dfqs.gguf.layout import MAGIC
from dfqs.gguf.pieces import find_raw_pieces

_SAMPLE_BYTES = 4096
_SIGNATURES: tuple[tuple[bytes, str], ...] = (
    (b"ggml", "a GGML file, the format before GGUF"),
    (b"lmgg", "a GGML file, the format before GGUF"),
    (b"ggjt", "a GGJT file, the format before GGUF"),
    (b"tjgg", "a GGJT file, the format before GGUF"),
    (b"PK\x03\x04", "a ZIP archive (or a PyTorch checkpoint)"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"\x28\xb5\x2f\xfd", "a Zstandard archive"),
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive"),
)


@dataclass(frozen=True, slots=True)
class NotGGUF:
    """What a file is in place of a model."""

    code: str
    """Its kind, for programs."""
    message: str
    fix: str
    """What to do about it, in a sentence."""
    offset: int | None = None


def explain_not_gguf(source: FileSource) -> NotGGUF | None:
    """What the file is instead; None when it begins with the magic."""
    sample = source.read_at(0, _SAMPLE_BYTES)
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
    if sample.startswith(b"version https://git-lfs"):
        return _pointer(sample)
    for signature, kind in _SIGNATURES:
        if sample.startswith(signature):
            return NotGGUF("not-gguf", f"it is {kind}", "Convert or unpack it first.", offset=0)
    text = _text(sample)
    if text is not None:
        what = "a web page" if re.search(r"<(!doctype|html)", text, re.IGNORECASE) else "a text file"
        line = text.strip().splitlines()[0][:60] if text.strip() else ""
        fix = "A server answered with it in place of the model; fetch the model again and look at the answer."
        return NotGGUF("not-gguf", f"it is {what} (it begins {line!r})", fix, offset=0)
    if len(sample) >= 9 and sample[8:9] == b"{" and int.from_bytes(sample[:8], "little") < 1 << 28:
        return NotGGUF("not-gguf", "it is a safetensors file", "Convert it with llama.cpp's converter.", offset=0)
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


def _pointer(sample: bytes) -> NotGGUF:
    match = re.search(rb"oid sha256:([0-9a-f]{64})", sample)
    which = f" to the file with SHA-256 {match[1].decode()}" if match else ""
    fix = "Run `git lfs pull` there, or fetch the file with `dfqs pull`."
    return NotGGUF("not-gguf", f"it is a Git LFS pointer{which}, not the file itself", fix, offset=0)


def _text(sample: bytes) -> str | None:
    """The sample as text, if that is what it is."""
    try:
        # A character may be cut at the sample's end.
        text = codecs.getincrementaldecoder("utf-8")().decode(sample, final=len(sample) < _SAMPLE_BYTES)
    except UnicodeDecodeError:
        return None
    return text if all(c.isprintable() or c in "\r\n\t\ufeff" for c in text) else None


def explained(source: FileSource, error: FormatError) -> FormatError:
    """A reader's refusal of a file, in terms of what the file is instead, where that is known."""
    found = explain_not_gguf(source)
    if found is None:
        return error
    return FormatError(f"{found.message}. {found.fix}", path=source.name, offset=found.offset)
