"""`dfqs merge --in-place` of 4.2 GB, beside `cat` of the same bytes."""

from speed.frame import Place, Row
from speed.merging import merging


def row(place: Place) -> Row:
    """Five sixths of the bytes are in the first shard."""
    return merging(
        place,
        name="in-place-large",
        title="Merging in place, 4.2 GB",
        tensors=120,
        in_first=100,
        option="--in-place",
        at_most=0.33,
    )
