"""llama.cpp's classes of tensors, and the properties of a model, that its mixes go by.

No tensors: only names, roles and shapes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple, TypeAlias

from engine.protocol import Role

TensorClass: TypeAlias = Literal[
    "output",
    "token_embd",
    "attn_v",
    "attn_k",
    "attn_q",
    "attn_output",
    "ffn_down",
    "ffn_gate",
    "ffn_up",
    "other",
    "left",
]
"""The tensor classes of llama.cpp that its mixes distinguish; ``left`` is never quantised."""

_ATTENTION = ("attn", "attention", "self_attn", "self_attention")
_V = {"v_proj", "wv", "v_lin"}
_QKV = {"qkv_proj", "query_key_value", "c_attn", "wqkv", "qkv", "in_proj_qkv"}
"""One tensor of queries, keys and values, which llama.cpp treats like the values."""
_K = {"k_proj", "wk", "k_lin"}
_Q = {"q_proj", "wq", "q_lin"}
_OUT = {"o_proj", "attn_out", "out_lin"}
_OUT_OF_ATTENTION = {"out_proj", "dense", "c_proj", "wo"}
_DOWN = {
    *("down_proj", "w2", "fc2", "fc_out", "dense_4h_to_h", "output_linear", "ff_out", "lin2"),
    "linear_fc2",
}
_DOWN_OF_MLP = {"c_proj", "wo"}
_GATE = {"gate_proj", "w1", "linear_1", "c_fc_0", "c_fc2"}
_UP = {
    *("up_proj", "gate_up_proj", "w3", "fc1", "fc_in", "dense_h_to_4h", "c_fc", "ff_proj", "lin1"),
    *("linear_fc1", "linear_3", "c_fc_1", "v1"),
}
_LEFT = {"per_layer_model_projection"}

_FALCON = ("FalconForCausalLM", "RWForCausalLM")
_SEVENTY = {"LlamaForCausalLM", "MistralForCausalLM", "MixtralForCausalLM", "Qwen2ForCausalLM"}
"""Models that llama.cpp treats as one of 70 billion parameters if they have 80 blocks."""


class Row(NamedTuple):
    """A layer, from the table."""

    name: str
    kind: str
    block: int
    """-1 outside of blocks."""
    role: Role
    shape: tuple[int, ...]


class Traits(NamedTuple):
    """Properties of a model that the rules use."""

    blocks: int
    experts: int
    """0 for a dense model."""
    queries_per_key: int
    """Query heads per key-value head, rounded down."""
    falcon: bool
    seventy: bool


def tensor_class(name: str, kind: str, role: Role) -> TensorClass:
    """llama.cpp's class of a layer, from its name in transformers."""
    if role == "head":
        return "output"
    if role == "embedding":
        return "token_embd"
    home, kind = name.rpartition(".")[0].rpartition(".")[2], kind.lower()
    if kind in _LEFT:
        return "left"
    if kind in _V | _QKV:
        return "attn_v"
    if kind in _K:
        return "attn_k"
    if kind in _Q:
        return "attn_q"
    if kind in _OUT or (kind in _OUT_OF_ATTENTION and home in _ATTENTION):
        return "attn_output"
    if kind in _DOWN or (kind in _DOWN_OF_MLP and home == "mlp"):
        return "ffn_down"
    if kind in _GATE:
        return "ffn_gate"
    return "ffn_up" if kind in _UP else "other"


def traits_of(rows: Sequence[Row], architecture: str) -> Traits:
    """Properties of a model that the rules use, from its layers.

    The ratio of heads comes from the first block with attention: inputs of the output projection
    over outputs of the value projection.
    """
    blocks = 1 + max((row.block for row in rows), default=-1)
    experts = max((row.shape[0] for row in rows if row.role == "experts"), default=0)
    shared = _queries_per_key(rows)
    # A Llama with 80 blocks and without shared keys is the one of 65 billion.
    seventy = architecture in _SEVENTY and blocks == 80
    if architecture != "Qwen2ForCausalLM":
        seventy = seventy and shared > 1
    return Traits(blocks, experts, shared, architecture in _FALCON, seventy)


def _queries_per_key(rows: Iterable[Row]) -> int:
    by_block: dict[int, dict[str, Row]] = {}
    for row in rows:
        of_block = by_block.setdefault(row.block, {})
        kind = tensor_class(row.name, row.kind, row.role)
        if kind in ("attn_v", "attn_output"):
            of_block.setdefault(kind, row)
    for _, found in sorted(by_block.items()):
        if len(found) == 2:
            values, read = found["attn_v"], found["attn_output"].shape[-1]
            each = values.shape[-2]
            if values.kind.lower() in _QKV:
                each = (each - read) // 2
            return read // each if each > 0 else 1
    return 1


def more_bits(block: int, blocks: int) -> bool:
    """Whether a block is one of those that ``_M`` mixes favour: both ends, and every third."""
    eighth = blocks // 8
    return block < eighth or block >= 7 * blocks // 8 or (block - eighth) % 3 == 2
