"""Train checkpoints for the benchmarks: ``python -m tests.bench.train_second OUT --shape gpt2``.

Small models of other architectures than the demo's, from other seeds, with weights that nobody
touched afterwards. They are trained in the same way, on the demo's text or on files of your own, of
which the last tenth is kept from training and written to ``OUT/held-out.txt``. They are not kept.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from transformers import GPT2Config, PreTrainedConfig, Qwen3Config, Qwen3MoeConfig

from engine.demo.train import VOCABULARY, WINDOW, Corpus, standard_library, train

HELD_OUT = 0.1
"""Share of every file that is kept from training, at its end."""


def qwen3() -> Qwen3Config:
    """Six blocks, norms on queries and keys, the head tied to the embedding.

    Widths here and below are such that every format's groups and blocks divide them.
    """
    return Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=6,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=32,
        max_position_embeddings=WINDOW,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
    )


def gpt2() -> GPT2Config:
    """Four blocks with transposed weights, learned positions, LayerNorm and biases."""
    return GPT2Config(
        vocab_size=VOCABULARY,
        n_embd=256,
        n_layer=4,
        n_head=8,
        n_positions=WINDOW,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=0,
        eos_token_id=0,
    )


def qwen3_moe() -> Qwen3MoeConfig:
    """Four blocks of eight experts, of which every token takes two."""
    return Qwen3MoeConfig(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=768,
        moe_intermediate_size=256,
        num_experts=8,
        num_experts_per_tok=2,
        norm_topk_prob=True,
        router_aux_loss_coef=0.01,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=32,
        max_position_embeddings=WINDOW,
        bos_token_id=0,
        eos_token_id=0,
    )


SHAPES: dict[str, Callable[[], PreTrainedConfig]] = {
    shape.__name__: shape for shape in (qwen3, gpt2, qwen3_moe)
}


def files(paths: Sequence[Path], out: Path) -> Corpus:
    """Texts of files; what is kept from training is written to ``out``."""
    training, held_out = [], []
    for path in paths:
        text = path.read_text(encoding="utf-8")
        end = int(len(text) * (1 - HELD_OUT))
        training.append(text[:end])
        held_out.append(text[end:])
    (out / "held-out.txt").write_text("\n\n".join(held_out), encoding="utf-8")
    return Corpus(training, {"end of the files": held_out})


def main() -> None:
    """Train, with the options given."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("out", type=Path)
    parser.add_argument("--shape", choices=sorted(SHAPES), default="qwen3")
    parser.add_argument("--text", type=Path, nargs="+", help="files, in place of the demo's text")
    parser.add_argument("--minutes", type=float, default=40)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--peak", type=float, default=2e-3, help="highest learning rate")
    given = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    given.out.mkdir(parents=True, exist_ok=True)
    corpus = files(given.text, given.out) if given.text else standard_library()
    config = SHAPES[given.shape]()
    train(config, corpus, given.minutes, given.out, given.seed, given.batch, given.peak)


if __name__ == "__main__":
    main()
