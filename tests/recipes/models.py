"""Models whose mixes llama.cpp was asked for: names, roles and shapes of their layers alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from engine.recipes.tensor_classes import Row

WIDTH = 256
INNER = 512
VOCABULARY = 64


class Model(NamedTuple):
    """A model in the words of transformers, with what llama.cpp asks of its file."""

    architecture: str
    gguf: str
    """What llama.cpp calls the architecture."""
    blocks: int
    heads: int = 4
    key_heads: int = 4
    experts: int = 0
    shared: bool = False
    """Whether an expert is shared by all tokens."""
    tied: bool = False
    width: int = WIDTH
    inner: int = INNER

    def rows(self) -> list[Row]:
        """The layers in the order of the model; a tied head is among them."""
        found = [Row(self._outside("embedding"), "", -1, "embedding", (VOCABULARY, self.width))]
        for block in range(self.blocks):
            for path, shape in self._in_block().items():
                home = "transformer.h" if self.gguf in ("gpt2", "falcon") else "model.layers"
                role = "experts" if len(shape) == 3 else "linear"
                name = f"{home}.{block}.{path}"
                found.append(Row(name, path.rpartition(".")[2], block, role, shape))
        found.append(Row(self._outside("head"), "lm_head", -1, "head", (VOCABULARY, self.width)))
        return found

    def _outside(self, role: str) -> str:
        tables = {"gpt2": "transformer.wte", "falcon": "transformer.word_embeddings"}
        return "lm_head" if role == "head" else tables.get(self.gguf, "model.embed_tokens")

    def _in_block(self) -> Mapping[str, tuple[int, ...]]:
        width, inner = self.width, self.inner
        values = width // self.heads * self.key_heads
        if self.gguf == "gpt2":
            return {
                "attn.c_attn": (3 * width, width),
                "attn.c_proj": (width, width),
                "mlp.c_fc": (inner, width),
                "mlp.c_proj": (width, inner),
            }
        if self.gguf == "falcon":
            return {
                "self_attention.query_key_value": (width + 2 * values, width),
                "self_attention.dense": (width, width),
                "mlp.dense_h_to_4h": (inner, width),
                "mlp.dense_4h_to_h": (width, inner),
            }
        if self.gguf == "phi3":
            return {
                "self_attn.qkv_proj": (width + 2 * values, width),
                "self_attn.o_proj": (width, width),
                "mlp.gate_up_proj": (2 * inner, width),
                "mlp.down_proj": (width, inner),
            }
        attention = {
            "self_attn.q_proj": (width, width),
            "self_attn.k_proj": (values, width),
            "self_attn.v_proj": (values, width),
            "self_attn.o_proj": (width, width),
        }
        dense = {
            "gate_proj": (inner, width),
            "up_proj": (inner, width),
            "down_proj": (width, inner),
        }
        if not self.experts:
            return {**attention, **{f"mlp.{kind}": shape for kind, shape in dense.items()}}
        fused = {
            "mlp.experts.gate_up_proj": (self.experts, 2 * inner, width),
            "mlp.experts.down_proj": (self.experts, width, inner),
        }
        beside = {f"mlp.shared_expert.{kind}": shape for kind, shape in dense.items()}
        return {**attention, **fused, **(beside if self.shared else {})}


MODELS = {
    "three blocks": Model("LlamaForCausalLM", "llama", 3),
    "sixteen blocks, keys of two heads": Model("LlamaForCausalLM", "llama", 16, 4, 2),
    "thirty-two blocks, keys of four heads": Model("LlamaForCausalLM", "llama", 32, 4, 1),
    "tied": Model("Qwen3ForCausalLM", "qwen3", 9, 4, 2, tied=True),
    "eighty blocks, shared keys": Model("LlamaForCausalLM", "llama", 80, 8, 2),
    "eighty blocks, a key a head": Model("LlamaForCausalLM", "llama", 80),
    "eighty blocks of another kind": Model("Qwen2ForCausalLM", "qwen2", 80, 8, 4),
    "eight experts": Model("MixtralForCausalLM", "llama", 12, 4, 1, experts=8, inner=256),
    "four experts": Model("MixtralForCausalLM", "llama", 10, 4, 2, experts=4, inner=256),
    "a shared expert": Model(
        "Qwen2MoeForCausalLM", "qwen2moe", 9, 4, 4, experts=6, shared=True, inner=256
    ),
    "gpt2": Model("GPT2LMHeadModel", "gpt2", 12, tied=True),
    "falcon": Model("FalconForCausalLM", "falcon", 32, 4, 1),
    "phi3": Model("Phi3ForCausalLM", "phi3", 11, 4, 2),
    "rows of 320 and 544": Model("LlamaForCausalLM", "llama", 8, 5, 1, width=320, inner=544),
    "rows of 256 and 288": Model("LlamaForCausalLM", "llama", 5, 4, 2, inner=288),
    "rows of 320, tied": Model("LlamaForCausalLM", "llama", 4, 5, 5, width=320, tied=True),
    "rows of 80 and 512": Model("LlamaForCausalLM", "llama", 4, 5, 1, width=80),
}
