"""What the first bytes of a file that is no GGUF say that it is: git leaves pointers, proxies answer with pages."""

import codecs
import re
from dataclasses import dataclass

SAMPLE_BYTES = 4096
"""So much of a file is looked at."""
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
_ANSWERED = "Where a server answered with it in place of the model, fetch that again and look at the answer."


@dataclass(frozen=True, slots=True)
class NotGGUF:
    """What a file is in place of a model."""

    code: str
    """Its kind, for programs."""
    message: str
    fix: str
    """What to do about it, in a sentence."""
    offset: int | None = None


def explain_beginning(sample: bytes) -> NotGGUF | None:
    """What a file is that begins so; None where nothing is known that begins so."""
    if sample.startswith(b"version https://git-lfs"):
        return _pointer(sample)
    for signature, kind in _SIGNATURES:
        if sample.startswith(signature):
            return NotGGUF("not-gguf", f"it is {kind}", "Convert or unpack it first.", offset=0)
    text = _text(sample)
    if text is not None and re.search(r"<(!doctype|html)", text, re.IGNORECASE):
        return NotGGUF("not-gguf", f"it is a web page (it begins {_first_line(text)!r})", _ANSWERED, offset=0)
    if text is not None:
        return NotGGUF("not-gguf", f"it is a text file (it begins {_first_line(text)!r})", _ANSWERED, offset=0)
    if len(sample) >= 9 and sample[8:9] == b"{" and int.from_bytes(sample[:8], "little") < 1 << 28:
        return NotGGUF("not-gguf", "it is a safetensors file", "Convert it with llama.cpp's converter.", offset=0)
    return None


def _first_line(text: str) -> str:
    return text.strip().splitlines()[0][:60] if text.strip() else ""


def _pointer(sample: bytes) -> NotGGUF:
    match = re.search(rb"oid sha256:([0-9a-f]{64})", sample)
    which = f" to the file with SHA-256 {match[1].decode()}" if match else ""
    fix = "Run `git lfs pull` there, or fetch the file with `dfqs pull`."
    return NotGGUF("not-gguf", f"it is a Git LFS pointer{which}, not the file itself", fix, offset=0)


def _text(sample: bytes) -> str | None:
    """The sample as text, if that is what it is."""
    try:
        # A character may be cut at the sample's end.
        text = codecs.getincrementaldecoder("utf-8")().decode(sample, final=len(sample) < SAMPLE_BYTES)
    except UnicodeDecodeError:
        return None
    return text if all(c.isprintable() or c in "\r\n\t\ufeff" for c in text) else None
