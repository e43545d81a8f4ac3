"""The architecture's own rules, checked on the source: direction of imports, who may touch sockets, who may print."""

import ast
import re
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "dfqs"

# From the base upwards, as docs/architecture.md lists them; a layer imports only from those before it (or itself).
LAYERS = (
    ("on_demand", "errors", "units", "progress", "storage", "config", "records", "receipts"),
    ("gguf",),
    ("model",),
    ("shards",),
    ("inplace",),
    ("pull",),
    ("integrity",),
    ("find",),
    ("control_groups",),
    ("processors", "hardware"),
    ("energy",),
    ("figure",),
    ("runtime",),
    ("streaming",),
    ("serving",),
    ("quantize",),
    ("routing",),
    ("planning",),
    ("evaluate",),
    ("report",),
    ("targets",),
    ("embedded",),
    ("demo_record",),
    ("demo",),
    ("cli",),
    ("__main__",),
)
RANK = {name: rank for rank, layer in enumerate(LAYERS) for name in layer}
BASE_ORDER = LAYERS[0]

SOCKET_MODULES = {
    "socket",
    "httpx",
    "httpcore",
    "requests",
    "urllib.request",
    "http.client",
    "http.server",
    "huggingface_hub",
}
SOCKETS_ALLOWED = ("pull/", "runtime/", "serving/", "report/publish", "report/hub_card.py")
"""The last has huggingface_hub's classes of what a card says; nothing of them connects."""
SUBPROCESS_ALLOWED = ("runtime/", "serving/", "evaluate/sandbox", "hardware.py", "targets/", "embedded")
MAX_LINES = 400
MAX_FUNCTION_LINES = 60

SENTENCES = ("detail", "fix", "sentence")
"""Attributes of exceptions and findings that are for people."""
SENTENCE_METHODS = ("startswith", "endswith", "find", "index", "count", "partition", "rpartition", "split", "replace")
PATTERN_METHODS = ("search", "match", "fullmatch", "findall", "finditer")


def source_files() -> list[Path]:
    return sorted(SOURCE.rglob("*.py"))


@cache
def text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8")


@cache
def nodes_of(path: Path) -> tuple[ast.AST, ...]:
    """Read and walked once for all rules, none of which changes anything."""
    return tuple(ast.walk(ast.parse(text_of(path))))


def layer_of(module: str) -> str | None:
    parts = module.split(".")
    return parts[1] if parts[0] == "dfqs" and len(parts) > 1 else None


@cache
def imports_of(path: Path) -> tuple[tuple[str, int], ...]:
    return tuple(_read_imports(path))


def _read_imports(path: Path) -> Iterator[tuple[str, int]]:
    for node in nodes_of(path):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative import"
            if node.module == "dfqs":
                yield from ((f"dfqs.{alias.name}", node.lineno) for alias in node.names)
            else:
                yield node.module, node.lineno


def own_layer(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def test_every_module_has_a_place_in_the_layer_list() -> None:
    unknown = {own_layer(p) for p in source_files()} - set(RANK) - {"__init__"}

    assert not unknown


@pytest.mark.thorough
def test_no_import_points_upwards_so_that_a_layer_can_be_understood_without_those_above_it() -> None:
    wrong = []
    for path in source_files():
        layer = own_layer(path)
        if layer == "__init__":
            continue
        for module, line in imports_of(path):
            target = layer_of(module)
            if target is None or target == layer or target.startswith("__"):
                continue
            upward = RANK[target] > RANK[layer]
            if RANK[target] == RANK[layer]:
                upward = BASE_ORDER.index(target) > BASE_ORDER.index(layer)
            if upward:
                wrong.append(f"{path.relative_to(ROOT)}:{line} imports {module}")

    assert not wrong, "\n".join(wrong)


@pytest.mark.thorough
def test_sockets_and_subprocesses_stay_where_they_are_expected() -> None:
    wrong = []
    for path in source_files():
        name = str(path.relative_to(SOURCE))
        for module, line in imports_of(path):
            if module.split(".")[0] in SOCKET_MODULES | {m for m in SOCKET_MODULES if m == module}:
                allowed = name.startswith(SOCKETS_ALLOWED)
            elif module in ("subprocess", "multiprocessing"):
                allowed = name.startswith(SUBPROCESS_ALLOWED)
            else:
                continue
            if not allowed:
                wrong.append(f"{name}:{line} imports {module}")

    assert not wrong, "\n".join(wrong)


@pytest.mark.thorough
def test_only_the_command_line_prints_or_exits() -> None:
    wrong = []
    for path in source_files():
        if own_layer(path) == "cli":
            continue
        for node in nodes_of(path):
            if not isinstance(node, ast.Call):
                continue
            # What is no name is not one of these, and takes long to write out.
            called = ast.unparse(node.func) if isinstance(node.func, ast.Name | ast.Attribute) else ""
            if called in ("print", "exit", "quit", "sys.exit"):
                wrong.append(f"{path.relative_to(ROOT)}:{node.lineno} calls {called}")

    # The worker is a process of its own: its exit code is its answer.
    assert not [w for w in wrong if "/runtime/worker.py" not in w], "\n".join(wrong)


@pytest.mark.thorough
def test_one_module_of_the_command_line_writes_so_that_no_foreign_word_finds_another_way_to_the_terminal() -> None:
    direct = re.compile(
        r"(print|typer\.\w*echo|click\.\w*echo|os\.write|(rich\.)?print_json|(\w+\.)*Console|(\w+\.)*from_markup"
        r"|sys\.(stdout|stderr|__stdout__|__stderr__)\.(buffer\.)?write(lines)?|traceback\.print_\w+|sys\.excepthook)"
    )
    wrong = []
    for path in sorted((SOURCE / "cli").glob("*.py")):
        for node in nodes_of(path):
            if not isinstance(node, ast.Call):
                continue
            called = ast.unparse(node.func)
            own_door = called == "print_json" and path.name != "output.py"
            if path.name != "output.py" and not own_door and direct.fullmatch(called):
                wrong.append(f"{path.relative_to(ROOT)}:{node.lineno} calls {called}")
            if any(word.arg == "markup" and ast.unparse(word.value) != "False" for word in node.keywords):
                wrong.append(f"{path.relative_to(ROOT)}:{node.lineno} reads words as markup")

    assert not wrong, "\n".join(wrong)


ONE_PLACE = {
    r"\bTable\(": {"cli/output.py"},
    r"\bflock\(|LOCK_EX": {"storage/linux.py", "storage/locks.py"},
    r"disk_usage\(": {"storage/space.py"},
    r"os\.copy_file_range|shutil\.copy|copyfileobj\(": {"storage/linux.py"},
    r"statvfs\(": {"storage/disk.py", "evaluate/harness.py", "targets/notebooks.py"},
    r"os\.(replace|rename)\(": set(),
    r"os\.link\(": {"storage/atomic.py", "targets/write.py"},
    r"cpu_count\(|getaffinity\(": {"processors.py", "storage/linux.py", "hardware.py", "runtime/omp_policy.py"},
    r"def default_threads\(": {"processors.py"},
    r"def hash_file\(": {"storage/hashing.py"},
    r"def shard_paths\(": {"gguf/shard_names.py"},
    r"get_nowait\(": {"storage/sharing.py"},
    r"file_digest\(": {"runtime/install.py"},
    r"\.partial\"": {"storage/atomic.py"},
    r"else ['\"]s['\"]|\b1 else ['\"]\w*s['\"]": set(),
}
"""What a mechanism is known by, and the only files of it: tables, locks, free space, copies, names that replace names
(of whole files; deploying places second names), processors to use, hashes of files, shards, work shared
by threads, names of temporary files, plurals. The harness and the notebook run where there is no dfqs."""


@pytest.mark.parametrize("pattern", ONE_PLACE)
def test_a_mechanism_has_one_place_so_that_a_second_one_is_noticed(pattern: str) -> None:
    found = {str(path.relative_to(SOURCE)) for path in source_files() if re.search(pattern, text_of(path))}

    assert found <= ONE_PLACE[pattern]


def test_one_module_of_the_command_line_makes_json_so_that_every_document_begins_with_its_schema() -> None:
    makers = {path.name for path in (SOURCE / "cli").rglob("*.py") if re.search(r"json\.dumps?\(", text_of(path))}

    assert makers == {"output.py"}


@pytest.mark.thorough
def test_the_native_library_is_imported_by_workers_only() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{line}"
        for path in source_files()
        for module, line in imports_of(path)
        if module.split(".")[0] == "xllamacpp" and not str(path.relative_to(SOURCE)).startswith("runtime/")
    ]

    assert not wrong, "\n".join(wrong)


