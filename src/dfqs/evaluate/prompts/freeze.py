"""Writes `manifest.json` for the sets beside it. For whoever makes a new version of a set; a frozen one never changes.

Run as `python -m dfqs.evaluate.prompts.freeze DIRECTORY`.
"""

import hashlib
import sys
from pathlib import Path

from dfqs.evaluate.prompts import Manifest, build_entry
from dfqs.records import write_json

REASONING = (
    "{item}\n\nThink step by step. Then write the final answer alone on the last line, in the form\nAnswer: <answer>"
)
CODE = (
    "Write the following Python function. Reply with the complete function, with any imports it needs, "
    "in one code block.\n\n```python\n{item}```"
)
CONTEXT = "{item}"
TOOLS = (
    "You can call these tools (one JSON object a line, with the JSON Schema of its parameters). If the message below "
    'needs one, reply only with the call, as JSON in the form {"name": ..., "arguments": {...}}. If it needs none, '
    "answer it in plain words.\n\n{item}"
)
PROFILE = "{item}"


def build_manifest(directory: Path) -> Manifest:
    """The manifest of the files in `directory` as they are."""
    sets = []
    for name, version, file, instruction, max_tokens in (
        ("reasoning", 1, "reasoning.jsonl", REASONING, 512),
        ("code", 1, "code.jsonl", CODE, 768),
        ("context", 2, "context.json", CONTEXT, 32),
        ("gym", 1, "gym.jsonl", REASONING, 512),
        ("tools", 1, "tools.jsonl", TOOLS, 256),
        ("profile", 1, "profile.jsonl", PROFILE, 256),
    ):
        data = (directory / file).read_bytes()
        items = len(data.splitlines()) if file.endswith(".jsonl") else 1
        sets.append(build_entry(name, version, file, hashlib.sha256(data).hexdigest(), items, instruction, max_tokens))
    return Manifest(sets=tuple(sets))


if __name__ == "__main__":
    write_json(Path(sys.argv[1]) / "manifest.json", build_manifest(Path(sys.argv[1])), overwrite=True)
