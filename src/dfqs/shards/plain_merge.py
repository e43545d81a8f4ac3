"""Plain merge: shards stay as they are, a new file is written beside them, whole or not at all."""

import contextlib
import hashlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

from dfqs.errors import ShardError
from dfqs.gguf import FileSource
from dfqs.gguf.shard import Shard
from dfqs.progress import Progress, no_progress
from dfqs.receipts import find_receipt, receipt_of, stamp_record
from dfqs.records import readable_text, sha256_of
from dfqs.shards.locks import locked_for_reading, require_unchanged
from dfqs.shards.plan import Copy, MergePlan, MergeResult, refuse_source_as_output
from dfqs.shards.provenance import require_expected_sha256
from dfqs.storage.atomic import atomic_writer, check_output_path
from dfqs.storage.copying import RangeWriter
from dfqs.storage.hashing import HashingReader
from dfqs.storage.space import require_space


def merge(
    plan: MergePlan,
    out: Path,
    *,
    hash_sources: bool = False,
    overwrite: bool = False,
    progress: Progress = no_progress,
) -> MergeResult:
    """Write the merged file; the shards stay.

    Args:
        hash_sources: hash every shard in the same pass (for a manifest), and compare with what the Hub's tools wrote
            down when they fetched it; then bytes pass through this process.
        progress: in bytes of the output.

    Raises:
        UsageError: `out` exists (and `overwrite` is false) or is one of the shards, or its directory is not writable.
        SpaceError: there is not enough room; found out before anything is written, where the file system can say.
        ShardError: a shard changed since it was planned, or was cut short meanwhile.
        IntegrityError: a shard's hash is not the one that the Hub's tools wrote down.
    """
    out = Path(out)
    started = time.monotonic()
    refuse_source_as_output(plan.shards, out)
    check_output_path(out, overwrite=overwrite)
    require_space(out.parent, plan.file_bytes, "--in-place and --consume need no second copy")
    hashes: list[str | None] = []
    with (
        locked_for_reading(plan.shards[0]),
        receipt_of(_fingerprint(plan), out, hashes) as on_whole,
        atomic_writer(out, overwrite=overwrite, on_whole=on_whole) as file,
    ):
        os.ftruncate(file.fileno(), plan.file_bytes)
        writer = RangeWriter(file.fileno(), plan.file_bytes, progress, note=plan.shards[0].path.name)
        writer.write(plan.header, 0)
        for index, shard in enumerate(plan.shards):
            writer.note = shard.path.name
            with open_unchanged(shard) as source:
                if hash_sources:
                    sha256 = _copy_and_hash(source, writer, plan.copies_of(index))
                    require_expected_sha256(shard, sha256)
                    hashes.append(sha256)
                else:
                    for copy in plan.copies_of(index):
                        writer.copy(source.fileno(), copy.source_offset, copy.output_offset, copy.length)
                    hashes.append(None)
        progress(plan.file_bytes, plan.file_bytes, "making it durable")
    return MergeResult(
        out, plan.file_bytes, len(plan.header) + plan.copied_bytes, time.monotonic() - started, tuple(hashes)
    )


def merged_already(plan: MergePlan, out: Path, *, hash_sources: bool = False) -> MergeResult | None:
    """The outcome of the same merge when it was done before and neither its shards nor `out` changed since.

    Args:
        hash_sources: it must have hashed the shards.
    """
    receipt = find_receipt(_fingerprint(plan), [Path(out)])
    if receipt is None or (hash_sources and None in receipt.source_sha256):
        return None
    return MergeResult(Path(out), plan.file_bytes, 0, 0.0, receipt.source_sha256, done_already=True)


def _fingerprint(plan: MergePlan) -> str:
    """Hash of all that decides the bytes of the merged file."""
    shards = [
        [readable_text(shard.path.absolute()), shard.stamp and stamp_record(shard.stamp)] for shard in plan.shards
    ]
    return sha256_of({"merge": hashlib.sha256(plan.header).hexdigest(), "shards": shards})


@contextlib.contextmanager
def open_unchanged(shard: Shard) -> Iterator[FileSource]:
    """Open a shard and make sure that it is the file whose header was read, and stays it while it is used.

    Raises:
        ShardError: it was changed since, or the bytes in it were changed or cut while it was used.
    """
    with FileSource(shard.path) as source:
        require_unchanged(shard, source)
        try:
            yield source
            require_unchanged(shard, source)
        except ShardError as error:
            raise ShardError(error.detail, path=shard.source, offset=error.offset) from None


def _copy_and_hash(source: FileSource, writer: RangeWriter, copies: tuple[Copy, ...]) -> str:
    reader = HashingReader(source.read_into)
    try:
        for copy in copies:
            shift = copy.output_offset - copy.source_offset

            def write(piece: memoryview, offset: int, shift: int = shift) -> None:
                writer.write(piece, offset + shift)

            reader.read_through(copy.source_offset, _ignore)
            reader.read_through(copy.source_end, write)
        reader.read_through(source.size, _ignore)
        return reader.hexdigest()
    finally:
        reader.close()


def _ignore(piece: memoryview, offset: int) -> None:
    """Header and padding: hashed, not copied."""
