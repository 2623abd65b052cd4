"""Estimates that a test makes up, in the place of those from gradients."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence

import pytest

from engine import protocol as p
from engine.formats.grammar import Format
from engine.measure.counts import JobCounts
from engine.measure.sweep import sweep as sensitivity
from engine.store import keys
from engine.workers.crew import Crew
from engine.workspace import Loaded

Found = dict[str, dict[str, p.Estimate]]


class Guess(keys.Key, frozen=True, kw_only=True):
    """Key of a made-up estimate."""

    kind = "guess"
    on: keys.Evaluation
    layer: str
    format: str
    to: p.Direction


class Guesses:
    """Stands in for `engine.measure.estimate.estimate`; remembers what it was asked for."""

    def __init__(self, kl: Callable[[str, str], float]) -> None:
        """
        Args:
            kl: of a layer in a format.
        """
        self.kl = kl
        self.asked: list[tuple[tuple[str, ...], str]] = []

    def estimate(
        self,
        loaded: Loaded,
        formats: Sequence[Format],
        direction: p.Direction,
        counts: JobCounts,
        job: str,
        crew: Crew | None = None,
    ) -> Generator[p.AnyEvent | None, None, Found]:
        """As the real one is called; from the store where it has them, and by nobody else."""
        self.asked.append((tuple(map(str, formats)), direction))
        network = loaded.network
        found: Found = {}
        for format in map(str, formats):
            found[format] = {}
            for name in network.layers:
                key = Guess(on=loaded.evaluation, layer=name, format=format, to=direction).address
                known = loaded.known([key]).get(key)
                fact = (
                    known if isinstance(known, p.Estimate) else self._made(name, format, direction)
                )
                found[format][name] = fact
                if known is not None:
                    yield from counts.found([key], [fact])
                else:
                    yield counts.learnt(key, fact)
        return found

    def _made(self, name: str, format: str, direction: p.Direction) -> p.Estimate:
        kl = self.kl(name, format)
        return p.Estimate(
            layer=name, format=format, direction=direction,
            kl=kl, kl_se=kl / 10, dnll=kl / 2, dnll_se=kl / 10, tokens=1,
        )  # fmt: skip


def put(monkeypatch: pytest.MonkeyPatch, kl: Callable[[str, str], float]) -> Guesses:
    """Let sweeps of this test take made-up estimates."""
    guesses = Guesses(kl)
    monkeypatch.setattr(sensitivity, "estimate", guesses.estimate)
    return guesses
