"""llama.cpp: reads the file where it lies; a command line, or an entry of the router's preset file.

Sources: llama.cpp `common/preset.cpp` (the grammar of preset files: a value ends before `;` or `#`, and nothing can be
escaped), `tools/server/README.md` (`--models-preset`, router mode without `-m`), ggml-org/llama.cpp#17859.
"""

from pathlib import PurePath

from dfqs.errors import UsageError
from dfqs.report.usage import UsageLine
from dfqs.targets.contract import (
    Command,
    ConfigEdits,
    Edit,
    Endpoint,
    Hub,
    LocalModel,
    Rendering,
    Site,
    Target,
    require_text,
)

PRESET_VARIABLE = "LLAMA_ARG_MODELS_PRESET"
CONTAINER = "ghcr.io/ggml-org/llama.cpp:server"


class LlamaCpp(Target):
    """llama.cpp's own programs."""

    name = "llama.cpp"
    title = "llama.cpp"
    takes = "path"
    programs = ("llama-server", "llama", "llama-cli")
    names = "llama.cpp"
    dialect_evidence = "its own names; an installed program's build was not asked"
    source = "ggml-org/llama.cpp: common/preset.cpp, tools/server/README.md, #17859"

    def render(self, model: LocalModel, site: Site, endpoint: Endpoint) -> Rendering:
        preset, path = self.preset_path(site), require_preset_text(model.path)
        context = str(model.context_tokens)
        section = model.identifier
        preset_edits = (
            Edit(("", "version"), "1", only_where_missing=True),
            Edit((section, "model"), path),
            Edit((section, "c"), context),
        )
        settings = ("-m", path, "--alias", model.identifier, "-c", context)
        return Rendering(
            parts=(ConfigEdits(preset, "ini", preset_edits),),
            use=(
                Command("server with a web page, http://127.0.0.1:8080", ("llama-server", *settings)),
                Command("the same by the one program of newer builds", ("llama", "serve", *settings)),
                Command("in the terminal", ("llama-cli", "-m", path, "-c", context)),
                Command("router: every model of the preset file", ("llama-server", "--models-preset", str(preset))),
                Command("in a container", container_words(model, context)),
            ),
            notes=(
                "brew, winget, a prebuilt archive and a build of your own differ in the program's place only: "
                "llama-server, ./llama-server, ./build/bin/llama-server",
            ),
        )

    def preset_path(self, site: Site) -> PurePath:
        """The preset file that llama-server is told of already, or one of ours."""
        return site.named_path(PRESET_VARIABLE) or site.own / "llama-presets.ini"

    def hub_usage(self, hub: Hub) -> tuple[UsageLine, ...]:
        def server_and_cli(prefix: str) -> tuple[str, ...]:
            return (
                "# Start a local OpenAI-compatible server with a web UI:",
                f"{prefix}llama-server -hf {hub.tagged}",
                "# Run inference directly in the terminal:",
                f"{prefix}llama-cli -hf {hub.tagged}",
            )

        releases = ("# Download pre-built binary from:", "# https://github.com/ggerganov/llama.cpp/releases")
        build = (
            "git clone https://github.com/ggerganov/llama.cpp.git",
            "cd llama.cpp",
            "cmake -B build",
            "cmake --build build -j --target llama-server llama-cli",
        )
        return (
            self.usage_line("Install from brew", "bash", "brew install llama.cpp", *server_and_cli("")),
            self.usage_line("Install from WinGet (Windows)", "bash", "winget install llama.cpp", *server_and_cli("")),
            self.usage_line("Use pre-built binary", "bash", *releases, *server_and_cli("./")),
            self.usage_line("Build from source code", "bash", *build, *server_and_cli("./build/bin/")),
            self.usage_line("Use Docker", "bash", f"docker model run hf.co/{hub.tagged}"),
        )


def container_words(model: LocalModel, context: str) -> tuple[str, ...]:
    """llama-server in its container, with the model's directory mounted to be read."""
    directory, inside = str(model.path.parent), f"/models/{model.path.name}"
    # A bind mount of this form, other than -v, takes a colon; a comma ends a field of it, unless the field is quoted.
    source = f'"source={directory}"' if "," in directory else f"source={directory}"
    mount = f"type=bind,{source},target=/models,readonly"
    words = ("docker", "run", "--rm", "-p", "127.0.0.1:8080:8080", "--mount", mount, CONTAINER)
    return (*words, "-m", inside, "--alias", model.identifier, "-c", context, "--host", "0.0.0.0")


def require_preset_text(path: PurePath) -> str:
    """A path as a preset file can hold it.

    Raises:
        UsageError: it has a `;` or `#`, which begin a comment there, or ends with a space, which is dropped.
    """
    text = require_text(path, "the model")
    if any(char in text for char in ";#") or text != text.strip(" \t"):
        raise UsageError(f"llama.cpp's preset files cannot hold the path {text}: rename it without ';' and '#'")
    return text
