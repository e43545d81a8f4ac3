"""Which verbs work on which system, and what of that was run. README's table is made of this."""

from dataclasses import dataclass

LOADS = "loads; not run"
"""The verb's modules load where the modules and calls that this system lacks are taken away (a test does so)."""


@dataclass(frozen=True, slots=True)
class Supported:
    """Verbs, or a part of one, and where they work."""

    what: str
    verbs: str
    """With a space between; empty for a part of a verb."""
    linux: str
    macos: str
    windows: str


PLATFORMS = (
    Supported(
        "files, reports, the Hub, other programs' configurations",
        "pull cache merge split inspect verify manifest attest repair find report compare conform card publish deploy "
        "config",
        "run",
        LOADS,
        LOADS,
    ),
    Supported(
        "llama.cpp in a process of its own",
        "demo quantize ladder imatrix audit perplexity plan forecast tune runtime run chat serve eval route",
        "run (x86-64 with AVX2)",
        LOADS,
        "no: that process is given its pipes as Unix does; use WSL",
    ),
    Supported("`--ram`: experts from disk", "", "run", "not looked at", "no"),
    Supported("`merge --in-place`, `--consume`", "", "run (ext4, XFS)", "no: fallocate's modes are Linux's", "no"),
    Supported("`eval`'s generated code", "", "run (bubblewrap)", "not measured, and the report says so", "no"),
)


def platform_table() -> str:
    """The table, in Markdown."""
    rows = ["| | Linux | macOS | Windows |", "|---|---|---|---|"]
    for each in PLATFORMS:
        verbs = f": {', '.join(f'`{verb}`' for verb in each.verbs.split())}" if each.verbs else ""
        rows.append(f"| {each.what}{verbs} | {each.linux} | {each.macos} | {each.windows} |")
    return "\n".join(rows) + "\n"
