"""Bytes that streaming reads are held against a manifest: what differs ends the run before a token is made of it."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

import streaming_jobs
from dfqs.errors import IntegrityError, UsageError
from dfqs.gguf import read_header
from dfqs.integrity.manifest import make_manifest, manifest_findings, manifest_path
from dfqs.model.files import open_model
from dfqs.model.hashes import hash_model
from dfqs.records import write_json
from dfqs.runtime import Worker
from dfqs.runtime.loading import InMemory
from dfqs.streaming.budget import LoadPlan, Streamed
from dfqs.streaming.settings import StreamSettings
from dfqs.streaming.verification import SAMPLED, Recorded, read_recorded
from runtime_functions import WORKER_ENV
from streaming_models import write_wide_moe

TOKENS = [(7 * i * i + 13 * i) % 4000 for i in range(64)]
TENSOR = "blk.1.ffn_up_exps.weight"


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    with Worker(threads=2, omp_wait_policy="passive", env=WORKER_ENV) as running:
        yield running


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, smollm2_gguf: Path) -> Path:
    """With slices that begin and end within pages of others, and its manifest beside it."""
    path = tmp_path_factory.mktemp("check") / "m.gguf"
    write_wide_moe(path, smollm2_gguf, "qwen3moe")
    write_json(manifest_path(path), make_manifest(path, experts=True))
    return path


def recorded_of(path: Path, mode: str = "all") -> Recorded:
    assert mode in ("all", "sampled")
    found = read_recorded(open_model(path), "all" if mode == "all" else "sampled")
    assert found is not None
    return found


def damaged(model: Path, target: Path, tensor: str, expert: int, where: int) -> tuple[Path, int]:
    """A copy with one byte changed, `where` from the start of an expert's slice; and where that slice begins."""
    for path in (model, manifest_path(model)):
        shutil.copy(path, target / path.name)
    path = target / model.name
    header = read_header(path)
    span = header.span(header.tensor(tensor))
    length = span.length // header.tensor(tensor).shape[-1]
    start = span.offset + expert * length
    with path.open("r+b") as file:
        file.seek(start + where % length)
        byte = file.read(1)[0]
        file.seek(start + where % length)
        file.write(bytes([byte ^ 1]))
    return path, start


def decode(worker: Worker, path: Path, cache_bytes: int, recorded: Recorded | None) -> int:
    return worker.call(streaming_jobs.decode_on, [path], TOKENS, cache_bytes, recorded, 0)


@pytest.mark.parametrize("cache_bytes", [0, 1 << 30])
def test_a_model_as_recorded_is_checked_all_of_it_or_a_part_and_runs(
    worker: Worker, model: Path, cache_bytes: int
) -> None:
    everything = decode(worker, model, cache_bytes, recorded_of(model))
    header = read_header(model)
    resident = [tensor for tensor in header.tensors if not tensor.name.endswith("_exps.weight")]

    assert everything > len(resident) + 50
    some = decode(worker, model, cache_bytes, recorded_of(model, "sampled"))
    assert some < everything / 4
    assert recorded_of(model, "sampled").one_of == SAMPLED
    assert decode(worker, model, cache_bytes, None) == 0


# The first and the last byte lie in pages that the slice shares with its neighbours, the middle in its own.
@pytest.mark.parametrize("where", [0, 5_000, -1])
@pytest.mark.parametrize("cache_bytes", [0, 1 << 30])
def test_a_byte_that_differs_is_named_with_its_tensor_expert_and_place(
    worker: Worker, model: Path, tmp_path: Path, cache_bytes: int, where: int
) -> None:
    for expert in range(8):
        path, start = damaged(model, tmp_path, TENSOR, expert, where)
        if where == 5_000:
            wanted = rf"m\.gguf at byte {start:,}: the [\d,]+ bytes of expert {expert} of {re.escape(TENSOR)} are not"
        else:
            # A byte of a shared page is the neighbour's neighbour, never the neighbour's.
            wanted = rf"expert {expert} of {re.escape(TENSOR)} are not those recorded in .*m\.gguf\.manifest\.json"
        try:
            decode(worker, path, cache_bytes, recorded_of(path))
        except IntegrityError as error:
            assert re.search(wanted, str(error))
            assert error.exit_code == 3
            return
    pytest.fail("no token chose any of the experts")


def test_a_tensor_that_stays_is_checked_before_the_first_token(worker: Worker, model: Path, tmp_path: Path) -> None:
    path, _ = damaged(model, tmp_path, "blk.0.attn_q.weight", 0, 77)

    with pytest.raises(IntegrityError, match=r"bytes of blk\.0\.attn_q\.weight are not those recorded"):
        decode(worker, path, 1 << 30, recorded_of(path))


def test_what_the_manifest_must_be_is_said_before_anything_is_loaded(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    shutil.copy(model, path)
    handle = open_model(path)
    assert read_recorded(handle, None) is None
    assert read_recorded(handle, "off", manifest_path(model)) is None
    with pytest.raises(UsageError, match=r"there is no .*m\.gguf\.manifest\.json .* `dfqs manifest m\.gguf --experts`"):
        read_recorded(handle, "all")
    write_json(manifest_path(path), make_manifest(path))
    # A manifest that `dfqs merge` left is nothing to complain of where nobody asked.
    assert read_recorded(handle, None) is None
    with pytest.raises(UsageError, match="has no hashes of single experts"):
        read_recorded(handle, "sampled")
    made = make_manifest(path, experts=True)
    write_json(manifest_path(path), made, overwrite=True)
    found = read_recorded(handle, None)
    assert found is not None
    assert found.one_of == SAMPLED
    tensors = [made.tensors[0].model_copy(update={"bytes": 5}), *made.tensors[1:]]
    write_json(manifest_path(path), made.model_copy(update={"tensors": tensors}), overwrite=True)
    with pytest.raises(UsageError, match="is not the manifest of this model"):
        read_recorded(handle, "all")


def test_verify_finds_hashes_of_experts_that_are_not_those_of_the_tensor(model: Path) -> None:
    made = make_manifest(model, experts=True)
    hashes = hash_model(model, experts=True)
    assert manifest_findings(made, hashes) == ()
    index, record = next((i, t) for i, t in enumerate(made.tensors) if t.name == TENSOR)
    assert record.expert_sha256 is not None
    wrong = record.model_copy(
        update={"expert_sha256": [*record.expert_sha256[:3], "0" * 64, *record.expert_sha256[4:]]}
    )
    tensors = [*made.tensors[:index], wrong, *made.tensors[index + 1 :]]

    (finding,) = manifest_findings(made.model_copy(update={"tensors": tensors}), hashes)
    assert finding.name == TENSOR
    assert "the hashes of single experts are not theirs (expert 3)" in finding.message


def test_a_plan_takes_what_is_recorded_where_it_streams_and_only_there(model: Path) -> None:
    recorded = recorded_of(model)
    streamed = LoadPlan(Streamed((model,), StreamSettings(5)), 10, 5, 2)
    assert streamed.checked_by(recorded).order == Streamed((model,), StreamSettings(5, recorded=recorded))
    whole = LoadPlan(InMemory(), 10, None, None)
    assert whole.checked_by(recorded) is whole
