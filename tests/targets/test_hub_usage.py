"""What a reader of a model card copies is what the specification's card prints, and cannot become another command."""

import ast
import shlex
from pathlib import Path

import pytest

from dfqs.errors import UsageError
from dfqs.targets.catalogue import all_targets, find_target, usage_lines

REPO, FILE = "persadian/DeepSeek-V4-Flash-IQ1_S-XL", "DeepSeek-V4-Flash-IQ1_S-XL.gguf"
CARD = (Path(__file__).parent / "card_usage.txt").read_text(encoding="utf-8").splitlines()
"""The card's blocks, each on a line, as pages of the Hub come out as text."""


def squeezed(text: str) -> str:
    return " ".join(text.split())


@pytest.mark.parametrize("block", CARD)
def test_every_block_of_the_card_is_rendered_word_for_word(block: str) -> None:
    assert squeezed(block) in {squeezed(line.text) for line in usage_lines(REPO, FILE, "IQ1_S")}


def test_every_target_has_its_hub_form_with_a_title_and_a_language() -> None:
    lines = usage_lines(REPO, FILE, "IQ1_S")

    assert {line.target for line in lines} == {target.name for target in all_targets()}
    assert all(line.title and line.language in ("bash", "python", "powershell", "text") for line in lines)
    # Blocks are copied into fences of three backticks.
    assert all("```" not in line.text and line.text.strip() for line in lines)


def test_python_of_a_card_is_python_whatever_the_file_is_called() -> None:
    name = 'it\'s "quoted" \\ and 名前\u2028.gguf'
    found = []
    for line in usage_lines(REPO, name, ""):
        if line.language == "python" and line.target != "openai":
            tree = ast.parse(line.text)
            found += [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and node.value == name]

    assert len(found) == 3


@pytest.mark.parametrize("repo", ["a/b; rm -rf ~", "a", "a/b/c", "$(id)/x", "a/b\nc", "a/`id`", ""])
def test_a_repository_that_a_shell_would_read_otherwise_is_refused(repo: str) -> None:
    with pytest.raises(UsageError, match="OWNER/NAME"):
        usage_lines(repo, FILE, "IQ1_S")


def test_a_label_that_a_shell_would_read_otherwise_is_refused() -> None:
    with pytest.raises(UsageError, match="label"):
        usage_lines(REPO, FILE, "IQ1_S;id")


def test_without_a_label_no_colon_dangles() -> None:
    for line in usage_lines(REPO, FILE, ""):
        if line.language == "bash":
            assert not [word for word in line.text.split() if word.endswith(":") and REPO in word]
            for row in line.text.splitlines():
                if row.startswith(("llama", "ollama", "docker", "lemonade", "hermes")):
                    shlex.split(row)


def test_targets_are_found_by_name_and_title_and_an_unknown_one_lists_them() -> None:
    assert find_target("LM Studio") is find_target("lm-studio")
    with pytest.raises(UsageError, match=r"no target of the name 'vim'; there is llama-cpp-python, colab"):
        find_target("vim")
