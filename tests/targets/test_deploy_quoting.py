"""Whatever a model is called, it is one word in a shell, one value in a configuration, and no way out of a folder."""

import ast
import json
import shlex
from pathlib import PurePosixPath

import nbformat
import pytest
import yaml
from deployments import described, model_at, pure_site
from hypothesis import given, settings
from hypothesis import strategies as st

from dfqs.errors import UsageError
from dfqs.targets.catalogue import all_targets, find_target
from dfqs.targets.contract import Command, ConfigEdits, Edit, Endpoint, Named, OwnFile
from dfqs.targets.formats import FORMATS
from dfqs.targets.ini import Ini
from dfqs.targets.jsonc import Jsonc
from dfqs.targets.quoting import identifier_of, posix_line, powershell_line
from dfqs.targets.values import apply_edits, find, take_back_edits
from dfqs.targets.yaml_edit import Yaml
from dfqs.targets.yaml_text import yaml_scalar

WORDS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=20)
NASTY = st.sampled_from(
    ["../../etc/passwd", "a'b", 'a"b', "$(id)", "`id`", "a;b", "a#b", "%PATH%", "!x", "null", "yes", "1.0", " ", "-rf",
     "\u2028", "@x", "a\\", "{}", "[m]", "a: b", "# c", "\u2019", "it\u2019s", "~", "*", "\x7f", "\x85", "\ufeff", "😀",
     "名", "C:\\x y"]
)  # fmt: skip
NAMES = WORDS | NASTY | st.builds(lambda a, b, c: a + b + c, WORDS, NASTY, WORDS)
LINE = NAMES.filter(lambda name: not set(name) & set("\n\r"))


@settings(max_examples=40, deadline=None)
@given(st.lists(NAMES, min_size=1, max_size=5), st.dictionaries(st.just("DFQS_X"), NAMES))
def test_a_posix_shell_reads_the_words_that_were_meant(words: list[str], environment: dict[str, str]) -> None:
    read = shlex.split(posix_line(words, environment))

    assert read[len(environment) :] == words
    assert read[: len(environment)] == [f"{name}={value}" for name, value in environment.items()]


@settings(max_examples=40, deadline=None)
@given(st.lists(NAMES, min_size=1, max_size=5))
def test_powershell_reads_the_words_that_were_meant(words: list[str]) -> None:
    assert read_powershell(powershell_line(words)) == words


def read_powershell(line: str) -> list[str]:
    """Words of a line that has bare words and literal strings only; the rules of `about_Quoting_Rules`."""
    line = line.removeprefix("& ")
    found, position = [], 0
    quotes = "'\u2018\u2019\u201a\u201b"
    while position < len(line):
        if line[position] == " ":
            position += 1
        elif line[position] == "'":
            word, position = "", position + 1
            while True:
                if line[position] in quotes:
                    if line[position + 1 : position + 2] == line[position]:
                        word, position = word + line[position], position + 2
                        continue
                    position += 1
                    break
                word, position = word + line[position], position + 1
            found.append(word)
        else:
            end = line.find(" ", position)
            end = len(line) if end < 0 else end
            bare = line[position:end]
            assert all(char.isascii() and (char.isalnum() or char in "._/:=+@\\-") for char in bare)
            found.append(bare)
            position = end
    return found


@settings(max_examples=40, deadline=None)
@given(NAMES)
def test_a_yaml_scalar_is_read_as_the_text_that_it_was(text: str) -> None:
    assert yaml.safe_load(f"a: {yaml_scalar(text)}\n") == {"a": text}


@settings(max_examples=40, deadline=None)
@given(NAMES, NAMES, st.integers(0, 2**53) | st.booleans() | st.none() | NAMES)
def test_json_with_any_name_and_value_is_read_back_and_taken_back(key: str, name: str, value: object) -> None:
    text = '{\n  // kept\n  "a": [1, 2],\n}\n'
    edits = [Edit(("b", key), value), Edit(("list", Named("id", name), "x"), name)]

    changed = apply_edits(Jsonc(), text, edits)

    plain = json.loads(changed.replace("// kept", "").replace("],\n}", "]\n}").replace(",\n}", "\n}"))
    assert plain["b"] == {key: value}
    assert plain["list"] == [{"id": name, "x": name}]
    assert take_back_edits(Jsonc(), changed, edits, text) == text


@pytest.mark.thorough
@settings(max_examples=40, deadline=None)
@given(NAMES, NAMES | st.integers(0, 2**53) | st.booleans())
def test_yaml_with_any_name_and_value_is_read_back_and_taken_back(key: str, value: object) -> None:
    text = "# kept\na:\n    b: [1,  2]   # odd\n"
    edits = [Edit(("model", key), value), Edit(("model", "z" + key), "custom")]

    changed = apply_edits(Yaml(), text, edits)

    assert yaml.safe_load(changed)["model"] == {key: value, "z" + key: "custom"}
    assert take_back_edits(Yaml(), changed, edits, text) == text


