"""Built-in recipes against what llama.cpp itself gives to the same tensors."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import pytest
from gguf.constants import MODEL_TENSOR, TENSOR_NAMES
from gguf.tensor_mapping import TensorNameMap
from hypothesis import given
from hypothesis import strategies as st

from engine import protocol as p
from engine.errors import FormatError, UsageError
from engine.formats.grammar import parse_format
from engine.formats.storage import why_not_held
from engine.recipes import changes as recipes
from engine.recipes import importance_mixes
from engine.recipes.mixes import (
    DEFAULTS,
    NAMES,
    better_than,
    recipe_named,
)
from engine.recipes.tensor_classes import Row, TensorClass, tensor_class
from engine.session import Session, apply
from tests.recipes.models import MODELS, Model

TABLE = json.loads((Path(__file__).parent / "llama_cpp_mixes.json").read_text(encoding="utf-8"))
"""By `tests.bench.mixes_of_llama_cpp`, from `llama_model_quantize` of llama-cpp-python 0.3.36."""


def resolve_named(
    name: str, rows: list[Row], *, architecture: str = "", tied: bool = False, format: str = "kept"
) -> tuple[dict[str, str], list[p.Fallback]]:
    """A recipe of layers stored in bfloat16, as the engine resolves it."""
    session = Session()
    read = p.CheckpointRead(
        name="it", path="", architecture=architecture, parameters=0, bytes=0, dtype="bfloat16",
        fingerprint="",
    )  # fmt: skip
    names, kinds, blocks, roles, shapes = (list(column) for column in zip(*rows, strict=True))
    listed = p.LayersListed(
        names=names, kinds=kinds, blocks=blocks, roles=roles, shapes=shapes,
        dtypes=["bfloat16"] * len(rows), other_bytes=0,
    )  # fmt: skip
    apply(session, read)
    apply(session, listed)
    return recipes.resolve(session, format, {}, name, tied=tied)


def written(model: Model, runs: dict[str, str]) -> dict[str, str]:
    """What llama.cpp gives to every layer, by its name."""
    by_block: dict[str, list[str]] = {}
    for kind, of_kind in runs.items():
        counted = [run.split("*") for run in of_kind.split()]
        by_block[kind] = [text for count, text in counted for _ in range(int(count))]
    found = {}
    for row in model.rows():
        kind = row.name if row.block < 0 else row.name.replace(f".{row.block}.", ".#.", 1)
        found[row.name] = by_block[kind][max(row.block, 0)]
    return found


@pytest.mark.parametrize("title", MODELS)
def test_every_mix_gives_every_layer_the_type_that_llama_cpp_does(title: str) -> None:
    model = MODELS[title]
    assert set(TABLE[title]) == set(DEFAULTS)
    for mix, runs in TABLE[title].items():
        expected = written(model, runs)
        recipe, fallbacks = resolve_named(
            mix, model.rows(), architecture=model.architecture, tied=model.tied
        )
        # Where no type fits, llama.cpp takes float16, and the layer is kept here.
        if mix in importance_mixes.DEFAULTS:
            recipe = {name: _without_matrix(model, name, text) for name, text in recipe.items()}
        assert recipe == {name: text for name, text in expected.items() if text != "f16"}, mix
        told = {each.layer: each.holds for each in fallbacks}
        assert {name for name, text in expected.items() if text == "f16"} == {
            name for name, holds in told.items() if not holds
        }
        for layer, holds in told.items():
            assert holds.removesuffix("+imatrix") in ("", recipe.get(layer))


def _without_matrix(model: Model, layer: str, format: str) -> str:
    """The type, of a format that has an importance matrix where there is one for it."""
    roles = {row.name: row.role for row in model.rows()}
    weighed = roles[layer] not in ("head", "embedding") and format != "q8_0"
    assert format.endswith("+imatrix") == weighed
    return format.removesuffix("+imatrix")


def test_the_table_has_every_rule_in_it() -> None:
    """So that equality with it means something."""
    types = {
        mix: {
            run.split("*")[1]
            for model in TABLE.values()
            for of_kind in model[mix].values()
            for run in of_kind.split()
        }
        for mix in DEFAULTS
    }
    assert {"q2_k", "q3_k", "q4_k", "q6_k", "q8_0", "q4_0", "q5_0", "f16"} <= types["Q2_K"]
    assert {"q4_k", "q5_k", "q6_k", "q8_0", "q5_0"} <= types["Q4_K_M"]
    assert {"q5_k", "q6_k", "q5_1"} <= types["Q5_K_M"]
    assert {"q3_k", "q4_k", "q5_k"} <= types["Q3_K_M"]
    assert {"iq2_xxs", "q2_k", "q4_k", "q5_k", "iq4_nl", "f16"} <= types["IQ2_XXS"]
    assert {"iq2_xs", "iq3_s", "q4_k", "q5_k", "q8_0"} <= types["IQ2_S"]
    assert {"iq3_xxs", "iq3_s", "iq2_s", "q4_k", "q5_k"} <= types["IQ3_XXS"]
    assert {"iq3_s", "iq3_xxs", "q4_k", "q6_k"} <= types["IQ3_XS"]


# --- names ---------------------------------------------------------------------------------------

CLASSES: dict[str, TensorClass] = {
    "attn_qkv": "attn_v", "attn_v": "attn_v", "attn_k": "attn_k", "attn_output": "attn_output",
    "ffn_down": "ffn_down", "ffn_down_exps": "ffn_down", "ffn_down_shexp": "ffn_down",
    "attn_q": "attn_q", "ffn_gate": "ffn_gate", "ffn_gate_exps": "ffn_gate",
    "ffn_gate_shexp": "ffn_gate", "ffn_up": "ffn_up", "ffn_up_exps": "ffn_up",
    "ffn_up_shexp": "ffn_up",
}  # fmt: skip
HOMES = ("model.layers.", "transformer.h.", "gpt_neox.layers.", "transformer.blocks.")
NOT_TOLD_APART = {
    "model.layers.{bid}.self_attn.language_expert_query_key_value",
    "model.layers.{bid}.self_attn.language_expert_dense",
    "model.layers.{bid}.self_attn.vision_expert_query_key_value",
    "model.layers.{bid}.self_attn.vision_expert_dense",
    "model.layers.{bid}.self_attn.linear_attn",
    "model.layers.{bid}.self_attn.k_proj_no_perm",
    "model.layers.{bid}.block_sparse_moe.down",
    "model.layers.{bid}.block_sparse_moe.experts.down",
    "model.layers.{bid}.self_attn.q_proj_no_perm",
    "model.layers.{bid}.block_sparse_moe.up",
    "model.layers.{bid}.block_sparse_moe.experts.up",
    "model.layers.{bid}.block_sparse_moe.experts.gate",
    "model.layers.{bid}.feed_forward.down_proj",
    "transformer.h.{bid}.mlp.w1",
    "transformer.h.{bid}.mlp.w2",
    "transformer.h.{bid}.mixer.out_proj",
    "transformer.h.{bid}.attn.v",
    "transformer.h.{bid}.attn.k",
}
"""Names of models that transformers 5 has no class for, or not under these names."""


def test_classes_are_those_of_the_names_that_gguf_gives() -> None:
    """Every pattern of gguf's own table whose head is that of a decoder in transformers."""
    seen = set()
    for tensor, patterns in TensorNameMap.block_mappings_cfg.items():
        stem = TENSOR_NAMES[tensor].rpartition(".")[2]
        expected = CLASSES.get(stem)
        if expected is None or tensor.name.startswith(("V_", "A_")):
            continue
        for pattern in patterns:
            if not pattern.startswith(HOMES) or pattern in NOT_TOLD_APART:
                continue
            found = tensor_class(pattern.format(bid=3), pattern.rpartition(".")[2], "linear")
            assert found == expected, pattern
            seen.add(expected)
    assert seen == set(CLASSES.values())


