"""Deployments below a home directory of the test's own: every target, written, looked at, and taken back."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath, PurePosixPath, PureWindowsPath
from typing import Any

from dfqs.targets.contract import (
    Command,
    ConfigEdits,
    Endpoint,
    LocalModel,
    OwnFile,
    Placed,
    Rendering,
    Seen,
    Site,
    System,
    Target,
    Way,
)
from dfqs.targets.formats import FORMATS
from dfqs.targets.kept import Deployment, kept_at, read_deployment
from dfqs.targets.look import look_at_all
from dfqs.targets.plan import WritePlan, plan_write, stamp_of
from dfqs.targets.quoting import command_line
from dfqs.targets.undo import undo_deployment
from dfqs.targets.values import apply_edits
from dfqs.targets.write import write_planned

MODEL_BYTES = b"GGUF" + bytes(range(256)) * 40
ENDPOINT = Endpoint("http://127.0.0.1:8080/v1", "my model", 65_536)
HOMES: Mapping[System, PurePath] = {
    "linux": PurePosixPath("/home/ana"),
    "macos": PurePosixPath("/Users/ana"),
    "windows": PureWindowsPath("C:/Users/ana"),
}
MODELS: Mapping[System, PurePath] = {
    "linux": PurePosixPath("/data/models/V4 Flash IQ1_S-XL.gguf"),
    "macos": PurePosixPath("/Volumes/Big/V4 Flash IQ1_S-XL.gguf"),
    "windows": PureWindowsPath("D:/models/V4 Flash IQ1_S-XL.gguf"),
}


def model_at(*paths: PurePath, identifier: str = "V4-Flash-IQ1_S-XL", size: int = 61_600_000_000) -> LocalModel:
    return LocalModel(tuple(paths), size, "V4 Flash", identifier, "llama", 65_536)


def pure_site(system: System, seen: Mapping[PurePath, Seen] | None = None, **environment: str) -> Site:
    return Site(system, HOMES[system], environment, seen=dict(seen or {}))


@dataclass
class Place:
    """A home directory with a model in it."""

    home: Path
    model: LocalModel
    endpoint: Endpoint = ENDPOINT

    def site(self, target: Target) -> Site:
        return look_at_all(Site("linux", self.home, {}), (target,))

    def render(self, target: Target) -> Rendering:
        return target.render(self.model, self.site(target), self.endpoint)

    def directory(self, target: Target) -> Path:
        return kept_at(target.name, Path(self.model.path), self.model.identifier)

    def plan(self, target: Target, ways: tuple[Way, ...] | None = None) -> WritePlan:
        kept = read_deployment(self.directory(target))
        return plan_write(self.render(target), kept, self.home, ways=ways)

    def write(self, target: Target, ways: tuple[Way, ...] | None = None) -> Deployment:
        rendering = self.render(target)
        fresh = Deployment(
            target=target.name, model=self.model.path, listed_as=self.model.identifier, done=False, parts=(),
            directories=(), undone_by=(), model_stamp=stamp_of(Path(self.model.path)),
        )  # fmt: skip
        return write_planned(self.plan(target, ways), rendering, self.directory(target), fresh)

    def undo(self, target: Target) -> list[str]:
        said: list[str] = []
        undo_deployment(self.directory(target), say=said.append)
        return said

    def configs(self, target: Target) -> list[ConfigEdits]:
        return [part for part in self.render(target).parts if isinstance(part, ConfigEdits)]


def make_place(folder: Path) -> Place:
    """A home directory and a model beside it."""
    home, models = folder / "home", folder / "models"
    home.mkdir()
    models.mkdir()
    path = models / 'it\'s a "model" 名.gguf'
    path.write_bytes(MODEL_BYTES)
    return Place(home, model_at(path, identifier="it-s-a-model", size=len(MODEL_BYTES)))


def snapshot(folder: Path) -> dict[str, bytes | str | None]:
    """Every name below a folder, with its bytes, or where it leads."""
    found: dict[str, bytes | str | None] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            found[name] = str(path.readlink())
        elif path.is_dir():
            found[name] = None
        else:
            found[name] = path.read_bytes()
    return found


def described(rendering: Rendering, system: System) -> dict[str, Any]:
    """A rendering as JSON, for golden files."""

    def command(found: Command) -> dict[str, Any]:
        return {"about": found.about, "line": command_line(found, system)}

    parts: list[dict[str, Any]] = []
    for part in rendering.parts:
        if isinstance(part, Placed):
            parts.append({"place": str(part.path), "source": str(part.source), "ways": list(part.ways)})
        elif isinstance(part, OwnFile):
            parts.append({"file": str(part.path), "text": part.text.splitlines()})
        else:
            text = apply_edits(FORMATS[part.format], "", part.edits)
            parts.append({"configuration": str(part.path), "from nothing": text.splitlines()})
    return {
        "parts": parts,
        "register": [command(each) for each in rendering.register],
        "use": [command(each) for each in rendering.use],
        "listing": command(rendering.listing) if rendering.listing is not None else None,
        "listed_as": rendering.listed_as,
        "notes": list(rendering.notes),
    }
