"""Bytes, counts and times as people write them. Decimal units, as the model hubs and disks use: 1 GB is 10^9 bytes."""

import math
import re

from dfqs.errors import UsageError, printable

_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(?:([KMGT])(i?)B?|B)?\s*", re.IGNORECASE)
_TOKENS = re.compile(r"\s*([0-9]{1,12})\s*([km])?\s*", re.IGNORECASE)
_MOST_TOKENS = (1 << 31) - 1
MOST_THREADS = 512
"""llama.cpp takes no more (`GGML_MAX_N_THREADS`)."""
_POWERS = {"K": 1, "M": 2, "G": 3, "T": 4}


def format_bytes(count: int | float) -> str:
    """`62_100_000_000` -> `62.1 GB`."""
    value = _as_float(count)
    if not math.isfinite(value):
        return f"{value} B"
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if abs(value) < 999.5 or unit == "TB":
            return f"{value:.0f} B" if unit == "B" else f"{value:.{_decimals(value)}f} {unit}"
        value /= 1000
    raise AssertionError("unreachable")


def format_count(count: int | float) -> str:
    """`284_300_000_000` -> `284.3 B`, the way parameters are counted (B = 10^9)."""
    value = _as_float(count)
    for unit in ("", " K", " M", " B", " T"):
        if abs(value) < 999.95 or unit == " T":
            return f"{value:.0f}" if unit == "" else f"{value:.1f}{unit}"
        value /= 1000
    raise AssertionError("unreachable")


def format_number_of(count: int, noun: str) -> str:
    """`(1, "model")` -> `1 model`; `(1200, "model")` -> `1,200 models`."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def format_duration(seconds: float) -> str:
    """`75.2` -> `1 min 15 s`."""
    seconds = _as_float(seconds)
    if not math.isfinite(seconds):
        return f"{seconds} s"
    if seconds < 0:
        return f"-{format_duration(-seconds)}"
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min"


def format_rate(count: float, seconds: float, unit: str) -> str:
    """`(128, 2.0, "tokens")` -> `64.0 tokens/s`; no rate out of no time."""
    rate = _as_float(count) / _as_float(seconds) if seconds > 0 else math.nan
    return f"{rate:.1f} {unit}/s" if math.isfinite(rate) else f"- {unit}/s"


def parse_size(text: str) -> int:
    """Bytes from `2G`, `500M`, `1.5GB` (decimal) or `256MiB`, `2Gi` (binary), or a bare number of bytes.

    Raises:
        UsageError: not a size, or not a whole number of bytes above zero.
    """
    match = _SIZE.fullmatch(text)
    if match is None:
        raise UsageError(f"'{text}' is not a size; write it like 2G, 500M or 256MiB")
    number, unit, binary = match.groups()
    scale = (1024 if binary else 1000) ** _POWERS[unit.upper()] if unit else 1
    size = float(number) * scale if "." in number else int(number) * scale
    if size < 1:
        raise UsageError(f"'{text}' is no size to work with; it must be at least one byte")
    return int(size)


def parse_tokens(text: str) -> int:
    """Tokens from `8192`, `8k` (8 x 1,024, as lengths of contexts are counted) or `1M`.

    Raises:
        UsageError: not a number of tokens above zero, or more than llama.cpp can count.
    """
    match = _TOKENS.fullmatch(text)
    count = int(match[1]) * 1024 ** {"k": 1, "m": 2}.get((match[2] or "").lower(), 0) if match else 0
    if not 1 <= count <= _MOST_TOKENS:
        raise UsageError(f"'{printable(text)}' is no number of tokens; write it like 8192, 64k or 1M")
    return count


def _as_float(value: int | float) -> float:
    """Numbers read from a file can be larger than any float; they are written as infinite, and stop nothing."""
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def _decimals(value: float) -> int:
    return 0 if abs(value) >= 99.95 else 1
