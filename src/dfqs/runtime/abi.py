"""The C interface of llama.cpp as ctypes sees it: structures and signatures, nothing else.

Source: `include/llama.h`, `ggml/include/ggml.h` and `ggml/include/ggml-backend.h` of the sources that
`xllamacpp==2026.10.11549` (b11549) was built from; what another known build has otherwise stands beside it
(`dfqs.runtime.builds` says which build has which). Sizes and offsets are pinned by `SIZES` and `OFFSETS` and checked
when the library is loaded; a struct passed by value with a field too many does not fail, it corrupts.
"""

from __future__ import annotations

import ctypes
from ctypes import POINTER, c_bool, c_char, c_char_p, c_float, c_int8, c_int32, c_int64, c_size_t, c_uint32, c_void_p
from typing import Any


class Tensor(ctypes.Structure):
    """`struct ggml_tensor`. `ne` counts elements, `nb` is the stride in bytes, both fastest axis first."""


Tensor._fields_ = [
    ("type", c_int32),
    ("buffer", c_void_p),
    ("ne", c_int64 * 4),
    ("nb", c_size_t * 4),
    ("op", c_int32),
    ("op_params", c_int32 * 16),
    ("flags", c_int32),
    ("src", POINTER(Tensor) * 10),
    ("view_src", POINTER(Tensor)),
    ("view_offs", c_size_t),
    ("data", c_void_p),
    ("name", c_char * 64),
    ("extra", c_void_p),
    ("padding", c_char * 8),
]

TensorPointer = POINTER(Tensor)
EVAL_CALLBACK = ctypes.CFUNCTYPE(c_bool, TensorPointer, c_bool, c_void_p)
LOAD_CALLBACK = ctypes.CFUNCTYPE(c_bool, c_float, c_void_p)
LOG_CALLBACK = ctypes.CFUNCTYPE(None, c_int32, c_char_p, c_void_p)


class ModelParams(ctypes.Structure):
    """`struct llama_model_params`."""

    _fields_ = [
        ("devices", c_void_p),
        ("tensor_buft_overrides", c_void_p),
        ("n_gpu_layers", c_int32),
        ("split_mode", c_int32),
        ("load_mode", c_int32),
        ("lazy_mode", c_int32),
        ("main_gpu", c_int32),
        ("tensor_split", c_void_p),
        ("progress_callback", c_void_p),
        ("progress_callback_user_data", c_void_p),
        ("kv_overrides", c_void_p),
        ("vocab_only", c_bool),
        ("check_tensors", c_bool),
        ("use_extra_bufts", c_bool),
        ("no_host", c_bool),
        ("no_alloc", c_bool),
        ("load_mtp", c_bool),
    ]


class ContextParams(ctypes.Structure):
    """`struct llama_context_params`."""

    _fields_ = [
        ("n_ctx", c_uint32),
        ("n_batch", c_uint32),
        ("n_ubatch", c_uint32),
        ("n_seq_max", c_uint32),
        ("n_rs_seq", c_uint32),
        ("n_outputs_max", c_uint32),
        ("n_outputs_max_per_seq", c_uint32),
        ("n_threads", c_int32),
        ("n_threads_batch", c_int32),
        ("ctx_type", c_int32),
        ("rope_scaling_type", c_int32),
        ("pooling_type", c_int32),
        ("attention_type", c_int32),
        ("flash_attn_type", c_int32),
        ("rope_freq_base", c_float),
        ("rope_freq_scale", c_float),
        ("yarn_ext_factor", c_float),
        ("yarn_attn_factor", c_float),
        ("yarn_beta_fast", c_float),
        ("yarn_beta_slow", c_float),
        ("yarn_orig_ctx", c_uint32),
        ("defrag_thold", c_float),
        ("cb_eval", c_void_p),
        ("cb_eval_user_data", c_void_p),
        ("type_k", c_int32),
        ("type_v", c_int32),
        ("moe_cache_size", c_size_t),
        ("abort_callback", c_void_p),
        ("abort_callback_data", c_void_p),
        ("embeddings", c_bool),
        ("offload_kqv", c_bool),
        ("no_perf", c_bool),
        ("op_offload", c_bool),
        ("swa_full", c_bool),
        ("kv_unified", c_bool),
        ("samplers", c_void_p),
        ("n_samplers", c_size_t),
        ("ctx_other", c_void_p),
    ]


class ContextParamsV050(ctypes.Structure):
    """`struct llama_context_params` of llama.cpp v0.5.0: without the cache of experts for GPUs."""

    _fields_ = [field for field in ContextParams._fields_ if field[0] != "moe_cache_size"]


