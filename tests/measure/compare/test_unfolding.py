"""Scales that a norm or the rows of another layer take back are no errors."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from engine.diagnosis.of_artefacts import artefact_findings
from tests import tiny
from tests.measure.compare.test_comparing import compared, only, rounded

HEADS, SHARED, WIDTH = 2, 2, 16
"""Heads of values, heads of queries that share one, and the width of a head."""


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.build("llama", tmp_path_factory.mktemp("unfolding") / "llama")


def scale(seed: int, size: int) -> Tensor:
    return torch.exp(0.4 * torch.randn(size, generator=torch.Generator().manual_seed(seed)))


def folded(source: Path, folder: Path, formats: Mapping[str, str]) -> Path:
    """A copy in float32 as AWQ leaves it: every input scaled, and taken back before.

    Args:
        source: what is copied.
        folder: the copy.
        formats: by the kind of the layers that are rounded; others are scaled alone.
    """
    shutil.copytree(source, folder)
    (file,) = folder.glob("*.safetensors")
    tensors = {name: tensor.float() for name, tensor in load_file(file).items()}
    for block in range(3):
        home = f"model.layers.{block}."
        for norm, kinds in (
            ("input_layernorm", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
            ("post_attention_layernorm", ("mlp.gate_proj", "mlp.up_proj")),
        ):
            factor = scale(block, 64)
            tensors[f"{home}{norm}.weight"] /= factor
            for kind in kinds:
                tensors[f"{home}{kind}.weight"] *= factor
        inner = scale(block + 10, 128)
        tensors[f"{home}mlp.up_proj.weight"] /= inner[:, None]
        tensors[f"{home}mlp.down_proj.weight"] *= inner
        value = scale(block + 20, HEADS * WIDTH)
        tensors[f"{home}self_attn.v_proj.weight"] /= value[:, None]
        tensors[f"{home}self_attn.o_proj.weight"] *= (
            value.view(HEADS, 1, WIDTH).expand(-1, SHARED, -1).reshape(-1)
        )
        for kind, format in formats.items():
            name = next(each for each in tensors if each.startswith(home) and f"{kind}." in each)
            tensors[name] = rounded(format)(name, tensors[name])
    save_file({name: each.contiguous() for name, each in tensors.items()}, file, {"format": "pt"})
    return folder


ALL = tuple(f"{kind}_proj" for kind in ("q", "k", "v", "o", "gate", "up", "down"))


@pytest.mark.parametrize("score", [True, False])
def test_rows_that_take_a_scale_back_are_no_mistake(
    score: bool, llama: Path, tmp_path: Path, prose: Path
) -> None:
    folder = folded(llama, tmp_path / "awq", dict.fromkeys(ALL, "int4-g32"))
    found = only(compared(llama, prose, folder, score=score))
    assert [each.sentence for each in artefact_findings(found)] == []
    plain = only(compared(llama, prose, folded(llama, tmp_path / "scaled", {}), score=score))
    for name, fact in found.layers.items():
        if any(kind in name for kind in ALL):
            assert 0.03 < fact.error.relative < 0.3, name
            assert plain.layers[name].error.relative < 1e-3, name


@pytest.mark.parametrize("kind", ["down_proj", "o_proj", "up_proj", "v_proj", "q_proj"])
def test_a_layer_is_given_back_with_its_scales(
    kind: str, llama: Path, tmp_path: Path, prose: Path
) -> None:
    """All that is lost is lost by the layers of one kind: giving the three back wins all of it."""
    folder = folded(llama, tmp_path / kind, {kind: "int6-g32"})
    found = only(compared(llama, prose, folder, restore=3))
    assert found.score is not None
    assert {name.rpartition(".")[2] for name in found.restored} == {kind}
    assert all(win.kl > 0 for win in found.restored.values())
    won = sum(win.kl for win in found.restored.values())
    assert won == pytest.approx(found.score.kl, rel=0.2)


def test_scales_of_another_layer_are_still_named(llama: Path, tmp_path: Path, prose: Path) -> None:
    """Rows with factors that no layer takes back."""
    folder = folded(llama, tmp_path / "other", dict.fromkeys(ALL, "int4-g32"))
    (file,) = folder.glob("*.safetensors")
    tensors = load_file(file)
    name = "model.layers.1.self_attn.o_proj"
    runs = tensors[f"{name}.weight"].view(64, 4, 16)
    runs *= scale(77, 64 * 4).view(64, 4, 1)
    save_file(tensors, file, {"format": "pt"})
    found = only(compared(llama, prose, folder, score=False))
    assert found.layers[name].mistake == "other-scales"
