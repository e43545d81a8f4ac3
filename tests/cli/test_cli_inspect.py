"""`dfqs inspect` on the true V4-Flash geometry, on small files, and on bad input."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from dfqs.cli.main import run
from dfqs.gguf import GGMLType, KeyValue, ValueType, boolean, string, u32
from gguf_builder import SMALL_KEYS, write_small
from v4_flash_stub import write_v4_flash_stub


@pytest.fixture(scope="module")
def stub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_v4_flash_stub(tmp_path_factory.mktemp("stub") / "DeepSeek-V4-Flash-IQ1_S-XL.gguf")


def test_v4_flash_geometry_is_described_as_the_model_card_states_it(
    stub: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["inspect", str(stub), "--json"]) == 0

    found = json.loads(capsys.readouterr().out)
    assert round(found["parameters"] / 1e9, 1) == 284.3
    assert round(found["parameters_active"] / 1e9, 1) == 13.8
    assert (found["experts"], found["experts_used"], found["experts_shared"], found["layers"]) == (256, 6, 1, 43)
    assert found["class"] == "IQ1_S-XL"
    assert found["tier"] == "IQ1"
    assert found["vocabulary"] == 129_280
    bits = {role: size["bits_per_weight"] for role, size in found["roles"].items()}
    assert bits["routed experts"] == 1.5625
    assert bits["attention"] == bits["embeddings"] == bits["output"] == bits["shared experts"] == 8.5
    assert bits["norms"] == bits["router"] == bits["hyper-connections"] == 32
    assert bits["routing tables"] is None


def test_62_gb_file_is_inspected_in_little_memory_and_without_heavy_imports(stub: Path) -> None:
    code = (
        "import sys; from dfqs.cli.main import run; run(sys.argv[1:]);"
        "assert not {'numpy', 'matplotlib', 'scipy', 'huggingface_hub'} & set(sys.modules)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code + MEASURE_PEAK, "inspect", str(stub), "--json"],
        capture_output=True,
        text=True,
        check=True,
    )

    assert int(result.stderr.split()[-1]) < 150_000, "kilobytes of peak memory"
    assert stub.stat().st_blocks * 512 < 6_000_000


# VmHWM and not ru_maxrss: the latter survives exec and would tell of pytest's own memory.
MEASURE_PEAK = """
with open("/proc/self/status") as status:
    print(next(line.split()[1] for line in status if line.startswith("VmHWM")), file=sys.stderr)
