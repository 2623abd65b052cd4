"""Tiny models of every family that GGUF files are read of, with tokenizers of both kinds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from engine.checkpoint.gguf.pre_tokenizers import IGNORE_MERGES, PRE_TOKENIZERS
from engine.checkpoint.gguf.unigram import ENDS
from tests import tiny

ROPE_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10_000.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
ROPE_LONG = {
    "rope_type": "longrope",
    "rope_theta": 10_000.0,
    "short_factor": [1.0 + 0.01 * i for i in range(8)],
    "long_factor": [1.5 + 0.1 * i for i in range(8)],
    "original_max_position_embeddings": 512,
}
FAMILIES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("llama", "llama-bpe", {}),
    "llama3": ("llama", "smollm", {"rope_parameters": ROPE_LLAMA3, "attention_bias": True}),
    "llama-yarn": (
        "llama",
        "pieces",
        {
            "tie_word_embeddings": True,
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 10_000.0,
                "factor": 2.0,
                "original_max_position_embeddings": 64,
            },
        },
    ),
    "mistral": ("mistral", "pieces", {"sliding_window": None}),
    "llama-unigram": ("llama", "unigram", {}),
    "qwen2": ("qwen2", "qwen2", {"tie_word_embeddings": False}),
    "qwen3": ("qwen3", "qwen2", {}),
    "gemma": ("gemma", "pieces alone", {}),
    "gemma2": ("gemma2", "pieces alone", {"head_dim": 256, "query_pre_attn_scalar": 256}),
    "gemma3": (
        "gemma3",
        "pieces alone",
        {"num_hidden_layers": 7, "head_dim": 256, "query_pre_attn_scalar": 256},
    ),
    "phi3": ("phi3", "pieces", {}),
    "phi3-long": (
        "phi3",
        "pieces",
        {
            "rope_parameters": ROPE_LONG,
            "original_max_position_embeddings": 512,
            "max_position_embeddings": 1024,
        },
    ),
    "gpt2": ("gpt2", "gpt-2", {}),
    "mixtral": ("mixtral", "pieces", {"sliding_window": None}),
    "qwen3moe": ("qwen3_moe", "qwen2", {"norm_topk_prob": True}),
}
"""Name → model of `tests.tiny`, kind of tokenizer, fields of its config."""

TEXT = (
    "The quick brown fox jumps over the lazy dog. It's 12345 o'clock, and they're late!\n\n"
    "  def f(x):\n\treturn x ** 2  # naïve café — 数学 🙂\r\n"
) * 3


def build(family: str, folder: Path, **overrides: Any) -> Path:
    """Write a family's tiny checkpoint, with a tokenizer of its kind."""
    arch, kind, fields = FAMILIES[family]
    tiny.build(arch, folder, **{**fields, **overrides})
    tokenizer(kind).save_pretrained(folder)
    return folder


def tokenizer(kind: str) -> Any:
    """A tokenizer of fewer than 320 tokens, trained on `TEXT`."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    if kind == "unigram":
        return _unigram()
    if kind.startswith("pieces"):
        return _pieces(prefix=kind == "pieces")
    import json

    inner = Tokenizer(models.BPE(ignore_merges=kind in IGNORE_MERGES))
    state = json.loads(inner.to_str()) | {"pre_tokenizer": PRE_TOKENIZERS[kind]}
    if kind == "qwen2":
        state["normalizer"] = {"type": "NFC"}
    inner = Tokenizer.from_str(json.dumps(state))
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=["<|end|>", "<|im|>"],
        show_progress=False,
    )
    inner.train_from_iterator([TEXT], trainer)
    made = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<|end|>", bos_token="<|im|>")
    made.add_tokens([AddedToken("<tool>", normalized=False)])
    made.chat_template = "{% for m in messages %}<|im|>{{ m['content'] }}{% endfor %}"
    return made


def _unigram() -> Any:
    """As SentencePiece's unigram pieces are: scores, one space between words, and before a text."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.Unigram())
    inner.normalizer = normalizers.Sequence(
        [normalizers.Replace(Regex(ENDS), ""), normalizers.Replace(Regex(" {2,}"), " ")]
    )
    inner.pre_tokenizer = pre_tokenizers.Metaspace()
    inner.decoder = decoders.Metaspace()
    inner.train_from_iterator(
        [TEXT],
        trainers.UnigramTrainer(
            vocab_size=200, special_tokens=["<unk>", "<s>", "</s>"], unk_token="<unk>",
            show_progress=False,
        ),
    )  # fmt: skip
    made = PreTrainedTokenizerFast(
        tokenizer_object=inner, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )
    made.chat_template = "{% for m in messages %}<s>{{ m['content'] }}{% endfor %}"
    return made


def _pieces(*, prefix: bool) -> Any:
    """As SentencePiece's are: bytes that are pieces, BOS, and perhaps a space before the text."""
    from tokenizers import Tokenizer, decoders, models, normalizers, processors
    from transformers import PreTrainedTokenizerFast

    special = ["<unk>", "<s>", "</s>", "<|endoftext|>"]  # llama.cpp wants the last of Phi-3
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    letters = sorted({*"▁TheQuickbrown.,!'0123456789abcdefgijlmopqstvxyz"})
    words = [("▁", "t"), ("h", "e"), ("▁t", "he"), ("o", "w"), ("q", "u"), ("i", "ck")]
    words.insert(5, ("c", "k"))
    tokens = [*special, *bytes_, *letters]
    merges = []
    for left, right in words:
        if left + right not in tokens:
            tokens.append(left + right)
        merges.append((left, right))
    vocabulary = {token: number for number, token in enumerate(tokens)}
    inner = Tokenizer(
        models.BPE(
            vocab=vocabulary, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True
        )
    )
    first = [normalizers.Prepend("▁")] if prefix else []
    inner.normalizer = normalizers.Sequence([*first, normalizers.Replace(" ", "▁")])
    last = [decoders.Strip(" ", 1, 0)] if prefix else []
    inner.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *last]
    )
    inner.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        additional_special_tokens=["<|endoftext|>"],
    )


def logits(model: Any, ids: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        found: torch.Tensor = model(ids).logits
    return found
