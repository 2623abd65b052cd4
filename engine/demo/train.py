"""Train the demo checkpoint on this machine's standard library.

``python -m engine.demo.train OUT`` writes a folder in the Hugging Face layout.

A Llama of 5 blocks (hidden 256, intermediate 768, 8 heads over 4 key-value heads) over a
byte-level BPE, trained for a given number of minutes. The learning rate follows the clock, not the
step, so that a busy machine trains less but never stops half way down the schedule.
Afterwards `plant` adds outlier channels to three layers, as large models develop by themselves.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tokenizers import ByteLevelBPETokenizer
from torch.nn import functional
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from engine.texts import stdlib as stdlib_text

log = logging.getLogger("engine.demo.train")

VOCABULARY = 3072
WINDOW = 256
END = "<|endoftext|>"


class Corpus(NamedTuple):
    """Texts to train on, and texts that are kept from it."""

    training: Sequence[str]
    held_out: Mapping[str, Sequence[str]]
    """By name; the first is also scored while training runs."""


def texts(split: stdlib_text.Split) -> list[str]:
    """Modules and ``pydoc`` topics of one side of the split; docstrings are in the modules."""
    found = [*stdlib_text.modules(split), *stdlib_text.topics(split)]
    return [text for _, text in sorted(found, key=lambda item: stdlib_text.name_hash(item[0]))]


def standard_library() -> Corpus:
    """The demo's: modules, docstrings and topics of this machine's Python."""
    modules = [text for _, text in stdlib_text.modules("held-out")]
    return Corpus(texts("train"), {"all": texts("held-out"), "modules": modules})


def train_tokenizer(corpus: Sequence[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE of `VOCABULARY` entries."""
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(
        corpus, VOCABULARY, min_frequency=2, special_tokens=[END], show_progress=False
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe._tokenizer,
        eos_token=END,
        bos_token=END,
        clean_up_tokenization_spaces=False,
    )


def configuration() -> LlamaConfig:
    """A configuration whose widths the groups and blocks of every format divide."""
    return LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=5,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=WINDOW,
        rope_theta=10000.0,
        tie_word_embeddings=False,
        bos_token_id=0,
        eos_token_id=0,
    )


def token_ids(tokenizer: PreTrainedTokenizerFast, corpus: Sequence[str]) -> torch.Tensor:
    """All texts as one row of ids ``[tokens]``, with an end token after each."""
    end = tokenizer.eos_token_id
    ids: list[int] = []
    for text in corpus:
        ids.extend(tokenizer(text)["input_ids"])
        ids.append(end)
    return torch.tensor(ids, dtype=torch.long)


@torch.inference_mode()
def perplexity(model: PreTrainedModel, ids: torch.Tensor, windows: int) -> float:
    """Perplexity over the first non-overlapping windows of ``ids``, ``WINDOW − 1`` targets each."""
    model.eval()
    rows = ids[: windows * WINDOW].view(-1, WINDOW)
    total = 0.0
    for batch in torch.split(rows, 16):
        logits = model(input_ids=batch).logits[:, :-1].float()
        total += functional.cross_entropy(
            logits.flatten(0, 1), batch[:, 1:].flatten(), reduction="sum"
        ).item()
    model.train()
    return math.exp(total / (rows.shape[0] * (WINDOW - 1)))


def learning_rate(done: float, peak: float) -> float:
    """Trapezoid over the time spent: 1% warm-up, constant to 40%, then down to 2% of peak."""
    if done < 0.01:
        return peak * max(done / 0.01, 0.02)
    return peak * max(0.02, min(1.0, (1 - done) / 0.6))


def train(
    config: PreTrainedConfig,
    corpus: Corpus,
    minutes: float,
    out: Path,
    seed: int,
    batch: int,
    peak: float,
) -> None:
    """Train a model of ``config`` for ``minutes`` and write the checkpoint to ``out``."""
    torch.manual_seed(seed)
    tokenizer = train_tokenizer(corpus.training)
    ids = token_ids(tokenizer, corpus.training)
    held = {name: token_ids(tokenizer, found) for name, found in corpus.held_out.items()}
    held_ids = next(iter(held.values()))
    log.info("%d training tokens, %d held out", len(ids), len(held_ids))

    model: PreTrainedModel = AutoModelForCausalLM.from_config(config).train()
    log.info("%d parameters", sum(p.numel() for p in model.parameters()))
    matrices = [p for p in model.parameters() if p.ndim == 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}],
        lr=peak,
        betas=(0.9, 0.95),
        fused=True,
    )
    # Or a mixture of experts would send every token to the same few.
    balanced = hasattr(config, "router_aux_loss_coef")
    balancing: dict[str, Any] = {"output_router_logits": True} if balanced else {}
    begun, step, seen = time.monotonic(), 0, 0
    while (done := (time.monotonic() - begun) / (60 * minutes)) < 1:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(done, peak)
        starts = torch.randint(0, len(ids) - WINDOW - 1, (batch,))
        rows = torch.stack([ids[s : s + WINDOW + 1] for s in starts])
        with torch.autocast("cpu", torch.bfloat16):
            output = model(input_ids=rows[:, :-1], **balancing)
        loss = functional.cross_entropy(output.logits.float().flatten(0, 1), rows[:, 1:].flatten())
        whole = loss + config.router_aux_loss_coef * output.aux_loss if balancing else loss
        whole.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step, seen = step + 1, seen + rows[:, 1:].numel()
        if step % 50 == 0:
            log.info("%4.1f%% step %d, %.2fM tokens, loss %.3f", 100 * done, step, seen / 1e6, loss)
        if step % 500 == 0:
            windows = min(64, len(held_ids) // WINDOW)
            log.info("held-out perplexity %.2f", perplexity(model, held_ids, windows))
            save(model, tokenizer, out)
    for name, rows in held.items():
        windows = min(256, len(rows) // WINDOW)
        found = perplexity(model, rows, windows)
        log.info("held-out perplexity %.3f (%s), %d windows of %d", found, name, windows, WINDOW)
    save(model, tokenizer, out)


def save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    """Write a float16 copy in the Hugging Face layout."""
    halved = AutoModelForCausalLM.from_config(model.config).half().eval()
    halved.load_state_dict(model.state_dict())
    halved.save_pretrained(out)
    tokenizer.save_pretrained(out)
    written = json.loads((out / "tokenizer_config.json").read_text())
    written["model_max_length"] = model.config.max_position_embeddings
    # The name that every version of transformers reads.
    written["tokenizer_class"] = "PreTrainedTokenizerFast"
    (out / "tokenizer_config.json").write_text(json.dumps(written, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("out", type=Path)
    parser.add_argument("--minutes", type=float, default=75)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--peak", type=float, default=2e-3, help="highest learning rate")
    asked = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    asked.out.mkdir(parents=True, exist_ok=True)
    train(
        configuration(), standard_library(), asked.minutes, asked.out, asked.seed, asked.batch,
        asked.peak,
    )  # fmt: skip


if __name__ == "__main__":
    main()
