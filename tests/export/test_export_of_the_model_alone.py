"""Layers that a model has and its files do not name: what cannot be exported has its reason.

HRM has two stacks of blocks, of which the files tell one, and the queries, keys, values and gate of
a block are one tensor on disk.
"""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM, HrmTextConfig

from engine.checkpoint import Checkpoint, list_layers, open_checkpoint
from engine.errors import UsageError
from engine.export.compressed.folder import why_not_exported
from tests import tiny

SIZES = {**tiny.SIZES, "num_hidden_layers": 1, "num_key_value_heads": 4, "head_dim": 16}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    folder = tmp_path_factory.mktemp("hrm") / "hrm"
    model = AutoModelForCausalLM.from_config(HrmTextConfig(**SIZES), dtype=torch.bfloat16)
    model.save_pretrained(folder)
    return open_checkpoint(folder)


@pytest.fixture(scope="module")
def home(checkpoint: Checkpoint) -> str:
    """The stack that the files do not tell to be one."""
    listed = " ".join(row.name for row in list_layers(checkpoint))
    return f"model.{'H' if 'L_module' in listed else 'L'}_module.layers.0"


def test_a_part_of_a_tensor_is_refused_and_a_tensor_is_not(
    checkpoint: Checkpoint, home: str
) -> None:
    part, whole = f"{home}.self_attn.q_proj", f"{home}.attn.o_proj"
    assert {row.name for row in list_layers(checkpoint)}.isdisjoint({part, whole})
    why = why_not_exported(checkpoint, {part: "int4-g32", whole: "int4-g32"})
    assert list(why) == [part]
    assert f"{home}.attn.gqkv_proj.weight', which transformers splits" in why[part]
    assert not why_not_exported(checkpoint, {part: "bf16"})
    assert why_not_exported(checkpoint, {part: "fp16"})


def test_what_is_neither_is_no_layer(checkpoint: Checkpoint) -> None:
    with pytest.raises(UsageError, match=r"has no layer 'model\.nowhere'"):
        why_not_exported(checkpoint, {"model.nowhere": "int4-g32"})
