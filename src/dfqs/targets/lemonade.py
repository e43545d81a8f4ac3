"""Lemonade: a link in the one directory of models that its configuration names, and the context it is loaded with.

Source: lemonade-sdk/lemonade `docs/guide/configuration/custom-models.md` (`extra_models_dir`, how names come from
folders, where the configuration lies), #2097 (extra models are not loaded by a request alone).
"""

import json
from pathlib import PurePath

from dfqs.report.usage import UsageLine
from dfqs.targets.contract import (
    Command,
    ConfigEdits,
    Edit,
    Endpoint,
    Hub,
    LocalModel,
    Part,
    Placed,
    Rendering,
    Site,
    Space,
    Target,
    require_text,
)

_SERVICE = {"linux": "/var/lib/lemonade", "macos": "/Library/Application Support/lemonade/.config"}


class Lemonade(Target):
    """Lemonade Server."""

    name = "lemonade"
    title = "Lemonade"
    takes = "link"
    programs = ("lemonade", "lemond", "lemonade-server")
    names = "llama.cpp"
    dialect_evidence = "it carries a llama.cpp; of which build, only it can tell"
    loader = "Ollama, LM Studio, Jan, Lemonade"
    source = "lemonade-sdk/lemonade: docs/guide/configuration/custom-models.md, #2097"

    def consults(self, site: Site) -> tuple[PurePath, ...]:
        service = _SERVICE.get(site.system)
        return ((site.path(service),) if service else ()) + (self.directory(site) / "config.json",)

    def directory(self, site: Site) -> PurePath:
        """Of its configuration: the service's where that is installed, else the user's."""
        service = _SERVICE.get(site.system)
        if service is not None and site.at(site.path(service)).is_directory:
            return site.path(service)
        return site.home / ".config" / "lemonade"

    def models_directory(self, site: Site) -> tuple[PurePath, bool]:
        """Where it looks for models that it did not fetch, and whether that is the user's own choice already."""
        try:
            config = json.loads(site.at(self.directory(site) / "config.json").text or "{}")
            chosen = config.get("extra_models_dir", "")
        except (ValueError, AttributeError, RecursionError):
            chosen = ""
        named = site.path(chosen if isinstance(chosen, str) else "")
        return (named, True) if named.is_absolute() else (site.own / "lemonade-models", False)

    def space(self, model: LocalModel, site: Site) -> Space | None:
        return Space(self.models_directory(site)[0], 0, model.file_bytes)

    def render(self, model: LocalModel, site: Site, endpoint: Endpoint) -> Rendering:
        directory, chosen = self.models_directory(site)
        name = f"extra.{model.identifier}"
        parts: list[Part] = [
            # A folder with one model in it, or one set of shards, has the folder's name.
            Placed(path, directory / model.identifier / path.name)
            for path in model.paths
        ]
        configuration = self.directory(site)
        if not chosen:
            edit = Edit(("extra_models_dir",), require_text(directory, "the models directory"))
            parts.append(ConfigEdits(configuration / "config.json", "json", (edit,)))
        context = Edit((name, "ctx_size"), model.context_tokens)
        parts.append(ConfigEdits(configuration / "recipe_options.json", "json", (context,)))
        return Rendering(
            parts=tuple(parts),
            use=(
                Command("load it: a request alone does not (lemonade-sdk/lemonade#2097)", ("lemonade", "load", name)),
                Command("talk with it", ("lemonade", "run", name)),
            ),
            listing=Command("what it has", ("lemonade", "list"), effect="list"),
            listed_as=model.identifier,
            notes=("start its server again to have it read its configuration; its API is http://localhost:13305/v1",),
        )

    def hub_usage(self, hub: Hub) -> tuple[UsageLine, ...]:
        name = hub.repo.rpartition("/")[2] + (f"-{hub.label}" if hub.label else "")
        return (
            self.usage_line(
                "Pull the model",
                "bash",
                "# Download Lemonade from https://lemonade-server.ai/",
                f"lemonade pull {hub.tagged}",
            ),
            self.usage_line("Run and chat with the model", "bash", f"lemonade run user.{name}"),
            self.usage_line("List all available models", "bash", "lemonade list"),
        )
