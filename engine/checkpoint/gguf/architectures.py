"""How llama.cpp stores each family: names of tensors, what its converter changes, and its settings.

Declared once, for both directions: a file that is opened has the names on the right and its changes
undone; a checkpoint that is exported gets those on the left.

Source: ``constants.py`` and ``tensor_mapping.py`` of the ``gguf`` package, llama.cpp's converter
and ``src/models``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

Change: TypeAlias = Literal["", "query rows", "key rows", "plus one", "transposed"]
"""What the converter does to a tensor: rows of each head interleaved as llama.cpp rotates them; 1
added to the weight of a norm; transposed."""


@dataclass(frozen=True)
class Setting:
    """One entry of metadata and the field of transformers' config that it is."""

    key: str
    """Without the architecture before it."""
    field: str
    kind: Literal["whole", "real"] = "whole"
    optional: bool = False


@dataclass(frozen=True)
class Architecture:
    """One architecture of llama.cpp."""

    name: str
    """``general.architecture``."""
    model_types: tuple[str, ...]
    """The ``model_type`` values that are stored so; a file opens as the first."""
    model: str
    """The class of transformers that it opens as."""
    outer: Mapping[str, str]
    """Modules of transformers by names in GGUF, outside of blocks."""
    blocks: str
    """The list of blocks in transformers."""
    inner: Mapping[str, str]
    """As `outer`, within a block."""
    settings: tuple[Setting, ...]
    activation: str
    """What llama.cpp computes between the layers of a feed-forward network."""
    experts: Mapping[str, str] = field(default_factory=dict)
    """As `inner`, for weights of all experts in one tensor ``[experts, …]``; ``{}`` is the number
    of one. Empty unless the architecture is a mixture."""
    changes: Mapping[str, Change] = field(default_factory=dict)
    """By the last part of a name in GGUF."""
    may_untie: bool = True
    """Whether llama.cpp reads a head of its own."""
    scaled_otherwise: int = 0
    """The number of blocks for which llama.cpp divides attention by the width of a head as the
    hidden size has it, not by ``query_pre_attn_scalar``'s usual value; 0 for none."""

    def disk_name(self, name: str) -> str | None:
        """The name in transformers of a tensor in GGUF; None if the architecture has none such."""
        base, _, suffix = name.rpartition(".")
        if suffix not in ("weight", "bias"):
            return None
        match = re.fullmatch(r"blk\.([0-9]{1,6})\.(.+)", base)
        module = self.inner.get(match[2]) if match else self.outer.get(base)
        if module is None:
            return None
        home = f"{self.blocks}.{int(match[1])}." if match else ""
        return f"{home}{module}.{suffix}"

    def gguf_name(self, name: str) -> str | None:
        """The name in GGUF of a tensor in transformers; None if the architecture has none such.

        Names may lack the first part that all have in the model itself, as older files do.
        """
        first = self.blocks.partition(".")[0]
        base, _, suffix = name.rpartition(".")
        if base != "lm_head" and not base.startswith(f"{first}."):
            base = f"{first}.{base}"
        match = re.fullmatch(rf"{re.escape(self.blocks)}\.([0-9]{{1,6}})\.(.+)", base)
        names, inside = (self.inner, match[2]) if match else (self.outer, base)
        found = next((key for key, module in names.items() if module == inside), None)
        if found is None or suffix not in ("weight", "bias"):
            return None
        return f"blk.{int(match[1])}.{found}.{suffix}" if match else f"{found}.{suffix}"

    def disk_names(self, name: str, count: int) -> list[str]:
        """The names in transformers of what a tensor of GGUF holds: one, or ``count`` experts."""
        one = self.disk_name(name)
        return self.expert_names(name, count) if one is None else [one]

    def expert_names(self, name: str, count: int) -> list[str]:
        """The names in transformers of the experts in a tensor of GGUF; none if it has none."""
        match = re.fullmatch(r"blk\.([0-9]{1,6})\.([^.]+)\.weight", name)
        module = self.experts.get(match[2]) if match else None
        if match is None or module is None:
            return []
        home = f"{self.blocks}.{int(match[1])}"
        return [f"{home}.{module.format(expert)}.weight" for expert in range(count)]

    def expert_of(self, name: str) -> tuple[str, int] | None:
        """The tensor of GGUF that a tensor in transformers is one expert of, and which."""
        first = self.blocks.partition(".")[0]
        whole = name if name.startswith(f"{first}.") else f"{first}.{name}"
        for key, module in self.experts.items():
            pattern = re.escape(module).replace(r"\{\}", "([0-9]{1,6})")
            found = re.fullmatch(
                rf"{re.escape(self.blocks)}\.([0-9]{{1,6}})\.{pattern}\.weight", whole
            )
            if found:
                return f"blk.{int(found[1])}.{key}.weight", int(found[2])
        return None

    def change(self, name: str) -> Change:
        """What the converter does to a tensor, by its name in GGUF."""
        base, _, suffix = name.rpartition(".")
        found = self.changes.get(base.rpartition(".")[2], "")
        return "" if suffix == "bias" and found in ("plus one", "transposed") else found


