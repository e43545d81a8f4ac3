"""What a class makes of tensor shapes, before any byte is read."""

from pathlib import Path

import pytest

from dfqs.errors import UsageError
from dfqs.gguf import BLOCKS, GGMLType, TensorInfo, tensor_length
from dfqs.model.classes import CLASSES, DeploymentClass, LayerException
from dfqs.model.spec import Role
from dfqs.quantize.plan import FALLBACKS, TARGETS, fitting_type, plan_quantization
from dfqs.quantize.recipe import find_class, parse_layers, parse_recipe, read_recipe, recipe_record

T = GGMLType


def tensor(name: str, shape: tuple[int, ...], type_: GGMLType = T.BF16) -> TensorInfo:
    return TensorInfo(name, shape, type_, 0, tensor_length(type_, shape))


def planned_types(class_: DeploymentClass, *tensors: TensorInfo) -> list[GGMLType]:
    return [t.type for t in plan_quantization([tensors], class_).tensors]


def test_an_xl_class_gives_low_bits_to_routed_experts_only() -> None:
    types = planned_types(
        CLASSES["IQ1_S-XL"],
        tensor("blk.3.ffn_down_exps.weight", (256, 64, 4)),
        tensor("blk.3.ffn_down_shexp.weight", (256, 64)),
        tensor("blk.3.attn_q_a.weight", (256, 64)),
        tensor("token_embd.weight", (256, 64)),
        tensor("blk.3.ffn_gate_inp.weight", (256, 4)),
        tensor("blk.3.attn_q_a_norm.weight", (256,)),
        tensor("blk.3.hc_attn_fn.weight", (256, 4)),
        tensor("blk.3.ffn_gate_tid2eid.weight", (6, 64), T.I32),
        tensor("blk.3.something_new.weight", (256, 64)),
    )

    assert types == [T.IQ1_S, T.Q8_0, T.Q8_0, T.Q8_0, T.F32, T.F32, T.F32, T.I32, T.BF16]


@pytest.mark.parametrize(
    ("wanted", "row", "expected"),
    [
        (T.IQ1_S, 256, T.IQ1_S),
        (T.IQ1_S, 288, T.IQ4_NL),
        (T.IQ2_XXS, 288, T.IQ4_NL),
        (T.Q2_K, 288, T.Q4_0),
        (T.Q4_K, 288, T.Q5_0),
        (T.Q5_K, 288, T.Q5_1),
        (T.Q6_K, 288, T.Q8_0),
        (T.IQ1_S, 300, T.F16),
        (T.Q8_0, 300, T.F16),
        (T.Q8_0, 288, T.Q8_0),
    ],
)
def test_a_row_that_blocks_do_not_divide_falls_back_as_llama_quantize_does(
    wanted: GGMLType, row: int, expected: GGMLType
) -> None:
    assert fitting_type(wanted, row) is expected


def test_every_type_with_large_blocks_has_a_fallback_with_small_ones() -> None:
    large = {type_ for type_ in TARGETS if BLOCKS[type_].elements == 256}

    assert large == {t for t in FALLBACKS if BLOCKS[t].elements == 256}
    assert {BLOCKS[fallback].elements for fallback in FALLBACKS.values()} == {32}


def test_the_summary_names_what_is_not_as_the_class_says_so_that_nobody_is_surprised() -> None:
    plan = plan_quantization(
        [[tensor("blk.0.ffn_up_exps.weight", (288, 2, 2)), tensor("blk.0.ffn_gate_exps.weight", (256, 2, 2))]],
        CLASSES["IQ1_S-XL"],
    )

    assert plan.notes == (
        "blk.0.ffn_up_exps.weight: IQ4_NL in place of IQ1_S: rows of 288 are not whole blocks of 256",
    )


def test_vectors_are_left_alone_because_llama_cpp_adds_them_as_floats() -> None:
    class_ = DeploymentClass("odd", {Role.ATTENTION: T.Q8_0})

    assert planned_types(class_, tensor("blk.0.ssm_a", (32,), T.F32)) == [T.F32]


def test_a_class_that_asks_for_integers_is_refused() -> None:
    with pytest.raises(UsageError, match=r"I32, which llama\.cpp cannot make"):
        plan_quantization([[]], DeploymentClass("bad", {Role.ATTENTION: T.I32}))


def test_low_bit_input_is_seen_even_where_only_one_tensor_is_low() -> None:
    plan = plan_quantization(
        [[tensor("output.weight", (256, 2)), tensor("blk.0.attn_q.weight", (256, 2), T.Q4_K)]], CLASSES["Q8_0"]
    )

    assert [t.name for t in plan.requantized] == ["blk.0.attn_q.weight"]


def test_embeddings_at_one_bit_need_importance_only_where_the_library_would_abort_without() -> None:
    made = {}
    for type_ in (T.IQ1_S, T.IQ1_M, T.IQ2_S, T.Q2_K):
        class_ = DeploymentClass("odd", {Role.EMBEDDING: type_, Role.ROUTED_EXPERT: type_})
        tensors = [tensor("token_embd.weight", (256, 2)), tensor("blk.0.ffn_up_exps.weight", (256, 2, 2))]
        made[type_] = [t.needs_importance for t in plan_quantization([tensors], class_).tensors]

    assert made == {T.IQ1_S: [True, True], T.IQ1_M: [False, True], T.IQ2_S: [False, True], T.Q2_K: [False, False]}


