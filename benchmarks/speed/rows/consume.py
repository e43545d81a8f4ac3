"""`dfqs merge --consume` of 0.84 GB, beside `cat` of the same bytes."""

from speed.frame import Place, Row
from speed.merging import merging


def row(place: Place) -> Row:
    """Five sixths of the bytes are in the first shard."""
    return merging(
        place, name="consume", title="Merging and consuming", tensors=24, in_first=20, option="--consume", at_most=1.25
    )
