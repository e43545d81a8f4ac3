"""Hermes Agent: four values of `model` in its `config.yaml`.

Source: PyPI `hermes-agent` 0.19.0 (`hermes_constants.py`: where its home is; `hermes_cli/config.py`, `hermes config
set`). It refuses a context below 64,000 tokens, and its exit code says nothing.
"""

from pathlib import PurePath

from dfqs.errors import UsageError
from dfqs.report.usage import UsageLine
from dfqs.targets.contract import Command, ConfigEdits, Edit, Endpoint, Hub, LocalModel, Rendering, Site, Target
from dfqs.targets.pi import server_lines

LEAST_CONTEXT_TOKENS = 64_000


class Hermes(Target):
    """Nous Research's agent."""

    name = "hermes"
    title = "Hermes Agent"
    takes = "endpoint"
    programs = ("hermes",)
    packages = ("hermes-agent",)
    source = "PyPI hermes-agent 0.19.0: hermes_constants.py, hermes_cli/config.py"

    def home(self, site: Site) -> PurePath:
        """Its home directory."""
        if site.system == "windows":
            local = site.directory_of("LOCALAPPDATA", "AppData", "Local")
            return site.named_path("HERMES_HOME") or local / "hermes"
        return site.directory_of("HERMES_HOME", ".hermes")

    def blocked(self, model: LocalModel | None, site: Site) -> str | None:
        if model is not None and model.context_tokens < LEAST_CONTEXT_TOKENS:
            return f"it refuses a context below {LEAST_CONTEXT_TOKENS:,} tokens; this one is {model.context_tokens:,}"
        return None

    def render(self, model: LocalModel, site: Site, endpoint: Endpoint) -> Rendering:
        if endpoint.context_tokens < LEAST_CONTEXT_TOKENS:
            raise UsageError(
                f"Hermes refuses a context below {LEAST_CONTEXT_TOKENS:,} tokens, and this one has "
                f"{endpoint.context_tokens:,}; give --ctx where the model was trained for it"
            )
        edits = [
            Edit(("model", "provider"), "custom"),
            Edit(("model", "base_url"), endpoint.base_url),
            Edit(("model", "default"), endpoint.model),
            Edit(("model", "context_length"), endpoint.context_tokens),
        ]
        if endpoint.api_key is not None:
            edits.append(Edit(("model", "api_key"), endpoint.api_key))
        return Rendering(
            parts=(ConfigEdits(self.home(site) / "config.yaml", "yaml", tuple(edits)),),
            use=(Command("start it", ("hermes",)), Command("one question", ("hermes", "-z", "Who are you?"))),
            listing=Command("what it is set to", ("hermes", "config", "show"), effect="list"),
            listed_as=endpoint.model,
            notes=("its first request has some 12,000 tokens; with the server down it still ends with exit code 0",),
        )

    def ask(self, endpoint: Endpoint, question: str, folder: PurePath) -> Command | None:
        return Command("one question", ("hermes", "-z", question), {"HERMES_HOME": str(folder / "hermes")})

    def hub_usage(self, hub: Hub) -> tuple[UsageLine, ...]:
        return (
            self.usage_line("Start the llama.cpp server", "bash", *server_lines(hub)),
            self.usage_line(
                "Configure Hermes",
                "bash",
                "# Install Hermes:",
                "curl -fsSL https://hermes-agent.nousresearch.com/install.sh | bash",
                "hermes setup",
                "# Point Hermes at the local server:",
                "hermes config set model.provider custom",
                "hermes config set model.base_url http://127.0.0.1:8080/v1",
                f"hermes config set model.default {hub.tagged}",
            ),
            self.usage_line("Run Hermes", "bash", "hermes"),
        )