class Batch(ctypes.Structure):
    """`struct llama_batch`. `logits[i]` says whether logits of token `i` are wanted."""

    _fields_ = [
        ("n_tokens", c_int32),
        ("token", POINTER(c_int32)),
        ("embd", c_void_p),
        ("pos", POINTER(c_int32)),
        ("n_seq_id", POINTER(c_int32)),
        ("seq_id", POINTER(POINTER(c_int32))),
        ("logits", POINTER(c_int8)),
    ]


class SamplerChainParams(ctypes.Structure):
    """`struct llama_sampler_chain_params`."""

    _fields_ = [("no_perf", c_bool)]


SIZES: dict[type[ctypes.Structure], int] = {
    Tensor: 336,
    ModelParams: 80,
    ContextParams: 168,
    ContextParamsV050: 160,
    Batch: 56,
}
OFFSETS: dict[tuple[type[ctypes.Structure], str], int] = {
    (ModelParams, "kv_overrides"): 64,
    (ContextParams, "cb_eval"): 88,
    (ContextParams, "type_k"): 104,
    (ContextParams, "abort_callback"): 120,
    (ContextParams, "samplers"): 144,
    (ContextParamsV050, "cb_eval"): 88,
    (ContextParamsV050, "type_k"): 104,
    (ContextParamsV050, "abort_callback"): 112,
    (ContextParamsV050, "samplers"): 136,
    (Tensor, "data"): 248,
    (Tensor, "name"): 256,
}

TENSOR_OBJECT_BYTES = 32
"""`sizeof(struct ggml_object)`: what `ggml_tensor_overhead()` adds to a tensor's own size."""

LOAD_MODES = {"auto": -1, "none": 0, "mmap": 1, "mlock": 2, "mmap+mlock": 3, "direct-io": 4}
FLASH_ATTENTION = {"auto": -1, "off": 0, "on": 1}
CACHE_TYPES = {"f32": 0, "f16": 1, "bf16": 30, "q4_0": 2, "q4_1": 3, "iq4_nl": 20, "q5_0": 6, "q5_1": 7, "q8_0": 8}

DECODE_OK, DECODE_NO_SLOT, DECODE_ABORTED, DECODE_INVALID = 0, 1, 2, -1

