"""Tiny checkpoints as GGUF, by the rules of llama.cpp's converter: independent of qtui's own.

Names come from the ``gguf`` package's map, metadata from its writer's methods.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import (
    MODEL_ARCH,
    GGMLQuantizationType,
    GGUFWriter,
    RopeScalingType,
    TokenType,
    get_tensor_name_map,
    quantize,
)
from transformers import AutoModelForCausalLM, AutoTokenizer

ARCHITECTURES = {
    "mistral": "llama", "mixtral": "llama", "gemma3_text": "gemma3", "qwen3_moe": "qwen3moe"
}  # fmt: skip


def convert(folder: Path, out: Path, kind: str = "F32") -> Path:
    """Write a checkpoint as GGUF, matrices in a type that the package quantises to."""
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    config = model.config.to_dict()
    name = ARCHITECTURES.get(config["model_type"], config["model_type"])
    writer = GGUFWriter(out, name)
    _settings(writer, name, config)
    _tokens(writer, AutoTokenizer.from_pretrained(folder), config["vocab_size"])
    arch = MODEL_ARCH[name.upper()]
    names = get_tensor_name_map(arch, config.get("num_hidden_layers", config.get("n_layer")))
    tied = config["tie_word_embeddings"]
    for key, tensor in _with_experts_apart(model.state_dict()).items():
        if tied and key == "lm_head.weight":
            continue
        stored = names.get_name(key, (".weight", ".bias"))
        assert stored is not None, key
        data = _changed(name, key, tensor.float().numpy(), config)
        plain = data.ndim == 1 or "position_embd" in stored or "gate_inp" in stored
        to = GGMLQuantizationType.F32 if plain else GGMLQuantizationType[kind]
        data = np.ascontiguousarray(data)
        writer.add_tensor(stored, data if to == 0 else quantize(data, to), raw_dtype=to)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return out


def _with_experts_apart(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Gates and ups of experts, which transformers has in one tensor, in two."""
    found = {}
    for key, tensor in tensors.items():
        home, _, last = key.rpartition(".experts.")
        if last == "gate_up_proj":
            gate, up = tensor.chunk(2, 1)
            found[f"{home}.experts.gate_proj.weight"] = gate
            found[f"{home}.experts.up_proj.weight"] = up
        else:
            found[f"{key}.weight" if home else key] = tensor
    return found