def test_projections_of_what_is_no_attention_are_in_no_class() -> None:
    for tensor in (MODEL_TENSOR.SSM_OUT, MODEL_TENSOR.SSM_IN, MODEL_TENSOR.SHORTCONV_OUTPROJ):
        for pattern in TensorNameMap.block_mappings_cfg[tensor]:
            kind = pattern.rpartition(".")[2]
            assert tensor_class(pattern.format(bid=0), kind, "linear") == "other", pattern
    assert gguf.TENSOR_NAMES[MODEL_TENSOR.SSM_OUT].endswith("ssm_out")


@given(name=st.sampled_from(NAMES), upper=st.lists(st.booleans(), min_size=10, max_size=10))
def test_upper_and_lower_case_name_the_same_recipe(name: str, upper: list[bool]) -> None:
    spelled = "".join(
        letter.upper() if up else letter.lower() for letter, up in zip(name, upper, strict=False)
    )
    assert recipe_named(f" {spelled} ") == name


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("Q4_K", "Q4_K_"),
        ("q4km", "Q4_K_M"),
        ("Q4-K-M", "Q4_K_M"),
        ("first_last", "first-last"),
        ("Q9_K_M", "_K_M"),
    ],
)
def test_a_misspelt_name_is_answered_with_the_nearest(text: str, meant: str) -> None:
    with pytest.raises(UsageError, match=f"did you mean .*{meant}"):
        recipe_named(text)


