"""matplotlib, an extra: whoever draws takes it from here, and is told what is missing."""

from dfqs.errors import UsageError

try:
    import matplotlib as mpl
    from matplotlib.figure import Figure
except ImportError:
    raise UsageError("pictures need matplotlib, which is not installed: pip install 'dfqs[plots]'") from None

# Text stays text in an SVG, and its identifiers the same from run to run.
mpl.rcParams["svg.fonttype"] = "none"
mpl.rcParams["svg.hashsalt"] = "dfqs"

# What is between two dollars is no formula: names come from outside.
mpl.rcParams["text.parse_math"] = False

__all__ = ["Figure"]