def _changed(arch: str, key: str, data: np.ndarray, config: dict[str, Any]) -> np.ndarray:
    part = key.split(".")[-2]
    if arch == "llama" and part in ("q_proj", "k_proj"):
        of = "num_attention_heads" if part == "q_proj" else "num_key_value_heads"
        heads = config[of]
        halves = data.reshape(heads, 2, data.shape[0] // heads // 2, *data.shape[1:])
        return halves.swapaxes(1, 2).reshape(data.shape)
    if arch.startswith("gemma") and key.endswith("norm.weight"):
        return data + 1
    if arch == "gpt2" and part in ("c_attn", "c_proj", "c_fc") and data.ndim == 2:
        return data.T
    return data


def _settings(writer: GGUFWriter, arch: str, config: dict[str, Any]) -> None:
    if arch == "gpt2":
        writer.add_context_length(config["n_positions"])
        writer.add_embedding_length(config["n_embd"])
        writer.add_block_count(config["n_layer"])
        writer.add_feed_forward_length(4 * config["n_embd"])
        writer.add_head_count(config["n_head"])
        writer.add_layer_norm_eps(config["layer_norm_epsilon"])
        return
    width = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_dimension_count(width)
    if config.get("head_dim"):
        writer.add_key_length(width)
        writer.add_value_length(width)
    count = config.get("num_local_experts") or config.get("num_experts")
    if count:
        writer.add_expert_count(count)
        writer.add_expert_used_count(config["num_experts_per_tok"])
    if arch == "qwen3moe":
        writer.add_expert_feed_forward_length(config["moe_intermediate_size"])
    if config.get("sliding_window") and arch != "llama":
        writer.add_sliding_window(config["sliding_window"])
    for name in ("attn_logit_softcapping", "final_logit_softcapping"):
        if arch == "gemma2":
            getattr(writer, f"add_{name}")(config[name])
    rope = config["rope_parameters"]
    rope = rope.get("full_attention", rope)
    writer.add_rope_freq_base(rope["rope_theta"])
    kind = rope["rope_type"]
    if kind == "yarn":
        writer.add_rope_scaling_type(RopeScalingType.YARN)
        writer.add_rope_scaling_factor(rope["factor"])
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
    elif kind == "llama3":
        writer.add_tensor("rope_freqs.weight", _llama3(rope, width))
    elif kind == "longrope":
        original, context = (
            rope["original_max_position_embeddings"],
            config["max_position_embeddings"],
        )
        writer.add_rope_scaling_type(RopeScalingType.LONGROPE)
        writer.add_rope_scaling_orig_ctx_len(original)
        writer.add_rope_scaling_attn_factors(
            float(np.sqrt(1 + np.log(context / original) / np.log(original)))
        )
        for name in ("long", "short"):
            factors = np.array(rope[f"{name}_factor"], dtype=np.float32)
            writer.add_tensor(f"rope_factors_{name}.weight", factors)


def _llama3(rope: dict[str, Any], width: int) -> np.ndarray:
    """What frequencies are divided by, from the formula of Llama 3."""
    frequencies = rope["rope_theta"] ** -(np.arange(0, width, 2) / width)
    turns = rope["original_max_position_embeddings"] * frequencies / (2 * np.pi)
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    smooth = np.clip((turns - low) / (high - low), 0, 1)
    return (1 / ((1 - smooth) / rope["factor"] + smooth)).astype(np.float32)


def _tokens(writer: GGUFWriter, tokenizer: Any, count: int) -> None:
    names = {number: token for token, number in tokenizer.get_vocab().items()}
    added = tokenizer.added_tokens_decoder
    tokens, types = [], []
    for number in range(count):
        token = names.get(number, f"[PAD{number}]")
        if number not in names:
            kind = TokenType.UNUSED
        elif token == tokenizer.unk_token:
            kind = TokenType.UNKNOWN
        elif number in added:
            kind = TokenType.CONTROL if added[number].special else TokenType.USER_DEFINED
        elif token.startswith("<0x"):
            kind = TokenType.BYTE
        else:
            kind = TokenType.NORMAL
        tokens.append(token)
        types.append(kind)
    import json

    state = json.loads(tokenizer.backend_tokenizer.to_str())
    merges = list(state["model"].get("merges", ()))
    if state["model"]["type"] == "Unigram":
        writer.add_tokenizer_model("t5")
        scores = [score for _, score in state["model"]["vocab"]]
        writer.add_token_scores(scores + [-1e6] * (count - len(scores)))
        writer.add_add_space_prefix(True)
        writer.add_remove_extra_whitespaces(True)
        writer.add_add_bos_token(False)
        writer.add_add_eos_token(False)
    elif state["model"]["byte_fallback"]:
        writer.add_tokenizer_model("llama")
        writer.add_add_space_prefix("Prepend" in str(state["normalizer"]))
        ranks = {left + right: rank for rank, (left, right) in reversed(list(enumerate(merges)))}
        writer.add_token_scores([-float(ranks.get(token, 1000)) for token in tokens])
    else:
        from tests.checkpoint.gguf.models import PRE_TOKENIZERS

        writer.add_tokenizer_model("gpt2")
        wanted = state["pre_tokenizer"]
        found = [name for name, rule in PRE_TOKENIZERS.items() if rule == wanted]
        ignores = state["model"]["ignore_merges"]
        writer.add_tokenizer_pre("llama-bpe" if ignores else found[0])
        writer.add_token_merges([f"{left} {right}" for left, right in merges])
        writer.add_add_bos_token(False)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    for key in ("bos", "eos", "unk"):
        if (number := getattr(tokenizer, f"{key}_token_id")) is not None:
            getattr(writer, f"add_{key}_token_id")(number)
    if tokenizer.chat_template:
        writer.add_chat_template(tokenizer.chat_template)
