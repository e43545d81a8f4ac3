"""LM Studio: a link in its models directory, three levels deep: PUBLISHER/MODEL/FILE.

Sources: lmstudio.ai/docs (`lms import`, `lms ls --json`, the directory's structure), lmstudio-ai/lms
(`.lmstudio-home-pointer`, `downloadsFolder`). `lms import` itself moves the file unless told otherwise; we never do.
"""

import json
from pathlib import PurePath

from dfqs.report.usage import UsageLine
from dfqs.targets.contract import Command, Endpoint, Hub, LocalModel, Placed, Rendering, Site, Space, Target

PUBLISHER = "dfqs"
POINTER = ".lmstudio-home-pointer"


class LMStudio(Target):
    """LM Studio and its headless daemon."""

    name = "lm-studio"
    title = "LM Studio"
    takes = "link"
    programs = ("lms", "lm-studio", "llmster")
    names = "llama.cpp"
    dialect_evidence = "it carries a llama.cpp; of which build, only it can tell"
    loader = "Ollama, LM Studio, Jan, Lemonade"
    source = "lmstudio.ai/docs/cli; lmstudio-ai/lms: `lms import`"

    def consults(self, site: Site) -> tuple[PurePath, ...]:
        return (site.home / POINTER, site.home / ".cache" / "lm-studio", self.settings_path(site))

    def home(self, site: Site) -> PurePath:
        """Its own home directory."""
        pointed = site.path((site.at(site.home / POINTER).text or "").strip())
        if pointed.is_absolute():
            return pointed
        old = site.home / ".cache" / "lm-studio"
        return old if site.at(old).is_directory else site.home / ".lmstudio"

    def settings_path(self, site: Site) -> PurePath:
        return self.home(site) / "settings.json"

    def models_directory(self, site: Site) -> PurePath:
        """Where it looks for models."""
        try:
            chosen = json.loads(site.at(self.settings_path(site)).text or "{}").get("downloadsFolder", "")
        except (ValueError, AttributeError, RecursionError):
            chosen = ""
        named = site.path(chosen if isinstance(chosen, str) else "")
        return named if named.is_absolute() else self.home(site) / "models"

    def space(self, model: LocalModel, site: Site) -> Space | None:
        return Space(self.models_directory(site), 0, model.file_bytes)

    def render(self, model: LocalModel, site: Site, endpoint: Endpoint) -> Rendering:
        place = self.models_directory(site) / PUBLISHER / model.identifier
        file = f"{PUBLISHER}/{model.identifier}/{model.path.name}"
        return Rendering(
            parts=tuple(Placed(path, place / path.name) for path in model.paths),
            use=(
                Command("see what it estimates", ("lms", "load", file, "--estimate-only")),
                Command("load it", ("lms", "load", file, "--context-length", str(model.context_tokens))),
                Command("its server, http://127.0.0.1:1234/v1", ("lms", "server", "start")),
            ),
            listing=Command("what it has", ("lms", "ls", "--json"), effect="list"),
            listed_as=file,
            notes=(f"listed under the publisher '{PUBLISHER}' in My Models; LM Studio looks again when it starts",),
        )

    def hub_usage(self, hub: Hub) -> tuple[UsageLine, ...]:
        return (self.usage_line("", "bash", "# Get it by its name:", f"lms get {hub.repo}"),)
