"""Ollama: a Modelfile that names the file; `ollama create` copies it into its store.

Sources: ollama/ollama `docs/modelfile.md`, `parser/parser.go` (a value goes to the line's end; quotes around all of it
are taken off), `envconfig/config.go` (`OLLAMA_MODELS`); ollama/ollama#17510 (several FROM lines for shards).
"""

from pathlib import PurePath

from dfqs.errors import UsageError
from dfqs.report.usage import UsageLine
from dfqs.targets.contract import (
    Command,
    Endpoint,
    Hub,
    LocalModel,
    OwnFile,
    Rendering,
    Site,
    Space,
    Target,
    require_text,
)

SERVICE_STORE = "/usr/share/ollama/.ollama/models"


class Ollama(Target):
    """Ollama's store and server."""

    name = "ollama"
    title = "Ollama"
    takes = "copy"
    programs = ("ollama",)
    names = "llama.cpp"
    dialect_evidence = "it carries a llama.cpp; of which build, only it can tell"
    loader = "Ollama, LM Studio, Jan, Lemonade"
    source = "ollama/ollama: docs/modelfile.md, parser/parser.go, #17510"

    def consults(self, site: Site) -> tuple[PurePath, ...]:
        return (site.path(SERVICE_STORE),) if site.system == "linux" else ()

    def store(self, site: Site) -> PurePath:
        """Where it keeps models."""
        service = site.path(SERVICE_STORE)
        if site.system == "linux" and "OLLAMA_MODELS" not in site.environment and site.at(service).is_directory:
            return service
        return site.directory_of("OLLAMA_MODELS", ".ollama", "models")

    def space(self, model: LocalModel, site: Site) -> Space | None:
        # It copies the file, and writes it anew where it does not keep its layout.
        return Space(self.store(site), model.file_bytes, 2 * model.file_bytes)

    def render(self, model: LocalModel, site: Site, endpoint: Endpoint) -> Rendering:
        modelfile = site.own / "ollama" / f"{model.identifier}.Modelfile"
        lines = [f"FROM {_require_modelfile_text(path)}" for path in model.paths]
        lines.append(f"PARAMETER num_ctx {model.context_tokens}")
        shards = ("several FROM lines: reported to work for shards (ollama/ollama#17510), not tried here",)
        return Rendering(
            parts=(OwnFile(modelfile, "\n".join(lines) + "\n"),),
            register=(
                Command(
                    "put a copy into its store",
                    ("ollama", "create", model.identifier, "-f", str(modelfile)),
                    effect="register",
                    undone_by=("ollama", "rm", model.identifier),
                ),
            ),
            use=(Command("talk with it", ("ollama", "run", model.identifier)),),
            listing=Command("what it has", ("ollama", "list"), effect="list"),
            listed_as=f"{model.identifier}:latest",
            notes=shards if len(model.paths) > 1 else (),
        )

    def hub_usage(self, hub: Hub) -> tuple[UsageLine, ...]:
        return (self.usage_line("", "bash", f"ollama run hf.co/{hub.tagged}"),)


def _require_modelfile_text(path: PurePath) -> str:
    """A path as the Modelfile can hold it.

    Raises:
        UsageError: it ends with a space, which is dropped.
    """
    text = require_text(path, "the model")
    if text != text.strip():
        raise UsageError(f"a Modelfile cannot hold the path '{text}', which ends with a space; rename it")
    return text
