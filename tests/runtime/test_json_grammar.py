"""A JSON schema as a grammar: what the grammar allows, the schema accepts; what it cannot keep is refused by name."""

import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from cli_processes import run_dfqs
from dfqs.cli.main import run
from dfqs.errors import UsageError
from dfqs.runtime.json_grammar import grammar_of_schema
from fixtures_moe import write_tiny_moe

PERSON: dict[str, Any] = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "title": "Person",
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 1, "maxLength": 12, "description": "of whom"},
        "age": {"type": "integer"},
        "colour": {"enum": ["red", 'blue\n"\\', 7, None]},
        "friends": {"type": "array", "items": {"$ref": "#"}, "maxItems": 2},
        "size": {"anyOf": [{"type": "number"}, {"type": "null"}]},
    },
    "required": ["name", "colour"],
    "additionalProperties": False,
}
WORDS = re.compile(
    r"""\s*(?:(?P<literal>"(?:\\.|[^"\\])*")|(?P<set>\[(?:\\.|[^\]\\])*\])|(?P<name>[a-z]\w*)|"""
    r"""(?P<times>\{\d+(?:,\d*)?\}|[?*+])|(?P<mark>[()|]))"""
)


class Said:
    """Says something at random that a grammar allows; a small reader of GBNF, as llama.cpp documents it."""

    def __init__(self, grammar: str, seed: int) -> None:
        self.rules = dict(line.split(" ::= ", 1) for line in grammar.rstrip("\n").split("\n"))
        self.random = random.Random(seed)
        self.left = 120

    def say(self, name: str = "root") -> str:
        self.left -= 1
        words = [match for match in WORDS.finditer(self.rules[name]) if match[0].strip()]
        assert "".join(match[0] for match in words).strip() == self.rules[name].strip(), self.rules[name]
        return self.choose(words)

    def choose(self, words: list[re.Match[str]]) -> str:
        ways: list[list[re.Match[str]]] = [[]]
        depth = 0
        for word in words:
            depth += (word["mark"] == "(") - (word["mark"] == ")")
            if word["mark"] == "|" and not depth:
                ways.append([])
            else:
                ways[-1].append(word)
        # What is said long enough takes what ends it: the way with the fewest names.
        if self.left < 0:
            return self.follow(min(ways, key=lambda way: sum(bool(word["name"]) for word in way)))
        return self.follow(self.random.choice(ways))

    def follow(self, way: list[re.Match[str]]) -> str:
        said, place = "", 0
        while place < len(way):
            word, end = way[place], place + 1
            if word["mark"] == "(":
                depth = 1
                while depth:
                    depth += (way[end]["mark"] == "(") - (way[end]["mark"] == ")")
                    end += 1
            once: Callable[[], str] = (
                (lambda inner=way[place + 1 : end - 1]: self.choose(inner))  # type: ignore[misc]
                if word["mark"]
                else (lambda word=word: self.one(word))  # type: ignore[misc]
            )
            least, most = 1, 1
            if end < len(way) and (times := way[end]["times"]):
                least, most = {"?": (0, 1), "*": (0, 3), "+": (1, 3)}.get(times, (-1, -1))
                if least < 0:
                    first, comma, last = times[1:-1].partition(",")
                    least, most = int(first), int(last or first) if last or not comma else int(first) + 3
                end += 1
            most = least if self.left < 0 else most
            said += "".join(once() for _ in range(self.random.randint(least, most)))
            place = end
        return said

    def one(self, word: re.Match[str]) -> str:
        if word["name"]:
            return self.say(word["name"])
        if word["literal"]:
            return re.sub(r"\\(x..|.)", unescaped, word["literal"][1:-1])
        inner = word["set"][1:-1]
        if inner.startswith("^"):
            return self.random.choice("abc é✓{}[],: 0")
        inner = re.sub(r"\\(x..|.)", unescaped, inner)
        expanded = re.sub(r"(.)-(.)", lambda m: "".join(map(chr, range(ord(m[1]), ord(m[2]) + 1))), inner)
        return self.random.choice(expanded)


def unescaped(match: re.Match[str]) -> str:
    word = match[1]
    return {"n": "\n", "t": "\t"}.get(word) or (chr(int(word[1:], 16)) if word.startswith("x") else word)


def check(schema: Any, times: int = 25) -> None:
    grammar = grammar_of_schema(schema)
    for seed in range(times):
        said = Said(grammar, seed).say()
        Draft202012Validator(schema).validate(json.loads(said))


