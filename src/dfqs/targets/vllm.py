"""vLLM: reads the file where it lies, through a plugin that knows fewer architectures than llama.cpp.

Sources: vllm-project's documentation of GGUF, the wheel of `vllm-gguf-plugin` 0.0.5 (its table of model types).
"""

from dfqs.report.usage import UsageLine
from dfqs.targets.contract import Command, Endpoint, Hub, LocalModel, Rendering, Site, Target, require_text

PLUGIN = "vllm-gguf-plugin"
_LACKS = frozenset({"deepseek4", "deepseek41"})
_LACKING_VERSIONS = frozenset({"0.0.1", "0.0.2", "0.0.3", "0.0.4", "0.0.5"})
"""Looked at; of later ones nothing is known."""


class VLLM(Target):
    """vLLM's server."""

    name = "vllm"
    title = "vLLM"
    takes = "path"
    programs = ("vllm",)
    packages = ("vllm",)
    companions = (PLUGIN,)
    names = "llama.cpp"
    build = "vllm-gguf-plugin up to 0.0.5"
    dialect_evidence = "names as gguf-py has them, of the architectures in its own table; deepseek4 is not among them"
    loader = "vLLM (vllm-gguf-plugin 0.0.5)"
    source = "docs.vllm.ai: GGUF; vllm-gguf-plugin 0.0.5"

    def blocked(self, model: LocalModel | None, site: Site) -> str | None:
        version = site.packages.get(PLUGIN)
        if model is not None and len(model.paths) > 1:
            return "it takes one file and no shards; merge them first (dfqs merge)"
        if model is None or model.architecture in _LACKS:
            if version is None:
                return f"{PLUGIN} up to 0.0.5 has no deepseek4 ('Unknown gguf model_type'); it is not installed here"
            if version in _LACKING_VERSIONS:
                return f"{PLUGIN} {version} has no deepseek4: 'Unknown gguf model_type'"
        return None

    def render(self, model: LocalModel, site: Site, endpoint: Endpoint) -> Rendering:
        words = ("vllm", "serve", require_text(model.path, "the model"), "--served-model-name", model.identifier)
        return Rendering(
            use=(
                Command("install its plugin", ("pip", "install", "vllm", PLUGIN)),
                Command("its server, http://127.0.0.1:8000/v1", (*words, "--max-model-len", str(model.context_tokens))),
            ),
            notes=(
                "add --tokenizer OWNER/NAME --hf-config-path OWNER/NAME of the original model: vLLM reads neither from "
                "the file reliably",
            ),
        )

    def hub_usage(self, hub: Hub) -> tuple[UsageLine, ...]:
        body = (
            "# Call the server using curl (OpenAI-compatible API):",
            'curl -X POST "http://localhost:8000/v1/chat/completions" \\',
            '\t-H "Content-Type: application/json" \\',
            "\t--data '{",
            f'\t\t"model": "{hub.repo}",',
            '\t\t"messages": [',
            "\t\t\t{",
            '\t\t\t\t"role": "user",',
            '\t\t\t\t"content": "What is the capital of France?"',
            "\t\t\t}",
            "\t\t]",
            "\t}'",
        )
        install = ("# Install vLLM from pip:", "pip install vllm", "# Start the vLLM server:")
        return (
            self.usage_line("Install from pip and serve model", "bash", *install, f'vllm serve "{hub.repo}"', *body),
            self.usage_line("Use Docker", "bash", f"docker model run hf.co/{hub.tagged}"),
        )
