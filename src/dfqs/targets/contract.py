"""What a target is: one system, what it takes, and what is written where so that it has a model. Values only, all pure.

`consults` and `render` look at nothing: what they need of a machine is in `Site`, read beforehand, so that the same
words come out for a machine of another kind. Writing, undoing and verifying are one mechanism for all targets
(`dfqs.targets.write`, `undo`, `verify`).
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import PurePath, PurePosixPath, PureWindowsPath
from typing import Any, ClassVar, Literal

from dfqs.errors import UsageError
from dfqs.report.usage import UsageLine

System = Literal["linux", "macos", "windows"]
Takes = Literal["path", "link", "copy", "endpoint", "download"]
"""How a system gets a model: it reads the file where it lies; a link in a directory of its own; a copy; it talks with a
server; it fetches it from the Hub."""
Format = Literal["json", "yaml", "ini"]
Way = Literal["hard link", "symlink", "copy"]
Level = Literal["static", "registered", "live"]
"""What was proved: what was written says what it should; the system lists the model; it answered with it."""


@dataclass(frozen=True, slots=True)
class Hub:
    """A published model."""

    repo: str
    """OWNER/NAME."""
    file: str
    label: str
    """Its quantization, as the Hub calls it: IQ1_S. May be empty."""

    @property
    def tagged(self) -> str:
        """As llama.cpp, Ollama and Docker take it: OWNER/NAME:LABEL."""
        return f"{self.repo}:{self.label}" if self.label else self.repo


@dataclass(frozen=True, slots=True)
class LocalModel:
    """A model on this disk."""

    paths: tuple[PurePath, ...]
    """Absolute; the file, or all shards in order."""
    file_bytes: int
    """Of all files."""
    name: str
    """`general.name`, or the file's stem: a stranger's words."""
    identifier: str
    """Made from it for directories and lists of models: letters, digits, `.`, `_` and `-` only."""
    architecture: str
    context_tokens: int

    @property
    def path(self) -> PurePath:
        """What a runtime is given: the file, or the first shard."""
        return self.paths[0]


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A running server that speaks OpenAI's dialect."""

    base_url: str
    """Ends with /v1."""
    model: str
    """As the server calls it."""
    context_tokens: int
    api_key: str | None = None

    @property
    def root(self) -> str:
        """Without /v1."""
        return self.base_url.removesuffix("/v1")


@dataclass(frozen=True, slots=True)
class Seen:
    """What stood at a path that was consulted."""

    text: str | None = None
    """Of a file that is small and UTF-8."""
    is_directory: bool = False
    is_there: bool = False


NOTHING = Seen()


@dataclass(frozen=True, slots=True)
class Site:
    """A machine as targets see it."""

    system: System
    home: PurePath
    environment: Mapping[str, str]
    programs: Mapping[str, PurePath] = field(default_factory=dict)
    """Found on the search path, by name."""
    packages: Mapping[str, str] = field(default_factory=dict)
    """Versions of installed Python distributions, by name."""
    seen: Mapping[PurePath, Seen] = field(default_factory=dict)
    refusals: Mapping[str, str] = field(default_factory=dict)
    """What programs said that are there and cannot do what they are wanted for, by target."""

    def path(self, text: str) -> PurePath:
        """A path of this machine's kind."""
        return PureWindowsPath(text) if self.system == "windows" else PurePosixPath(text)

    def at(self, path: PurePath) -> Seen:
        """What stands there, as far as it was consulted."""
        return self.seen.get(path, NOTHING)

    def named_path(self, variable: str) -> PurePath | None:
        """The path that a variable names, if it names one from the root."""
        named = self.path(self.environment.get(variable, "").strip())
        return named if named.is_absolute() else None

    def directory_of(self, variable: str, *otherwise: str) -> PurePath:
        """The directory that a variable names, if it names one from the root; else parts below the home directory."""
        return self.named_path(variable) or self.home.joinpath(*otherwise)

    @property
    def application_data(self) -> PurePath:
        """Where programs with windows keep what is a user's: `%APPDATA%`, `Application Support`, `XDG_DATA_HOME`."""
        if self.system == "windows":
            return self.directory_of("APPDATA", "AppData", "Roaming")
        if self.system == "macos":
            return self.home / "Library" / "Application Support"
        return self.directory_of("XDG_DATA_HOME", ".local", "share")

    @property
    def configuration(self) -> PurePath:
        """`XDG_CONFIG_HOME`, and what stands for it elsewhere."""
        if self.system == "linux":
            return self.directory_of("XDG_CONFIG_HOME", ".config")
        return self.application_data

    @property
    def own(self) -> PurePath:
        """Where files of ours go that a system is told of by its command line."""
        return self.configuration / "dfqs"


@dataclass(frozen=True, slots=True)
class Named:
    """A step into a list of objects: the one whose `key` is `value`."""

    key: str
    value: str


Step = str | Named