def schemas(references: bool = True) -> st.SearchStrategy[Any]:
    texts = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=6)
    values = st.none() | st.booleans() | st.integers(-999, 999) | texts | st.lists(texts, max_size=2)
    lengths = st.tuples(st.integers(0, 3), st.integers(3, 5) | st.none())

    def bounded(type_: str, word: str, more: dict[str, Any]) -> st.SearchStrategy[Any]:
        return lengths.map(
            lambda pair: (
                {"type": type_, f"min{word}": pair[0], **more} | ({} if pair[1] is None else {f"max{word}": pair[1]})
            )
        )

    def deeper(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
        def to_object(properties: dict[str, Any], required: int) -> dict[str, Any]:
            names = list(properties)[:required]
            return {"type": "object", "properties": properties, "required": names, "additionalProperties": False}

        return (
            inner.flatmap(lambda schema: bounded("array", "Items", {"items": schema}))
            | st.builds(to_object, st.dictionaries(texts, inner, max_size=4), st.integers(0, 4))
            | inner.map(lambda schema: {"type": "object", "additionalProperties": schema})
            | st.lists(inner, min_size=1, max_size=3).map(lambda each: {"anyOf": each})
        )

    simple = (
        st.sampled_from(
            [{"type": name} for name in ("string", "number", "integer", "boolean", "null", "object", "array")]
        )
        | st.just({"type": ["string", "null"]})
        | values.map(lambda value: {"const": value})
        | st.lists(values, min_size=1, max_size=4).map(lambda each: {"enum": each})
        | bounded("string", "Length", {})
        | st.sampled_from([True, {}, {"description": "anything"}])
    )
    return st.recursive(simple, deeper, max_leaves=6)


@pytest.mark.thorough
@given(schemas())
@settings(max_examples=120)
def test_whatever_the_grammar_allows_the_schema_accepts(schema: Any) -> None:
    check(schema, 4)


def test_a_schema_as_people_write_them_gives_every_property_that_is_required_and_each_of_the_others() -> None:
    check(PERSON, 60)
    said = [json.loads(Said(grammar_of_schema(PERSON), seed).say()) for seed in range(60)]
    assert all({"name", "colour"} <= set(one) for one in said)
    assert {key for one in said for key in one} == set(PERSON["properties"])
    assert {str(one["colour"]) for one in said} == {"red", 'blue\n"\\', "7", "None"}


def test_references_within_the_document_are_followed_also_in_a_circle() -> None:
    node = {"type": "object", "properties": {"next": {"anyOf": [{"$ref": "#/$defs/no~1de"}, {"type": "null"}]}},
            "required": ["next"]}  # fmt: skip
    check({"$ref": "#/$defs/no~1de", "$defs": {"no/de": node}})


@pytest.mark.parametrize(
    "schema, words",
    [
        ({"type": "integer", "minimum": 3}, "#/minimum"),
        ({"type": "object", "properties": {"a": {"type": "string", "pattern": "x"}}}, "#/properties/a/pattern"),
        ({"type": "string", "format": "date"}, "#/format"),
        ({"oneOf": [{"type": "null"}]}, "#/oneOf"),
        ({"allOf": []}, "#/allOf"),
        ({"not": {}}, "#/not"),
        ({"type": "array", "prefixItems": []}, "#/prefixItems"),
        ({"type": "array", "uniqueItems": True}, "#/uniqueItems"),
        ({"type": "object", "patternProperties": {}}, "#/patternProperties"),
        ({"type": "text"}, "#/type"),
        ({"type": []}, "#/type"),
        ({"enum": []}, "#/enum"),
        ({"enum": ["a"], "type": "integer"}, "#/enum"),
        ({"anyOf": {}}, "#/anyOf"),
        ({"$ref": "https://x/y"}, "leads out"),
        ({"$ref": "#/$defs/x"}, "leads nowhere"),
        ({"$ref": "#"}, "another reference"),
        ({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}, "another reference"),
        ({"type": "object", "required": ["a"]}, "#/required"),
        ({"type": "object", "properties": {}, "required": [[]]}, "#/required"),
        ({"type": "string", "minLength": 9, "maxLength": 2}, "at least 9"),
        ({"type": "string", "maxLength": 10**9}, "#/maxLength"),
        ({"type": "string", "minLength": True}, "#/minLength"),
        ({"type": "object", "properties": {"x": False}}, "no schema"),
        (["x"], "no schema"),
        (False, "no schema"),
        ({"type": "object", "properties": {str(i): {"type": "object", "properties": {str(j): {"enum": [j]} for j in
          range(100)}} for i in range(100)}}, "more than"),
        ({"$ref": "#/$defs/0", "$defs": {str(i): {"type": "array", "items": {"$ref": f"#/$defs/{i + 1}"}} for i in
          range(2000)} | {"2000": {"type": "null"}}}, "deeper"),
    ],
)  # fmt: skip
def test_what_a_grammar_cannot_keep_to_is_refused_with_its_place(schema: Any, words: str) -> None:
    with pytest.raises(UsageError, match=re.escape(words)):
        grammar_of_schema(schema)


def test_a_model_that_knows_nothing_says_what_the_schema_wants(tmp_path: Path, smollm2_gguf: Path) -> None:
    """llama.cpp reads the grammar, and random weights have no say against it."""
    model = write_tiny_moe(tmp_path / "tiny.gguf", smollm2_gguf, "qwen3moe")
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}, "of": {"enum": ["a \"b\"", 12]}},
              "required": ["ok", "of"]}  # fmt: skip
    (tmp_path / "schema.json").write_text(json.dumps(schema))

    done = run_dfqs("run", model, "x", "--raw", "--json-schema", tmp_path / "schema.json", "--temp", "1", "--seed", "3",
                    "-n", "120", "--json")  # fmt: skip

    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    Draft202012Validator(schema).validate(json.loads(document["text"]))
    assert document["settings"]["grammar"] == grammar_of_schema(schema)


def test_a_file_that_is_no_schema_is_told_before_a_model_is_loaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "s.json").write_text("{nonsense")
    (tmp_path / "g.gbnf").write_text('root ::= "x"')
    (tmp_path / "none.gguf").write_text("no model")
    for words in (["--json-schema", "s.json"], ["--json-schema", "none.json"],
                  ["--json-schema", "s.json", "--grammar", "g.gbnf"]):  # fmt: skip
        paths = [str(tmp_path / word) if "." in word else word for word in words]
        assert run(["run", str(tmp_path / "none.gguf"), "x", *paths]) in (2, 3)
        assert "none.gguf" not in capsys.readouterr().err
