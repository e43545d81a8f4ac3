"""What a shell offers where a model's name is wanted: files here, folders, and models of the Hub that are kept.

The shell runs dfqs for every press of a key: nothing heavy is imported unless a model is kept.
"""

import importlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

VARIABLE = "_DFQS_COMPLETE"
"""Set by the scripts of `dfqs --show-completion`, to the shell's name."""
_QUOTED = re.compile(r"([^\w@%+=:,./~-])", re.ASCII)
_LISTED = 400
_ZSH_SCRIPT = """
#compdef %(prog_name)s

%(complete_func)s() {
  eval $(env _TYPER_COMPLETE_ARGS="${words[1,$CURRENT]}" %(autocomplete_var)s=complete_zsh %(prog_name)s)
}

if [ "$funcstack[1]" = "_%(prog_name)s" ]; then
  %(complete_func)s "$@"
else
  compdef %(complete_func)s %(prog_name)s
fi
"""
"""typer's own, loaded from a file at the first press of Tab, only says who completes: that press did nothing."""


def completed_words() -> list[str] | None:
    """The words of the command line that a shell asks about, without the program's; None where none does."""
    if VARIABLE not in os.environ:
        return None
    return (os.environ.get("COMP_WORDS") or os.environ.get("_TYPER_COMPLETE_ARGS", "")).split()[1:]


def mend_zsh() -> None:
    """Give typer the script for zsh that completes at once, for `--install-completion` and `--show-completion`."""
    importlib.import_module("typer._completion_shared")._completion_scripts["zsh"] = _ZSH_SCRIPT
    importlib.import_module("typer._completion_classes").ZshComplete.source_template = _ZSH_SCRIPT


def complete_model(incomplete: str) -> list[str]:
    """Names of models that begin so. In bash, where a folder begins so too, nothing: its own completion of files goes
    on in a folder without a space behind it."""
    in_bash = os.environ.get(VARIABLE) == "complete_bash"
    try:
        files, folders = _entries(incomplete)
    except (OSError, RuntimeError):
        files, folders = [], []
    if in_bash and folders:
        return []
    found = [*files, *(f"{folder}/" for folder in folders), *_kept(incomplete, in_bash=in_bash)][:_LISTED]
    if os.environ.get(VARIABLE) == "complete_zsh":
        # typer puts the list between quotes, and means by two of them none.
        found = [name for name in found if "'" not in name and '"' not in name]
    return [_QUOTED.sub(r"\\\1", name) for name in found] if in_bash else found


def _entries(incomplete: str) -> tuple[list[str], list[str]]:
    """GGUF files and folders whose path begins so, as it would be typed. A set of shards is offered by its first."""
    folder, slash, start = incomplete.rpartition("/")
    where = Path(folder + slash).expanduser()
    files, folders = [], []
    with os.scandir(where) as entries:
        for entry in entries:
            name = entry.name
            if not name.startswith(start) or (name.startswith(".") and not start) or not name.isprintable():
                continue
            if entry.is_dir():
                folders.append(folder + slash + name)
            elif name.lower().endswith(".gguf") and not re.search(r"-(?!0*1-of)\d{5}-of-\d{5}\.gguf$", name):
                files.append(folder + slash + name)
    return sorted(files), sorted(folders)


def _kept(incomplete: str, *, in_bash: bool) -> Iterator[str]:
    """Names of kept models. bash takes a colon for the end of a word, so there only what has none before it is used."""
    directory = importlib.import_module("dfqs.storage.cache").cache_directory() / "models"
    if "DFQS_MODEL_FOLDER" not in os.environ and not directory.is_dir():
        return
    for kept in importlib.import_module("dfqs.pull").list_kept():
        short = kept.name.removeprefix("hf:")
        for name in (short if ":" in short else "", "" if in_bash else kept.name):
            if name.startswith(incomplete) and name and kept.is_whole:
                yield name
                break
