"""Tiny random checkpoints of models that see or hear beside their language model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from tests.tiny import VOCABULARY, tokenizer

TEXT: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 128,
    "bos_token_id": 256,
    "eos_token_id": 256,
    "pad_token_id": None,
}
ROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}
SIGHT: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 16,
}
QWEN_SIGHT = {"depth": 1, "embed_dim": 32, "hidden_size": 64, "num_heads": 2, "patch_size": 4}
IMAGE = 300

WRAPPERS: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen2_vl": (
        "Qwen2VLConfig",
        {
            "text_config": {**TEXT, "rope_parameters": ROPE},
            "vision_config": QWEN_SIGHT,
            "image_token_id": IMAGE,
            "video_token_id": IMAGE + 1,
            "tie_word_embeddings": False,
        },
    ),
    "qwen2_5_vl": (
        "Qwen2_5_VLConfig",
        {
            "text_config": {**TEXT, "rope_parameters": ROPE},
            "vision_config": {
                "depth": 1,
                "hidden_size": 32,
                "out_hidden_size": 64,
                "intermediate_size": 64,
                "num_heads": 2,
            },
            "image_token_id": IMAGE,
            "tie_word_embeddings": True,
        },
    ),
    "qwen3_vl": (
        "Qwen3VLConfig",
        {
            "text_config": {**TEXT, "rope_parameters": ROPE},
            "vision_config": {
                "depth": 1,
                "hidden_size": 32,
                "out_hidden_size": 64,
                "intermediate_size": 64,
                "num_heads": 2,
                "deepstack_visual_indexes": [0],
            },
            "image_token_id": IMAGE,
            "tie_word_embeddings": False,
        },
    ),
    "mistral3": (
        "Mistral3Config",
        {
            "text_config": {**TEXT, "model_type": "mistral"},
            "vision_config": {**SIGHT, "model_type": "pixtral", "head_dim": 16},
            "image_token_index": IMAGE,
        },
    ),
    "llava": (
        "LlavaConfig",
        {
            "text_config": {**TEXT, "model_type": "llama"},
            "vision_config": {**SIGHT, "model_type": "clip_vision_model"},
            "image_token_index": IMAGE,
        },
    ),
    "llava_next": (
        "LlavaNextConfig",
        {
            "text_config": {**TEXT, "model_type": "mistral"},
            "vision_config": {**SIGHT, "model_type": "clip_vision_model"},
            "image_token_index": IMAGE,
        },
    ),
    "llava_onevision": (
        "LlavaOnevisionConfig",
        {
            "text_config": {**TEXT, "model_type": "qwen2"},
            "vision_config": {**SIGHT, "model_type": "siglip_vision_model"},
            "image_token_index": IMAGE,
        },
    ),
    "smolvlm": (
        "SmolVLMConfig",
        {
            "text_config": {**TEXT, "model_type": "llama"},
            "vision_config": SIGHT,
            "image_token_id": IMAGE,
            "pad_token_id": 256,
        },
    ),
    "idefics3": (
        "Idefics3Config",
        {
            "text_config": {**TEXT, "model_type": "llama"},
            "vision_config": SIGHT,
            "image_token_id": IMAGE,
            "pad_token_id": 256,
        },
    ),
    "voxtral": (
        "VoxtralConfig",
        {
            "text_config": {**TEXT, "model_type": "llama"},
            "audio_config": {
                "hidden_size": 32,
                "intermediate_size": 128,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "num_mel_bins": 8,
                "max_source_positions": 32,
            },
            "audio_token_id": IMAGE,
        },
    ),
}


def build(kind: str, folder: Path, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> Path:
    """Write a tiny checkpoint with its tokenizer to ``folder``, and return it."""
    import transformers

    config_name, fields = WRAPPERS[kind]
    config = getattr(transformers, config_name)(**fields)
    torch.manual_seed(seed)
    model = transformers.AutoModelForMultimodalLM.from_config(config, dtype=torch.float32)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, parameter in sorted(model.named_parameters()):
            if parameter.dim() > 1:
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.copy_(noise * 1.5 / parameter.shape[-1] ** 0.5)
    model.to(dtype).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder
