"""What streaming experts from disk takes and gives, computed from the header with every expert equally likely.

A token touches the experts that its layers choose. Where each is equally likely, a cache that holds a share of all
experts' bytes has that share of the choices; the rest is read. Real models prefer some experts, and read less.
"""

from collections import defaultdict

from dfqs.planning.document import DiskRate, StreamedPlan
from dfqs.streaming.budget import LoadPlan
from dfqs.streaming.layout import StreamLayout


def touched_bytes_per_token(layout: StreamLayout, used: int) -> int:
    """Bytes of experts that a token uses, over all layers: `used` average ones of each."""
    by_layer: dict[int, list[int]] = defaultdict(list)
    for (layer, _), length in layout.sizes.items():
        by_layer[layer].append(length)
    return round(sum(min(used, len(sizes)) * sum(sizes) / len(sizes) for sizes in by_layer.values()))


def describe_streaming(
    load: LoadPlan, layout: StreamLayout, used: int, disk_rates: tuple[int, ...]
) -> StreamedPlan | None:
    """The figures of a load that streams; None for one that does not.

    Args:
        used: experts that a token uses in a layer.
        disk_rates: bytes a second to compute tokens a second for: of the disk alone, computing comes on top.
    """
    if load.cache_bytes is None or load.resident_bytes is None:
        return None
    touched = touched_bytes_per_token(layout, used)
    hits = min(1.0, load.cache_bytes / layout.experts_bytes)
    read = round(touched * (1 - hits))
    return StreamedPlan(
        resident_bytes=load.resident_bytes,
        cache_bytes=load.cache_bytes,
        experts_bytes=layout.experts_bytes,
        total_bytes=load.total_bytes,
        touched_bytes_per_token=touched,
        hit_share=hits,
        read_bytes_per_token=read,
        rates=tuple(DiskRate(disk_bytes_per_s=rate, tokens_per_s=rate / read if read else None) for rate in disk_rates),
    )
