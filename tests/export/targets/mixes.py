"""A small checkpoint, and for every target a recipe of the formats that it can hold."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from engine.checkpoint import Checkpoint, open_checkpoint

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP = ("gate_proj", "up_proj", "down_proj")
LINEAR = tuple(
    f"model.layers.{block}.{home}.{kind}"
    for block in range(2)
    for home, kinds in (("self_attn", ATTENTION), ("mlp", MLP))
    for kind in kinds
)
EMBEDDING, HEAD = "model.embed_tokens", "lm_head"

FORMATS = {
    "llm-compressor": (
        "int4-g32", "int4-g64-sym", "int8", "int8+a8", "int3-channel-sym", "fp8-e4m3",
        "fp8-e4m3-tensor", "fp8-e4m3-block128", "int4-g32+gptq", "int4-g32-sym+gptq:actorder",
        "int4-g32+gptq:damp=.05", "mxfp4", "nvfp4",
    ),
    "gptqmodel": (
        "int4-g32", "int4-g32", "int8", "int4-g64-sym", "int3-g32-sym+gptq:actorder",
        "int4-g32+gptq:damp=.02", "int2-g32", "int4-g32+gptq:actorder:static",
    ),
    "auto-round": ("int4-g32", "int8-g64", "int4-channel-sym", "int2-g32", "mxfp4", "fp8-e4m3"),
    "model-optimizer": (
        "int4-g32-sym", "int8", "fp8-e4m3", "fp8-e4m3-tensor", "fp8-e4m3-block128", "mxfp4",
        "nvfp4", "mxfp8",
    ),
    "torchao": (
        "int4-g32", "int4-g64-sym", "int8", "int8-tensor", "int8+a8", "int3-channel-sym",
        "fp8-e4m3", "fp8-e5m2", "fp8-e4m3-tensor", "int8-g32",
    ),
    "bitsandbytes": ("nf4-g64:dq",),
    "mlx": ("int4-g32", "int8-g64-asym", "int3-g128", "mxfp4", "nvfp4", "int6-g32", "mxfp8"),
    "exllamav3": ("int4-g128", "int3-g128", "int5-g64-sym", "int8"),
    "quark": (
        "int4-g32-sym", "int4-g32", "int8", "int8-asym", "int3-g32-sym", "fp8-e4m3", "fp8-e5m2",
        "fp8-e4m3-tensor", "mxfp4", "mxfp8", "int2-channel-sym",
    ),
    "llama-quantize": ("q4_k", "q6_k", "q8_0", "q3_k", "iq4_xs", "q5_0", "q2_k", "q4_1",
                       "iq3_s+imatrix", "iq2_xs+imatrix"),
}  # fmt: skip
"""Formats by target; HQQ's and those that must be alike have recipes of their own."""
KEPT = (2, 9)
"""Numbers of linear layers that every recipe leaves as they are."""


def recipe_for(target: str) -> dict[str, str]:
    """A recipe that has every format of `FORMATS` at least once."""
    if target == "hqq":
        kinds = dict(zip(ATTENTION, ("int4-g64+hqq", "int3-g32+hqq", "", "int8-g128-asym+hqq"),
                         strict=True))  # fmt: skip
        return {
            layer: kinds[layer.rpartition(".")[2]]
            for layer in LINEAR
            if kinds.get(layer.rpartition(".")[2])
        }
    formats = FORMATS[target]
    wanted = [layer for at, layer in enumerate(LINEAR) if at not in KEPT]
    found = {layer: formats[at % len(formats)] for at, layer in enumerate(wanted)}
    outside = {"mlx": ("int4-g64", "int6-g32"), "llama-quantize": ("q6_k", "q8_0")}
    if target in outside:
        found[EMBEDDING], found[HEAD] = outside[target]
    elif target in ("exllamav3", "gptqmodel", "llm-compressor"):
        found[HEAD] = formats[-1]
    return found


def save_tiny(folder: Path, *, tied: bool = False) -> Checkpoint:
    """A Llama of two blocks, with rows that blocks of 256 divide."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=256, intermediate_size=512, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=320, max_position_embeddings=64,
        tie_word_embeddings=tied, dtype="bfloat16",
    )  # fmt: skip
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    return open_checkpoint(folder)