@settings(max_examples=40, deadline=None)
@given(LINE)
def test_a_preset_file_holds_a_path_or_says_that_it_cannot(name: str) -> None:
    model = model_at(PurePosixPath("/m") / f"{name}x.gguf", identifier=identifier_of(name))
    try:
        rendering = find_target("llama.cpp").render(model, pure_site("linux"), Endpoint("http://h/v1", "m", 1))
    except UsageError:
        assert (
            set(name) & set(";#")
            or any(ord(char) < 32 for char in name)
            or "\x85" in name
            or "\u2028" in name
            or "\u2029" in name
        )
        return
    (part,) = rendering.parts
    assert isinstance(part, ConfigEdits)
    read = Ini().read(apply_edits(Ini(), "; kept\n", part.edits))
    assert read[model.identifier] == {"model": str(model.path), "c": "65536"}


@settings(max_examples=40, deadline=None)
@given(WORDS | NASTY)
def test_an_identifier_is_one_harmless_name(name: str) -> None:
    found = identifier_of(name)

    assert found and not found.startswith((".", "-")) and ".." not in found and len(found) <= 100
    assert all(char.isascii() and (char.isalnum() or char in "._-") for char in found)


@pytest.mark.thorough
@settings(max_examples=40, deadline=None)
@given(LINE.filter(lambda name: "/" not in name and name not in ("", ".", "..")), LINE.filter(bool))
def test_every_target_renders_a_strange_model_so_that_it_reads_back(file: str, served: str) -> None:
    model = model_at(PurePosixPath("/data") / file, identifier=identifier_of(file))
    endpoint = Endpoint("http://127.0.0.1:8080/v1", served, 65_536)
    for target in all_targets():
        try:
            rendering = target.render(model, pure_site("linux"), endpoint)
        except UsageError:
            continue
        for part in rendering.parts:
            assert ".." not in part.path.parts and part.path.is_relative_to("/home/ana")
            if isinstance(part, ConfigEdits):
                values = FORMATS[part.format].read(apply_edits(FORMATS[part.format], "", part.edits))
                for edit in part.edits:
                    found = find(values, edit.way)
                    assert found == edit.value or (isinstance(edit.value, dict) and edit.value.items() <= found.items())
            elif isinstance(part, OwnFile):
                check_own_file(part, model.path)
        for command in (*rendering.use, *rendering.register):
            check_command(command)


def check_own_file(part: OwnFile, path: object) -> None:
    if part.path.suffix == ".yml":
        assert yaml.safe_load(part.text)["model_path"] == str(path)
    elif part.path.suffix == ".ipynb":
        notebook = nbformat.reads(part.text, as_version=4)  # type: ignore[no-untyped-call]
        nbformat.validate(notebook)
        for cell in json.loads(part.text)["cells"]:
            if cell["cell_type"] == "code":
                ast.parse("".join(cell["source"]))
    else:
        assert part.text.splitlines()[0] == f"FROM {path}" or set(str(path)) & set(
            "\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"
        )


def check_command(command: Command) -> None:
    assert shlex.split(posix_line(command.words)) == list(command.words)
    if command.words[:2] == ("python", "-c"):
        ast.parse(command.words[2])
    if "--model_args" in command.words:
        json.loads(command.words[command.words.index("--model_args") + 1])


@pytest.mark.parametrize("name", ["a\nb.gguf", "a\udc80b.gguf"])
def test_a_path_that_no_configuration_can_hold_is_refused_in_words(name: str) -> None:
    model = model_at(PurePosixPath("/data") / name)
    for target in all_targets():
        if target.takes in ("path", "copy"):
            with pytest.raises(UsageError, match=r"give it another name|cannot hold the path"):
                target.render(model, pure_site("linux"), Endpoint("http://h/v1", "m", 65_536))


def test_a_key_that_pi_would_run_as_a_command_is_refused() -> None:
    endpoint = Endpoint("http://127.0.0.1:8080/v1", "m", 65_536, "!rm -rf ~")
    with pytest.raises(UsageError, match="for a command"):
        find_target("pi").render(model_at(PurePosixPath("/m.gguf")), pure_site("linux"), endpoint)


def test_servers_at_two_addresses_do_not_take_each_others_models() -> None:
    model, site = model_at(PurePosixPath("/m.gguf")), pure_site("linux")
    texts = {
        str(
            described(find_target("pi").render(model, site, Endpoint(f"http://127.0.0.1:{port}/v1", "m", 1)), "linux")[
                "use"
            ][0]
        )
        for port in (8080, 9090)
    }
    assert len(texts) == 2
