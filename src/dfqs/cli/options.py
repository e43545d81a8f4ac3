"""Options that several verbs have: each spelled, typed and described once."""

import importlib
from pathlib import Path
from typing import Annotated, Literal

import typer

from dfqs.cli.completing import complete_model
from dfqs.units import MOST_THREADS


def model_file(text: str) -> Path:
    """The file that is meant; of a model of the Hub the one that is kept here.

    Raises:
        UsageError: no such model is kept.
    """
    if not (":" in text or "/" in text) or Path(text).exists():
        return Path(text)
    kept: Path = importlib.import_module("dfqs.cli.source").kept_path(text)
    return kept


_LOCAL = "A .gguf file, the first shard of a set, or a model of the Hub that is kept here (`dfqs cache`)."
Model = Annotated[
    Path, typer.Argument(help=_LOCAL, show_default=False, parser=model_file, autocompletion=complete_model)
]
ModelIfAny = Annotated[
    Path | None, typer.Argument(help=_LOCAL, show_default=False, parser=model_file, autocompletion=complete_model)
]
_OBTAINED = (
    "A .gguf file, the first shard of a set, or a model of the Hub (hf:OWNER/NAME[@REVISION][:PATTERN], "
    "OWNER/NAME:PATTERN), which is fetched once and kept."
)
ObtainedModel = Annotated[
    str, typer.Argument(metavar="MODEL", help=_OBTAINED, show_default=False, autocompletion=complete_model)
]
ObtainedModelIfAny = Annotated[
    str | None, typer.Argument(metavar="[MODEL]", help=_OBTAINED, show_default=False, autocompletion=complete_model)
]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Fetch a model of the Hub without asking, however large.")]
Source = Annotated[
    str,
    typer.Argument(
        help="A .gguf file, the first shard of a set, hf:OWNER/NAME[@REVISION][:PATTERN], OWNER/NAME:PATTERN, or a Hub "
        "address.",
        show_default=False,
        autocompletion=complete_model,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document (docs/json.md).")]
JsonLines = Annotated[bool, typer.Option("--json", help="Print one JSON document a line (docs/json.md).")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what stands under the output's name.")]
Restart = Annotated[bool, typer.Option("--restart", help="Throw away what an unfinished run wrote.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and write nothing.")]
Threads = Annotated[
    int | None,
    typer.Option("--threads", "-t", help="CPU threads.", min=1, max=MOST_THREADS, show_default="one a physical core"),
]
Ram = Annotated[
    str | None,
    typer.Option(
        "--ram",
        help="Take no more memory than this (16GB, auto): experts that do not fit are read from disk when they are "
        "chosen. Without it, only a model larger than what is free is streamed.",
        show_default=False,
    ),
]
Force = Annotated[
    bool, typer.Option("--force", help="Load a model that does not fit into memory, and wait for the disk.")
]
Context = Annotated[int | None, typer.Option("--ctx", help="Context in tokens.", min=1, show_default="as trained")]
ChatTemplate = Annotated[
    Path | None,
    typer.Option(
        "--chat-template",
        help="File of a chat template (Jinja) to use in place of the model's own, or where it has none.",
        show_default=False,
    ),
]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Say which settings hold and why, and how fast it was.")]
NoTuning = Annotated[bool, typer.Option("--no-tuning", help="Leave out what `dfqs tune` found.")]
AllowRequantize = Annotated[bool, typer.Option("--allow-requantize", help="Take tensors that are below Q8_0 already.")]
Imatrix = Annotated[
    Path | None, typer.Option("--imatrix", help="Importance matrix, from `dfqs imatrix` or llama-imatrix.")
]
Memory = Annotated[str, typer.Option("--memory", help="Peak memory, whatever the model's size.")]
NoiseFloorTokens = Annotated[
    int | None,
    typer.Option(
        "--noise-floor",
        min=0,
        help="Hold a model against itself under other numerics, on so many tokens, each computed four times; 0: not.",
        show_default="512 beside a reference",
    ),
]
Align = Annotated[
    int | None,
    typer.Option(
        "--align",
        help="Place tensors at multiples of so many bytes (4096: pages, which streaming likes).",
        show_default="as in the source",
    ),
]
Check = Annotated[
    Literal["sampled", "all", "off"] | None,
    typer.Option(
        "--check",
        help="Hold what is streamed from disk against the model's manifest (`dfqs manifest MODEL --experts`): one of "
        "16 slices, or all.",
        show_default="sampled where MODEL.manifest.json has hashes of experts",
    ),
]
CheckManifest = Annotated[
    Path | None, typer.Option("--manifest", help="The manifest that --check reads.", show_default="MODEL.manifest.json")
]
Plots = Annotated[
    Path | None, typer.Option("--plots", help="Directory to write pictures to.", show_default=False, file_okay=False)
]
Svg = Annotated[bool, typer.Option("--svg", help="Pictures as SVG, not PNG.")]