"""


def test_snapshot_table_has_the_rows_of_the_specification(stub: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["inspect", str(stub)]) == 0

    text = capsys.readouterr().out
    for row in ("Model", "Architecture", "Active Params", "Total Params", "Size", "Format", "Runtime", "DFQS Class"):
        assert row in text
    assert "62.1 GB" in text
    assert "Reference Ultra-Low-Bit" in text


@pytest.mark.parametrize(
    "content, message, code",
    [
        (None, "no such file", 2),
        (b"", "the file is empty", 3),
        (b"Just some text.", "not a GGUF file", 3),
        (bytes(4096), "never written", 3),
    ],
    ids=["missing", "empty", "text", "zeroes"],
)
def test_bad_input_is_one_sentence_with_the_right_exit_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes | None, message: str, code: int
) -> None:
    path = tmp_path / "bad.gguf"
    if content is not None:
        path.write_bytes(content)

    assert run(["inspect", str(path)]) == code

    captured = capsys.readouterr()
    assert message in captured.err
    assert str(path) in captured.err
    assert captured.out == ""


def test_truncated_file_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_small(tmp_path / "m.gguf")
    path.write_bytes(path.read_bytes()[:-200])

    assert run(["inspect", str(path)]) == 3
    assert "truncated" in capsys.readouterr().err


def test_keys_alone_lists_every_key_and_a_pattern_only_its_own(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["inspect", str(small), "--keys", "--json"]) == 0
    every = json.loads(capsys.readouterr().out)["keys"]
    assert run(["inspect", "--keys", "llama.block*", "--json", str(small)]) == 0
    some = json.loads(capsys.readouterr().out)["keys"]

    assert [key["name"] for key in every] == [entry.name for entry in SMALL_KEYS]
    assert [(key["name"], key["values"], key["type"]) for key in some] == [("llama.block_count", [1], "UINT32")]


def test_an_array_shows_its_first_values_and_its_count_and_no_number_stands_in_json_as_nan(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = [
        *SMALL_KEYS,
        KeyValue("long", ValueType.ARRAY, [f"w{n}" for n in range(100)], ValueType.STRING),
        KeyValue("floats", ValueType.ARRAY, [float("nan"), float("-inf"), 0.5], ValueType.FLOAT32),
        string("huge", "x" * 70_000),
    ]
    path = write_small(tmp_path / "m.gguf", keys=keys)

    assert run(["inspect", str(path), "--keys", "--json"]) == 0
    found = {key["name"]: key for key in json.loads(capsys.readouterr().out, parse_constant=pytest.fail)["keys"]}
    assert run(["inspect", str(path), "--keys"]) == 0
    text = capsys.readouterr().out

    assert (found["long"]["count"], found["long"]["values"]) == (100, [f"w{n}" for n in range(8)])
    assert found["floats"]["values"] == ["nan", "-inf", 0.5]
    assert (found["huge"]["values"], found["huge"]["bytes"]) == ([], 70_008)
    assert "'w7', …] (100)" in text
    assert "x" * 200 not in text


def test_tensors_are_listed_with_the_place_at_which_their_bytes_stand(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    payload = bytes(range(256)) * 10
    path = write_small(tmp_path / "m.gguf", tensors=[("a.weight", (64, 10), GGMLType.F32)])
    path.write_bytes(path.read_bytes()[:-2560] + payload)

    assert run(["inspect", str(path), "--tensors", "--json"]) == 0

    (listed,) = json.loads(capsys.readouterr().out)["listed_tensors"]
    assert (listed["name"], listed["shape"], listed["type"], listed["shard"]) == ("a.weight", [64, 10], "F32", 1)
    assert path.read_bytes()[listed["offset"] :][: listed["bytes"]] == payload


def test_template_prints_the_template_alone_and_its_absence_is_an_error(
    tmp_path: Path, small: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = [*SMALL_KEYS, string("tokenizer.chat_template", "{{ one }}\n{{ two }}")]
    path = write_small(tmp_path / "m.gguf", keys=keys)

    assert run(["inspect", str(path), "--template"]) == 0
    assert capsys.readouterr().out == "{{ one }}\n{{ two }}\n"
    assert run(["inspect", str(small), "--template"]) == 2
    assert "has no chat template" in capsys.readouterr().err


def test_special_tokens_are_shown_with_their_text_and_a_number_outside_the_vocabulary_as_such(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = [
        *SMALL_KEYS,
        KeyValue("tokenizer.ggml.tokens", ValueType.ARRAY, ["<s>", "</s>", "a"], ValueType.STRING),
        u32("tokenizer.ggml.bos_token_id", 0),
        u32("tokenizer.ggml.eos_token_id", 4_000_000_000),
        boolean("tokenizer.ggml.add_bos_token", True),
    ]
    path = write_small(tmp_path / "m.gguf", keys=keys)

    assert run(["inspect", str(path), "--tokenizer", "--json"]) == 0

    found = json.loads(capsys.readouterr().out)["tokenizer"]
    assert found["special"] == {"bos": [0, "<s>"], "eos": [4_000_000_000, None]}
    assert (found["vocabulary"], found["merges"], found["flags"]) == (3, None, {"add_bos_token": True})


def test_a_difference_names_each_key_and_tensor_and_equal_headers_exit_with_0(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = write_small(tmp_path / "one.gguf", keys=[*SMALL_KEYS, string("tokenizer.chat_template", "a\nb"), u32("x", 1)])
    two = write_small(
        tmp_path / "two.gguf",
        keys=[*SMALL_KEYS, string("tokenizer.chat_template", "a\nc"), string("y", "only here")],
        tensors=[("other.weight", (64, 10), GGMLType.F16)],
    )

    assert run(["inspect", str(one), "--diff", str(one)]) == 0
    assert capsys.readouterr().out.endswith("0 and 0 not\n")
    assert run(["inspect", str(one), "--diff", str(two)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert run(["inspect", str(one), "--diff", str(two), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)

    assert "- x (uint32) 1" in lines
    assert "+ y (string) 'only here'" in lines
    assert "+ other.weight 64 x 10 F16" in lines
    assert [line for line in lines if line in ("-b", "+c")] == ["-b", "+c"]
    assert {key["name"] for key in found["difference"]["keys"]} == {"x", "y", "tokenizer.chat_template"}
    assert found["is_equal"] is False


def test_several_models_give_one_document_a_line(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["inspect", str(small), str(small), "--json"]) == 0

    assert [json.loads(line)["schema"] for line in capsys.readouterr().out.splitlines()] == ["dfqs.inspect/1"] * 2


@pytest.fixture
def small(tmp_path: Path) -> Path:
    return write_small(tmp_path / "small.gguf")
