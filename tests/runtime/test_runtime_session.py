"""Models and contexts in a worker: the right tokens and logits, on both architectures, and no silent failure."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import runtime_session_jobs
from dfqs.errors import RuntimeFailure, UsageError
from dfqs.runtime import Worker
from dfqs.runtime.log_lines import Buffer, parse_buffers
from runtime_functions import WORKER_ENV

TOKENS = [int(x) for x in np.random.default_rng(7).integers(300, 8_000, 96)]
Job = Callable[..., Any]


@pytest.fixture(scope="module")
def job() -> Iterator[Job]:
    """Calls a function of `runtime_session_jobs` in one worker."""
    with Worker(env=WORKER_ENV, threads=1) as worker:
        yield lambda name, *args: worker.call(getattr(runtime_session_jobs, name), *args)


@pytest.fixture(scope="module", params=["embedded_model", "tiny_deepseek4"])
def model(request: pytest.FixtureRequest) -> Path:
    path: Path = request.getfixturevalue(request.param)
    return path


class TestTokens:
    @pytest.mark.parametrize("text", ["Hello, world", "naïve café 🙂", "tab\tand\nnewline", "nul \x00 inside", "  two"])
    def test_text_survives_a_round_trip_through_tokens(self, job: Job, model: Path, text: str) -> None:
        tokens = job("tokenize", model, text, False, False)

        assert job("detokenize", model, tokens) == text

    def test_control_tokens_in_text_are_parsed_only_when_asked_for(self, job: Job, embedded_model: Path) -> None:
        parsed = job("tokenize", embedded_model, "<|im_start|>", False, True)
        literal = job("tokenize", embedded_model, "<|im_start|>", False, False)

        assert (len(parsed), len(literal) > 1) == (1, True)

    @pytest.mark.parametrize("token", [-1, 1 << 30])
    def test_a_token_outside_the_vocabulary_is_refused_before_c_sees_it(
        self, job: Job, model: Path, token: int
    ) -> None:
        with pytest.raises(UsageError, match="outside the vocabulary"):
            job("piece", model, token)
        with pytest.raises(UsageError, match="outside the vocabulary"):
            job("decode_parts", model, [([5, token], 0)], {"n_ctx": 512})

    def test_lone_surrogates_from_a_terminal_do_not_crash_the_tokenizer(self, job: Job, model: Path) -> None:
        assert job("tokenize", model, "a\udcffb", False, False) == job("tokenize", model, "a?b", False, False)


class TestDecode:
    def test_logits_of_the_last_token_and_of_all_agree_and_batches_add_up(self, job: Job, model: Path) -> None:
        settings = {"n_ctx": 512, "n_batch": 32, "n_ubatch": 32, "flash_attention": "off"}
        last, everything, batches, nothing = job("decode_in_three_ways", model, TOKENS, settings)

        assert everything.shape == (len(TOKENS), job("vocabulary_size", model))
        assert np.isfinite(everything).all()
        assert nothing is None
        assert [first for first, _ in batches] == [0, 32, 64]
        assert np.array_equal(np.concatenate([rows for _, rows in batches]), everything)
        # The last layer computes other rows when only one is wanted: equal up to rounding.
        assert np.allclose(last, everything[-1], atol=1e-3)

    def test_a_chunked_prefill_gives_the_same_logits(self, job: Job, model: Path) -> None:
        settings = {"n_ctx": 512, "n_ubatch": 32, "n_batch": 32, "flash_attention": "off"}
        whole = job("decode_parts", model, [(TOKENS, 0)], settings)
        parts = job("decode_parts", model, [(TOKENS[:32], 0), (TOKENS[32:64], 32), (TOKENS[64:], 64)], settings)

        assert np.array_equal(whole, parts)

    def test_more_tokens_than_the_context_holds_are_refused_before_anything_is_computed(
        self, job: Job, model: Path
    ) -> None:
        with pytest.raises(UsageError, match="the context is full: 257 tokens wanted, 256 available"):
            job("decode_parts", model, [(TOKENS[:90], 167)], {"n_ctx": 256})

    def test_no_tokens_are_refused(self, job: Job, model: Path) -> None:
        with pytest.raises(UsageError, match="nothing to decode"):
            job("decode_parts", model, [([], 0)], {"n_ctx": 256})

    def test_a_gap_in_the_positions_is_an_error_that_says_why(self, job: Job, model: Path) -> None:
        with pytest.raises(RuntimeFailure, match="inconsistent sequence positions"):
            job("decode_parts", model, [(TOKENS[:10], 0), (TOKENS[10:20], 40)], {"n_ctx": 256})


class TestSequences:
    @pytest.mark.parametrize(
        ("fixture", "swa_full"), [("embedded_model", False), ("tiny_deepseek4", False), ("tiny_deepseek4", True)]
    )
    def test_a_question_on_a_branch_changes_neither_its_answer_nor_the_trunk(
        self, job: Job, fixture: str, swa_full: bool, request: pytest.FixtureRequest
    ) -> None:
        path: Path = request.getfixturevalue(fixture)
        branched, trunk, fresh_question, fresh_rest = job(
            "branch", path, TOKENS[:64], TOKENS[64:80], TOKENS[80:], swa_full
        )

        assert np.array_equal(branched, fresh_question)
        assert np.array_equal(trunk, fresh_rest)

    def test_rolling_back_says_whether_it_did(self, job: Job, embedded_model: Path, tiny_deepseek4: Path) -> None:
        assert job("roll_back", embedded_model, TOKENS, 40) == (True, 40)
        # Its compressed cache cannot forget just an end.
        assert job("roll_back", tiny_deepseek4, TOKENS, 40) == (False, len(TOKENS))

    def test_a_saved_sequence_goes_on_where_it_stopped(self, job: Job, embedded_model: Path) -> None:
        straight, restored = job("save_and_load", embedded_model, TOKENS[:64], TOKENS[64:])

        assert np.array_equal(straight, restored)

    def test_a_state_that_is_none_is_refused(self, job: Job, embedded_model: Path) -> None:
        with pytest.raises(RuntimeFailure, match="refused the saved state"):
            job("load_bad_state", embedded_model)


class TestWatching:
    def test_a_strided_view_is_read_row_by_row(self, job: Job, model: Path) -> None:
        """topk is a view into a full sort of the experts: read without its stride it would show others."""
        names = ["ffn_moe_topk-2", "ffn_moe_probs-2", "ffn_moe_probs_biased-2"]
        seen = job("watch", model, TOKENS[:60], names)

        chosen = seen["ffn_moe_topk-2"]
        scores = seen.get("ffn_moe_probs_biased-2", seen["ffn_moe_probs-2"])
        assert chosen.dtype == np.int32
        assert 0 < chosen.shape[1] < scores.shape[1]
        assert np.array_equal(np.argsort(-scores, axis=1, kind="stable")[:, : chosen.shape[1]], chosen)

    def test_routing_of_the_last_layer_is_cut_when_only_the_last_logits_are_wanted(
        self, job: Job, embedded_model: Path
    ) -> None:
        name = "ffn_moe_topk-29"

        assert job("watch", embedded_model, TOKENS[:60], [name], "all")[name].shape[0] == 60
        assert job("watch", embedded_model, TOKENS[:60], [name], "last")[name].shape[0] == 1

    def test_inputs_of_a_node_are_reached_with_their_names(self, job: Job, model: Path) -> None:
        seen = job("watch_inputs", model, TOKENS[:20])

        assert {op for _, op, _, _ in seen} == {"MUL_MAT_ID"}
        assert ("ffn_moe_down-1", "blk.1.ffn_down_exps.weight") in {(name, weight) for name, _, weight, _ in seen}

    @pytest.mark.parametrize("where", ["wants", "take"])
    def test_an_exception_while_watching_comes_out_and_does_not_poison_later_logits(
        self, job: Job, model: Path, where: str
    ) -> None:
        outcome, after, undisturbed = job("fail_while_watching", model, TOKENS[:30], where)

        assert outcome == f"in {where}"
        assert np.array_equal(after, undisturbed)


class TestRefusals:
    def test_a_context_beyond_the_trained_length_is_capped_and_says_so(self, job: Job, model: Path) -> None:
        n_ctx, notices, _ = job("describe_context", model, {"n_ctx": 1_000_000})

        assert n_ctx in (4096, 8192)
        assert notices == [f"context capped at {n_ctx:,} tokens, the length this model was trained for"]

    def test_the_default_context_is_moderate_and_says_nothing(self, job: Job, model: Path) -> None:
        assert job("describe_context", model, {})[:2] == (4096, [])

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"flash_attention": "maybe"}, "'maybe' is no flash attention; choose from auto, off, on"),
            ({"type_k": "q3"}, "'q3' is no type of the K cache"),
            ({"n_ctx": 0}, "0 tokens makes no sense"),
        ],
    )
    def test_settings_that_do_not_exist_are_named(
        self, job: Job, embedded_model: Path, settings: dict[str, Any], message: str
    ) -> None:
        with pytest.raises(UsageError, match=message):
            job("describe_context", embedded_model, settings)

    def test_a_combination_that_llama_cpp_refuses_is_an_error_with_its_reason(
        self, job: Job, embedded_model: Path
    ) -> None:
        with pytest.raises(RuntimeFailure, match=r"cannot make a context of 512 tokens: .*V cache"):
            job("describe_context", embedded_model, {"n_ctx": 512, "type_v": "q8_0", "flash_attention": "off"})

    def test_a_file_cut_short_is_refused_with_llama_cpp_s_reason(
        self, job: Job, embedded_model: Path, tmp_path: Path
    ) -> None:
        with embedded_model.open("rb") as whole:
            (tmp_path / "cut.gguf").write_bytes(whole.read(20_000_000))

        with pytest.raises(RuntimeFailure, match=r"cannot load .*cut\.gguf: .*not within the file bounds"):
            job("load", tmp_path / "cut.gguf", {})

    def test_an_exception_while_loading_comes_out_as_itself(self, job: Job, embedded_model: Path) -> None:
        with pytest.raises(Exception, match="at 0 of 1000"):
            job("load_with_failing_progress", embedded_model)

    def test_memory_that_is_not_there_is_an_error_with_the_amount_and_no_crash(self, smollm2_gguf: Path) -> None:
        with (
            Worker(env=WORKER_ENV, threads=1) as worker,
            pytest.raises(
                RuntimeFailure, match=r"cannot make a context of 8,192 tokens: .*insufficient memory .*180\.00 MB"
            ),
        ):
            worker.call(runtime_session_jobs.make_context_with_little_memory, smollm2_gguf, 8192)

    def test_simulated_allocation_with_a_memory_map_is_refused_because_llama_cpp_would_die(
        self, job: Job, embedded_model: Path
    ) -> None:
        with pytest.raises(UsageError, match="needs load_mode='none'"):
            job("load", embedded_model, {"no_alloc": True})


def test_allocations_are_read_from_the_log_and_simulated_caches_count_too() -> None:
    lines = [
        "load_tensors:   CPU_Mapped model buffer size =    92.10 MiB",
        "llama_context:        CPU  output buffer size =     0.19 MiB",
        "llama_kv_cache:        CPU KV buffer size =     0.00 MiB",
        "llama_kv_cache: size =   45.00 MiB (  2048 cells,  30 layers,  1/1 seqs), K (f16):   22.50 MiB, V (f16): ...",
        "llama_memory_recurrent: size =    1.50 MiB (     1 cells,  24 layers,  1 seqs  0 rs_seq), R (f32): ...",
        "operator():        CPU DSV4 csa state buffer size =     0.06 MiB",
        "dsv4: csa ratio = 4, state = 8 x 512, streams = 1, rs_seq = 0, layers = 2, size =    0.06 MiB",
        "sched_reserve:        CPU compute buffer size =   104.77 MiB",
    ]

    assert parse_buffers(lines) == (
        Buffer("CPU_Mapped", "model", 96_573_850),
        Buffer("CPU", "output", 199_229),
        Buffer("", "cache", 47_185_920, "", 2048, 30),
        Buffer("", "cache", 1_572_864, "recurrent", 1, 24),
        Buffer("CPU", "DSV4 csa state", 62_915),
        Buffer("CPU", "compute", 109_859_308),
    )
