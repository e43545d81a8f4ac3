"""llama-cpp-python: reads the file where it lies; a line of Python, or an entry of its server's configuration.

Source: abetlen/llama-cpp-python, `docs/server.md` (`--config_file`, `models`), `llama_cpp/llama.py`.
"""

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
    require_text,
)
from dfqs.targets.quoting import python_text

QUESTION = "What is the capital of France?"


class LlamaCppPython(Target):
    """llama.cpp from Python, with an OpenAI-compatible server."""

    name = "llama-cpp-python"
    title = "llama-cpp-python"
    takes = "path"
    packages = ("llama-cpp-python", "llama_cpp_python")
    names = "llama.cpp"
    dialect_evidence = "it carries a llama.cpp; of which build, only it can tell"
    source = "abetlen/llama-cpp-python: docs/server.md, llama_cpp/llama.py"

    def render(self, model: LocalModel, site: Site, endpoint: Endpoint) -> Rendering:
        config, path = site.own / "llama-cpp-python.json", require_text(model.path, "the model")
        entry = {"model": path, "n_ctx": model.context_tokens}
        program = "; ".join(
            (
                "from llama_cpp import Llama",
                f"llm = Llama(model_path={python_text(path)}, n_ctx={model.context_tokens})",
                f"messages = [{{'role': 'user', 'content': {python_text(QUESTION)}}}]",
                "print(llm.create_chat_completion(messages=messages)['choices'][0]['message']['content'])",
            )
        )
        return Rendering(
            parts=(ConfigEdits(config, "json", (Edit(("models", Named("model_alias", model.identifier)), entry),)),),
            use=(
                Command("from Python", ("python", "-c", program)),
                Command(
                    "its server, http://127.0.0.1:8000/v1",
                    ("python", "-m", "llama_cpp.server", "--config_file", str(config)),
                ),
            ),
            notes=("which architectures it knows depends on the llama.cpp that its wheel was built with",),
        )

    def hub_usage(self, hub: Hub) -> tuple[UsageLine, ...]:
        return (
            self.usage_line(
                "",
                "python",
                "# !pip install llama-cpp-python",
                "from llama_cpp import Llama",
                "",
                "llm = Llama.from_pretrained(",
                f"    repo_id={_double_quoted(hub.repo)},",
                f"    filename={_double_quoted(hub.file)},",
                ")",
                "",
                "llm.create_chat_completion(",
                "    messages = [",
                "        {",
                '            "role": "user",',
                f'            "content": "{QUESTION}"',
                "        }",
                "    ]",
                ")",
            ),
        )


def _double_quoted(text: str) -> str:
    """A string literal of Python in the quotes that the card has, where they do."""
    return f'"{text}"' if text.isascii() and text.isprintable() and not set('"\\') & set(text) else python_text(text)
