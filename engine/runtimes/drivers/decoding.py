"""What the bindings of llama.cpp share: batches of tokens, decoded and timed as llama-bench does.

llama-bench (``tools/llama-bench/llama-bench.cpp``, ``test_prompt`` and ``test_gen``) decodes random
tokens in pieces of 2048, waits for the end, and divides tokens by seconds; to generate it decodes
one random token after another and waits for each. Nothing is sampled. Here generation follows the
prompt, as ``llama-bench -d PROMPT`` has it.
"""

from __future__ import annotations

import random
import time
from itertools import pairwise
from typing import NamedTuple, Protocol

from engine.runtimes.child import Run

PIECE = 2048
"""Tokens decoded at once, llama.cpp's own ``n_batch``."""


class Token(NamedTuple):
    """A token of a batch of llama.cpp."""

    token: int
    position: int
    sequence: int
    last: bool
    """Whether logits are wanted: of the last token of each sequence."""


class Decoder(Protocol):
    """A context of llama.cpp."""

    def clear(self) -> None:
        """Empty the cache of keys and values."""

    def fill(self, tokens: list[Token]) -> object:
        """A batch of llama.cpp; not timed."""

    def decode(self, batch: object) -> None:
        """Run a batch, and wait until it is done.

        Raises:
            RuntimeError: llama.cpp refused it.
        """


def context_tokens(batch: int, prompt: int, new: int) -> int:
    """Tokens that a context needs; a sequence has a multiple of 256, as llama.cpp pads it."""
    return batch * -(-(prompt + new) // 256) * 256


def decoded(decoder: Decoder, prompts: list[list[int]], new: int, vocabulary: int) -> Run:
    """Run the prompts, then ``new`` steps of one random token for each sequence."""
    length, draw = len(prompts[0]), random.Random(length_of(prompts))
    tokens = [
        Token(token, position, sequence, position == length - 1)
        for sequence, prompt in enumerate(prompts)
        for position, token in enumerate(prompt)
    ]
    pieces = [decoder.fill(tokens[start : start + PIECE]) for start in range(0, len(tokens), PIECE)]
    steps = [
        decoder.fill(
            [
                Token(draw.randrange(vocabulary), length + step, sequence, True)
                for sequence in range(len(prompts))
            ]
        )
        for step in range(new)
    ]
    decoder.clear()
    began = time.perf_counter()
    for piece in pieces:
        decoder.decode(piece)
    marks = [time.perf_counter()]
    for each in steps:
        decoder.decode(each)
        marks.append(time.perf_counter())
    times = [later - sooner for sooner, later in pairwise(marks)]
    return Run(marks[0] - began, times, new * len(prompts))


def length_of(prompts: list[list[int]]) -> int:
    """Tokens of all prompts."""
    return sum(map(len, prompts))


def device_name(devices: list[str], wanted: str) -> str:
    """Where llama.cpp runs: its own devices, or the processor."""
    return "cpu" if wanted == "cpu" or not devices else ", ".join(devices)


def layers_on_device(wanted: str) -> int:
    """``n_gpu_layers``: none, or all of them."""
    return 0 if wanted == "cpu" else 999
