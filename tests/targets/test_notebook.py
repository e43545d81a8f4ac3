"""The notebooks are notebooks, refuse a machine that is too small with the numbers, and run on one that is not."""

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import nbformat
import pytest
from deployments import pure_site

from dfqs.targets.catalogue import find_target
from dfqs.targets.contract import Endpoint, LocalModel
from dfqs.targets.notebooks import RUNTIME, Notebook

ENDPOINT = Endpoint("http://127.0.0.1:8080/v1", "m", 65_536)


def text_of(name: str, file: str, file_bytes: int, *, context: int = 2048, repo: str | None = None) -> str:
    target = find_target(name)
    assert isinstance(target, Notebook)
    return target.notebook("A model", file, file_bytes, context, repo=repo)


def codes(text: str) -> list[str]:
    return ["".join(cell["source"]) for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]


def run_cells(text: str, count: int) -> tuple[dict[str, Any], str]:
    """The first cells, in one name space as a kernel has it; what they printed."""
    names: dict[str, Any] = {}
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        for code in codes(text)[:count]:
            exec(compile(code, "cell", "exec"), names)
    return names, printed.getvalue()


@pytest.mark.parametrize("name", ["colab", "kaggle"])
def test_the_format_is_the_formats_own(name: str) -> None:
    notebook = nbformat.reads(text_of(name, "m.gguf", 10), as_version=4)  # type: ignore[no-untyped-call]

    nbformat.validate(notebook)
    assert notebook.nbformat_minor == 5


@pytest.mark.parametrize("name", ["colab", "kaggle"])
def test_a_machine_without_the_memory_is_refused_with_the_numbers(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    monkeypatch.setenv("DFQS_NOTEBOOK_MODEL", str(tmp_path / "m.gguf"))

    with pytest.raises(RuntimeError, match=r"cannot run the model\. memory: 62001\.0 GB are needed .* has \d+\.\d GB"):
        run_cells(text_of(name, "m.gguf", 62_000_000_000_000), 2)


def test_a_disk_without_the_room_is_refused_before_anything_is_fetched(tmp_path: Path) -> None:
    text = text_of("kaggle", "m.gguf", 10**15, repo="owner/name").replace("/kaggle/working'", f"{tmp_path}'")

    with pytest.raises(RuntimeError, match=r"disk: 1000000\.0 GB are needed in .*, \d+\.\d GB are free"):
        run_cells(text, 2)


def test_the_reference_file_is_refused_where_there_is_no_place_for_it() -> None:
    with pytest.raises(RuntimeError, match=r"disk: 61\.6 GB are needed in /content, 0\.0 GB are free"):
        run_cells(text_of("colab", "m.gguf", 61_600_000_000, repo="owner/name"), 2)


def test_without_a_file_and_a_repository_it_says_where_to_put_the_file() -> None:
    with pytest.raises(RuntimeError, match="put it there, or set REPO"):
        run_cells(text_of("colab", "m.gguf", 10), 2)


def test_the_runtime_is_the_one_that_dfqs_is_locked_to() -> None:
    lock = (Path(__file__).parents[2] / "requirements.lock").read_text(encoding="utf-8")

    assert f"\n{RUNTIME} " in lock


def test_a_deployed_notebook_knows_the_files_size(tmp_path: Path) -> None:
    model = LocalModel((tmp_path / "big model.gguf",), 61_600_000_000, "x", "big-model", "llama", 65_536)
    (part,) = find_target("colab").render(model, pure_site("linux"), ENDPOINT).parts

    names, _ = run_cells(getattr(part, "text"), 1)  # noqa: B009
    assert (names["MODEL_BYTES"], names["FILE"], names["CONTEXT_TOKENS"]) == (61_600_000_000, "big model.gguf", 65_536)


@pytest.mark.slow
def test_a_notebook_runs_from_top_to_bottom_in_a_kernel(
    embedded_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With nbclient, where it and a kernel are installed."""
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    monkeypatch.setenv("DFQS_NOTEBOOK_MODEL", str(embedded_model))
    text = text_of("colab", embedded_model.name, embedded_model.stat().st_size)
    notebook = nbformat.reads(text, as_version=4)  # type: ignore[no-untyped-call]

    nbclient.NotebookClient(notebook, timeout=300).execute()

    assert notebook.cells[-1].outputs[0]["text"].strip()
