"""Jan: one `model.yml` in its data directory, which names the file where it lies.

Sources: janhq/jan `src-tauri/src/core/app/commands.rs` (`resolve_jan_data_folder`), `extensions/llamacpp-extension`
(`model.yml`). Its `router.preset.ini` is written by Jan itself and never by us.
"""

import json
from pathlib import PurePath

from dfqs.report.usage import UsageLine
from dfqs.targets.contract import (
    Endpoint,
    Hub,
    LocalModel,
    OwnFile,
    Rendering,
    Site,
    Target,
    require_text,
)
from dfqs.targets.yaml_text import yaml_scalar


class Jan(Target):
    """Jan's own llama.cpp."""

    name = "jan"
    title = "Jan"
    takes = "path"
    programs = ("jan", "Jan", "jan-cli")
    names = "llama.cpp"
    dialect_evidence = "it carries a llama.cpp; of which build, only it can tell"
    loader = "Ollama, LM Studio, Jan, Lemonade"
    source = "janhq/jan: src-tauri/src/core/app/commands.rs, extensions/llamacpp-extension/src/index.ts"

    def consults(self, site: Site) -> tuple[PurePath, ...]:
        return (self.settings_path(site),)

    def settings_path(self, site: Site) -> PurePath:
        return site.application_data / "Jan" / "settings.json"

    def data_directory(self, site: Site) -> PurePath:
        """`JAN_DATA_FOLDER`, else what its settings say, else its default."""
        named = site.named_path("JAN_DATA_FOLDER")
        if named is not None:
            return named
        try:
            chosen = json.loads(site.at(self.settings_path(site)).text or "{}").get("data_folder", "")
        except (ValueError, AttributeError, RecursionError):
            chosen = ""
        folder = site.path(chosen if isinstance(chosen, str) else "")
        return folder if folder.is_absolute() else site.application_data / "Jan" / "data"

    def render(self, model: LocalModel, site: Site, endpoint: Endpoint) -> Rendering:
        path = self.data_directory(site) / "llamacpp" / "models" / model.identifier / "model.yml"
        lines = (
            f"model_path: {yaml_scalar(require_text(model.path, 'the model'))}",
            f"name: {yaml_scalar(model.identifier)}",
            f"size_bytes: {model.file_bytes}",
            "embedding: false",
        )
        return Rendering(
            parts=(OwnFile(path, "\n".join(lines) + "\n"),),
            notes=(
                f"Jan lists it as '{model.identifier}' when it is started again; its server is http://127.0.0.1:1337/v1",
                f"context: set {model.context_tokens} in the model's settings, Jan keeps that itself",
            ),
        )

    def hub_usage(self, hub: Hub) -> tuple[UsageLine, ...]:
        return (
            self.usage_line(
                "", "text", "# Open in Jan (a link that Jan handles):", f"jan://models/huggingface/{hub.repo}"
            ),
        )
