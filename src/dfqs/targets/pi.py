"""Pi: a provider in its `models.json`, read by both of its generations; 1.x speaks to llama.cpp's router by itself too.

Sources: `@mariozechner/pi-coding-agent` 0.73.1 and `@earendil-works/pi-coding-agent` 1.6.0, `docs/models.md`,
`docs/models-configuration.md`, `docs/llama-cpp.md`. It takes `//` comments and commas at ends in `models.json`. A key
that begins with `!` is a command to it, and one like `$NAME` (in 0.7x any that a variable is called) a variable.
"""

from pathlib import PurePath
from urllib.parse import urlsplit

from dfqs.errors import UsageError
from dfqs.report.usage import UsageLine
from dfqs.targets.contract import (
    Command,
    ConfigEdits,
    Edit,
    Endpoint,
    Hub,
    LocalModel,
    Named,
    Rendering,
    Site,
    Target,
)
from dfqs.targets.quoting import identifier_of, json_text

DEFAULT_ENDPOINT = "http://127.0.0.1:8080/v1"
NO_KEY = "none"
_LONGEST_ANSWER = 8192
_NOTES = (
    "Pi sends 600 tokens of its own with the first question, 1,400 where the chat template writes its tools; they are "
    "read once",
    'an answer may have half of the context (8,192 tokens at most), and "pi -p" shows nothing before its end: minutes, '
    "where a small model does not stop by itself",
    "an unknown model only makes it warn",
)
"""Tokens as the demonstration model's tokenizer counts those of Pi 0.73.1 (5.6 KB)."""


class Pi(Target):
    """The coding agent Pi."""

    name = "pi"
    title = "Pi"
    takes = "endpoint"
    programs = ("pi",)
    source = "npm @mariozechner/pi-coding-agent 0.73.1, @earendil-works/pi-coding-agent 1.6.0: docs/models.md"

    def render(self, model: LocalModel, site: Site, endpoint: Endpoint) -> Rendering:
        provider = provider_name(endpoint)
        directory = site.directory_of("PI_CODING_AGENT_DIR", ".pi", "agent")
        entry = {
            "contextWindow": endpoint.context_tokens,
            "maxTokens": min(_LONGEST_ANSWER, max(endpoint.context_tokens // 2, 1)),
        }
        way = ("providers", provider)
        edits = (
            Edit((*way, "baseUrl"), endpoint.base_url),
            Edit((*way, "api"), "openai-completions"),
            Edit((*way, "apiKey"), _require_plain_key(endpoint.api_key)),
            Edit((*way, "compat"), {"supportsDeveloperRole": False, "supportsReasoningEffort": False}),
            Edit((*way, "models", Named("id", endpoint.model)), entry),
        )
        start = ("pi", "--provider", provider, "--model", endpoint.model)
        return Rendering(
            parts=(ConfigEdits(directory / "models.json", "json", edits),),
            use=(
                Command("start it", start),
                Command("one question", (*start, "--no-session", "-p", "What is in this directory?")),
                Command(
                    "Pi 1.x with llama.cpp's router instead: /login llama.cpp, then /llama",
                    ("pi",),
                    {"LLAMA_BASE_URL": endpoint.root},
                ),
            ),
            listing=Command("what it has", ("pi", "--list-models", endpoint.model), effect="list"),
            listed_as=endpoint.model,
            notes=_NOTES,
        )

    def ask(self, endpoint: Endpoint, question: str, folder: PurePath) -> Command | None:
        words = ("pi", "-p", "--provider", provider_name(endpoint), "--model", endpoint.model, "--no-session", question)
        return Command("one question", words, {"PI_CODING_AGENT_DIR": str(folder / "agent"), "PI_OFFLINE": "1"})

    def hub_usage(self, hub: Hub) -> tuple[UsageLine, ...]:
        return (
            self.usage_line("Start the llama.cpp server", "bash", *server_lines(hub)),
            self.usage_line(
                "Configure the model in Pi",
                "bash",
                "# Install Pi:",
                "npm install -g @mariozechner/pi-coding-agent",
                "# Add to ~/.pi/agent/models.json:",
                "{",
                '  "providers": {',
                '    "llama-cpp": {',
                '      "baseUrl": "http://localhost:8080/v1",',
                '      "api": "openai-completions",',
                '      "apiKey": "none",',
                '      "models": [',
                "        {",
                f'          "id": {json_text(hub.tagged)}',
                "        }",
                "      ]",
                "    }",
                "  }",
                "}",
            ),
            self.usage_line("Run Pi", "bash", "# Start Pi in your project directory:", "pi"),
        )


def provider_name(endpoint: Endpoint) -> str:
    """`dfqs` for the address that `dfqs serve` has by default; another one has its address in its name, so that two
    servers do not take each other's models."""
    if endpoint.base_url in (DEFAULT_ENDPOINT, "http://localhost:8080/v1"):
        return "dfqs"
    return f"dfqs-{identifier_of(urlsplit(endpoint.base_url).netloc)}"


def server_lines(hub: Hub) -> tuple[str, ...]:
    """The server that the card starts for clients."""
    return (
        "# Install llama.cpp:",
        "brew install llama.cpp",
        "# Start a local OpenAI-compatible server:",
        f"llama-server -hf {hub.tagged}",
    )


def _require_plain_key(key: str | None) -> str:
    if key is None:
        return NO_KEY
    if key.startswith(("!", "$")):
        raise UsageError("Pi takes a key that begins with '!' for a command and '$' for a variable; choose another key")
    return key
