"""Which layers of a recipe cause a symptom: those that, given back, take it away.

On the texts that show it, prompt and what the recipe wrote, KL from the reference is measured with
the whole recipe, and with one layer, module or block at the reference weights. What that wins says
how much it matters *there*, which may be little on ordinary text. Then those that win most are
given back, and the prompts are continued again: it is cured, or it is not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import fmean, stdev

import msgspec
import torch
from torch import Tensor

from engine import protocol as p
from engine.diagnosis.of_symptoms import Shown
from engine.measure.counts import JobCounts
from engine.measure.preemption import repeated
from engine.measure.symptoms.continuing import Continuing
from engine.measure.symptoms.forced import Forced, divergence, rows_at_once
from engine.measure.symptoms.units import Unit, sets_to_try
from engine.model.network import Held, Network, StandIn, whole
from engine.texts.prompts import Tokens

FAILING = 8
"""Prompts that layers are restored on: those with the gravest symptoms."""


@dataclass(frozen=True, eq=False)
class Failing:
    """A prompt that shows a symptom, with its tokens."""

    shown: Shown
    tokens: Tokens


class Restoring:
    """The texts that show symptoms, under the recipe and with parts of it given back.

    Args:
        network: at rest.
        failing: the prompts.
        held: the recipe's weights.
        recipe: its hash.
        key: of the prompts; see `SymptomRestored`.
        budget: bytes that states may take.
        counts: of the job.
    """

    def __init__(
        self,
        network: Network,
        failing: Sequence[Failing],
        held: Mapping[str, Held],
        *,
        recipe: str,
        key: str,
        budget: int,
        counts: JobCounts,
    ) -> None:
        self.network, self.failing, self.held = network, failing, held
        self._recipe, self._key, self._counts = recipe, key, counts
        self._budget = budget
        self._texts: list[_Text] = []

    def prepare(self) -> Generator[None, None, None]:
        """Run the reference and the recipe on the texts; once."""
        if self._texts:
            return
        longest = max(len(each.shown.fact.changed.tokens) for each in self.failing)
        rows = rows_at_once(self.network, longest)
        for at in range(0, len(self.failing), rows):
            some = self.failing[at : at + rows]
            forced = Forced(
                self.network,
                [each.tokens.ids for each in some],
                [each.shown.fact.changed.tokens for each in some],
            )
            step = partial(_text, forced, self.held, self._budget // max(1, len(self.failing)))
            self._texts.append((yield from repeated(self._counts.timed("restore_s", step))))
            yield None

    def restored(self, unit: Unit) -> Generator[None, None, p.SymptomRestored]:
        """What giving a unit back wins."""
        start = min(self.network.layers[name].start for name in unit.layers)
        held = {name: each for name, each in self.held.items() if name not in unit.layers}
        wins: list[float] = []
        for text in self._texts:
            step = partial(_kl, text, held, start)
            left = yield from repeated(self._counts.timed("restore_s", step))
            wins += [before - each for before, each in zip(text.kl, left, strict=True)]
            yield None
        return p.SymptomRestored(
            recipe=self._recipe,
            prompts=self._key,
            unit=unit.name,
            layers=unit.layers,
            by=unit.by,
            kl=fmean(wins),
            kl_se=stdev(wins) / math.sqrt(len(wins)) if len(wins) > 1 else math.nan,
            whole=fmean(each for text in self._texts for each in text.kl),
            texts=len(wins),
            zeroed=self._share(unit, _zeroed),
            nonfinite=self._share(unit, _nonfinite),
        )

    def _share(self, unit: Unit, count: Callable[[Tensor, Tensor], float]) -> float:
        """Something of a unit's weights, by their number."""
        sums = weights = 0.0
        for name in unit.layers:
            held = whole(self.held[name])
            weight = held.weight if isinstance(held, StandIn) else held
            reference = self.network.weight(name)
            sums += count(weight.to(reference.device), reference) * reference.numel()
            weights += reference.numel()
        return sums / weights

    def cures(
        self, found: Sequence[p.SymptomRestored]
    ) -> Iterator[tuple[tuple[str, ...], dict[str, Held]]]:
        """Layers to give back together, the fewest weights first, and the recipe without them."""
        for back in sets_to_try(self.network, found):
            yield back, {name: each for name, each in self.held.items() if name not in back}

    def continued(
        self, continuing: Continuing, back: tuple[str, ...], held: Mapping[str, Held]
    ) -> Generator[p.AnyEvent | None, None, p.SymptomCure]:
        """The prompts continued again with layers given back."""
        prompts = [each.tokens for each in self.failing]
        said = yield from continuing.alone(prompts, held)
        scores = yield from continuing.scored(prompts, said, held)
        left = 0
        for row, (each, (surprise, _)) in enumerate(zip(self.failing, scores, strict=True)):
            fact = each.shown.fact
            now = continuing.continuation(said, row, surprise)
            left += bool(Shown(msgspec.structs.replace(fact, changed=now)).added)
        return p.SymptomCure(
            recipe=self._recipe,
            prompts=self._key,
            layers=back,
            failing=len(self.failing),
            left=left,
        )


@dataclass(eq=False)
class _Text:
    """A batch of texts with what was computed of them once."""

    forced: Forced
    reference: Tensor
    """Log-probabilities ``[scored, vocabulary]``."""
    states: dict[int, Tensor]
    """Inputs of blocks under the recipe; of the last one, its output."""
    kl: list[float]
    """Of every row, with the whole recipe."""


@torch.no_grad()
def _text(forced: Forced, held: Mapping[str, Held], budget: int) -> _Text:
    network = forced.network
    reference = forced.log_probabilities({})
    states: dict[int, Tensor] = {}
    if network.resumable:
        size = forced.ids.numel() * network.state_size * network.dtype.itemsize
        step = max(1, math.ceil(size * len(network.blocks) / max(1, budget)))

        def take(k: int, state: Tensor) -> None:
            if k % step == 0 or k == len(network.blocks):
                states[k] = state

        with network.holding(held):
            network.visit(forced.ids, -1, None, take)
    changed = forced.log_probabilities(held, *_nearest(states, len(network.blocks)))
    return _Text(forced, reference, states, forced.means(divergence(reference, changed)))


def _kl(text: _Text, held: Mapping[str, Held], start: int) -> list[float]:
    changed = text.forced.log_probabilities(held, *_nearest(text.states, start))
    return text.forced.means(divergence(text.reference, changed))


def _zeroed(weight: Tensor, reference: Tensor) -> float:
    """Share of rows that are all zero, and were not."""
    return float(((weight == 0).all(-1) & (reference != 0).any(-1)).double().mean())


def _nonfinite(weight: Tensor, _reference: Tensor) -> float:
    return float((~torch.isfinite(weight)).double().mean())


def _nearest(states: Mapping[int, Tensor], block: int) -> tuple[int, Tensor | None]:
    """The last block at or before one whose input is there."""
    at = max((k for k in states if k <= block), default=-1)
    return (at, states[at]) if at >= 0 else (-1, None)
