"""Finished checkpoints by themselves: clean ones have no finding, spoilt ones do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from engine import protocol as p
from engine.checkpoint import Checkpoint, list_layers
from engine.diagnosis.finding import Finding
from engine.diagnosis.of_artefacts import artefact_findings
from engine.errors import CheckpointError
from engine.measure.compare.artefact import opened_alone
from engine.measure.compare.stored import stored_layer
from engine.session import Compared
from tests.checkpoint.quantised.fixtures import MODULE, all_cases, cases, save, tensors, written

Tensors = dict[str, Tensor]
Spoil = Callable[[Tensors, dict[str, Any]], None]


def looked_at(checkpoint: Checkpoint) -> list[Finding]:
    rows = list_layers(checkpoint)
    stored = {row.name: stored_layer(checkpoint, row) for row in rows}
    found = Compared(opened_alone(checkpoint, rows), stored=stored)
    return artefact_findings(found)


@pytest.mark.parametrize(("tool", "name"), all_cases())
def test_a_clean_file_has_no_finding(tool: str, name: str, tmp_path: Path) -> None:
    assert looked_at(written(tmp_path, tool, name)) == []


def several(tool: str, name: str, modules: tuple[str, ...]) -> tuple[Tensors, dict[str, Any]]:
    """A case under several names, each with its own copy of the tensors."""
    case = cases(tool)[name]
    stored: Tensors = {}
    for module in modules:
        for each, tensor in tensors(case).items():
            stored[each.replace(MODULE, module)] = tensor.clone()
    return stored, dict(case["config"])


ATTENTION = tuple(f"model.layers.0.self_attn.{kind}_proj" for kind in "qkv")
UPS = tuple(f"model.layers.{block}.mlp.up_proj" for block in range(5))


def set_to(name: str, value: object) -> Spoil:
    def spoil(stored: Tensors, config: dict[str, Any]) -> None:
        tensor = stored[name]
        tensor.view(-1)[0:1] = torch.tensor([value]).to(tensor.dtype)

    return spoil


def scaled(name: str, by: float) -> Spoil:
    def spoil(stored: Tensors, config: dict[str, Any]) -> None:
        stored[name] = (stored[name].double() * by).to(stored[name].dtype)

    return spoil


def declared(key: str, value: object) -> Spoil:
    def spoil(stored: Tensors, config: dict[str, Any]) -> None:
        config[key] = value

    return spoil


def ends(stored: Tensors, config: dict[str, Any]) -> None:
    """Most codes at the ends: every second nibble at the last."""
    stored[f"{MODULE}.qweight"] |= 0x0F0F0F0F


def halves(stored: Tensors, config: dict[str, Any]) -> None:
    stored[f"{MODULE}.qweight"] = stored[f"{MODULE}.qweight"] & 0x33333333 | 0x44444444


def uneven(stored: Tensors, config: dict[str, Any]) -> None:
    stored[f"{MODULE}.g_idx"][:5] = 1


def unordered(stored: Tensors, config: dict[str, Any]) -> None:
    index = stored[f"{MODULE}.g_idx"]
    stored[f"{MODULE}.g_idx"] = index[torch.randperm(len(index))]
    config["desc_act"] = False


def subnormal(stored: Tensors, config: dict[str, Any]) -> None:
    stored[f"{MODULE}.scales"][1] = 3e-6


def nan_code(stored: Tensors, config: dict[str, Any]) -> None:
    stored[f"{MODULE}.weight"].view(torch.uint8)[3, 5] = 0x7F


CASES: list[tuple[str, str, tuple[str, ...], Spoil, str, str, str]] = [
    ("gptqmodel", "gptq_v2-4-asym-g32", (MODULE,), set_to(f"{MODULE}.scales", 0.0),
     "bad-scales", MODULE, "1 are zero"),
    ("gptqmodel", "gptq_v2-4-asym-g32", (MODULE,), set_to(f"{MODULE}.scales", -1.0),
     "bad-scales", MODULE, "1 are negative"),
    ("gptqmodel", "gptq_v2-4-asym-g32", (MODULE,), set_to(f"{MODULE}.scales", float("nan")),
     "bad-scales", MODULE, "NaN or infinite"),
    ("autoawq", "gemm-g32", (MODULE,), set_to(f"{MODULE}.scales", float("inf")),
     "bad-scales", MODULE, "NaN or infinite"),
    ("gptqmodel", "gptq_v2-4-asym-g32", (MODULE,), subnormal,
     "subnormal-scales", MODULE, "50% of its scales"),
    ("compressed-tensors", "mxfp4", (MODULE,), set_to(f"{MODULE}.weight_scale", 255),
     "bad-scales", MODULE, "NaN or infinite"),
    ("compressed-tensors", "mxfp4", (MODULE,), set_to(f"{MODULE}.weight_scale", 0),
     "subnormal-scales", MODULE, "below the normal numbers"),
    ("compressed-tensors", "mxfp8", (MODULE,), nan_code, "bad-codes", MODULE, "codes are NaN"),
    ("compressed-tensors", "float-8-channel", (MODULE,), nan_code,
     "bad-codes", MODULE, "codes are NaN"),
    ("compressed-tensors", "float-8-channel", (MODULE,),
     set_to(f"{MODULE}.weight_scale", float("nan")), "unreadable-layer", MODULE, "weight_scale"),
    ("gptqmodel", "gptq_v2-4-asym-g32", (MODULE,), ends,
     "clipped-codes", MODULE, "the first or the last of 16 codes"),
    ("gptqmodel", "gptq_v2-4-asym-g32", (MODULE,), halves,
     "wasted-codes", MODULE, "12 of its 16 codes"),
    ("gptqmodel", "gptq-4-asym-g32-act", (MODULE,), uneven,
     "uneven-groups", MODULE, "groups of its g_idx"),
    ("gptqmodel", "gptq-4-asym-g32-act", (MODULE,), unordered,
     "unordered-groups", MODULE, "desc_act false"),
    ("compressed-tensors", "nvfp4", (MODULE,), scaled(f"{MODULE}.weight_global_scale", 1e-8),
     "implausible-scale", MODULE, "multiplied where it divides"),
    ("model-optimizer", "nvfp4", (MODULE,), scaled(f"{MODULE}.weight_scale_2", 1e8),
     "implausible-scale", MODULE, "multiplied where it divides"),
    ("compressed-tensors", "nvfp4", ATTENTION, scaled(f"{ATTENTION[1]}.weight_global_scale", 1.5),
     "fused-scales", ATTENTION[0], "take the greatest for all"),
    ("compressed-tensors", "float-8-tensor", ATTENTION, scaled(f"{ATTENTION[1]}.weight_scale", 3.0),
     "fused-scales", ATTENTION[0], "take the greatest for all"),
    ("gptqmodel", "gptq-4-asym-g32", (MODULE,), declared("group_size", 64),
     "group-size-otherwise", MODULE, "groups of 32 by their shapes, declared 64"),
    ("gptqmodel", "gptq-4-asym-g32", (MODULE,), declared("bits", 8),
     "bits-otherwise", MODULE, "in 4 bits by their shapes, declared 8"),
    ("compressed-tensors", "pack-4-sym-g32", (MODULE,),
     declared("ignore", ["model.layers.0.mlp.dwon_proj"]),
     "ignored-nothing", "", "'model.layers.0.mlp.dwon_proj'"),
    ("compressed-tensors", "pack-4-sym-g32", (MODULE,),
     declared("transform_config", {"config_groups": {"R4": {"type": "hadamard", "apply": [
         {"targets": ["re:.*down_proj$"], "location": "input"},
         {"targets": ["re:.*down_proj$"], "location": "weight_input", "inverse": True}]}}}),
     "rotated-inputs", "", "at re:.*down_proj$"),
    ("auto-round", "auto_round-4-sym", (MODULE,),
     declared("rotation_config", {"hadamard_type": "hadamard"}),
     "rotated-inputs", "", "every quantised layer"),
    ("compressed-tensors", "pack-4-sym-g32", ATTENTION,
     declared("kv_cache_scheme", {"num_bits": 8, "type": "float", "dynamic": False}),
     "missing-cache-scales", ATTENTION[1], "engines take 1.0"),
    ("compressed-tensors", "pack-4-sym-g32", UPS, scaled(f"{UPS[2]}.weight_scale", 100.0),
     "odd-scale", UPS[2], "the median up_proj"),
]  # fmt: skip


@pytest.mark.parametrize(("tool", "name", "modules", "spoil", "id", "layer", "said"), CASES)
def test_what_is_wrong_is_found_named_and_located(
    tool: str,
    name: str,
    modules: tuple[str, ...],
    spoil: Spoil,
    id: str,
    layer: str,
    said: str,
    tmp_path: Path,
) -> None:
    stored, config = several(tool, name, modules)
    assert [
        e for e in looked_at(save(tmp_path / "clean", stored, config)) if e.severity != "note"
    ] == []
    spoil(stored, config)
    found = {each.id: each for each in looked_at(save(tmp_path / "spoilt", stored, config))}
    assert id in found, list(found)
    assert said in found[id].sentence
    assert layer in found[id].sentence
    assert found[id].layer in (layer, "")
    if id not in ("unreadable-layer", "unordered-groups"):
        assert found[id].evidence


def test_siblings_of_different_bits(tmp_path: Path) -> None:
    stored, config = several("gptqmodel", "gptq-4-sym-g32", ATTENTION[:2])
    stored |= several("gptqmodel", "gptq-8-sym-g32", ATTENTION[2:])[0]
    config["dynamic"] = {r"+:.*v_proj": {"bits": 8}}
    (found,) = looked_at(save(tmp_path, stored, config))
    assert (found.id, found.layer) == ("fused-bits", ATTENTION[0])
    assert "int4 and int8" in found.sentence


def test_rotations_that_weights_hold_are_no_finding(tmp_path: Path) -> None:
    stored, config = several("compressed-tensors", "pack-4-sym-g32", (MODULE,))
    places = [{"targets": ["Linear"], "location": where} for where in ("weight_input", "q_attn")]
    config["transform_config"] = {"config_groups": {"R1": {"type": "hadamard", "apply": places}}}
    assert looked_at(save(tmp_path, stored, config)) == []


@pytest.mark.parametrize(
    ("tool", "name", "scale"),
    [
        ("model-optimizer", "nvfp4", "weight_scale_2"),
        ("model-optimizer", "fp8", "weight_scale"),
        ("compressed-tensors", "nvfp4", "weight_global_scale"),
        ("compressed-tensors", "float-8-channel", "weight_scale"),
        ("compressed-tensors", "pack-4-sym-g32", "weight_scale"),
        ("gptqmodel", "gptq-4-asym-g32", "scales"),
    ],
)
@pytest.mark.parametrize("module", [MODULE, "lm_head"])
def test_a_scale_that_is_missing_is_not_taken_for_one(
    tool: str, name: str, scale: str, module: str, tmp_path: Path
) -> None:
    stored, config = several(tool, name, (module,))
    del stored[f"{module}.{scale}"]
    with pytest.raises(CheckpointError, match=module):
        looked_at(save(tmp_path, stored, config))


def test_scales_of_the_cache_that_are_there_are_no_finding(tmp_path: Path) -> None:
    stored, config = several("compressed-tensors", "pack-4-sym-g32", ATTENTION)
    config["kv_cache_scheme"] = {"num_bits": 8, "type": "float", "dynamic": False}
    for kind in "kv":
        stored[f"model.layers.0.self_attn.{kind}_scale"] = torch.tensor(0.02)
    assert looked_at(save(tmp_path, stored, config)) == []


def test_zero_points_that_readers_disagree_about_are_a_note(tmp_path: Path) -> None:
    stored, config = several("gptqmodel", "gptq-4-asym-g32", (MODULE,))
    stored[f"{MODULE}.qzeros"][0, 0] = -1  # words of 15
    found = {each.id: each for each in looked_at(save(tmp_path, stored, config))}
    assert found["wrapped-zeros"].severity == "note"
    assert found["wrapped-zeros"].evidence["zeros"] >= 1


def test_a_plain_layer_is_not_read(tmp_path: Path) -> None:
    folder = save(tmp_path, {f"{MODULE}.weight": torch.randn(8, 64).half()}, None)
    fact = stored_layer(folder, list_layers(folder)[0])
    assert isinstance(fact, p.StoredLayer)
    assert (fact.codes, fact.bits, fact.holds) == (None, 16.0, "fp16")
