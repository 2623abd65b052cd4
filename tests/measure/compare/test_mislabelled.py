"""Files that were mislabelled on purpose, against their original: found, named, located.

Every weight is one that its own tool wrote, and clean files of every layout have no finding.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from engine import protocol as p
from engine.checkpoint import Checkpoint, list_layers, read_layer
from engine.diagnosis.of_artefacts import artefact_findings
from engine.measure.compare.comparing import compare_files
from engine.session import Compared, Session, apply
from engine.store.facts import FactStore
from tests.checkpoint.quantised.fixtures import MODULE, all_cases, cases, save, tensors, written
from tests.checkpoint.quantised.write import weight
from tests.drive import open_files, settings

Tensors = dict[str, Tensor]
Spoil = Callable[[Tensors, dict[str, Any]], None]
NEAR = 0.7
"""Relative error of a weight in 2 bits, or with columns that were scaled, at most."""


@cache
def original(shape: tuple[int, int]) -> Tensor:
    return weight(*shape)


def against(
    folder: Path, stored: Tensors, config: dict[str, Any], whole: Tensors, **more: Any
) -> Compared:
    """A comparison of files with an original."""
    metadata = more.pop("metadata", None)
    save(folder / "original", whole, None, **more)
    save(folder / "finished", stored, config or None, metadata, **more)
    opened = open_files(folder / "original", FactStore(folder / "facts.sqlite"), settings())
    session = Session()
    for event in (opened.read(), opened.listed()):
        apply(session, event)
    for step in compare_files(opened, [str(folder / "finished")], "j1"):
        if isinstance(step, p.ArtefactOpened | p.Learned):
            apply(session, step)
    (found,) = session.compared.values()
    return found


def originals(checkpoint: Checkpoint) -> Tensors:
    """What a tool was given; of weights that are not those of most cases, what it made of them."""
    whole: Tensors = {}
    for row in list_layers(checkpoint):
        stored = read_layer(checkpoint, row)
        given = original(tuple(row.shape)) if stored.dim() == 2 else stored
        near = float((stored.float() - given).norm() / given.norm()) < NEAR
        whole[row.parts[0]] = given.clone() if near else stored.contiguous()
    return whole


@pytest.mark.parametrize(("tool", "name"), all_cases())
def test_a_clean_file_has_no_finding(tool: str, name: str, tmp_path: Path) -> None:
    case = cases(tool)[name]
    config = dict(case["config"])
    more = config.pop("", {})
    whole = originals(written(tmp_path / "read", tool, name))
    found = against(tmp_path, tensors(case), config, whole, metadata=case.get("metadata"), **more)
    told = artefact_findings(found)
    assert told == []
    assert {(fact.read_as, fact.mistake) for fact in found.layers.values()} == {("", "")}


ATTENTION = tuple(f"model.layers.0.self_attn.{kind}_proj" for kind in "qkv")
MLP = (
    "model.layers.0.mlp.up_proj",
    "model.layers.1.mlp.up_proj",
    "model.layers.2.mlp.up_proj",
    "model.layers.3.mlp.up_proj",
    "model.layers.4.mlp.up_proj",
)
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 4}


def words(stored: Tensors, ending: str) -> list[str]:
    return [name for name in stored if name.endswith(ending)]


def nibbles(stored: Tensors, config: dict[str, Any]) -> None:
    """The halves of every byte of codes exchanged."""
    for name in [*words(stored, ".qweight"), *words(stored, ".weight_packed")]:
        data = stored[name].contiguous().view(torch.uint8)
        turned = (data.int() >> 4) | (data.int() & 15) << 4
        stored[name] = turned.to(torch.uint8).view(stored[name].dtype)


def backwards(stored: Tensors, config: dict[str, Any]) -> None:
    """Every word from its high end."""
    for name in words(stored, ".qweight"):
        data = stored[name].contiguous().view(torch.uint8).unflatten(-1, (-1, 4)).flip(-1)
        turned = (data.int() >> 4) | (data.int() & 15) << 4
        stored[name] = turned.to(torch.uint8).flatten(-2).contiguous().view(torch.int32)


def uninterleaved(stored: Tensors, config: dict[str, Any]) -> None:
    """AWQ's GEMM with its codes and zero points in natural order."""
    for name in [*words(stored, ".qweight"), *words(stored, ".qzeros")]:
        data = stored[name]
        nibbles = torch.stack([data >> (4 * place) & 15 for place in range(8)], -1)
        ordered = nibbles[..., [0, 4, 1, 5, 2, 6, 3, 7]]
        packed = sum(ordered[..., place].long() << (4 * place) for place in range(8))
        stored[name] = torch.where(packed >= 2**31, packed - 2**32, packed).int()


def interleaved(stored: Tensors, config: dict[str, Any]) -> None:
    """GPTQ with its codes as AWQ's GEMM interleaves them."""
    for name in words(stored, ".qweight"):
        data = stored[name]
        nibbles = torch.stack([data >> (4 * place) & 15 for place in range(8)], -1)
        ordered = nibbles[..., [0, 2, 4, 6, 1, 3, 5, 7]]
        packed = sum(ordered[..., place].long() << (4 * place) for place in range(8))
        stored[name] = torch.where(packed >= 2**31, packed - 2**32, packed).int()


def reciprocal(ending: str) -> Spoil:
    def spoil(stored: Tensors, config: dict[str, Any]) -> None:
        for name in words(stored, ending):
            stored[name] = 1.0 / stored[name]

    return spoil


def version(said: str) -> Spoil:
    def spoil(stored: Tensors, config: dict[str, Any]) -> None:
        config["checkpoint_format"] = config["format"] = said

    return spoil