def test_the_first_exception_that_fits_decides_and_others_keep_their_role(tmp_path: Path) -> None:
    recipe = tmp_path / "mix.toml"
    recipe.write_text(
        'name = "mix"\nbase = "IQ1_S-XL"\n[types]\nattention = "q6_k"\n'
        '[[exception]]\nrole = "routed experts"\nlayers = "0-1,5"\ntype = "IQ2_XXS"\n'
        '[[exception]]\ntensors = "blk.*.ffn_down_exps.weight"\ntype = "IQ1_M"\n'
    )
    class_ = find_class(str(recipe))

    names = ["blk.0.ffn_down_exps.weight", "blk.5.ffn_up_exps.weight", "blk.2.ffn_down_exps.weight"]
    assert [class_.type_of(name) for name in names] == [T.IQ2_XXS, T.IQ2_XXS, T.IQ1_M]
    assert class_.type_of("blk.2.ffn_up_exps.weight") is T.IQ1_S
    assert class_.type_of("blk.2.attn_q.weight") is T.Q6_K
    assert class_.type_of("output.weight") is T.Q8_0


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("name = 3", "needs 'name' as text"),
        ('name = "x"', "gives no tensor a type"),
        ('name = "Q8_0"', "built-in class"),
        ('name = "x"\ntype = 1', "'type' means nothing in the recipe"),
        ('name = "q8_0"\nbase = "IQ1_S-XL"', "built-in class"),
        ('name = "x"\nbase = "Q9"', "the base 'Q9' is none of the built-in classes"),
        ('name = "x"\nbase = "../other.toml"', "the base '../other.toml' is none of"),
        ("name = " + 6000 * "9", "is not TOML"),
        ("name = " + 50_000 * "[", "is not TOML"),
        ('name = "x"\n[types]\nexperts = "Q8_0"', "'experts' is no role"),
        ('name = "x"\n[types]\nattention = "Q9"', "'Q9' is no tensor type"),
        ('name = "x"\n[[exception]]\ntype = "Q8_0"', "must name a role or tensors"),
        ('name = "x"\n[[exception]]\nrole = "norms"\nlayers = "4-2"\ntype = "F32"', "no range of layers"),
        ("name = ", "is not TOML"),
        ('name = "\\u001b[31m"', "1 to 64 printable"),
    ],
)
def test_a_recipe_that_says_nonsense_is_refused_with_its_name(tmp_path: Path, text: str, reason: str) -> None:
    path = tmp_path / "r.toml"
    path.write_text(text)

    with pytest.raises(UsageError, match=reason):
        read_recipe(path)


def test_a_recipe_without_end_is_not_read_to_its_end(tmp_path: Path) -> None:
    (tmp_path / "endless.toml").symlink_to("/dev/zero")
    with (tmp_path / "huge.toml").open("wb") as file:
        file.truncate(1 << 40)

    with pytest.raises(UsageError, match="not a regular file"):
        read_recipe(tmp_path / "endless.toml")
    with pytest.raises(UsageError, match="larger than any recipe"):
        read_recipe(tmp_path / "huge.toml")


def test_an_exception_that_fits_nothing_is_named_because_it_is_a_slip_of_the_pen() -> None:
    meant = LayerException(T.IQ1_M, Role.ROUTED_EXPERT, "blk.*.ffn_dwon_exps.weight", frozenset({2, 0}))
    class_ = DeploymentClass("mix", {}, (LayerException(T.Q6_K, None, "output.*"), meant))

    plan = plan_quantization([[tensor("output.weight", (256, 2))]], class_)

    assert plan.idle_exceptions == ("routed experts, blk.*.ffn_dwon_exps.weight, layers 0, 2",)


def test_a_list_of_layers_is_read_as_people_write_it() -> None:
    assert parse_layers("0-2, 42") == {0, 1, 2, 42}
    with pytest.raises(UsageError):
        parse_layers("first")


def test_an_unknown_class_is_refused_with_the_names_there_are() -> None:
    with pytest.raises(UsageError, match=r"'IQ9-XL' is no class; choose from IQ1_S-XL, IQ1_M-XL"):
        find_class("IQ9-XL")


def test_a_recipe_survives_being_written_into_a_file_and_names_its_exceptions() -> None:
    class_ = DeploymentClass(
        "mix", {Role.ATTENTION: T.Q8_0}, (LayerException(T.IQ1_M, Role.ROUTED_EXPERT, None, frozenset({2, 0})),)
    )

    assert recipe_record(class_)["exceptions"] == [
        {"role": "routed experts", "tensors": None, "layers": [0, 2], "type": "IQ1_M"}
    ]
    assert parse_recipe({"name": "mix", "types": recipe_record(class_)["types"]}).types == class_.types
