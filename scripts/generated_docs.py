"""What is made from the code: docs/cli.md, docs/json.md, the tree in docs/architecture.md, README's systems."""

import ast
from pathlib import Path

from dfqs.cli.json_reference import render_documents
from dfqs.cli.platforms import platform_table
from dfqs.cli.reference import render_reference

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "dfqs"
TREE_START = "<!-- tree: written by scripts/write-docs -->\n"
TREE_END = "<!-- end of tree -->\n"
PLATFORMS_START = "<!-- platforms: written by scripts/write-docs -->\n"
PLATFORMS_END = "<!-- end of platforms -->\n"
# The order of the data's flow, which is also the order in which imports may point (upwards only).
ORDER = (
    *("on_demand", "errors", "units", "progress", "cache", "storage", "config", "seal", "records", "receipts"),
    *("gguf", "model", "shards", "inplace", "pull", "integrity", "find"),
    *("control_groups", "processors", "hardware", "energy", "figure"),
    *("runtime", "streaming", "serving", "quantize", "routing", "planning", "evaluate", "report", "targets"),
    *("embedded", "demo_record", "demo", "cli", "__main__"),
)


def render_tree() -> str:
    """Packages and modules with the first line of their docstrings."""
    lines = []
    for name in ORDER:
        package = SOURCE / name
        if package.is_dir():
            lines.append(f"{name}/".ljust(26) + summary(package / "__init__.py"))
            modules = sorted(p for p in package.rglob("*.py") if p.name != "__init__.py")
            lines.extend(f"  {path.relative_to(package)}".ljust(26) + summary(path) for path in modules)
        elif (path := package.with_suffix(".py")).exists():
            lines.append(path.name.ljust(26) + summary(path))
    return "```text\n" + "\n".join(line.rstrip() for line in lines) + "\n```\n"


def summary(path: Path) -> str:
    """First line of a module's docstring."""
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return text.partition("\n")[0]


def generated_documents() -> dict[Path, str]:
    """Each document, and what should stand in it."""
    architecture, readme = ROOT / "docs" / "architecture.md", ROOT / "README.md"
    return {
        ROOT / "docs" / "cli.md": render_reference(),
        ROOT / "docs" / "json.md": render_documents(),
        architecture: between(architecture, TREE_START, render_tree(), TREE_END),
        readme: between(readme, PLATFORMS_START, platform_table(), PLATFORMS_END),
    }


def between(path: Path, start: str, made: str, end: str) -> str:
    """The document with what is made between two of its lines."""
    before, _, rest = path.read_text(encoding="utf-8").partition(start)
    _, _, after = rest.partition(end)
    return before + start + made + end + after


if __name__ == "__main__":
    for target, text in generated_documents().items():
        target.write_text(text, encoding="utf-8")
