"""The quantised weights of a recipe, made when their block is reached and freed after it."""

from __future__ import annotations

from collections.abc import Mapping

from engine.formats.grammar import Format
from engine.measure.calibration.approximate import approximated
from engine.measure.calibration.block_inputs import Events, RecipeInputs
from engine.measure.counts import JobCounts
from engine.model.network import Held
from engine.workspace import Loaded


class WeightsInUse:
    """What the layers of a recipe compute with, around one region.

    Args:
        loaded: the model.
        formats: the recipe.
        counts: of the job.
    """

    def __init__(self, loaded: Loaded, formats: Mapping[str, Format], counts: JobCounts) -> None:
        self._loaded, self._formats, self._counts = loaded, formats, counts
        self.states: RecipeInputs | None = None
        """Where methods get their inputs, if a format needs them."""
        self.held: dict[str, Held] = {}

    def settle(self, region: int, *, compact: bool = False) -> Events[None]:
        """Make the weights that act in a region and are not there yet."""
        layers = self._loaded.network.layers
        here = range(region, region + 1)
        for name, format in self._formats.items():
            if name in self.held or not layers[name].acts_in(here):
                continue
            held = None if self.states is None else self.states.settled.get(name)
            if held is None:
                held = yield from approximated(
                    self._loaded, name, format, self._counts, self.states, compact=compact
                )
            if self.states is not None:
                self.states.settled[name] = held
            self.held[name] = held
            if self._loaded.should_stop():
                yield None

    def drop_after(self, region: int) -> None:
        """Free the weights that act in no later region."""
        layers = self._loaded.network.layers
        self.held = {n: held for n, held in self.held.items() if layers[n].last > region}
