"""How a published model is used with one system: the form in which targets hand it to a model card. Pure."""

import json
import shlex
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class UsageLine:
    """What a reader of a model card copies to use the model with one system."""

    target: str
    """Name of the system, as `dfqs deploy` has it: `llama.cpp`, `ollama`."""
    title: str
    """For people: `Ollama`."""
    language: str
    """Of the block of code: `bash`, `python`, `json`."""
    text: str
    """The block itself, without fences: lines to copy."""


def hub_usage(repo: str, file_name: str, label: str | None) -> tuple[UsageLine, ...]:
    """Lines for the systems that the specification's section 13 and the Hub's page name, of a published file.

    Args:
        label: that the Hub knows the file by where the repository has several (`IQ1_S`).
    """
    name = f"{repo}:{label}" if label is not None else repo
    file, python_file = shell_word(file_name), json.dumps(file_name)
    download = f"hf download {repo} {file}\nllama-cli -m {file} -p 'Your prompt'"
    python = (
        "from llama_cpp import Llama\n\n"
        f'llm = Llama.from_pretrained(repo_id="{repo}", filename={python_file})\n'
        'llm.create_chat_completion(messages=[{"role": "user", "content": "What is the capital of France?"}])'
    )
    serve = f"vllm serve {repo} --tokenizer BASE_MODEL  # needs vllm-gguf-plugin, which knows some architectures only"
    return (
        UsageLine("llama.cpp", "llama.cpp", "bash", f"llama-server -hf {name}\n# or\n{download}"),
        UsageLine("llama-cpp-python", "llama-cpp-python", "python", python),
        UsageLine("ollama", "Ollama", "bash", f"ollama run hf.co/{name}"),
        UsageLine("docker", "Docker Model Runner", "bash", f"docker model run hf.co/{name}"),
        UsageLine("lm-studio", "LM Studio", "bash", f"lms get https://huggingface.co/{repo}"),
        UsageLine("vllm", "vLLM", "bash", serve),
    )


def shell_word(word: str) -> str:
    """One word for a shell, on one line."""
    return shlex.quote("".join(c if c.isprintable() else "?" for c in word))
