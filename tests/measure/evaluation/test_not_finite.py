"""Numbers beyond float16: which value, of which tensor, at which token."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from engine.errors import UsageError
from engine.measure.evaluation.not_finite import NotFiniteError
from engine.measure.evaluation.reference import Reference
from engine.model.load import load_network
from engine.texts.windows import Windows
from tests import tiny

RARE = 200
DOWN = "model.layers.0.mlp.down_proj"


def edited(folder: Path, edit: Callable[[Any], None]) -> Path:
    tiny.build("llama", folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        edit(model)
    model.save_pretrained(folder)
    return folder


def rare_overflow(model: Any) -> None:
    """Only token `RARE` makes the first block's gate larger than float16 holds."""
    embedding, block = model.model.embed_tokens.weight, model.model.layers[0]
    embedding[:, 0] = 0
    embedding[RARE] = 0
    embedding[RARE, 0] = 20.0
    block.self_attn.o_proj.weight.zero_()
    block.mlp.gate_proj.weight[:, 0] = 0
    block.mlp.gate_proj.weight[3, 0] = 4e4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return edited(tmp_path_factory.mktemp("fp16") / "rare", rare_overflow)


def windows(*tokens: int) -> Windows:
    ids = torch.arange(4 * 16).reshape(4, 16) % 100
    for at, token in enumerate(tokens):
        ids[2, 5 + at] = token
    return Windows(ids, 15)


def test_a_rare_token_that_overflows_is_named_with_tensor_and_value(folder: Path) -> None:
    network = load_network(folder, device="cpu", dtype="fp16")
    reference = Reference(network, windows(RARE), 16, 1 << 20)
    for batch in (0, 1, 3):
        reference.run(batch)
    with pytest.raises(NotFiniteError) as caught:
        reference.run(2)
    said = str(caught.value)
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    seen: list[torch.Tensor] = []
    gate = plain.model.layers[0].mlp.gate_proj
    gate.register_forward_hook(lambda _module, _args, out: seen.append(out))
    with torch.no_grad():
        plain(windows(RARE).ids[2:3])
    right = float(seen[0][0, 5].max())
    found = re.search(r"the output of (\S+) is (\S+) at token (\d+) '(.*)' \(position (\d+)", said)
    assert found is not None, said
    token = AutoTokenizer.from_pretrained(folder).decode([RARE])
    assert found.groups()[0] == "model.layers.0.mlp.gate_proj"
    assert float(found[2]) == pytest.approx(right, rel=1e-2)
    assert (int(found[3]), f"'{found[4]}'", int(found[5])) == (RARE, repr(token), 5)
    assert "--dtype bf16" in said
    network.assert_at_rest()


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_other_dtypes_hold_what_float16_does_not(folder: Path, dtype: str) -> None:
    reference = Reference(
        load_network(folder, device="cpu", dtype=dtype), windows(RARE), 64, 1 << 20
    )
    reference.run(0)
    assert torch.isfinite(reference.nll_sums()).all()


def test_a_finite_weight_beyond_float16_is_refused_not_set_to_0(tmp_path: Path) -> None:
    def large(model: Any) -> None:
        model.get_submodule(DOWN).weight[3, 5] = -1e5

    folder = edited(tmp_path / "large", large)
    with pytest.raises(UsageError, match=rf"{DOWN}\.weight is -100000 at \[3, 5\].*--dtype bf16"):
        load_network(folder, device="cpu", dtype="fp16")
    network = load_network(folder, device="cpu", dtype="bf16")
    assert float(network.weight(DOWN)[3, 5]) == pytest.approx(-1e5, rel=1e-2)
    assert not network.zeroed
