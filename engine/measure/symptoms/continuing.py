"""Prompts continued by the reference and by a recipe, side by side."""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from engine import protocol as p
from engine.measure.counts import JobCounts, Stage
from engine.measure.preemption import repeated
from engine.measure.symptoms.forced import Forced, divergence, rows_at_once
from engine.model.generation import Generation
from engine.model.network import Held, Network
from engine.texts.prompts import Tokens

ROWS = 16
"""Prompts in a batch, at most."""
SHOWN = 2000
"""Characters of each text that are sent while it is written: the last ones."""


class Continuing:
    """Continues batches of prompts by two sets of weights.

    Args:
        network: at rest.
        tokenizer: of transformers.
        sampling: how prompts are continued.
        stops: end tokens.
        held: the recipe's weights.
        seed: of the random numbers.
        cached: see `Generation`.
        counts: of the job.
    """

    def __init__(
        self,
        network: Network,
        tokenizer: Any,
        sampling: p.Sampling,
        stops: frozenset[int],
        held: Mapping[str, Held],
        *,
        seed: int,
        cached: bool,
        counts: JobCounts,
    ) -> None:
        self._network, self._tokenizer, self._sampling = network, tokenizer, sampling
        self._stops, self._held, self._seed, self._cached = stops, held, seed, cached
        self._counts = counts
        self.done = 0
        """Tokens that were taken by both, of all batches before."""

    def batches(self, prompts: Sequence[Tokens], batch_tokens: int) -> Iterator[list[Tokens]]:
        """Prompts in batches, alike in length: padding is computed too.

        Args:
            prompts: all of them.
            batch_tokens: of a micro-batch, which the prompts of a batch stay within.
        """
        ordered = sorted(prompts, key=lambda each: len(each.ids))
        batch: list[Tokens] = []
        for each in ordered:
            if batch and (len(batch) >= ROWS or (len(batch) + 1) * len(each.ids) > batch_tokens):
                yield batch
                batch = []
            batch.append(each)
        if batch:
            yield batch

    def pair(
        self, prompts: Sequence[Tokens], stage: Stage
    ) -> Generator[p.AnyEvent | None, None, tuple[Generation, Generation]]:
        """Continue a batch by both; texts are sent while they are written."""
        both = self._generation(prompts, {}), self._generation(prompts, self._held)
        while not all(each.done for each in both):
            for each in both:
                if not each.done:
                    yield from repeated(self._counts.timed("continue_s", each.step))
                    yield None
            taken = sum(self._sampling.new_tokens if each.done else each.taken for each in both)
            if (event := stage.step(self.done + taken)) is not None:
                yield event
                yield self._so_far(prompts, *both)
        self.done += 2 * self._sampling.new_tokens
        return both

    def alone(
        self, prompts: Sequence[Tokens], held: Mapping[str, Held]
    ) -> Generator[p.AnyEvent | None, None, Generation]:
        """Continue prompts by one set of weights."""
        batch = self._generation(prompts, held)
        while not batch.done:
            yield from repeated(self._counts.timed("continue_s", batch.step))
            yield None
        return batch

    def _generation(self, prompts: Sequence[Tokens], held: Mapping[str, Held]) -> Generation:
        how = self._sampling
        return Generation(
            self._network,
            [each.ids for each in prompts],
            held=held,
            new_tokens=how.new_tokens,
            stops=self._stops,
            temperature=how.temperature,
            top_p=how.top_p,
            seed=self._seed,
            cached=self._cached,
        )

    def _so_far(
        self, prompts: Sequence[Tokens], reference: Generation, changed: Generation
    ) -> p.Continuing:
        def texts(batch: Generation) -> tuple[str, ...]:
            return tuple(self.text(tokens)[-SHOWN:] for tokens in batch.tokens)

        return p.Continuing(
            job=self._counts.job,
            ids=tuple(each.prompt.id for each in prompts),
            reference=texts(reference),
            changed=texts(changed),
        )

    def text(self, tokens: Sequence[int], *, special: bool = False) -> str:
        """Tokens as text."""
        found: str = self._tokenizer.decode(
            list(tokens), skip_special_tokens=not special, clean_up_tokenization_spaces=False
        )
        return found

    def scored(
        self, prompts: Sequence[Tokens], changed: Generation, held: Mapping[str, Held]
    ) -> Generator[None, None, list[tuple[float, float]]]:
        """Of what weights wrote: its surprise under the reference, and their KL from it."""
        found: list[tuple[float, float]] = []
        rows = rows_at_once(self._network, max(map(len, changed.tokens)))
        for at in range(0, len(prompts), rows):
            some = slice(at, at + rows)
            ids = [each.ids for each in prompts[some]]
            forced = Forced(self._network, ids, changed.tokens[some])

            def both(forced: Forced = forced) -> list[tuple[float, float]]:
                reference = forced.log_probabilities({})
                recipe = forced.log_probabilities(held)
                kl = forced.means(divergence(reference, recipe))
                return list(zip(forced.surprise(reference), kl, strict=True))

            found += yield from repeated(self._counts.timed("score_s", partial(both)))
            yield None
        return found

    def facts(
        self,
        prompts: Sequence[Tokens],
        both: tuple[Generation, Generation],
        scores: Sequence[tuple[float, float]],
        keys: Sequence[str],
        recipe: str,
    ) -> Iterator[p.Continued]:
        """What came of a batch.

        Args:
            prompts: of the batch.
            both: what the reference and the recipe wrote.
            scores: see `scored`.
            keys: of the prompts.
            recipe: hash of the recipe.
        """
        reference, changed = both
        for row, (prompt, score, key) in enumerate(zip(prompts, scores, keys, strict=True)):
            first = first_difference(reference.tokens[row], changed.tokens[row])
            own = -math.fsum(reference.logp[row]) / len(reference.logp[row])
            yield p.Continued(
                prompt=key,
                recipe=recipe,
                id=prompt.prompt.id,
                text=prompt.text,
                rephrases=prompt.prompt.rephrases,
                topic=prompt.prompt.topic,
                sampling=self._sampling,
                prompt_tokens=len(prompt.ids),
                reference=self.continuation(reference, row, own),
                changed=self.continuation(changed, row, score[0]),
                first=first,
                pieces=(
                    self._piece(reference.tokens[row], first),
                    self._piece(changed.tokens[row], first),
                ),
                reference_top=self._top(reference, row, first),
                changed_top=self._top(changed, row, first),
                kl=score[1],
            )

    def continuation(self, batch: Generation, row: int, surprise: float) -> p.Continuation:
        """What a row of a batch is continued by."""
        return p.Continuation(
            text=self.text(batch.tokens[row]),
            tokens=tuple(batch.tokens[row]),
            ended=batch.ended[row],
            finite=batch.finite[row],
            surprise=surprise,
        )

    def _piece(self, tokens: Sequence[int], at: int) -> str:
        return self.text(tokens[at : at + 1], special=True) if 0 <= at < len(tokens) else ""

    def _top(self, batch: Generation, row: int, at: int) -> tuple[p.Choice, ...]:
        if not 0 <= at < len(batch.choices[row]):
            return ()
        return tuple(
            p.Choice(self.text([token], special=True), math.exp(value))
            for token, value in batch.choices[row][at]
        )


def first_difference(one: Sequence[int], other: Sequence[int]) -> int:
    """Number of the first token that differs, or that only one of them has; -1 if none does."""
    for at, (a, b) in enumerate(zip(one, other, strict=False)):
        if a != b:
            return at
    return -1 if len(one) == len(other) else min(len(one), len(other))
