"""Text that the model writes itself, by plain sampling: a calibration set without any data.

As LLM-QAT (Liu et al. 2023, arXiv 2305.17888, section 2.1) has it, but sampled from the first token
on: a random token begins each window, every further one is drawn from the model's distribution.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any

import torch
from torch import Tensor

from engine import protocol as p
from engine.measure.whole_model import refuse_streamed
from engine.model.network import Network

Steps = Generator[p.AnyEvent | None, None, Tensor]


def own_samples(
    network: Network,
    samples: int,
    seq_len: int,
    seed: int,
    tokens: int,
    step: Callable[[int], p.Progress | None] = lambda done: None,
) -> Steps:
    """Windows of the model's own samples, int64 ``[samples, seq_len]`` on the CPU.

    The keys and values of earlier tokens are cached between steps, in the model's memory. The same
    seed gives the same windows, and the first of more windows are those of fewer.

    Args:
        network: at its reference weights.
        samples: windows.
        seq_len: tokens of each.
        seed: of the draws.
        tokens: that the tokenizer has, from which the first is drawn.
        step: makes progress of the tokens written so far.

    Raises:
        UsageError: the model is streamed from disk, once for every token.
    """
    refuse_streamed(network, "the model's own samples", "once for every new token")
    draws = [torch.Generator().manual_seed(seed * 1_000_003 + each) for each in range(samples)]
    first = [torch.randint(tokens, (1,), generator=draw) for draw in draws]
    rows = [torch.stack(first)]
    cache: Any = None
    for at in range(seq_len - 1):
        yield step(at)
        logits, cache = _next(network, rows[-1], cache)
        probabilities = torch.softmax(logits[:, :tokens].float().cpu(), -1)
        each = zip(probabilities, draws, strict=True)
        rows.append(torch.stack([torch.multinomial(p, 1, generator=draw) for p, draw in each]))
    return torch.cat(rows, 1)


@torch.no_grad()
def _next(network: Network, last: Tensor, cache: Any) -> tuple[Tensor, Any]:
    """Logits of the next token, ``[samples, vocabulary]``, and the cache."""
    found = network.model(input_ids=last.to(network.device), past_key_values=cache, use_cache=True)
    return found.logits[:, -1], found.past_key_values