def declared(key: str, value: object) -> Spoil:
    def spoil(stored: Tensors, config: dict[str, Any]) -> None:
        config[key] = value

    return spoil


def shuffled(stored: Tensors, config: dict[str, Any]) -> None:
    chance = torch.Generator().manual_seed(3)
    for name in words(stored, ".g_idx"):
        index = stored[name]
        stored[name] = index[torch.randperm(len(index), generator=chance)].clone()


def rows_of_llama_cpp(stored: Tensors, config: dict[str, Any]) -> None:
    """Rows of queries and keys permuted, as a converter leaves them that forgot to undo it."""
    for module in ATTENTION[:2]:
        for name in [each for each in stored if each.startswith(module) and "shape" not in each]:
            data = stored[name]
            if data.dim() == 2:
                order = torch.arange(len(data)).reshape(4, 2, -1).transpose(1, 2).reshape(-1)
                stored[name] = data[order].contiguous()


def scales_of_another(stored: Tensors, config: dict[str, Any]) -> None:
    for name in [each for each in stored if each.startswith(MLP[1]) and "scale" in each]:
        data = stored[name]
        stored[name] = data.flip(0) if data.dim() > 1 else data.flip(-1)


def another_revision(stored: Tensors, config: dict[str, Any]) -> None:
    """The codes of a layer turned into those of unrelated weights."""
    name = f"{MLP[1]}.weight_packed"
    chance = torch.Generator().manual_seed(1)
    data = stored[name].view(torch.uint8)
    stored[name] = data[torch.randperm(len(data), generator=chance)].view(torch.int32)


CASES: list[tuple[str, str, tuple[str, ...], Spoil, str, str, str]] = [
    ("gptqmodel", "gptq_v2-4-sym-g32", MLP, version("gptq"),
     "declared-otherwise", "", "declared GPTQ v1 and read as GPTQ v2"),
    ("gptqmodel", "gptq_v2-4-asym-g32", MLP, version("gptq"),
     "declared-otherwise", "", "declared GPTQ v1 and read as GPTQ v2"),
    ("gptqmodel", "gptq-3-asym-g32", MLP[:1], version("gptq_v2"),
     "declared-otherwise", MLP[0], "declared GPTQ v2 and read as GPTQ v1"),
    ("gptqmodel", "gptq-4-asym-g32", MLP[:1], nibbles,
     "declared-otherwise", MLP[0], "read as high half first"),
    ("compressed-tensors", "pack-4-sym-g32", MLP[:1], nibbles,
     "declared-otherwise", MLP[0], "read as high half first"),
    ("compressed-tensors", "nvfp4", MLP[:1], nibbles,
     "declared-otherwise", MLP[0], "read as high half first"),
    ("gptqmodel", "gptq-4-asym-g32", MLP[:1], backwards,
     "declared-otherwise", MLP[0], "backwards in each word"),
    ("gptqmodel", "gptq-4-asym-g32", MLP[:1], interleaved,
     "declared-otherwise", MLP[0], "interleaved as AWQ's GEMM"),
    ("autoawq", "gemm-g32", MLP[:1], uninterleaved,
     "declared-otherwise", MLP[0], "read as another order"),
    ("compressed-tensors", "nvfp4", MLP[:1], reciprocal(".weight_global_scale"),
     "declared-otherwise", MLP[0], "read as multiplied by it"),
    ("model-optimizer", "nvfp4", MLP[:1], reciprocal(".weight_scale_2"),
     "declared-otherwise", MLP[0], "read as divided by it"),
    ("gptqmodel", "gptq-4-asym-g32", MLP[:1], declared("group_size", 64),
     "group-size-otherwise", MLP[0], "groups of 32 by their shapes, declared 64"),
    ("gptqmodel", "gptq-4-asym-g32-act", MLP[:1], shuffled,
     "declared-otherwise", MLP[0], "its g_idx is shuffled"),
    ("compressed-tensors", "mxfp4", ATTENTION, rows_of_llama_cpp,
     "declared-otherwise", ATTENTION[0], "heads' rows in llama.cpp's order"),
    ("compressed-tensors", "pack-4-sym-g32", MLP, scales_of_another,
     "other-scales", MLP[1], "these are scales of another layer"),
    ("compressed-tensors", "pack-4-sym-g32", MLP, another_revision,
     "other-weights", MLP[1], "another revision's or another layer's weight"),
    ("compressed-tensors", "pack-4-sym-g32", ATTENTION,
     declared("kv_cache_scheme", {"num_bits": 8, "type": "float", "dynamic": False}),
     "missing-cache-scales", ATTENTION[1], "engines take 1.0"),
]  # fmt: skip


@pytest.mark.parametrize(("tool", "name", "modules", "spoil", "id", "layer", "said"), CASES)
def test_a_mislabelled_file_is_found_named_and_located(
    tool: str,
    name: str,
    modules: tuple[str, ...],
    spoil: Spoil,
    id: str,
    layer: str,
    said: str,
    tmp_path: Path,
) -> None:
    case = cases(tool)[name]
    stored = {
        each.replace(MODULE, module): tensor.clone()
        for module in modules
        for each, tensor in tensors(case).items()
    }
    config, shape = dict(case["config"]), tuple(case["weight"]["shape"])
    whole = {f"{module}.weight": original(shape).clone() for module in modules}
    spoil(stored, config)
    heads = HEADS if shape[0] % 8 == 0 else {"num_attention_heads": 3, "num_key_value_heads": 3}
    told = artefact_findings(against(tmp_path, stored, config, whole, **heads))
    found = {each.id: each for each in told}
    assert id in found, [each.sentence for each in told]
    assert said in found[id].sentence
    assert found[id].layer in (layer, "")
    assert (layer or modules[0]) in found[id].sentence
