"""What triage says of a layer that is stored quantised, and what it finds wrong."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from engine import protocol as p
from engine.checkpoint import Checkpoint, list_layers
from engine.diagnosis.findings import findings
from engine.measure.weights.stored import stored_codes
from engine.session import Session
from engine.session.fold import apply
from engine.store.facts import FactStore
from tests.checkpoint.quantised.fixtures import MODULE, all_cases, cases, save, tensors, written
from tests.drive import open_files, settings


@pytest.fixture
def facts(tmp_path: Path) -> FactStore:
    return FactStore(tmp_path / "facts.sqlite")


Spoil = Callable[[dict[str, Tensor], dict[str, Any]], None]


def spoilt(folder: Path, tool: str, name: str, spoil: Spoil) -> Checkpoint:
    case = cases(tool)[name]
    stored, config = tensors(case), dict(case["config"])
    spoil(stored, config)
    return save(folder, stored, config)


def test_codes_are_counted_one_by_one(tmp_path: Path) -> None:
    """Against the words of the layout, nibble by nibble."""
    checkpoint = written(tmp_path, "gptqmodel", "gptq_v2-4-asym-g32")
    found = stored_codes(checkpoint, list_layers(checkpoint)[0])
    stored = tensors(cases("gptqmodel")["gptq_v2-4-asym-g32"])
    words = stored[f"{MODULE}.qweight"].numpy().astype(np.uint32)
    codes = [int(word) >> (4 * place) & 15 for word in words.flat for place in range(8)]
    words = stored[f"{MODULE}.qzeros"].numpy().astype(np.uint32)
    zeros = [int(word) >> (4 * place) & 15 for word in words.flat for place in range(8)]
    scales = stored[f"{MODULE}.scales"].float()
    assert found == p.StoredCodes(
        levels=16,
        unused=16 - len(set(codes)),
        saturated=(codes.count(0) + codes.count(15)) / len(codes),
        scales=scales.numel(),
        scale_min=float(scales.min()),
        scale_max=float(scales.max()),
        zero_min=min(zeros),
        zero_max=max(zeros),
        zeros_outside=zeros.count(0) + zeros.count(15),
        ordered=True,
        layout="gptq",
    )


def found_in(folder: Path, facts: FactStore) -> dict[str, str]:
    """What triage finds: sentences by id."""
    from engine.measure.weights.triage import triage

    opened = open_files(folder, facts, settings())
    session = Session()
    for event in (opened.read(), opened.listed()):
        apply(session, event)
    for step in triage(opened, [], "j1"):
        if isinstance(step, p.Learned):
            apply(session, step)
    return {each.id: each.sentence for each in findings(session, "int4-g32")}


@pytest.mark.parametrize("value", [0.0, float("nan"), float("inf"), -1.0])
def test_scales_that_no_quantiser_writes(value: float, tmp_path: Path, facts: FactStore) -> None:
    def spoil(stored: dict[str, Tensor], config: dict[str, Any]) -> None:
        stored[f"{MODULE}.scales"][1, 3] = value

    spoilt(tmp_path, "gptqmodel", "gptq_v2-4-asym-g32", spoil)
    said = found_in(tmp_path, facts)["bad-scales"]
    assert "of 64 scales 1 are" in said


def test_a_power_of_two_of_255_means_nothing(tmp_path: Path, facts: FactStore) -> None:
    def spoil(stored: dict[str, Tensor], config: dict[str, Any]) -> None:
        stored[f"{MODULE}.weight_scale"][1, 0] = 255

    spoilt(tmp_path, "compressed-tensors", "mxfp4", spoil)
    assert "1 are NaN or infinite" in found_in(tmp_path, facts)["bad-scales"]


@pytest.mark.parametrize(("name", "said"), [("gptq", "gptq_v2"), ("gptq_v2", "gptq")])
def test_symmetric_weights_of_the_other_version(
    name: str, said: str, tmp_path: Path, facts: FactStore
) -> None:
    """They are read as they are stored, and that is said."""

    def spoil(stored: dict[str, Tensor], config: dict[str, Any]) -> None:
        config["checkpoint_format"] = config["format"] = said

    whole = written(tmp_path / "whole", "gptqmodel", f"{name}-4-sym-g32")
    wrong = spoilt(tmp_path / "wrong", "gptqmodel", f"{name}-4-sym-g32", spoil)
    assert torch.equal(whole.read(f"{MODULE}.weight"), wrong.read(f"{MODULE}.weight"))
    told = found_in(tmp_path / "wrong", facts)["stored-otherwise"]
    other = {"gptq": ("v1", "v2"), "gptq_v2": ("v2", "v1")}[name]
    assert f"stored as GPTQ {other[0]}" in told
    assert f"declared GPTQ {other[1]}" in told
    assert "stored-otherwise" not in found_in(tmp_path / "whole", facts)


def test_most_codes_unused(tmp_path: Path, facts: FactStore) -> None:
    def spoil(stored: dict[str, Tensor], config: dict[str, Any]) -> None:
        stored[f"{MODULE}.qweight"] = stored[f"{MODULE}.qweight"] & 0x33333333 | 0x44444444

    spoilt(tmp_path, "gptqmodel", "gptq_v2-4-asym-g32", spoil)
    assert "no weight has 12 of its 16 codes" in found_in(tmp_path, facts)["wasted-codes"]


@pytest.mark.parametrize("tool", ["gptqmodel", "compressed-tensors", "autoawq", "bitsandbytes"])
def test_what_a_tool_writes_gives_no_finding(tool: str, tmp_path: Path, facts: FactStore) -> None:
    for at, name in enumerate(cases(tool)):
        written(tmp_path / str(at), tool, name)
        mine = {"bad-scales", "stored-otherwise", "wasted-codes"}
        assert not mine.intersection(found_in(tmp_path / str(at), facts)), name


@pytest.mark.parametrize(("tool", "name"), all_cases())
def test_every_layout_tells_its_scales_and_its_codes(tool: str, name: str, tmp_path: Path) -> None:
    checkpoint = written(tmp_path, tool, name)
    (row,) = list_layers(checkpoint)
    found = stored_codes(checkpoint, row)
    assert found is not None
    assert found.scales > 0
    assert 0 < found.scale_min <= found.scale_max
    numbers = ("fp8", "float8", "exl3")  # a path has no codes of single weights
    assert (found.levels > 0) == (not any(each in row.dtype for each in numbers))
    assert found.layout == row.reader


def test_experts_of_gpt_oss_tell_theirs(tmp_path: Path) -> None:
    name = "model.layers.0.mlp.experts.down_proj"
    blocks = torch.randint(0, 256, (2, 4, 3, 16), dtype=torch.uint8)
    scales = torch.randint(118, 124, (2, 4, 3), dtype=torch.uint8)
    stored = {f"{name}_blocks": blocks, f"{name}_scales": scales, f"{name}_bias": torch.zeros(2, 4)}
    checkpoint = save(tmp_path, stored, {"quant_method": "mxfp4"}, model_type="gpt_oss")
    (row,) = list_layers(checkpoint)
    found = stored_codes(checkpoint, row)
    codes = torch.cat([blocks & 15, blocks >> 4]).flatten()
    assert found is not None
    assert (found.levels, found.scales) == (16, 24)
    assert found.unused == 16 - len(codes.unique())
    assert found.scale_max == 2.0 ** (int(scales.max()) - 127)
