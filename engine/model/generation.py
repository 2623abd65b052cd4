"""Continuations of prompts, token by token, with a cache of keys and values.

A batch of prompts is padded on the left, so that all rows take their next token at the same place;
what all prompts begin with is run once. A token is the most likely one, or the inverse of the
distribution's cumulative sum, in the order of token ids, at a uniform number: two networks with the
same numbers differ only by their distributions. Both equal `transformers.generate` token for token
on the same batch (greedy, or with its draw replaced by the same inverse). Settings that come with a
checkpoint, such as a penalty for repetition, are not applied: they hide what is looked for.

Weights are held only inside a step, and a step ends with a whole token::

    batch = Generation(network, prompts, held=recipe, new_tokens=64, stops={2})
    while not batch.done:
        yield from repeated(batch.step)
        yield None
"""

from __future__ import annotations

import hashlib
import inspect
import time
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from engine.model.network import Held, Network
from engine.model.transformers_internals import empty_cache, keeps_every_key

STEP_SECONDS = 0.1
"""A step takes tokens for about this long: entering and leaving a recipe costs little beside it."""
SHARED = 16
"""Tokens that all prompts must begin with to be run once."""
TOP = 5
"""Choices that are kept of every token."""


def uniform_numbers(prompt: Sequence[int], seed: int, count: int) -> Tensor:
    """Numbers in [0, 1) for the tokens that follow a prompt, float64 ``[count]``.

    They depend on the prompt and the seed alone: not on the batch, and not on the network.
    """
    text = ",".join(map(str, prompt))
    digest = hashlib.sha256(f"{seed}:{text}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
    return torch.rand(count, dtype=torch.float64, generator=generator)


def choose(
    logits: Tensor, uniforms: Tensor | None = None, temperature: float = 0.0, top_p: float = 1.0
) -> Tensor:
    """The next token of every row, int64 ``[rows]``.

    Args:
        logits: float32 ``[rows, vocabulary]``, finite.
        uniforms: float64 ``[rows]`` in [0, 1).
        temperature: that logits are divided by; 0 takes the most likely token.
        top_p: the most likely tokens that together have this probability are chosen from, as in
            nucleus sampling (Holtzman et al. 2020).
    """
    if not temperature:
        return logits.argmax(-1)
    assert uniforms is not None, "sampling needs numbers"
    p = (logits / temperature).softmax(-1, dtype=torch.float64)
    if top_p < 1:
        ordered, order = p.sort(-1, descending=True)
        before = ordered.cumsum(-1) - ordered
        p = p.scatter(-1, order, ordered.where(before < top_p, 0.0))
    cumulative = p.cumsum(-1)
    at = uniforms.to(p.device).unsqueeze(-1) * cumulative[:, -1:]
    found = torch.searchsorted(cumulative, at, right=True).squeeze(-1)
    # Rounding may lead past the last token that can be chosen.
    last = (p > 0).long().cumsum(-1).argmax(-1)
    return torch.minimum(found, last)


class Generation:
    """A batch of prompts, continued by the network with some weights held.

    Args:
        network: at rest.
        prompts: token ids of each, not empty.
        held: what its layers compute with.
        new_tokens: that each prompt is continued by at most.
        stops: tokens that end a continuation; they are its last token.
        temperature, top_p: see `choose`.
        seed: of the numbers, where tokens are sampled.
        cached: whether keys and values are kept; see `why_not_cached`.
    """

    def __init__(
        self,
        network: Network,
        prompts: Sequence[Sequence[int]],
        *,
        held: Mapping[str, Held],
        new_tokens: int,
        stops: Collection[int] = (),
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
        cached: bool = True,
    ) -> None:
        self.network, self.held = network, held
        self.new_tokens, self._stops = new_tokens, frozenset(stops)
        self._temperature, self._top_p = temperature, top_p
        rows = len(prompts)
        self.tokens: list[list[int]] = [[] for _ in prompts]
        """What every prompt is continued by, so far."""
        self.choices: list[list[list[tuple[int, float]]]] = [[] for _ in prompts]
        """The most likely choices at each of these tokens, with their log-probabilities at
        temperature 1."""
        self.logp: list[list[float]] = [[] for _ in prompts]
        """Log-probability of each of these tokens, at temperature 1."""
        self.ended = [False] * rows
        """Whether a token ended it."""
        self.finite = [True] * rows
        """Whether all logits were finite."""
        self._uniforms: Tensor | None = None
        if temperature:
            drawn = [uniform_numbers(prompt, seed, new_tokens) for prompt in prompts]
            self._uniforms = torch.stack(drawn)
        signature = inspect.signature(type(network.model).forward).parameters
        self._positioned = "position_ids" in signature
        self._cached, self._shared = cached, 0
        if cached and self._positioned and keeps_every_key(network.config):
            self._shared = shared_prefix(prompts)
        self._ids, self._mask = _padded(prompts, self._shared, min(self._stops, default=0))
        self._cache: object | None = None
        self._next = torch.empty(0)

    @property
    def done(self) -> bool:
        """Whether every prompt has ended, or has all its tokens."""
        count = max(map(len, self.tokens), default=0)
        return count >= self.new_tokens or all(self.ended)

    @property
    def taken(self) -> int:
        """Tokens of the longest continuation so far."""
        return max(map(len, self.tokens), default=0)

    @torch.no_grad()
    def step(self, seconds: float = STEP_SECONDS) -> None:
        """Take tokens for about so long, at least one, fewer if a more urgent job waits.

        Raises:
            Preempted: a more urgent job came before the first token; nothing is lost but this step.
        """
        begun = time.monotonic()
        with self.network.holding(self.held):
            while not self.done:
                self._take(self._logits())
                over = time.monotonic() - begun >= seconds
                if over or (self.network.should_stop is not None and self.network.should_stop()):
                    return

    def _logits(self) -> Tensor:
        """Of the next token of every row, ``[rows, vocabulary]``."""
        network = self.network
        if not self._cached:
            more = self._arguments(0, self._ids.shape[1])
            return network.run(self._ids, network.resuming(0, None), **more)[:, -1]
        if self._cache is not None:
            more = self._arguments(self._ids.shape[1] - 1, self._ids.shape[1])
            return network.run(self._ids[:, -1:], None, **more, **self._keeping(self._cache))[:, -1]
        cache, at = empty_cache(network.config), self._shared  # anew if this was interrupted
        if at:
            more = {"attention_mask": self._mask[:1, :at]}
            if self._positioned:
                more["position_ids"] = torch.arange(at, device=network.device).unsqueeze(0)
            forwards = network.resuming(0, None)
            network.run(self._ids[:1, :at], forwards, **more, **self._keeping(cache))
            cache.batch_repeat_interleave(len(self._ids))
        more = self._arguments(at, self._ids.shape[1])
        forwards = network.resuming(0, None)
        logits = network.run(self._ids[:, at:], forwards, **more, **self._keeping(cache))
        self._cache = cache
        return logits[:, -1]

    def _keeping(self, cache: object) -> dict[str, Any]:
        return {"past_key_values": cache, "use_cache": True}

    def _arguments(self, start: int, end: int) -> dict[str, Any]:
        """Mask and positions of the tokens from ``start`` to before ``end``."""
        device = self.network.device
        found: dict[str, Any] = {"attention_mask": self._mask[:, :end].to(device)}
        if self._positioned:
            positions = (self._mask.cumsum(-1) - 1).clamp(min=0)
            positions = positions.masked_fill(self._mask == 0, 0)
            found["position_ids"] = positions[:, start:end].to(device)
        if self.network.takes_positions:
            found["logits_to_keep"] = 1
        return found

    def _take(self, logits: Tensor) -> None:
        logits = logits.float()
        finite = torch.isfinite(logits).all(-1)
        logits = logits.nan_to_num(nan=-1e30, posinf=1e30, neginf=-1e30)
        at = self.taken
        uniforms = None if self._uniforms is None else self._uniforms[:, at]
        chosen = choose(logits, uniforms, self._temperature, self._top_p)
        logp = logits.log_softmax(-1)
        best = logp.topk(min(TOP, logits.shape[-1]), -1)
        values, ids = best.values.tolist(), best.indices.tolist()
        taken = logp.gather(-1, chosen.unsqueeze(-1)).squeeze(-1).tolist()
        following = []
        for row, token in enumerate(chosen.tolist()):
            if self.ended[row]:
                following.append(min(self._stops))
                continue
            self.tokens[row].append(token)
            self.logp[row].append(taken[row])
            self.choices[row].append(list(zip(ids[row], values[row], strict=True)))
            self.finite[row] &= bool(finite[row])
            self.ended[row] = token in self._stops
            following.append(token)
        added = torch.tensor(following, dtype=torch.long).unsqueeze(-1)
        self._ids = torch.cat([self._ids, added], -1)
        self._mask = torch.cat([self._mask, torch.ones_like(added)], -1)


def shared_prefix(prompts: Sequence[Sequence[int]]) -> int:
    """Tokens that all prompts begin with, and that are followed by others; 0 where they are few."""
    if len(prompts) < 2:
        return 0
    most = min(map(len, prompts)) - 1
    first = prompts[0]
    count = 0
    while count < most and all(prompt[count] == first[count] for prompt in prompts):
        count += 1
    return count if count >= SHARED else 0


def _padded(prompts: Sequence[Sequence[int]], shared: int, pad: int) -> tuple[Tensor, Tensor]:
    """Ids and mask ``[rows, tokens]``: what they share, padding, the rest."""
    longest = max(map(len, prompts))
    ids = torch.full((len(prompts), longest), pad, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        rest = len(prompt) - shared
        ids[row, :shared] = torch.tensor(prompt[:shared], dtype=torch.long)
        ids[row, longest - rest :] = torch.tensor(prompt[shared:], dtype=torch.long)
        mask[row, :shared] = 1
        mask[row, longest - rest :] = 1
    return ids, mask


@torch.no_grad()
def why_not_cached(network: Network) -> str:
    """Why keys and values cannot be kept; empty where a token by the cache equals a whole forward.

    A model of which this is not known is continued by whole forwards, at a cost per token that
    grows with the text.
    """
    kind = type(network.model).__name__
    if "past_key_values" not in inspect.signature(type(network.model).forward).parameters:
        return f"{kind} takes no cache of keys and values"
    prompts = [list(range(1, 9)), list(range(2, 7))]  # one of them padded
    vocabulary = network.model.get_input_embeddings().weight.shape[0]
    prompts = [[token % vocabulary for token in prompt] for prompt in prompts]
    found = []
    try:
        for cached in (True, False):
            batch = Generation(network, prompts, held={}, new_tokens=3, cached=cached)
            with network.holding({}):
                each = []
                for token in (3, 4, 5):
                    each.append(batch._logits().float())
                    forced = torch.full((2, 1), token % vocabulary)
                    batch._ids = torch.cat([batch._ids, forced], -1)
                    batch._mask = torch.cat([batch._mask, torch.ones_like(forced)], -1)
            found.append(torch.stack(each))
    except (RuntimeError, TypeError, ValueError, AttributeError, IndexError, KeyError) as error:
        return f"{kind} cannot go on from a cache of keys and values: {error}"
    apart = float((found[0] - found[1]).abs().max())
    allowed = ALLOWED * float(found[1].std())
    if not apart <= allowed:
        return f"{kind} with a cache of keys and values computes other logits, by {apart:.2g}"
    return ""


ALLOWED = 0.1
"""Standard deviations of the logits that rounding in 16 bits may move one by; a model that ignores
what is kept is off by whole ones."""