def test_a_name_like_no_other_is_answered_with_all() -> None:
    with pytest.raises(UsageError, match=r"there are Q2_K, .*first-last"):
        recipe_named("zzzzzz")


# --- what holds of every recipe ------------------------------------------------------------------

KINDS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@st.composite
def tables(draw: st.DrawFn) -> list[Row]:
    """Layers of a model of any depth and of any widths, with or without experts."""
    width = draw(st.sampled_from([32, 64, 96, 100, 256, 288, 512]))
    found = [Row("model.embed_tokens", "embed_tokens", -1, "embedding", (64, width))]
    experts = draw(st.sampled_from([0, 4, 8]))
    for block in range(draw(st.integers(1, 40))):
        for kind in KINDS:
            found.append(Row(f"model.layers.{block}.x.{kind}", kind, block, "linear", (64, width)))
        if experts:
            name = f"model.layers.{block}.mlp.experts.down_proj"
            found.append(Row(name, "down_proj", block, "experts", (experts, 64, width)))
    return [*found, Row("lm_head", "lm_head", -1, "head", (64, width))]


@given(rows=tables(), name=st.sampled_from(NAMES), tied=st.booleans())
def test_every_layer_holds_what_it_can_or_is_told_of(
    rows: list[Row], name: str, tied: bool
) -> None:
    recipe, fallbacks = resolve_named(name.lower(), rows, tied=tied)
    kept = {each.layer for each in fallbacks if not each.holds}
    outside = {"lm_head", "model.embed_tokens"} if name == "first-last" else set()
    assert set(recipe) == {row.name for row in rows} - kept - outside
    for row in rows:
        if row.name in recipe:
            assert why_not_held(parse_format(recipe[row.name]), row.shape) is None
    if tied and name in DEFAULTS:
        assert recipe.get("lm_head") == recipe.get("model.embed_tokens")


# --- first-last ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("format", "better"),
    [
        ("int4-g128", "int8"),
        ("int3-g64-sym+clip", "int8"),
        ("nf4-g64", "int8"),
        ("mxfp4", "fp8-e4m3"),
        ("nvfp4", "fp8-e4m3"),
        ("q4_k", "q8_0"),
        ("int8", "kept"),
        ("fp8-e4m3", "kept"),
        ("q8_0", "kept"),
    ],
)
def test_first_and_last_block_hold_a_better_format(format: str, better: str) -> None:
    assert better_than(format) == better
    rows = MODELS["three blocks"].rows()
    recipe, _ = resolve_named("first-last", rows, format=format)
    for row in rows:
        if row.block < 0:
            assert row.name not in recipe  # head and embedding are kept
        elif row.block == 1:
            assert recipe[row.name] == format
        else:
            assert recipe.get(row.name, "kept") == better


def test_first_last_of_no_format_is_that_of_int4() -> None:
    rows = MODELS["three blocks"].rows()
    assert resolve_named("first-last", rows) == resolve_named(
        "first-last", rows, format="int4-g128"
    )


def test_a_format_goes_with_first_last_alone() -> None:
    rows = MODELS["three blocks"].rows()
    with pytest.raises(UsageError, match="Q4_K_M sets the format"):
        resolve_named("Q4_K_M", rows, format="int4")
    with pytest.raises(FormatError, match="int9"):
        resolve_named("first-last", rows, format="int9")
