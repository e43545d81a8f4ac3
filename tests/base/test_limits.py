"""Documents at their limit and beyond it, made to be as costly as can be, under a limit of memory.

Headers of models and manifests have theirs in `test_gguf_memory`, traces in `test_routing_hostile`, journals of merges
in `test_shards_journal`; docs/threats.md lists all.
"""

import re
from dataclasses import dataclass

import pytest

from dfqs.quantize.recipe import MAX_RECIPE_BYTES
from dfqs.records import MAX_KEYS, MAX_VALUES, RECORD_LIMIT_BYTES
from dfqs.routing.prompts import MAX_PROMPTS, MAX_TEXT_BYTES
from memory_limits import peak_under_limit

CODE = """
import tempfile
from pathlib import Path
from dfqs.errors import DfqsError
with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / {name!r}
    path.write_bytes({make})
    try:
        {read}
        print("read")
    except DfqsError as error:
        print("refused:", error)
"""
REPORT = "from dfqs.records import read_json; from dfqs.report.schema import Report; read_json(path, Report)"
JSON = "from dfqs.records import *; parse_json(read_bounded(path, RECORD_LIMIT_BYTES), path=path)"
PROMPTS = "from dfqs.routing.prompts import read_prompts; read_prompts([path])"
RECIPE = "from dfqs.quantize.recipe import read_recipe; read_recipe(path)"
MANIFEST = "from dfqs.integrity.manifest import read_manifest; read_manifest(path)"


@dataclass(frozen=True)
class Case:
    name: str
    """Of the file."""
    make: str
    """Python that gives its bytes."""
    read: str
    said: str


CASES: dict[str, Case] = {
    "a text of small objects at its limit": Case(
        "x.json", f"b'['+b'{{}},'*{RECORD_LIMIT_BYTES // 3 - 9}+b'0]'", JSON, "read"
    ),
    "a text one byte longer": Case("x.json", f"b' '*{RECORD_LIMIT_BYTES + 1}", JSON, "refused: .*larger than"),
    "a record whose every entry is wrong": Case(
        "x.json", f"b'{{\"notices\":['+b'[],'*{MAX_VALUES}+b'0]}}'", REPORT, "refused: .*not a valid Report"
    ),
    "a record of one value more": Case(
        "x.json", f"b'{{\"notices\":['+b'0,'*{MAX_VALUES + 1}+b'0]}}'", REPORT, "refused: .*more than 1,500,000 values"
    ),
    "a record of as many unknown keys as are looked at": Case(
        "x.json",
        f"('{{{{'+','.join('\"%d\":0'%i for i in range({MAX_KEYS}))+'}}}}').encode()",
        REPORT,
        "refused: .*not a valid",
    ),
    "a record of one key more": Case(
        "x.json",
        f"('{{{{'+','.join('\"%d\":0'%i for i in range({MAX_KEYS + 1}))+'}}}}').encode()",
        REPORT,
        "refused: .*10,000 keys",
    ),
    "a manifest whose every tensor is wrong": Case(
        "x.json", f"b'{{\"tensors\":['+b'{{}},'*{MAX_VALUES}+b'0]}}'", MANIFEST, "refused: .*not a valid Manifest"
    ),
    "as many prompts as are read": Case("x.jsonl", f'b\'{{"text":"a"}}\\n\'*{MAX_PROMPTS}', PROMPTS, "read"),
    "a prompt more": Case(
        "x.jsonl", f'b\'{{"text":"a"}}\\n\'*{MAX_PROMPTS + 1}', PROMPTS, "refused: .*more than 100,000"
    ),
    "prompts of nothing but line ends": Case("x.jsonl", f"b'\\n'*{MAX_TEXT_BYTES}", PROMPTS, "refused: no prompts"),
    "a text of prompts at its limit": Case("x.txt", f"b'a '*{MAX_TEXT_BYTES // 2}", PROMPTS, "read"),
    "a text of prompts beyond it": Case("x.txt", f"b'a'*{MAX_TEXT_BYTES + 1}", PROMPTS, "refused: .*larger than"),
    "a recipe of small tables at its limit": Case(
        "x.toml", f"b'x=['+b'{{}},'*{MAX_RECIPE_BYTES // 3 - 9}+b']'", RECIPE, "refused: .*means nothing"
    ),
    "a recipe beyond it": Case("x.toml", f"b'#'*{MAX_RECIPE_BYTES + 1}", RECIPE, "refused: "),
}


@pytest.mark.parametrize("name", CASES)
def test_a_document_at_its_limit_and_beyond_stays_within_the_memory(name: str) -> None:
    case = CASES[name]
    make = case.make.replace("{{", "{").replace("}}", "}")

    found = peak_under_limit(CODE.format(name=case.name, make=make, read=case.read))

    assert (found.returncode, found.stderr) == (0, ""), found
    assert re.match(case.said, found.stdout), found.stdout[:300]
