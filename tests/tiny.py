"""Tiny random checkpoints of many architectures, written as their real ones are."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch

VOCABULARY = 320
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": None,
    "bos_token_id": 256,
    "eos_token_id": 256,
}
EXPERTS = {"num_experts_per_tok": 2}

ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", {**SIZES, "tie_word_embeddings": False}),
    "qwen3": ("Qwen3Config", {**SIZES, "head_dim": 16, "tie_word_embeddings": True}),
    "gemma3": (
        "Gemma3TextConfig",
        {**SIZES, "head_dim": 16, "sliding_window": 8, "query_pre_attn_scalar": 16},
    ),
    "mistral": ("MistralConfig", {**SIZES, "sliding_window": 8}),
    "phi3": ("Phi3Config", SIZES),
    "gpt2": (
        "GPT2Config",
        {
            "vocab_size": VOCABULARY,
            "n_embd": 64,
            "n_layer": 3,
            "n_head": 4,
            "n_positions": 128,
            "bos_token_id": 256,
            "eos_token_id": 256,
        },
    ),
    "opt": (
        "OPTConfig",
        {
            "vocab_size": VOCABULARY,
            "hidden_size": 64,
            "word_embed_proj_dim": 64,
            "ffn_dim": 128,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "max_position_embeddings": 128,
            "pad_token_id": 1,
            "bos_token_id": 256,
            "eos_token_id": 256,
        },
    ),
    "falcon": (
        "FalconConfig",
        {
            "vocab_size": VOCABULARY,
            "hidden_size": 64,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "multi_query": True,
            "parallel_attn": True,
            "bos_token_id": 256,
            "eos_token_id": 256,
        },
    ),
    "qwen3_moe": (
        "Qwen3MoeConfig",
        {**SIZES, **EXPERTS, "head_dim": 16, "num_experts": 4, "moe_intermediate_size": 32},
    ),
    "mixtral": ("MixtralConfig", {**SIZES, **EXPERTS, "num_local_experts": 4}),
    "gemma4": (
        "Gemma4TextConfig",
        {
            **SIZES,
            "num_hidden_layers": 4,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
            "num_kv_shared_layers": 2,
            "head_dim": 16,
            "global_head_dim": 16,
            "sliding_window": 8,
            "vocab_size_per_layer_input": VOCABULARY,
            "hidden_size_per_layer_input": 16,
        },
    ),
}
PLACED: dict[str, tuple[str, dict[str, Any]]] = {
    "opt_projected": (
        "OPTConfig",
        {
            **ARCHITECTURES["opt"][1],
            "word_embed_proj_dim": 32,
            "do_layer_norm_before": False,
        },
    ),
    "zamba2": (
        "Zamba2Config",
        {
            **SIZES,
            "num_hidden_layers": 6,
            "num_key_value_heads": 4,
            "layers_block_type": ["mamba", "hybrid", "mamba", "mamba", "hybrid", "mamba"],
            "num_mem_blocks": 1,
            "mamba_d_state": 16,
            "n_mamba_heads": 4,
            "mamba_headdim": 32,
            "mamba_ngroups": 1,
            "chunk_size": 16,
            "adapter_rank": 8,
        },
    ),
    "gemma4_per_layer": (
        "Gemma4TextConfig",
        {**ARCHITECTURES["gemma4"][1], "num_kv_shared_layers": 0},
    ),
    "gemma3n": (
        "Gemma3nTextConfig",
        {
            **SIZES,
            "num_hidden_layers": 2,
            "layer_types": ["sliding_attention", "full_attention"],
            "num_kv_shared_layers": 0,
            "head_dim": 16,
            "sliding_window": 8,
            "laurel_rank": 8,
            "activation_sparsity_pattern": [0.0, 0.0],
            "vocab_size_per_layer_input": VOCABULARY,
            "hidden_size_per_layer_input": 16,
        },
    ),
}
"""Models with layers that do not act where their names say."""
UNCALLED: dict[str, tuple[str, dict[str, Any]]] = {
    "mamba": (
        "MambaConfig",
        {
            "vocab_size": VOCABULARY,
            "hidden_size": 64,
            "num_hidden_layers": 2,
            "state_size": 8,
        },
    ),
}
"""Models with layers whose weights are taken without calling them."""
IN_GGUF: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen2": ("Qwen2Config", {**SIZES, "tie_word_embeddings": True}),
    "gemma": ("GemmaConfig", {**SIZES, "head_dim": 16}),
    "gemma2": (
        "Gemma2Config",
        {**SIZES, "head_dim": 16, "sliding_window": 8, "query_pre_attn_scalar": 16},
    ),
}
"""Further models that llama.cpp's files hold."""
RESUMABLE = tuple(arch for arch in ARCHITECTURES if arch != "gemma4")


def build(
    arch: str,
    folder: Path,
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    shards: int = 1,
    **overrides: Any,
) -> Path:
    """Writes a tiny checkpoint with its tokenizer to ``folder`` and returns ``folder``.

    Matrices are drawn with standard deviation ``1.5 / √in``, so that logits differ between tokens.

    Args:
        shards: at least this many weight files.
        overrides: fields of the architecture's config.
    """
    import transformers

    config_name, fields = (ARCHITECTURES | PLACED | UNCALLED | IN_GGUF)[arch]
    config = getattr(transformers, config_name)(**{**fields, **overrides})
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() > 1:
                parameter.copy_(noise * 1.5 / parameter.shape[-1] ** 0.5)
            elif "norm" in name or "ln" in name:
                parameter.add_(noise * 0.1)
            else:
                parameter.copy_(noise * 0.1)
    model.to(dtype)
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    model.save_pretrained(folder, max_shard_size=2 * size if shards == 1 else size // shards)
    tokenizer().save_pretrained(folder)
    return folder


def deep_gpt2(folder: Path, blocks: int = 500) -> Path:
    """A ``gpt2`` of many thin blocks, four quantisable layers each: 500 of them are 2,000 layers.

    Residual branches are scaled by ``1 / √(2 · blocks)``, as GPT-2's are when they are drawn: what
    comes out of so many blocks is neither nought nor without end.
    """
    build("gpt2", folder, n_layer=blocks, n_embd=32, n_head=2)
    from safetensors.torch import load_file, save_file

    path = folder / "model.safetensors"
    tensors = load_file(path)
    for name in tensors:
        if name.endswith("c_proj.weight"):
            tensors[name] /= (2 * blocks) ** 0.5
    save_file(tensors, path, metadata={"format": "pt"})
    return folder


def tokenizer() -> Any:
    """One token a byte, and an end token: 257 in all; nothing is downloaded."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: i for i, letter in enumerate(alphabet)}
    inner = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<|end|>")


def ids(batch: int, tokens: int, *, seed: int = 1) -> torch.Tensor:
    """Random token ids ``[batch, tokens]`` that every tiny model knows."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(2, 256, (batch, tokens), generator=generator)


def main() -> None:
    """Write a checkpoint to a folder, to open it by hand: ``python -m tests.tiny gpt2 FOLDER``."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("kind", choices=["deep-gpt2", *ARCHITECTURES])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--blocks", type=int, default=500, help="of deep-gpt2")
    given = parser.parse_args()
    if given.kind == "deep-gpt2":
        deep_gpt2(given.folder, given.blocks)
    else:
        build(given.kind, given.folder)


if __name__ == "__main__":
    main()