# name: (result, arguments)
SIGNATURES: dict[str, tuple[Any, list[Any]]] = {
    "llama_version": (c_char_p, []),
    "ggml_version": (c_char_p, []),
    "llama_print_system_info": (c_char_p, []),
    "llama_backend_init": (None, []),
    "llama_log_set": (None, [LOG_CALLBACK, c_void_p]),
    "ggml_tensor_overhead": (c_size_t, []),
    "ggml_backend_reg_count": (c_size_t, []),
    "ggml_backend_load_all_from_path": (None, [c_char_p]),
    # model
    "llama_model_default_params": (ModelParams, []),
    "llama_model_load_from_file": (c_void_p, [c_char_p, ModelParams]),
    "llama_model_free": (None, [c_void_p]),
    "llama_model_get_vocab": (c_void_p, [c_void_p]),
    "llama_model_desc": (c_int32, [c_void_p, c_char_p, c_size_t]),
    "llama_model_size": (ctypes.c_uint64, [c_void_p]),
    "llama_model_n_params": (ctypes.c_uint64, [c_void_p]),
    "llama_model_n_ctx_train": (c_int32, [c_void_p]),
    "llama_model_n_layer": (c_int32, [c_void_p]),
    "llama_model_n_embd": (c_int32, [c_void_p]),
    "llama_model_n_swa": (c_int32, [c_void_p]),
    "llama_model_has_encoder": (c_bool, [c_void_p]),
    "llama_model_is_recurrent": (c_bool, [c_void_p]),
    "llama_model_is_hybrid": (c_bool, [c_void_p]),
    "llama_model_chat_template": (c_char_p, [c_void_p, c_char_p]),
    # vocabulary
    "llama_vocab_n_tokens": (c_int32, [c_void_p]),
    "llama_vocab_type": (c_int32, [c_void_p]),
    "llama_vocab_get_text": (c_char_p, [c_void_p, c_int32]),
    "llama_vocab_is_eog": (c_bool, [c_void_p, c_int32]),
    "llama_vocab_is_control": (c_bool, [c_void_p, c_int32]),
    "llama_vocab_bos": (c_int32, [c_void_p]),
    "llama_vocab_eos": (c_int32, [c_void_p]),
    "llama_vocab_get_add_bos": (c_bool, [c_void_p]),
    "llama_vocab_get_add_eos": (c_bool, [c_void_p]),
    "llama_tokenize": (c_int32, [c_void_p, c_char_p, c_int32, POINTER(c_int32), c_int32, c_bool, c_bool]),
    "llama_token_to_piece": (c_int32, [c_void_p, c_int32, c_char_p, c_int32, c_int32, c_bool]),
    # context
    "llama_context_default_params": (ContextParams, []),
    "llama_init_from_model": (c_void_p, [c_void_p, ContextParams]),
    "llama_free": (None, [c_void_p]),
    "llama_n_ctx": (c_uint32, [c_void_p]),
    "llama_n_ctx_seq": (c_uint32, [c_void_p]),
    "llama_n_batch": (c_uint32, [c_void_p]),
    "llama_n_ubatch": (c_uint32, [c_void_p]),
    "llama_set_n_threads": (None, [c_void_p, c_int32, c_int32]),
    "llama_decode": (c_int32, [c_void_p, Batch]),
    "llama_synchronize": (None, [c_void_p]),
    "llama_get_logits_ith": (POINTER(c_float), [c_void_p, c_int32]),
    "llama_get_logits": (POINTER(c_float), [c_void_p]),
    # memory: the KV cache and recurrent states of sequences
    "llama_get_memory": (c_void_p, [c_void_p]),
    "llama_memory_clear": (None, [c_void_p, c_bool]),
    "llama_memory_seq_rm": (c_bool, [c_void_p, c_int32, c_int32, c_int32]),
    "llama_memory_seq_cp": (None, [c_void_p, c_int32, c_int32, c_int32, c_int32]),
    "llama_memory_seq_keep": (None, [c_void_p, c_int32]),
    "llama_memory_seq_pos_min": (c_int32, [c_void_p, c_int32]),
    "llama_memory_seq_pos_max": (c_int32, [c_void_p, c_int32]),
    "llama_state_seq_get_size": (c_size_t, [c_void_p, c_int32]),
    "llama_state_seq_get_data": (c_size_t, [c_void_p, c_void_p, c_size_t, c_int32]),
    "llama_state_seq_set_data": (c_size_t, [c_void_p, c_void_p, c_size_t, c_int32]),
    # sampling
    "llama_sampler_chain_default_params": (SamplerChainParams, []),
    "llama_sampler_chain_init": (c_void_p, [SamplerChainParams]),
    "llama_sampler_chain_add": (None, [c_void_p, c_void_p]),
    "llama_sampler_init_greedy": (c_void_p, []),
    "llama_sampler_init_dist": (c_void_p, [c_uint32]),
    "llama_sampler_init_top_k": (c_void_p, [c_int32]),
    "llama_sampler_init_top_p": (c_void_p, [c_float, c_size_t]),
    "llama_sampler_init_min_p": (c_void_p, [c_float, c_size_t]),
    "llama_sampler_init_temp": (c_void_p, [c_float]),
    # Size of the vocabulary, tokens that count, then the three penalties.
    "llama_sampler_init_penalties": (c_void_p, [c_int32, c_int32, c_float, c_float, c_float]),
    "llama_sampler_init_grammar": (c_void_p, [c_void_p, c_char_p, c_char_p]),
    "llama_sampler_sample": (c_int32, [c_void_p, c_void_p, c_int32]),
    "llama_sampler_reset": (None, [c_void_p]),
    "llama_sampler_free": (None, [c_void_p]),
    # tensors, as the evaluation callback meets them
    "ggml_backend_tensor_get": (None, [TensorPointer, c_void_p, c_size_t, c_size_t]),
    "ggml_backend_buffer_is_host": (c_bool, [c_void_p]),
    "ggml_nbytes": (c_size_t, [TensorPointer]),
    "ggml_op_name": (c_char_p, [c_int32]),
    "ggml_type_name": (c_char_p, [c_int32]),
    # quantization
    "ggml_quantize_chunk": (
        c_size_t,
        [c_int32, POINTER(c_float), c_void_p, c_int64, c_int64, c_int64, POINTER(c_float)],
    ),
    "ggml_quantize_init": (None, [c_int32]),
    "ggml_quantize_requires_imatrix": (c_bool, [c_int32]),
    "ggml_row_size": (c_size_t, [c_int32, c_int64]),
    "ggml_blck_size": (c_int64, [c_int32]),
}
