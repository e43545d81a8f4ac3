"""`dfqs merge --in-place` of 0.84 GB, beside `cat` of the same bytes."""

from speed.frame import Place, Row
from speed.merging import merging


def row(place: Place) -> Row:
    """Five sixths of the bytes are in the first shard."""
    return merging(
        place,
        name="in-place",
        title="Merging in place, 0.84 GB",
        tensors=24,
        in_first=20,
        option="--in-place",
        at_most=0.5,
    )
