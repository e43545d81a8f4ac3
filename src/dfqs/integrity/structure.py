"""What is wrong with a file's form, from its header and its size; tensor bytes are not read."""

import importlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from dfqs.errors import DfqsError, FormatError, TruncatedGGUF, UnsupportedGGUF
from dfqs.gguf import FileSource, Header, align_up, layout_problems
from dfqs.gguf.kinds import MODEL, file_kind
from dfqs.gguf.shard import SPLIT_COUNT, SPLIT_NO, STALE_COUNT_FIX, is_whole_model, read_shards
from dfqs.gguf.shard_names import ShardName, parse_shard_name
from dfqs.integrity.findings import Finding, Severity
from dfqs.integrity.keys import key_findings, size_findings, tensor_findings
from dfqs.shards.concatenated import EmbeddedFile, read_embedded
from dfqs.units import format_number_of

if TYPE_CHECKING:
    from dfqs.model.hashes import TensorHash

# What explains a file that is not in order is loaded where one is not.
FOREIGN, PIECES, REPAIR = "dfqs.integrity.foreign", "dfqs.gguf.pieces", "dfqs.shards.repair"
FETCH_AGAIN = "Fetch the file again; the lost bytes are nowhere in it."
_LISTED = 3
"""So many tensors of one defect are named one by one."""


@dataclass(frozen=True, slots=True)
class Structure:
    """A file's header, if it has one, and what is wrong with its form."""

    path: Path
    file_bytes: int
    header: Header | None
    findings: tuple[Finding, ...]

    @property
    def readable(self) -> bool:
        """Whether every tensor's bytes are there and where they should be, so that they can be hashed."""
        return self.header is not None and not any(layout_problems(self.header))


def verify_structure(path: Path) -> Structure:
    """Look at a file's form.

    Raises:
        UsageError: there is no such file, or it cannot be read.
    """
    with FileSource(path) as source:
        try:
            files = read_embedded(source)
        except FormatError as error:
            return Structure(Path(path), source.size, None, (_header_finding(source, error),))
        header = files[0].header
        findings = (
            *_length_findings(source, header, files),
            *_layout_findings(header),
            *_content_findings(header),
            *_shard_findings(Path(path), header, files),
        )
        return Structure(Path(path), source.size, header, _with_possible_fixes(Path(path), findings))


def require_one_model(path: Path) -> None:
    """Refuse a file that is not one model, before its hash is recorded or signed: that would lend it credit.

    Raises:
        FormatError: several files end to end, or bytes after the last tensor.
    """
    for finding in verify_structure(path).findings:
        if finding.code in ("concatenated", "trailing"):
            raise FormatError(f"{finding.message}. {finding.fix}", path=path, offset=finding.offset)


def _with_possible_fixes(path: Path, findings: tuple[Finding, ...]) -> tuple[Finding, ...]:
    """The findings; where repair is named and would refuse, its reason stands there instead."""
    if not any(finding.repairable for finding in findings):
        return findings
    try:
        importlib.import_module(REPAIR).plan_repair(path)
    except DfqsError as error:
        reason = f"`dfqs repair` cannot fix it: {error}."
        return tuple(replace(f, fix=reason, repairable=False) if f.repairable else f for f in findings)
    return findings


def zero_findings(tensors: "Iterable[TensorHash]") -> tuple[Finding, ...]:
    """Tensors of two axes or more that hold nothing but zeroes: space was taken and their bytes never came."""
    fix = "No trained weight is all zeroes; compare with the source (`dfqs verify --against`), or fetch it again."
    return tuple(
        Finding("zeroes", "all of its bytes are zero", fix, severity=Severity.WARNING, name=tensor.name)
        for tensor in tensors
        if tensor.zeroes and len(tensor.shape) > 1
    )


def _header_finding(source: FileSource, error: FormatError) -> Finding:
    foreign: Finding | None = importlib.import_module(FOREIGN).explain_not_gguf(source)
    if foreign is not None:
        return foreign
    if isinstance(error, UnsupportedGGUF):
        return Finding(error.code, error.detail, error.fix, offset=error.offset, name=error.name)
    if pieces := importlib.import_module(PIECES).find_raw_pieces(source.path):
        return _pieces_finding(source.path, pieces.paths, pieces.complete)
    code, fix = "header", "The header is broken; fetch or make it again."
    if isinstance(error, TruncatedGGUF):
        code, fix = "truncated", FETCH_AGAIN
    return Finding(code, f"the header is not readable: {error.detail}", fix, offset=error.offset, name=error.name)


def _length_findings(source: FileSource, header: Header, files: tuple[EmbeddedFile, ...]) -> Iterator[Finding]:
    """The file is shorter or longer than its header says."""
    size, end = source.size, files[0].end
    cut = [t for t in header.tensors if header.span(t).end > size]
    if cut:
        if pieces := importlib.import_module(PIECES).find_raw_pieces(source.path):
            yield _pieces_finding(source.path, pieces.paths, pieces.complete)
            return
        gone = sum(1 for t in cut if header.span(t).offset >= size)
        missing = max(header.span(t).end for t in cut) - size
        yield Finding(
            "truncated",
            f"the file ends {format_number_of(missing, 'byte')} too soon: of {len(header.tensors):,} tensors {gone:,} "
            f"are missing and {len(cut) - gone:,} cut short, the first of them {cut[0].name}",
            FETCH_AGAIN,
            offset=size,
            name=cut[0].name,
        )
    elif len(files) > 1:
        places = ", ".join(f"{file.base:,}" for file in files[:8]) + (", ..." if len(files) > 8 else "")
        yield Finding(
            "concatenated",
            f"{len(files)} GGUF files stand end to end in it, at offsets {places}: shards joined with cat, which "
            "llama.cpp does not read as one model",
            "`dfqs repair MODEL -o OUT` makes one correct file of it.",
            offset=files[1].base,
            repairable=True,
        )
        yield from _rest_findings(source, files[-1])
    elif size > end:
        yield from _rest_findings(source, files[0])