ROUTER = "ffn_gate_inp"
"""What chooses experts."""
_OUTER = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_ATTENTION = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
}
_NETWORK = {
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_BESIDE = {**_ATTENTION, "ffn_norm": "post_attention_layernorm"}
_INNER = {**_BESIDE, **_NETWORK}
_NORMED = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
_SANDWICHED = {
    **_ATTENTION,
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
    **_NETWORK,
}
_PLUS_ONE: dict[str, Change] = dict.fromkeys(
    (
        *("attn_norm", "ffn_norm", "output_norm", "post_attention_norm", "post_ffw_norm"),
        *("attn_q_norm", "attn_k_norm"),
    ),
    "plus one",
)
_SETTINGS = (
    Setting("context_length", "max_position_embeddings"),
    Setting("embedding_length", "hidden_size"),
    Setting("block_count", "num_hidden_layers"),
    Setting("feed_forward_length", "intermediate_size"),
    Setting("attention.head_count", "num_attention_heads"),
    Setting("attention.head_count_kv", "num_key_value_heads"),
    Setting("attention.layer_norm_rms_epsilon", "rms_norm_eps", "real"),
)
_HEAD = (
    Setting("attention.key_length", "head_dim", optional=True),
    Setting("attention.value_length", "head_dim", optional=True),
)
_WINDOW = Setting("attention.sliding_window", "sliding_window", optional=True)

MIXTURES: dict[str, Architecture] = {
    each.name: each
    for each in (
        Architecture(
            name="llama",
            model_types=("mixtral",),
            model="MixtralForCausalLM",
            outer=_OUTER,
            blocks="model.layers",
            inner={**_BESIDE, ROUTER: "block_sparse_moe.gate"},
            experts={
                "ffn_gate_exps": "block_sparse_moe.experts.{}.w1",
                "ffn_up_exps": "block_sparse_moe.experts.{}.w3",
                "ffn_down_exps": "block_sparse_moe.experts.{}.w2",
            },
            settings=(
                *_SETTINGS,
                *_HEAD,
                Setting("expert_count", "num_local_experts"),
                Setting("expert_used_count", "num_experts_per_tok"),
            ),
            activation="silu",
            changes={"attn_q": "query rows", "attn_k": "key rows"},
        ),
        Architecture(
            name="qwen3moe",
            model_types=("qwen3_moe",),
            model="Qwen3MoeForCausalLM",
            outer=_OUTER,
            blocks="model.layers",
            inner={**_BESIDE, **_NORMED, ROUTER: "mlp.gate"},
            experts={
                "ffn_gate_exps": "mlp.experts.{}.gate_proj",
                "ffn_up_exps": "mlp.experts.{}.up_proj",
                "ffn_down_exps": "mlp.experts.{}.down_proj",
            },
            settings=(
                *_SETTINGS,
                *_HEAD,
                Setting("expert_count", "num_local_experts"),
                Setting("expert_used_count", "num_experts_per_tok"),
                Setting("expert_feed_forward_length", "moe_intermediate_size"),
            ),
            activation="silu",
        ),
    )
}
"""Mixtures of experts by ``general.architecture``; one of `ARCHITECTURES` may have its name."""

ARCHITECTURES: dict[str, Architecture] = {
    each.name: each
    for each in (
        Architecture(
            name="llama",
            model_types=("llama", "mistral"),
            model="LlamaForCausalLM",
            outer=_OUTER,
            blocks="model.layers",
            inner=_INNER,
            settings=(*_SETTINGS, *_HEAD),
            activation="silu",
            changes={"attn_q": "query rows", "attn_k": "key rows"},
        ),
        Architecture(
            name="qwen2",
            model_types=("qwen2",),
            model="Qwen2ForCausalLM",
            outer=_OUTER,
            blocks="model.layers",
            inner=_INNER,
            settings=_SETTINGS,
            activation="silu",
        ),
        Architecture(
            name="qwen3",
            model_types=("qwen3",),
            model="Qwen3ForCausalLM",
            outer=_OUTER,
            blocks="model.layers",
            inner={**_INNER, **_NORMED},
            settings=(*_SETTINGS, *_HEAD),
            activation="silu",
        ),
        Architecture(
            name="gemma",
            model_types=("gemma",),
            model="GemmaForCausalLM",
            outer=_OUTER,
            blocks="model.layers",
            inner=_INNER,
            settings=(*_SETTINGS, *_HEAD),
            activation="gelu_pytorch_tanh",
            changes=_PLUS_ONE,
            may_untie=False,
        ),
        Architecture(
            name="gemma2",
            model_types=("gemma2",),
            model="Gemma2ForCausalLM",
            outer=_OUTER,
            blocks="model.layers",
            inner=_SANDWICHED,
            settings=(
                *_SETTINGS,
                *_HEAD,
                _WINDOW,
                Setting("attn_logit_softcapping", "attn_logit_softcapping", "real", optional=True),
                Setting(
                    "final_logit_softcapping", "final_logit_softcapping", "real", optional=True
                ),
            ),
            activation="gelu_pytorch_tanh",
            changes=_PLUS_ONE,
            may_untie=False,
            scaled_otherwise=46,
        ),
        Architecture(
            name="gemma3",
            model_types=("gemma3_text",),
            model="Gemma3ForCausalLM",
            outer=_OUTER,
            blocks="model.layers",
            inner={**_SANDWICHED, **_NORMED},
            settings=(*_SETTINGS, *_HEAD, _WINDOW),
            activation="gelu_pytorch_tanh",
            changes=_PLUS_ONE,
            may_untie=False,
            scaled_otherwise=62,
        ),
        Architecture(
            name="phi3",
            model_types=("phi3",),
            model="Phi3ForCausalLM",
            outer=_OUTER,
            blocks="model.layers",
            inner={
                "attn_norm": "input_layernorm",
                "attn_qkv": "self_attn.qkv_proj",
                "attn_output": "self_attn.o_proj",
                "ffn_norm": "post_attention_layernorm",
                "ffn_up": "mlp.gate_up_proj",
                "ffn_down": "mlp.down_proj",
            },
            settings=(*_SETTINGS, _WINDOW),
            activation="silu",
        ),
        Architecture(
            name="gpt2",
            model_types=("gpt2",),
            model="GPT2LMHeadModel",
            outer={
                "token_embd": "transformer.wte",
                "position_embd": "transformer.wpe",
                "output_norm": "transformer.ln_f",
                "output": "lm_head",
            },
            blocks="transformer.h",
            inner={
                "attn_norm": "ln_1",
                "attn_qkv": "attn.c_attn",
                "attn_output": "attn.c_proj",
                "ffn_norm": "ln_2",
                "ffn_up": "mlp.c_fc",
                "ffn_down": "mlp.c_proj",
            },
            settings=(
                Setting("context_length", "n_positions"),
                Setting("embedding_length", "n_embd"),
                Setting("block_count", "n_layer"),
                Setting("feed_forward_length", "n_inner"),
                Setting("attention.head_count", "n_head"),
                Setting("attention.layer_norm_epsilon", "layer_norm_epsilon", "real"),
            ),
            activation="gelu_new",
            changes=dict.fromkeys(("attn_qkv", "attn_output", "ffn_up", "ffn_down"), "transposed"),
        ),
    )
}
"""All others by ``general.architecture``."""

ROPE_FREQUENCIES = "rope_freqs.weight"
"""What the frequencies of Llama 3's positions are divided by."""
ROPE_LONG, ROPE_SHORT = "rope_factors_long.weight", "rope_factors_short.weight"
"""The same for Phi-3's long and short texts."""
NOT_WEIGHTS = (ROPE_FREQUENCIES, ROPE_LONG, ROPE_SHORT)
"""Tensors that are part of the config."""


def architecture_of(model_type: object) -> Architecture | None:
    """How llama.cpp stores a model of transformers; None if not known."""
    known = (*ARCHITECTURES.values(), *MIXTURES.values())
    return next((each for each in known if model_type in each.model_types), None)


def architecture_named(name: str, *, experts: bool) -> Architecture | None:
    """The architecture of a file, by its ``general.architecture``; None if not known."""
    return (MIXTURES if experts else ARCHITECTURES).get(name)
