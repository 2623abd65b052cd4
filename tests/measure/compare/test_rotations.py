"""Models that were rotated exactly, then rounded: told, taken back, and run as any other."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from engine.diagnosis.of_artefacts import artefact_findings
from engine.measure.compare.rotations import walsh
from tests import tiny
from tests.measure.compare.test_comparing import compared, only, rounded

WIDTH, QUERIES, VALUES, HEAD = 64, 4, 2, 16
READS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.gate_proj", "mlp.up_proj")
WRITES = ("self_attn.o_proj", "mlp.down_proj")


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tiny.build("llama", tmp_path_factory.mktemp("rotations") / "llama")
    (file,) = folder.glob("*.safetensors")
    chance = torch.Generator().manual_seed(3)
    tensors = {name: each.float() for name, each in load_file(file).items()}
    for name in tensors:
        if "norm" in name:
            tensors[name] = 0.5 + torch.rand(tensors[name].shape, generator=chance)
    save_file(tensors, file, {"format": "pt"})
    return folder


def orthogonal(size: int, seed: int) -> Tensor:
    chance = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(size, size, generator=chance, dtype=torch.float64))[0]


def signed(size: int, seed: int) -> Tensor:
    """A Hadamard matrix with signs, as QuaRot has it."""
    signs = torch.randint(0, 2, (size, 1), generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return walsh(size).double() * signs


def rotated(
    source: Path,
    folder: Path,
    stream: Tensor | None,
    heads: Callable[[int], Tensor] | None,
    format: str = "",
) -> dict[str, Tensor]:
    """A copy with the residual stream and the heads of values rotated, and then rounded.

    Returns the exact weights.
    """
    shutil.copytree(source, folder)
    (file,) = folder.glob("*.safetensors")
    tensors = {name: each.double() for name, each in load_file(file).items()}
    turn = torch.eye(WIDTH, dtype=torch.float64) if stream is None else stream
    for block in range(3):
        home = f"model.layers.{block}."
        for kind in READS:
            norm = "input_layernorm" if "attn" in kind else "post_attention_layernorm"
            tensors[f"{home}{kind}.weight"] *= tensors[f"{home}{norm}.weight"]
            tensors[f"{home}{kind}.weight"] @= turn
        for kind in WRITES:
            tensors[f"{home}{kind}.weight"] = turn.T @ tensors[f"{home}{kind}.weight"]
        for norm in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{home}{norm}.weight"].fill_(1.0)
        if heads is not None:
            values = torch.stack([heads(10 * block + head) for head in range(VALUES)])
            name = f"{home}self_attn.v_proj.weight"
            tensors[name] = torch.block_diag(*values.mT) @ tensors[name]
            queries = values.repeat_interleave(QUERIES // VALUES, 0)
            tensors[f"{home}self_attn.o_proj.weight"] @= torch.block_diag(*queries)
    tensors["model.embed_tokens.weight"] @= turn
    tensors["lm_head.weight"] *= tensors["model.norm.weight"]
    tensors["lm_head.weight"] @= turn
    tensors["model.norm.weight"].fill_(1.0)
    exact = {name: each.float() for name, each in tensors.items()}
    stored = {
        name: rounded(format)("", each) if format and "proj" in name else each
        for name, each in exact.items()
    }
    save_file({name: each.contiguous() for name, each in stored.items()}, file, {"format": "pt"})
    return exact


@pytest.mark.parametrize("matrix", [signed, orthogonal])
def test_a_rotated_model_agrees_and_every_layer_is_judged_with_its_rotation_taken_back(
    matrix: Callable[[int, int], Tensor], llama: Path, tmp_path: Path, prose: Path
) -> None:
    exact = rotated(
        llama, tmp_path / "int4", matrix(WIDTH, 0), lambda seed: matrix(HEAD, seed), "int4-g32"
    )
    found = only(compared(llama, prose, tmp_path / "int4", restore=4))
    assert found.score is not None
    kinds = {name: fact.rotated for name, fact in found.layers.items()}
    for name, rotation in kinds.items():
        whole = "self_attn.v_proj" in name or "self_attn.o_proj" in name
        assert rotation == ("residual stream and heads" if whole else "residual stream"), name
    (file,) = (tmp_path / "int4").glob("*.safetensors")
    stored = load_file(file)
    (file,) = llama.glob("*.safetensors")
    original = load_file(file)
    for name, fact in found.layers.items():
        if "o_proj" in name or "down_proj" in name:  # no norm before them
            gap = (stored[f"{name}.weight"] - exact[f"{name}.weight"]).norm()
            relative = float(gap / original[f"{name}.weight"].norm())
            # A fitted rotation of a head of 16 takes up to 12% of the squared error with it.
            fitted = matrix is orthogonal and "o_proj" in name
            assert fact.error.relative == pytest.approx(relative, rel=0.08 if fitted else 0.01)
    if matrix is signed:
        assert {f.rounding for n, f in found.layers.items() if "proj" in n} == {"nearest"}
    assert found.layers["lm_head"].rounding == found.layers["model.embed_tokens"].rounding == "same"
    told = {each.id: each.sentence for each in artefact_findings(found)}
    assert told.keys() <= {"rotated", "worth-keeping"}
    assert "residual stream in 23 layers and its heads in 6 layers" in told["rotated"]
    assert "outputs agree" in told["rotated"]
    # Given back with the rotation in it: less is lost, not more.
    assert len(found.restored) == 4
    assert all(win.kl > 0 for win in found.restored.values())


def test_a_rotation_alone_changes_nothing(llama: Path, tmp_path: Path, prose: Path) -> None:
    rotated(llama, tmp_path / "exact", orthogonal(WIDTH, 5), lambda seed: orthogonal(HEAD, seed))
    found = only(compared(llama, prose, tmp_path / "exact"))
    assert found.score is not None
    assert found.score.kl < 1e-8
    assert {fact.rounding for fact in found.layers.values()} == {"same"}
    assert [each.id for each in artefact_findings(found)] == ["rotated"]


def test_heads_are_told_where_the_stream_is_as_it_was(
    llama: Path, tmp_path: Path, prose: Path
) -> None:
    rotated(llama, tmp_path / "heads", None, lambda seed: signed(HEAD, seed), "int3-g32")
    found = only(compared(llama, prose, tmp_path / "heads", score=False))
    kinds = {name.rpartition(".")[2]: fact.rotated for name, fact in found.layers.items()}
    assert {kind for kind, rotation in kinds.items() if rotation} == {"v_proj", "o_proj"}
    assert {f.rounding for n, f in found.layers.items() if "proj" in n} == {"nearest"}


@pytest.mark.parametrize("known", [True, False])
def test_an_input_that_must_be_rotated_is_a_finding(
    known: bool, llama: Path, tmp_path: Path, prose: Path
) -> None:
    folder = tmp_path / "online"
    rotated(llama, folder, signed(WIDTH, 0), None)
    (file,) = folder.glob("*.safetensors")
    tensors = load_file(file)
    for block in range(3):
        name = f"model.layers.{block}.mlp.down_proj.weight"
        turn = signed(128, block) if known else orthogonal(128, block)
        tensors[name] = rounded("int4-g32")("", tensors[name].double() @ turn).contiguous()
    save_file(tensors, file, {"format": "pt"})
    found = only(compared(llama, prose, folder, score=False))
    kind = "input" if known else "input, not undone"
    facts = [fact for name, fact in found.layers.items() if "down_proj" in name]
    assert {fact.rotated for fact in facts} == {f"residual stream and {kind}"}
    if known:
        assert {fact.rounding for fact in facts} == {"nearest"}
    warned = next(each for each in artefact_findings(found) if each.id == "rotated-inputs")
    assert warned.evidence == {"layers": 3}
