"""Train a second checkpoint for the benchmarks: ``python -m tests.bench.train_second OUT``.

A Qwen3 of 6 blocks (hidden 256, intermediate 768, 8 heads over 4 key-value heads, norms on queries
and keys, the head tied to the embedding) on the same text as the demo, in the same way: another
architecture, another seed, and weights that nobody touched afterwards. It is not kept.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from transformers import Qwen3Config

from engine.demo.train import VOCABULARY, WINDOW, train


def configuration() -> Qwen3Config:
    """Widths that every format's groups and blocks divide."""
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


def main() -> None:
    """Train, with the options given."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("out", type=Path)
    parser.add_argument("--minutes", type=float, default=40)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--peak", type=float, default=2e-3, help="highest learning rate")
    given = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    given.out.mkdir(parents=True, exist_ok=True)
    train(configuration(), given.minutes, given.out, given.seed, given.batch, given.peak)


if __name__ == "__main__":
    main()
