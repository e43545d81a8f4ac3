"""`dfqs plan`: will it fit, here or on another machine, and with which settings."""

import importlib
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from dfqs.cli.options import Json, Source
from dfqs.cli.output import emit
from dfqs.errors import UsageError, printable
from dfqs.runtime.abi import CACHE_TYPES
from dfqs.runtime.worker import Worker
from dfqs.units import format_number_of, parse_size, parse_tokens

_MOST_CONTEXTS = 32


class Attention(StrEnum):
    """Flash attention."""

    AUTO = "auto"
    ON = "on"
    OFF = "off"


def command(
    source: Source,
    ctx: Annotated[
        list[str] | None,
        typer.Option("--ctx", help="Contexts in tokens: 8k,64k,1M.", show_default="8k, 64k and the trained length"),
    ] = None,
    kv: Annotated[
        list[str] | None,
        typer.Option("--kv", help="Types of the KV cache: f16,q8_0, or K/V as q8_0/f16.", show_default="f16"),
    ] = None,
    ubatch: Annotated[int, typer.Option("--ubatch", help="Tokens computed at a time.", min=1, max=65536)] = 512,
    batch: Annotated[int, typer.Option("--batch", help="Tokens submitted at a time.", min=1, max=65536)] = 512,
    flash_attention: Annotated[Attention, typer.Option("--flash-attention", help="Flash attention.")] = Attention.AUTO,
    swa_full: Annotated[
        bool, typer.Option("--swa-full", help="Full-size caches for layers with a sliding window, as llama.cpp's API.")
    ] = False,
    ram: Annotated[
        str | None,
        typer.Option("--ram", help="Memory that may be taken, as 80GB.", show_default="nine tenths of what is free"),
    ] = None,
    vram: Annotated[
        str | None, typer.Option("--vram", help="Of a GPU: split the model between it and the CPU.", show_default=False)
    ] = None,
    disk_rate: Annotated[
        list[str] | None,
        typer.Option("--disk-rate", help="Bytes a second to compute for: 1.2GB,3GB.", show_default="500MB,3GB,7GB"),
    ] = None,
    directory: Annotated[
        Path | None, typer.Option("--directory", help="Where the model would be kept.", show_default="beside it, or .")
    ] = None,
    json_: Json = False,
) -> None:
    """Say what a model takes and whether that is there: memory item by item, as the runtime itself counts it, with the
    settings that make it fit; disk; a GPU's share. Reads headers only, also of a model on the Hub.

    Exit code 1: a context that was asked for does not fit (without --ctx: none of the usual ones does).

    Example: dfqs plan DeepSeek-V4-Flash-IQ1_S-XL.gguf --ram 80GB --ctx 8k,1M
    """
    asked = {
        "contexts": _contexts(ctx) if ctx else None,
        "kv": _cache_types(kv) if kv else (("f16", "f16"),),
        "batch": max(batch, ubatch),
        "ubatch": ubatch,
        "flash_attention": flash_attention.value,
        "swa_full": swa_full,
        "memory_bytes": None if ram in (None, "auto") else parse_size(str(ram)),
        "vram_bytes": None if vram is None else parse_size(vram),
        "directory": directory,
    }
    if disk_rate:
        asked["disk_rates"] = _rates(disk_rate)
    with Worker() as worker:
        # It starts while what makes a plan is imported here.
        plan = importlib.import_module("dfqs.cli.plan_text").make_plan(source, asked, worker)
        emit(plan, json_, lambda: importlib.import_module("dfqs.cli.plan_text").show_plan(plan))
    runs = [row.verdict.runs for row in plan.contexts if row.profile == "default"]
    if not (all(runs) if ctx else any(runs)):
        raise typer.Exit(1)


def _words(texts: list[str]) -> list[str]:
    return [word for text in texts for word in text.replace(",", " ").split()]


def _contexts(texts: list[str]) -> tuple[int, ...]:
    found = tuple(dict.fromkeys(parse_tokens(word) for word in _words(texts)))
    if not found:
        raise UsageError("--ctx names no length; write it like 8k,64k,1M")
    if len(found) > _MOST_CONTEXTS:
        raise UsageError(f"{format_number_of(len(found), 'context')} at once; at most {_MOST_CONTEXTS} are planned for")
    return found


def _cache_types(texts: list[str]) -> tuple[tuple[str, str], ...]:
    pairs = []
    for word in _words(texts):
        first, _, second = word.partition("/")
        for name in (first, second or first):
            if name not in CACHE_TYPES:
                raise UsageError(f"'{printable(name)}' is no type of a KV cache; choose from {', '.join(CACHE_TYPES)}")
        pairs.append((first, second or first))
    if not pairs:
        raise UsageError(f"--kv names no type; choose from {', '.join(CACHE_TYPES)}")
    return tuple(dict.fromkeys(pairs))


def _rates(texts: list[str]) -> tuple[int, ...]:
    found = tuple(dict.fromkeys(parse_size(word.removesuffix("/s")) for word in _words(texts)))
    if not found:
        raise UsageError("--disk-rate names no rate; write it like 1.2GB,3GB")
    return found
