"""Colab and Kaggle: a notebook that looks at the machine first, and refuses one that cannot hold the model.

Format: nbformat 4.5. The runtime in it is the wheel of llama.cpp that dfqs runs on: nothing is compiled.
"""

import json
from typing import ClassVar

from dfqs.report.usage import UsageLine
from dfqs.targets.contract import Command, Endpoint, Hub, LocalModel, OwnFile, Rendering, Site, Target
from dfqs.targets.quoting import python_text

RUNTIME = "xllamacpp==2026.10.11549"
BESIDE_WEIGHTS_BYTES = 1_000_000_000
"""What a notebook needs beside the weights at the least: Python, the program, a short context."""

_PREFLIGHT = '''\
# Preflight: stops here where the machine cannot hold the model.
import os
from pathlib import Path

def memory_bytes():
    """All memory of this machine, or what its control group grants."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for name in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            total = min(total, int(Path(name).read_text()))
        except (OSError, ValueError):
            pass
    return total

def find_model():
    for place in [os.environ.get("DFQS_NOTEBOOK_MODEL"), *PLACES]:
        if place and Path(place).is_file():
            return Path(place)
    return None

model_path = find_model()
needed = MODEL_BYTES + BESIDE_BYTES
problems = []
if memory_bytes() < needed:
    problems.append(f"memory: {needed / 1e9:.1f} GB are needed for the weights and what is beside them, "
                    f"this machine has {memory_bytes() / 1e9:.1f} GB")
if model_path is None and REPO is None:
    problems.append("the model is in none of " + ", ".join(PLACES) + "; put it there, or set REPO")
elif model_path is None:
    try:
        disk = os.statvfs(DOWNLOADS)
        free = disk.f_bavail * disk.f_frsize
    except OSError:
        free = 0  # It is not there.
    if free < MODEL_BYTES:
        problems.append(f"disk: {MODEL_BYTES / 1e9:.1f} GB are needed in {DOWNLOADS}, {free / 1e9:.1f} GB are free")
if problems:
    raise RuntimeError("This machine cannot run the model. " + "; ".join(problems))
print(f"preflight passed: {memory_bytes() / 1e9:.1f} GB of memory for {needed / 1e9:.1f} GB")'''

_INSTALL = """\
# The runtime: llama.cpp as a prebuilt wheel.
import importlib.util, subprocess, sys
if importlib.util.find_spec("xllamacpp") is None:
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", RUNTIME], check=True)"""

_FETCH = """\
# The model: from where it lies, or from the Hub.
if model_path is None:
    from huggingface_hub import hf_hub_download
    model_path = Path(hf_hub_download(REPO, FILE, local_dir=DOWNLOADS))
print(model_path)"""

_LOAD = """\
# Threads that wait give their processor to others.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
import xllamacpp
parameters = xllamacpp.CommonParams()
parameters.model.path = str(model_path)
parameters.n_ctx = CONTEXT_TOKENS
parameters.n_parallel = 1
server = xllamacpp.Server(parameters)"""

_ASK = """\
messages = [{"role": "user", "content": "What is the capital of France?"}]
answer = server.handle_chat_completions({"messages": messages, "max_tokens": 64})
print(answer["choices"][0]["message"]["content"])"""


class Notebook(Target):
    """A notebook service: the file is put there, or fetched from the Hub."""

    takes = "download"
    names = "llama.cpp"
    build = RUNTIME
    dialect_evidence = "the notebook installs this wheel, which dfqs itself runs on"
    source = "nbformat 4.5; the services' own pages for their sizes"
    downloads: ClassVar[str]
    """Where fetched files go."""
    places: ClassVar[tuple[str, ...]]
    """Where a file may lie that its user put there."""
    limit: ClassVar[str]

    def render(self, model: LocalModel, site: Site, endpoint: Endpoint) -> Rendering:
        path = site.own / "notebooks" / f"{model.identifier}-{self.name}.ipynb"
        text = self.notebook(model.name, model.path.name, model.file_bytes, model.context_tokens, repo=None)
        shards = ("it takes one file: merge the shards first (dfqs merge)",) if len(model.paths) > 1 else ()
        return Rendering(
            parts=(OwnFile(path, text),),
            use=(Command(f"open it in {self.title}: upload", (str(path),)),),
            notes=(
                f"put the model into {' or '.join(self.places)} there, or set REPO in the second cell",
                f"{self.limit}; the notebook's preflight cell says whether that is enough",
                *shards,
            ),
        )

    def hub_usage(self, hub: Hub) -> tuple[UsageLine, ...]:
        return (
            self.usage_line(
                "",
                "python",
                f"# !pip install {RUNTIME} huggingface_hub",
                "from huggingface_hub import hf_hub_download",
                "import xllamacpp",
                "",
                "parameters = xllamacpp.CommonParams()",
                f"parameters.model.path = hf_hub_download({python_text(hub.repo)}, {python_text(hub.file)},",
                f"                                        local_dir={python_text(self.downloads)})",
                "server = xllamacpp.Server(parameters)",
                'messages = [{"role": "user", "content": "What is the capital of France?"}]',
                'print(server.handle_chat_completions({"messages": messages})["choices"][0]["message"]["content"])',
            ),
        )

    def notebook(self, title: str, file: str, file_bytes: int, context_tokens: int, *, repo: str | None) -> str:
        """The notebook's text."""
        places = [f"{place}/{file}" for place in self.places]
        settings = "\n".join(
            (
                f"REPO = {python_text(repo) if repo else None}  # OWNER/NAME on the Hub, to fetch the file from",
                f"FILE = {python_text(file)}",
                f"PLACES = [{', '.join(map(python_text, places))}]",
                f"DOWNLOADS = {python_text(self.downloads)}",
                f"MODEL_BYTES = {file_bytes}",
                f"BESIDE_BYTES = {BESIDE_WEIGHTS_BYTES}",
                f"CONTEXT_TOKENS = {context_tokens}",
                f"RUNTIME = {python_text(RUNTIME)}",
            )
        )
        # Words of the file, as text and not as markdown: the title is a string of Python too.
        heading = (
            f"# The model below in {self.title}\n\nRun the cells from top to bottom; the second one refuses a machine "
        )
        heading += "that is too small."
        about = f"print({python_text(title)})"
        codes = (f"{settings}\n{about}", _PREFLIGHT, _INSTALL, _FETCH, _LOAD, _ASK)
        cells = [_cell(0, "markdown", heading), *(_cell(n, "code", code) for n, code in enumerate(codes, 1))]
        kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
        metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}
        document = {"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}
        return json.dumps(document, indent=1, ensure_ascii=True) + "\n"


class Colab(Notebook):
    """Google Colab."""

    name = "colab"
    title = "Google Colab"
    downloads = "/content"
    places = ("/content", "/content/drive/MyDrive")
    limit = "the free machine has about 12.7 GB of memory"


class Kaggle(Notebook):
    """Kaggle notebooks."""

    name = "kaggle"
    title = "Kaggle"
    downloads = "/kaggle/working"
    places = ("/kaggle/working", "/kaggle/input/model")
    limit = "/kaggle/working holds 20 GB, and the machine has about 30 GB of memory"


def _cell(number: int, kind: str, source: str) -> dict[str, object]:
    cell: dict[str, object] = {"cell_type": kind, "id": f"cell-{number}", "metadata": {}}
    if kind == "code":
        cell |= {"execution_count": None, "outputs": []}
    return {**cell, "source": source.splitlines(keepends=True)}
