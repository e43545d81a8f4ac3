"""Clients of an endpoint that need no file: OpenAI's SDK, Open WebUI, lm-evaluation-harness and Inspect.

Sources: openai-python's README (`OPENAI_BASE_URL`); docs.openwebui.com, environment configuration (kept in its
database from the first start on); EleutherAI/lm-evaluation-harness `docs/interface.md` (`--model_args` as JSON);
inspect.aisi.org.uk/providers.html (`openai-api/PROVIDER/MODEL`).
"""

from pathlib import PurePath

from dfqs.report.usage import UsageLine
from dfqs.targets.contract import Command, Endpoint, Hub, LocalModel, Rendering, Site, Target
from dfqs.targets.pi import NO_KEY, server_lines
from dfqs.targets.quoting import json_text, python_text

_HUB_SERVER = "http://localhost:8080/v1"


def key_of(endpoint: Endpoint) -> str:
    """A key: clients refuse to go without one."""
    return endpoint.api_key or NO_KEY


class OpenAISDK(Target):
    """OpenAI's Python client, and whatever reads the same two variables."""

    name = "openai"
    title = "OpenAI SDK"
    takes = "endpoint"
    packages = ("openai",)
    source = "openai/openai-python: README.md"

    def render(self, model: LocalModel, site: Site, endpoint: Endpoint) -> Rendering:
        return Rendering(use=(self._question(endpoint, "What is the capital of France?"),))

    def ask(self, endpoint: Endpoint, question: str, folder: PurePath) -> Command | None:
        return self._question(endpoint, question)

    def _question(self, endpoint: Endpoint, question: str) -> Command:
        program = "; ".join(
            (
                "from openai import OpenAI",
                f"messages = [{{'role': 'user', 'content': {python_text(question)}}}]",
                f"answer = OpenAI().chat.completions.create(model={python_text(endpoint.model)}, messages=messages)",
                "print(answer.choices[0].message.content)",
            )
        )
        variables = {"OPENAI_BASE_URL": endpoint.base_url, "OPENAI_API_KEY": key_of(endpoint)}
        return Command("one question", ("python", "-c", program), variables)

    def hub_usage(self, hub: Hub) -> tuple[UsageLine, ...]:
        return (
            self.usage_line("Start the llama.cpp server", "bash", *server_lines(hub)),
            self.usage_line(
                "Ask it",
                "python",
                "# !pip install openai",
                "from openai import OpenAI",
                "",
                f'client = OpenAI(base_url="{_HUB_SERVER}", api_key="{NO_KEY}")',
                "client.chat.completions.create(",
                f"    model={json_text(hub.tagged)},",
                '    messages=[{"role": "user", "content": "What is the capital of France?"}],',
                ")",
            ),
        )


class OpenWebUI(Target):
    """Open WebUI as a page in front of the endpoint."""

    name = "open-webui"
    title = "Open WebUI"
    takes = "endpoint"
    programs = ("open-webui",)
    packages = ("open-webui",)
    source = "docs.openwebui.com: environment configuration"

    def render(self, model: LocalModel, site: Site, endpoint: Endpoint) -> Rendering:
        variables = {
            "OPENAI_API_BASE_URL": endpoint.base_url,
            "OPENAI_API_KEY": key_of(endpoint),
            "ENABLE_OLLAMA_API": "false",
        }
        serve = ("open-webui", "serve", "--host", "127.0.0.1", "--port", "3000")
        return Rendering(
            use=(Command("its page, http://127.0.0.1:3000", serve, variables),),
            notes=("it keeps the address in its database when it starts first; later it is changed in Settings",),
        )

    def hub_usage(self, hub: Hub) -> tuple[UsageLine, ...]:
        return (
            self.usage_line("Start the llama.cpp server", "bash", *server_lines(hub)),
            self.usage_line(
                "Start its page",
                "bash",
                "pip install open-webui",
                f"OPENAI_API_BASE_URL={_HUB_SERVER} OPENAI_API_KEY={NO_KEY} open-webui serve --port 3000",
            ),
        )


class LmEval(Target):
    """lm-evaluation-harness over the endpoint's likelihoods, which `dfqs serve` tells and llama-server does not."""

    name = "lm-eval"
    title = "lm-evaluation-harness"
    takes = "endpoint"
    programs = ("lm_eval", "lm-eval")
    packages = ("lm_eval", "lm-eval")
    source = "EleutherAI/lm-evaluation-harness: docs/interface.md, lm_eval/models/openai_completions.py"

    def render(self, model: LocalModel, site: Site, endpoint: Endpoint) -> Rendering:
        def arguments(door: str, tokenizer: dict[str, str | None]) -> str:
            settings = {
                "model": endpoint.model,
                "base_url": f"{endpoint.base_url}/{door}",
                "num_concurrent": 1,
                "tokenized_requests": False,
                **tokenizer,
            }
            return json_text(settings)

        variables = {"OPENAI_API_KEY": key_of(endpoint)}
        by_text = arguments("chat/completions", {"tokenizer_backend": None})
        # The harness refuses likelihoods without a tokenizer to count a context's tokens with.
        by_likelihood = arguments("completions", {"tokenizer": "TOKENIZER"})
        chat = ("lm_eval", "run", "--model", "local-chat-completions", "--model_args", by_text)
        likelihood = ("lm_eval", "run", "--model", "local-completions", "--model_args", by_likelihood)
        return Rendering(
            use=(
                Command("a task by generated answers", (*chat, "--tasks", "gsm8k", "--apply_chat_template"), variables),
                Command(
                    "a task by likelihoods; TOKENIZER: of the model, a repository or folder",
                    (*likelihood, "--tasks", "arc_easy"),
                    variables,
                ),
            ),
            notes=(
                "exact likelihoods without a server, of any file: dfqs-lm-eval run --model dfqs (docs/evaluation.md)",
            ),
        )

    def hub_usage(self, hub: Hub) -> tuple[UsageLine, ...]:
        settings = json_text({"model": hub.tagged, "base_url": f"{_HUB_SERVER}/chat/completions"})
        return (
            self.usage_line("Start the llama.cpp server", "bash", *server_lines(hub)),
            self.usage_line(
                "Run a task",
                "bash",
                "pip install 'lm_eval[api]'",
                f"lm_eval run --model local-chat-completions --model_args '{settings}' \\",
                "  --tasks gsm8k --apply_chat_template",
            ),
        )


class Inspect(Target):
    """Inspect, by its provider for OpenAI-compatible endpoints."""

    name = "inspect-ai"
    title = "Inspect"
    takes = "endpoint"
    programs = ("inspect",)
    packages = ("inspect-ai", "inspect_ai")
    source = "inspect.aisi.org.uk/providers.html: OpenAI-compatible APIs"

    def render(self, model: LocalModel, site: Site, endpoint: Endpoint) -> Rendering:
        variables = {"DFQS_BASE_URL": endpoint.base_url, "DFQS_API_KEY": key_of(endpoint)}
        words = ("inspect", "eval", "TASK.py", "--model", f"openai-api/dfqs/{endpoint.model}")
        return Rendering(use=(Command("a task of yours", words, variables),))

    def hub_usage(self, hub: Hub) -> tuple[UsageLine, ...]:
        return (
            self.usage_line("Start the llama.cpp server", "bash", *server_lines(hub)),
            self.usage_line(
                "Run a task",
                "bash",
                "pip install inspect-ai openai",
                f"LLAMA_BASE_URL={_HUB_SERVER} LLAMA_API_KEY={NO_KEY} \\",
                f"  inspect eval TASK.py --model openai-api/llama/{hub.tagged}",
            ),
        )
