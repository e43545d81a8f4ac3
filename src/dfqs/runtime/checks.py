"""What is looked at before llama.cpp sees a file: it asserts, or reads past the end, where a sentence would do."""

import re
from dataclasses import dataclass
from pathlib import Path

from dfqs.errors import ShardError, printable
from dfqs.gguf import Header, read_header

_SHARD_NAME = re.compile(r"(?P<prefix>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.DOTALL)


@dataclass(frozen=True, slots=True)
class CheckedModel:
    """A model whose headers are sound."""

    path: Path
    header: Header
    """Of the file, or of the first shard."""
    file_bytes: int

    @property
    def name(self) -> str:
        """`general.name`, or the file's stem."""
        name = self.header.metadata.get("general.name")
        return printable(name) if isinstance(name, str) and name.strip() else self.path.stem

    @property
    def label(self) -> str | None:
        """What a model made by dfqs says of itself, so that nobody takes it for more: shown wherever it runs."""
        if not any(key.startswith("dfqs.") for key in self.header.metadata):
            return None
        text = self.header.metadata.get("general.description")
        return printable(text, 300) if isinstance(text, str) and text else "made by dfqs"


def check_model(path: Path) -> CheckedModel:
    """Read the header of a GGUF file, or of every shard of a set given by its first.

    Raises:
        UsageError: no such file, or not readable.
        FormatError: not a GGUF file, or cut short.
        ShardError: a later shard given, or one missing.
    """
    paths = shard_paths(path)
    headers = [read_header(shard) for shard in paths]
    return CheckedModel(path, headers[0], sum(header.file_size for header in headers))


def shard_paths(path: Path) -> tuple[Path, ...]:
    """The files of the model that `path` begins: itself, or a complete set of shards as llama.cpp looks for them.

    Raises:
        ShardError: `path` is a later shard, or a shard is missing.
    """
    header = read_header(path)
    count = header.metadata.get("split.count", 0)
    if not isinstance(count, int) or count < 2:
        return (path,)
    number = header.metadata.get("split.no")
    match = _SHARD_NAME.fullmatch(path.name)
    if match is None or int(match["count"]) != count or number != int(match["number"]) - 1:
        raise ShardError(
            f"a shard of {count} whose name does not say so; llama.cpp finds the others by names like "
            f"model-00001-of-{count:05}.gguf",
            path=path,
        )
    paths = tuple(path.with_name(f"{match['prefix']}-{index:05}-of-{count:05}.gguf") for index in range(1, count + 1))
    if number != 0:
        raise ShardError(f"shard {number + 1} of {count} cannot be loaded by itself; give {paths[0].name}", path=path)
    missing = [shard.name for shard in paths if not shard.is_file()]
    if missing:
        raise ShardError(f"{len(missing)} of {count} shards missing, the first is {missing[0]}", path=path)
    return paths