def _rest_findings(source: FileSource, last: EmbeddedFile) -> Iterator[Finding]:
    """Bytes after the last tensor."""
    extra = source.size - last.end
    if extra <= 0:
        return
    sample = source.read_at(last.end, 1 << 16)
    kind = "zeroes" if not any(sample) else f"beginning with {sample[:8]!r}"
    yield Finding(
        "trailing",
        f"{format_number_of(extra, 'byte')} ({kind}) after the last tensor, which llama.cpp loads without a word",
        f"`dfqs repair MODEL -o OUT` cuts them off (or `truncate -s {last.end} MODEL` in place).",
        offset=last.end,
        repairable=True,
    )


def _layout_findings(header: Header) -> Iterator[Finding]:
    """Tensors that do not lie where llama.cpp expects them."""
    expected, wrong = 0, {"misaligned": 0, "overlap": 0, "gap": 0}
    for tensor in header.tensors:
        if tensor.offset != expected:
            if tensor.offset % header.alignment:
                code, what = "misaligned", f"is not a multiple of the alignment, {header.alignment}"
            elif tensor.offset < expected:
                code, what = "overlap", f"lies inside or before the tensor in front of it (expected {expected:,})"
            else:
                code, what = "gap", f"leaves {tensor.offset - expected:,} bytes unused before it"
            wrong[code] += 1
            if wrong[code] <= _LISTED:
                fix = "`dfqs repair MODEL -o OUT` writes the tensors one behind the other."
                if code == "overlap":
                    fix = "Two tensors cannot share bytes; make or fetch the file again."
                yield Finding(
                    code,
                    f"its offset {tensor.offset:,} {what}; llama.cpp refuses the file",
                    fix,
                    offset=header.data_offset + tensor.offset,
                    name=tensor.name,
                    repairable=code != "overlap",
                )
        expected = align_up(tensor.offset + tensor.length, header.alignment)
    for code, count in wrong.items():
        if count > _LISTED:
            yield Finding(code, f"and {count - _LISTED:,} more tensors likewise", "As above.")


def _content_findings(header: Header) -> Iterator[Finding]:
    """What its keys and tensors say: of a model, whether llama.cpp loads it; of another kind, what it is."""
    kind = file_kind(header)
    oversized = tuple(size_findings(header))
    yield from oversized
    if oversized:
        return
    if kind is MODEL:
        yield from key_findings(header)
        yield from tensor_findings(header)
    else:
        message = f"it is {kind.word}, not a model; only its form was looked at"
        yield Finding("kind", message, kind.use, severity=Severity.WARNING)


def _shard_findings(path: Path, header: Header, files: tuple[EmbeddedFile, ...]) -> Iterator[Finding]:
    """The file is one of several, or says so wrongly."""
    count, number = header.metadata.integer(SPLIT_COUNT) or 0, header.metadata.integer(SPLIT_NO) or 0
    if count <= 1 or len(files) > 1:
        return
    if is_whole_model(header, path):
        yield Finding(
            "shard-keys",
            f"it holds all {len(header.tensors):,} tensors, but split.count says that it is shard 1 of {count}",
            f"{STALE_COUNT_FIX}.",
            name=SPLIT_COUNT,
            repairable=True,
        )
        return
    name = parse_shard_name(path.name)
    if number != 0 and name is None:
        message = (
            f"it is shard {number + 1} of {count} and not named so; the others are not found, so nothing is proven"
        )
        yield Finding("shard", message, f"Name it {ShardName('PREFIX', number + 1, count)}, beside the others.")
        return
    try:
        # A set is in order or not, whichever of its shards is given.
        shards = read_shards(path.with_name(str(name.sibling(1))) if number != 0 and name is not None else path)
        consistency = importlib.import_module("dfqs.shards.consistency")
        problems = [str(problem) for problem in consistency.consistency_problems(shards)]
    except DfqsError as error:
        problems = [str(error)]
    for problem in problems[:_LISTED]:
        yield Finding("shard", problem, "Fetch the shard that is named (`dfqs pull` fetches whole sets).")
    if not problems:
        which = f"the first of {count} shards" if number == 0 else f"shard {number + 1} of {count}"
        message = f"it is {which}, all of them there"
        yield Finding("shard", message, "`dfqs merge` makes one file of them.", severity=Severity.WARNING)


def _pieces_finding(path: Path, paths: tuple[Path, ...], complete: bool) -> Finding:
    names = " ".join(p.name for p in paths[:8]) + (" ..." if len(paths) > 8 else "")
    which = "the first" if paths[0].name == path.name else "a later"
    if complete:
        fix = f"`dfqs repair {paths[0].name} -o OUT` joins them (or: cat {names} > OUT)."
    else:
        fix = f"Found here are {names}, which do not add up to the whole; fetch the missing pieces."
    message = f"it is {which} of {len(paths)} raw pieces of one file (made by `split -b`, not by gguf-split)"
    return Finding("raw-piece", message, fix)