@pytest.mark.thorough
def test_no_code_decides_by_a_sentence_so_that_a_better_wording_changes_no_behaviour() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{line}" for path in source_files() for line in decisions_by_sentence(nodes_of(path))
    ]

    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    "decision",
    [
        "'libgomp' in str(error)",
        "str(error) == 'stopped'",
        "str(error).startswith('nothing answers')",
        "error.args[0].partition(';')",
        "re.search('no room', f'{error}')",
        "_PATTERN.fullmatch(str(error))",
        "'left' in error.detail",
        "finding.fix.startswith('Fetch')",
        "'repair' in finding.fix",
    ],
)
def test_a_decision_by_a_sentence_is_seen(decision: str) -> None:
    source = f"try:\n    work()\nexcept OSError as error:\n    answer = {decision}\n"

    assert list(decisions_by_sentence(tuple(ast.walk(ast.parse(source))))) == [4]


def decisions_by_sentence(nodes: Sequence[ast.AST]) -> Iterator[int]:
    """Lines that look into the words of an exception or a finding: compared, searched, or cut apart."""
    caught = {node.name for node in nodes if isinstance(node, ast.ExceptHandler) and node.name}
    for node in nodes:
        if not isinstance(node, ast.expr):
            continue
        looked_into: list[ast.expr] = []
        if isinstance(node, ast.Compare):
            looked_into = [node.left, *node.comparators]
            if all(_is_sentence(part, caught) for part in looked_into):
                # Whether two are the same, for who prints them once: no word of them matters.
                continue
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            if node.func.attr in SENTENCE_METHODS:
                looked_into = [node.func.value]
            elif node.func.attr in PATTERN_METHODS:
                looked_into = list(node.args)
        if any(_is_sentence(part, caught) for part in looked_into):
            yield node.lineno


def _is_sentence(node: ast.expr, caught: set[str]) -> bool:
    if isinstance(node, ast.Call) and ast.unparse(node.func) in ("str", "repr") and node.args:
        return ast.unparse(node.args[0]) in caught
    if isinstance(node, ast.JoinedStr):
        return any(isinstance(v, ast.FormattedValue) and ast.unparse(v.value) in caught for v in node.values)
    if isinstance(node, ast.Subscript):
        return isinstance(node.value, ast.Attribute) and node.value.attr == "args"
    return isinstance(node, ast.Attribute) and node.attr in SENTENCES


def test_no_file_has_grown_to_two_jobs() -> None:
    long = {
        str(path.relative_to(ROOT)): lines
        for path in [*source_files(), *sorted((ROOT / "tests").rglob("*.py"))]
        if (lines := len(path.read_text(encoding="utf-8").splitlines())) > MAX_LINES
    }

    assert not long


@pytest.mark.thorough
def test_no_function_is_longer_than_a_screen() -> None:
    long = {
        f"{path.relative_to(ROOT)}:{node.name}": lines
        for path in source_files()
        for node in nodes_of(path)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        if node.end_lineno is not None and (lines := node.end_lineno - node.lineno + 1) > MAX_FUNCTION_LINES
    }

    assert not long


def test_architecture_document_names_every_package_and_module() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    missing = [
        str(path.relative_to(SOURCE))
        for path in source_files()
        if path.name != "__init__.py"
        and own_layer(path) != "cli"
        and not re.search(rf"\b{re.escape(path.stem)}\b", text)
    ]

    assert not missing
