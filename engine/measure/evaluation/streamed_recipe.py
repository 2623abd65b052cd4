"""A recipe on a network with streamed blocks: its weights are in memory while their blocks are."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from engine.formats.grammar import Format
from engine.measure.calibration.block_inputs import Events
from engine.measure.evaluation.evaluate import made_from
from engine.measure.evaluation.recipe_run import RecipeRun
from engine.measure.evaluation.reference import Reference
from engine.model.network import Held


class StreamedRecipe:
    """A recipe whose weights are made again whenever their block is read.

    Args:
        reference: of the unchanged network.
        formats: by name of the layers that are not kept.
        quantised: makes what a layer computes with.
    """

    def __init__(
        self,
        reference: Reference,
        formats: Mapping[str, Format],
        quantised: Callable[[str, Format], Events[Held]],
    ) -> None:
        self.run = RecipeRun(reference, {}, made_from(reference.network, formats))
        self.run.states.required = True  # to make one again, blocks would be read again
        self._formats, self._quantised = dict(formats), quantised
        self._layers = reference.network.layers

    def settle(self, regions: range) -> Events[None]:
        """Make the weights that act in some regions, and free those that do not.

        Args:
            regions: blocks; -1 is what lies before them, their number what follows them.
        """
        held, layers = self.run.recipe, self._layers
        for name in [each for each in held if not layers[each].acts_in(regions)]:
            del held[name]
        for name, format in self._formats.items():
            if name not in held and layers[name].acts_in(regions):
                held[name] = yield from self._quantised(name, format)
                yield None
