"""What computing a token touches, counted out of a header: tables, last layers and further layers among it."""

from pathlib import Path

import pytest

from dfqs.gguf import GGMLType, read_header
from dfqs.gguf.layout import TensorInfo
from dfqs.model.files import open_model
from dfqs.model.spec import bytes_per_token
from dfqs.planning.probe_models import ProbeShape
from dfqs.planning.speed import wanted_types
from dfqs.planning.work import GraphSize, WorkKey, count_passed_work, count_work, prompt_terms
from planning_jobs import make_probe

TINY = ProbeShape("qwen3moe", 2, 256, 256, 2, 1, 64, experts=4, used=2, context=512)


def test_what_a_token_touches_is_what_the_model_says(embedded_model: Path) -> None:
    model = open_model(embedded_model)
    work = count_work(model.tensors, model.spec.experts, model.spec.experts_used, model.spec.passed_layers)

    # Vectors (norms) are not multiplied with.
    assert sum(one.bytes for one in work.values()) == pytest.approx(bytes_per_token(model.spec), rel=0.002)
    assert {kind for _, kind in work} == {"dense", "experts"}
    assert wanted_types(work) <= set(work)


def test_of_a_prompts_last_layer_and_output_only_one_token_is_counted(tmp_path: Path) -> None:
    # Probes of two layers had been forecast half as slow again as they are by whoever counts all of them.
    path = make_probe(tmp_path / "tiny.gguf", TINY, GGMLType.Q8_0)
    tensors = read_header(path).tensors
    each: WorkKey = (GGMLType.Q8_0, "experts")
    once, passed = count_work(tensors, 4, 2), count_passed_work(tensors, 4, 2)

    # Three matrices of 256 x 256 for each of 4 experts, 2 in use, in both layers and in the first one.
    assert once[each].weights == 2 * 3 * 2 * 256 * 256
    assert (passed[each].weights, passed[each].all_weights) == (3 * 2 * 256 * 256, 3 * 4 * 256 * 256)
    # Routers of both layers and the output matrix, and the first layer's router alone.
    assert once[GGMLType.F32, "dense"].weights == 2 * 256 * 4 + 256 * 512
    assert passed[GGMLType.F32, "dense"].weights == 256 * 4
    # Attention is computed of all tokens everywhere.
    attention = 2 * 256 * (128 + 64 + 64 + 128)
    assert once[GGMLType.Q8_0, "dense"].weights == passed[GGMLType.Q8_0, "dense"].weights == attention

    terms = prompt_terms(once, passed, GraphSize(0, 0.0, 0.0), 10)

    assert terms["Q8_0 experts"] == pytest.approx(3 * 2 * 256 * 256 * (1 + 1 / 10))
    assert terms["F32 dense"] == pytest.approx(256 * 4 + (256 * 4 + 256 * 512) / 10)
    assert terms["Q8_0 experts, a batch"] == pytest.approx(3 * 4 * 256 * 256 * (1 - 0.5**10) / 10)


def test_further_layers_that_predict_tokens_are_not_the_last_one(tmp_path: Path) -> None:
    path = make_probe(tmp_path / "tiny.gguf", TINY, GGMLType.Q8_0)
    tensors = read_header(path).tensors

    assert (GGMLType.Q8_0, "experts") not in count_passed_work(tensors, 4, 2, layers=1)
    assert count_passed_work(tensors, 4, 2, layers=2) == count_passed_work(tensors, 4, 2)


def test_of_embeddings_only_a_table_that_is_the_output_too_is_multiplied_with() -> None:
    # Gemma 3n looks up a row of a table with more weights than all else; GLM has an output for further tokens besides.
    def tensor(name: str, rows: int) -> TensorInfo:
        return TensorInfo(name, (256, rows), GGMLType.F32, 0, 1024 * rows)

    tied = [
        tensor("token_embd.weight", 8),
        tensor("per_layer_token_embd.weight", 100),
        tensor("blk.0.attn_q.weight", 2),
    ]
    further = tensor("blk.1.nextn.shared_head_head.weight", 8)
    key: WorkKey = (GGMLType.F32, "dense")

    assert count_work(tied, 0, 0)[key].bytes == 1024 * (8 + 2)
    assert count_work([*tied, further], 0, 0, layers=1)[key].bytes == 1024 * (8 + 2)
    assert count_work([*tied, tensor("output.weight", 8)], 0, 0)[key].bytes == 1024 * (8 + 2)
    assert count_work([*tied[1:], tensor("output.weight", 9)], 0, 0)[key].bytes == 1024 * (9 + 2)
    assert count_passed_work(tied, 0, 0)[key].bytes == 1024 * 2
