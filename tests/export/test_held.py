"""What a target can hold, the nearest that it can, and what it cannot serve."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from msgspec.structs import replace

from engine.errors import EngineError, UsageError
from engine.export.held import (
    mixed,
    nearest,
    nearest_recipe,
    refused,
    untied,
    weights_of,
    why_not,
)
from engine.export.job import _with_nearest
from engine.export.refusal import NotExportable
from engine.export.target import Weight, target_named, targets
from engine.formats.grammar import parse_format
from tests.export.exporting import export_checkpoint
from tests.export.targets.mixes import EMBEDDING, HEAD, LINEAR, save_tiny
from tests.plan.test_proposal import LAYERS, known

FORMATS = (
    "int4-g128", "int3-g32-sym", "int5-g64", "int8", "int8+a8", "int8-tensor", "nf4-g64", "q4_k",
    "q6_k", "fp8-e4m3", "fp8-e5m2", "mxfp4", "nvfp4", "int4-g128+gptq:actorder", "int4-g64+hqq",
    "kmeans4", "nf4-g64:dq", "kmeans4:sparse=.5%", "int4-g128+clip", "e8-2+hadamard",
)  # fmt: skip


def weight(name: str = "model.layers.0.mlp.up_proj", **given: object) -> Weight:
    values = {
        "name": name, "kind": name.rpartition(".")[2], "block": 0, "role": "linear",
        "shape": (512, 256), "dtype": "bfloat16", **given,
    }  # fmt: skip
    return Weight(**values)  # type: ignore[arg-type]


@pytest.mark.parametrize("target", [each.name for each in targets()])
def test_the_nearest_format_is_one_that_the_target_holds(target: str) -> None:
    declared = target_named(target)
    for text in FORMATS:
        fmt = parse_format(text)
        near = nearest(declared, fmt, weight())
        assert near == "kept" or why_not(declared, parse_format(near), weight()) is None
        if why_not(declared, fmt, weight()) is None:
            assert near == text


@pytest.mark.parametrize(
    ("target", "format", "near"),
    [
        ("model-optimizer", "int4-g128", "int4-g128-sym"),
        ("gptqmodel", "int5-g64", "int8-g64-asym"),
        ("gptqmodel", "int4-g128+clip", "int4-g128"),
        ("llama-quantize", "int8", "q8_0"),
        ("llama-quantize", "int5-g32-sym", "q5_0"),
        ("hqq", "int4-g64", "int4-g64+hqq"),
        ("bitsandbytes", "int8", "int8+a8"),
        ("checkpoint", "q6_k", "int6-g32-sym"),
        ("mlx", "int3-g128-sym", "int3-g128"),
    ],
)
def test_the_nearest_format_has_as_many_bits(target: str, format: str, near: str) -> None:
    assert nearest(target_named(target), parse_format(format), weight()) == near


def test_eight_bits_are_kept_rather_than_halved() -> None:
    other = weight(role="embedding", block=-1, name=EMBEDDING)
    assert nearest(target_named("torchao"), parse_format("int8"), other) == "kept"


def test_layers_that_must_have_one_format_are_named() -> None:
    hqq = target_named("hqq")
    both = [weight(f"model.layers.{n}.mlp.up_proj", block=n) for n in range(3)]
    recipe = {both[0].name: "int4-g64+hqq", both[1].name: "int4-g64+hqq"}
    assert refused(hqq, both[:2], recipe) == {}
    found = refused(hqq, both, recipe)
    assert list(found) == [both[2].name]
    assert "kept, and int4-g64+hqq elsewhere: HQQ knows layers by their kind" in found[both[2].name]
    changed = nearest_recipe(hqq, both, recipe)
    assert {name: to for name, (to, _) in changed.items()} == {both[2].name: "int4-g64+hqq"}


def test_of_several_formats_the_usual_one_stays_and_better_layers_are_kept() -> None:
    four = [weight(f"model.layers.{n}.mlp.up_proj", block=n) for n in range(4)]
    recipe = dict(zip([each.name for each in four], ("nf4-g64", "nf4-g64", "nf4-g64", "int8"),
                      strict=True))  # fmt: skip
    changed = nearest_recipe(target_named("bitsandbytes"), four, recipe)
    assert {name: to for name, (to, _) in changed.items()} == {four[3].name: "kept"}


def test_fused_groups_with_several_formats_are_marked() -> None:
    pair = [weight(f"model.layers.0.self_attn.{k}_proj", group=5) for k in "qk"]
    other = weight("model.layers.0.mlp.down_proj")
    recipe = {pair[0].name: "int8", other.name: "int8"}
    found = mixed(target_named("torchao"), [*pair, other], recipe)
    assert list(found) == [pair[0].name, pair[1].name]
    assert mixed(target_named("mlx"), [*pair, other], recipe) == {}
    assert mixed(target_named("torchao"), pair, {pair[0].name: "int8", pair[1].name: "int8"}) == {}


@pytest.mark.parametrize("target", ["checkpoint", "gptq", "gptqmodel"])
def test_a_tied_head_that_gets_a_weight_of_its_own_is_marked(target: str) -> None:
    head = weight("lm_head", role="head", block=-1, tied=True)
    embedding = weight("model.embed_tokens", role="embedding", block=-1, tied=True)
    declared = target_named(target)
    assert list(untied(declared, [head, embedding], {"lm_head": "int8"})) == ["lm_head"]
    assert untied(declared, [head, embedding], {"lm_head": "kept"}) == {}


def test_a_refusal_names_every_layer_and_the_nearest_format(tmp_path: Path) -> None:
    checkpoint = save_tiny(tmp_path / "tiny")
    file = tmp_path / "recipe.json"
    recipe = {LINEAR[0]: "nf4-g64", LINEAR[1]: "int8", EMBEDDING: "int8", HEAD: "int8"}
    with pytest.raises(NotExportable) as error:
        export_checkpoint(checkpoint, recipe, file, "torchao")
    assert set(error.value.refused) == {LINEAR[0], EMBEDDING}
    said = str(error.value)
    assert f"{LINEAR[0]}: torchao has no stable config for nf4-g64 (nearest: int4-g32-sym)" in said
    assert "torchao quantises no embeddings (nearest: kept)" in said
    assert "--nearest" in said
    assert not file.exists()


def test_a_file_is_replaced_only_when_asked(tmp_path: Path) -> None:
    checkpoint = save_tiny(tmp_path / "tiny")
    file = tmp_path / "recipe.json"
    file.write_text("mine")
    with pytest.raises(UsageError, match="exists already"):
        export_checkpoint(checkpoint, {LINEAR[0]: "int8"}, file, "torchao")
    assert file.read_text() == "mine"
    export_checkpoint(checkpoint, {LINEAR[0]: "int8"}, file, "torchao", overwrite=True)
    assert "Int8WeightOnlyConfig" in file.read_text()
    with pytest.raises(UsageError, match="is a folder"):
        export_checkpoint(checkpoint, {LINEAR[0]: "int8"}, tmp_path, "torchao", overwrite=True)
    with pytest.raises(EngineError, match="not a writable folder"):
        export_checkpoint(checkpoint, {LINEAR[0]: "int8"}, tmp_path / "no" / "x", "torchao")


def test_what_must_be_alike_is_refused_with_the_nearest_recipe_and_how_to_take_it() -> None:
    names = LAYERS[1:5]
    session = known(layers=names, formats=("nf4", "int8+a8"))
    recipe = dict.fromkeys(names[1:], "nf4") | {names[0]: "int8+a8"}
    target = target_named("bitsandbytes")
    refusal = NotExportable(refused(target, weights_of(session), recipe), "bitsandbytes")
    context: Any = SimpleNamespace(session=session, recipe=recipe)
    said = str(_with_nearest(refusal, context, "bitsandbytes"))
    assert "or take the nearest formats with --nearest" in said
    assert f"{names[0]}: int8+a8, and nf4-g64 elsewhere" in said
    assert "(nearest: kept)" in said


@pytest.mark.parametrize("target", ["checkpoint", "gptq"])
def test_a_scaled_input_is_shared_by_its_whole_fused_group(target: str) -> None:
    declared = target_named(target)
    gate, up, down = (weight(f"model.layers.0.mlp.{kind}_proj") for kind in ("gate", "up", "down"))
    fused = [replace(gate, group=0), replace(up, group=0), down]
    scaled = {gate.name: "int4-g128+awq", up.name: "int4-g128+awq", down.name: "int8+smooth.5"}
    assert refused(declared, fused, scaled) == {}
    mixed_group = {**scaled, up.name: "int8"}
    why = refused(declared, fused, mixed_group)
    assert list(why) == [gate.name]
    assert "share its scale" in why[gate.name]
    near = nearest_recipe(declared, fused, mixed_group)
    assert {name: to for name, (to, _why) in near.items()} == {gate.name: "int4-g128"}
    assert refused(declared, fused, {**mixed_group, gate.name: "int4-g128"}) == {}
    kept = {gate.name: "int4-g128+awq", down.name: "int8"}
    assert list(refused(declared, fused, kept)) == [gate.name]