@dataclass(frozen=True, slots=True)
class Edit:
    """One value in a configuration: where, and what it is to be."""

    way: tuple[Step, ...]
    """From the outermost object inwards."""
    value: Any
    """Of JSON; of a list's entry, without its name."""
    only_where_missing: bool = False
    """What the user has there stays."""


@dataclass(frozen=True, slots=True)
class ConfigEdits:
    """Values that are put into a configuration file of the user's, which may exist and hold more."""

    path: PurePath
    format: Format
    edits: tuple[Edit, ...]


@dataclass(frozen=True, slots=True)
class OwnFile:
    """A file that is the deployment's alone."""

    path: PurePath
    text: str


@dataclass(frozen=True, slots=True)
class Placed:
    """A model's file in a directory of a system: the same bytes under another name."""

    source: PurePath
    path: PurePath
    ways: tuple[Way, ...] = ("hard link", "symlink", "copy")
    """In this order, until one can be gone."""


@dataclass(frozen=True, slots=True)
class Command:
    """A program and its words; environment variables go before them."""

    about: str
    words: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    effect: Literal["use", "register", "list"] = "use"
    """What it is for: somebody types it to use the model; deploying runs it; it lists models."""
    undone_by: tuple[str, ...] = ()
    """Of one that registers: the words that take it back."""


Part = ConfigEdits | OwnFile | Placed


@dataclass(frozen=True, slots=True)
class Rendering:
    """All that deploying a model to a system is."""

    parts: tuple[Part, ...] = ()
    register: tuple[Command, ...] = ()
    """Run after the parts are written, where the program is installed."""
    use: tuple[Command, ...] = ()
    """What a user types then."""
    listing: Command | None = None
    """Lists the system's models; `listed_as` is among its words when it has this one."""
    listed_as: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def written(self) -> Iterator[PurePath]:
        """Paths of all parts."""
        return (part.path for part in self.parts)


@dataclass(frozen=True, slots=True)
class Space:
    """Bytes that deploying takes on the disk that has `directory`, beside the model that is there."""

    directory: PurePath
    low: int
    high: int
    """More than that is not taken; preflight asks for it."""


class Target(ABC):
    """One system."""

    name: ClassVar[str]
    """As `dfqs deploy` takes it."""
    title: ClassVar[str]
    takes: ClassVar[Takes]
    programs: ClassVar[tuple[str, ...]] = ()
    """Any of them on the search path: it is installed."""
    packages: ClassVar[tuple[str, ...]] = ()
    """Python distributions, of which any means the same."""
    companions: ClassVar[tuple[str, ...]] = ()
    """Distributions whose versions matter too."""
    probe: ClassVar[tuple[str, ...]] = ()
    """A harmless command that fails where its program is there and can do nothing."""
    names: ClassVar[str] = "UNKNOWN"
    """Whose names of keys and tensors it reads in a GGUF file."""
    build: ClassVar[str] = "UNKNOWN"
    """Which build of that program it is made of."""
    dialect_evidence: ClassVar[str] = "nothing is known here of the files that it reads"
    loader: ClassVar[str | None] = None
    """Its row in the table of programs and what they ask of a file (`dfqs.planning.loaders`)."""
    source: ClassVar[str]
    """Where what is known of it was read."""

    def consults(self, site: Site) -> tuple[PurePath, ...]:
        """Paths that `render` wants to have looked at. Asked again until nothing new comes."""
        return ()

    def space(self, model: LocalModel, site: Site) -> Space | None:
        """Extra disk; None: nothing to speak of."""
        return None

    def blocked(self, model: LocalModel | None, site: Site) -> str | None:
        """Why it cannot have this model here, as far as that is known; None: nothing is known against it."""
        return None

    @abstractmethod
    def render(self, model: LocalModel, site: Site, endpoint: Endpoint) -> Rendering:
        """What is written and typed for a model on this disk.

        Args:
            endpoint: where the model is served, for systems that talk with a server.

        Raises:
            UsageError: a name or a path that this system has no way to write.
        """

    def ask(self, endpoint: Endpoint, question: str, folder: PurePath) -> Command | None:
        """How one question is asked through the system, with its configuration in a folder; None: there is no way."""
        return None

    @abstractmethod
    def hub_usage(self, hub: Hub) -> tuple[UsageLine, ...]:
        """How the published model is used, as model cards print it."""

    def usage_line(self, heading: str, language: str, *lines: str) -> UsageLine:
        """One block of `hub_usage`."""
        title = f"{self.title}: {heading}" if heading else self.title
        return UsageLine(self.name, title, language, "\n".join(lines))


def require_text(path: PurePath, what: str) -> str:
    """A path as text that a configuration file can hold.

    Raises:
        UsageError: bytes that are no UTF-8, or a line break, which no format here can hold.
    """
    text = str(path)
    if any("\ud800" <= char <= "\udfff" for char in text):
        raise UsageError(f"the path of {what} is no UTF-8, which no configuration can hold; give it another name")
    if any(char in text for char in "\n\r\x00"):
        raise UsageError(f"the path of {what} has a line break in it; give it another name")
    return text
