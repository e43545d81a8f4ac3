"""Unsloth Studio: reads the file where it lies; one command, or a folder that it is told to scan.

Source: docs.unsloth.ai, Unsloth Studio (`unsloth studio run --model`, `POST /api/models/scan-folders`, port 8888, a key
for every request).
"""

from dfqs.report.usage import UsageLine
from dfqs.targets.contract import Command, Endpoint, Hub, LocalModel, Rendering, Site, Target, require_text


class UnslothStudio(Target):
    """Unsloth Studio's llama.cpp."""

    name = "unsloth-studio"
    title = "Unsloth Studio"
    takes = "path"
    programs = ("unsloth",)
    packages = ("unsloth",)
    names = "llama.cpp"
    dialect_evidence = "it carries a llama.cpp; of which build, only it can tell"
    source = "docs.unsloth.ai: Unsloth Studio"

    def render(self, model: LocalModel, site: Site, endpoint: Endpoint) -> Rendering:
        path = require_text(model.path, "the model")
        return Rendering(
            use=(
                Command("run it, http://127.0.0.1:8888", ("unsloth", "studio", "run", "--model", path)),
                Command(
                    "or start the studio, on this machine only", ("unsloth", "studio", "-H", "127.0.0.1", "-p", "8888")
                ),
            ),
            notes=(
                "it speaks OpenAI's and Anthropic's dialects on one port, with a key that it makes when it starts",
                f"its model list has a folder after POST /api/models/scan-folders with its path: {model.path.parent}",
            ),
        )

    def hub_usage(self, hub: Hub) -> tuple[UsageLine, ...]:
        run = (
            "# Run unsloth studio",
            "unsloth studio -H 0.0.0.0 -p 8888",
            "# Then open http://localhost:8888 in your browser",
            f"# Search for {hub.repo} to start chatting",
        )
        return (
            self.usage_line(
                "Install Unsloth Studio (macOS, Linux, WSL)",
                "bash",
                "curl -fsSL https://unsloth.ai/install.sh | sh",
                *run,
            ),
            self.usage_line(
                "Install Unsloth Studio (Windows)", "powershell", "irm https://unsloth.ai/install.ps1 | iex", *run
            ),
            self.usage_line(
                "Using HuggingFace Spaces for Unsloth",
                "bash",
                "# No setup required",
                "# Open https://huggingface.co/spaces/unsloth/studio in your browser",
                f"# Search for {hub.repo} to start chatting",
            ),
        )
