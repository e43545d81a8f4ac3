"""The gap in front of data that stays where it is, and how it is taken out again.

Inserting (and removing) a range shifts a file's extents over several transactions of the file system. A loss of power
in between leaves the file with its data complete and in order, its size already (or still) the larger one, and the gap
standing somewhere between where the shift began and where it was going. The file had no holes before, so the one hole
in it is the gap; removing it gives the file as it was.

Source: Linux, `fs/ext4/extents.c` (ext4_insert_range sets the size first, then ext4_ext_shift_extents goes from the
last extent to the first) and `fs/xfs/xfs_file.c` (xfs_falloc_insert_range, the same order).
"""

from pathlib import Path

from dfqs.errors import IntegrityError
from dfqs.storage.disk import DiskFile


def remove_gap(file: DiskFile, *, gap: int, old_bytes: int, path: Path) -> None:
    """Give a file the size and order it had before a gap was inserted, wherever the gap stands. Safe to repeat.

    Raises:
        IntegrityError: the file is in no state that inserting or removing a gap can leave.
    """
    size = file.size()
    if size == old_bytes:
        return
    holes = file.holes()
    if size == old_bytes + gap and len(holes) == 1:
        start, end = holes[0]
        if end == size and start >= old_bytes:
            # Nothing had moved yet: the gap stands behind everything.
            file.truncate(old_bytes)
            file.sync()
            return
        if end - start == gap:
            file.collapse_range(start, gap)
            file.sync()
            return
    raise IntegrityError(
        f"{path} is not as an interrupted merge leaves it: {size:,} bytes (was {old_bytes:,}, gap {gap:,}), holes at "
        f"{holes[:4]}; nothing was changed"
    )
