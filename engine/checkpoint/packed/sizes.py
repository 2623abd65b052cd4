"""The shape of a linear layer whose file holds only how many weights it has.

Most layers of a block read the model's hidden states or write to them, and by its name it is known
which: one of the two sizes is then that of the config, and the other follows.
"""

from __future__ import annotations

from engine.checkpoint.checkpoint import Checkpoint

_READ = frozenset(
    (
        *("q_proj", "k_proj", "v_proj", "qkv_proj", "query_key_value", "W_pack", "Wqkv"),
        *("q_a_proj", "kv_a_proj_with_mqa", "in_proj", "gate_proj", "up_proj", "gate_up_proj"),
        *("w1", "w3", "fc1", "fc_in", "dense_h_to_4h", "lm_head", "embed_out"),
    )
)
"""Layers whose inputs are hidden states."""
_WRITE = frozenset(
    ("o_proj", "out_proj", "dense", "down_proj", "w2", "wo", "fc2", "fc_out", "dense_4h_to_h")
)
"""Layers whose outputs are added to them."""
_HIDDEN = ("hidden_size", "n_embd", "d_model")


def linear_shape(checkpoint: Checkpoint, module: str, weights: int) -> tuple[int, int] | None:
    """``[out, in]`` of a linear layer with so many weights; None if it cannot be told.

    By its bias, else by the hidden size and its name.
    """
    bias = checkpoint.tensors.get(f"{module}.bias")
    out = bias.elements if bias is not None and len(bias.shape) == 1 else 0
    if not out:
        kind, hidden = module.rpartition(".")[2], _hidden_size(checkpoint)
        if kind in _READ and hidden and weights % hidden == 0:
            return weights // hidden, hidden
        out = hidden if kind in _WRITE else 0
    return (out, weights // out) if out and weights % out == 0 else None


def _hidden_size(checkpoint: Checkpoint) -> int:
    text = checkpoint.config.get("text_config")
    for config in (text if isinstance(text, dict) else {}, checkpoint.config):
        for key in _HIDDEN:
            if type(size := config.get(key)) is int:
                return max(0, int(size))
    return 0
