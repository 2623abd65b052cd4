"""Errors of the outputs of a recipe's layers, gathered while the reference runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from torch import Tensor

from engine import protocol as p
from engine.formats.grammar import Format, needs_calibration
from engine.measure.counts import JobCounts
from engine.measure.errors.channels import ChannelSums
from engine.model.inputs import Take, why_unseen
from engine.model.network import Held, Network
from engine.session import recipe_hash


class OutputErrors:
    """Sums of every layer's channels.

    Args:
        network: whose layers they are.
        formats: the recipe.
        wanted: layers whose errors are not known yet.
        addresses: keys of their facts.
    """

    def __init__(
        self,
        network: Network,
        formats: Mapping[str, Format],
        wanted: Sequence[str],
        addresses: Mapping[str, str],
    ) -> None:
        self.network, self._formats, self._addresses = network, formats, addresses
        self._recipe = recipe_hash({name: str(format) for name, format in formats.items()})
        self.why = {n: why for n in wanted if (why := why_unseen(network, n)) is not None}
        """Layers whose outputs cannot be compared, with the reason."""
        self.sums: dict[str, ChannelSums] = {}
        self._wanted = [name for name in wanted if name not in self.why]
        self._emitted: set[str] = set()

    def watched(self, region: int) -> list[str]:
        """Layers to watch in a region: those stored there or used there by several blocks.

        What stands before the blocks but acts in them is watched once, where it acts first.
        """
        layers = self.network.layers
        return [
            name
            for name in self._wanted
            if layers[name].start == region
            or (layers[name].block is not None and region in layers[name].uses)
        ]

    def empty(self, names: Sequence[str]) -> OutputErrors:
        """Sums of no tokens, to be merged once a step has ended."""
        return OutputErrors(self.network, self._formats, names, self._addresses)

    def taking(self, held: Mapping[str, Held]) -> Take:
        """What takes the inputs of layers.

        Args:
            held: what the quantised layers compute with.
        """

        def take(layer: str, expert: int | None, inputs: Tensor) -> None:
            sums = self.sums.get(layer)
            if sums is None:
                shape = self.network.layers[layer].shape
                sums = self.sums[layer] = ChannelSums.empty(shape, self.network.device)
            sums.add(inputs, self.network.weight(layer), held[layer], expert)

        return take

    def merge(self, other: OutputErrors) -> None:
        """Add what another has seen."""
        for name, sums in other.sums.items():
            if name in self.sums:
                self.sums[name].merge(sums)
            else:
                self.sums[name] = sums

    def passed(self, region: int, counts: JobCounts) -> Iterator[p.Learned]:
        """Announce the errors of layers that act in no later region, and free their sums."""
        layers = self.network.layers
        done = [n for n in self._wanted if layers[n].last <= region and n not in self._emitted]
        yield from self._learnt({name: self._fact(name) for name in done}, counts)
        for name in done:
            self.sums.pop(name, None)
        self._emitted.update(done)

    def refused(self, counts: JobCounts) -> Iterator[p.Learned]:
        """Announce why the others have none."""
        facts = {
            name: p.OutputError(
                layer=name,
                format=str(self._formats[name]),
                recipe=self._recipe_of(name),
                tokens=0,
                why=why,
            )
            for name, why in self.why.items()
        }
        yield from self._learnt(facts, counts)

    def _learnt(self, facts: Mapping[str, p.OutputError], counts: JobCounts) -> Iterator[p.Learned]:
        if facts:
            counts.measured += len(facts)
            addresses = tuple(self._addresses[name] for name in facts)
            yield p.Learned(addresses, tuple(facts.values()))

    def _recipe_of(self, name: str) -> str:
        return self._recipe if needs_calibration(self._formats[name]) else ""

    def _fact(self, name: str) -> p.OutputError:
        shape = self.network.layers[name].shape
        sums = self.sums.get(name)
        if sums is None:  # nothing reached it
            sums = ChannelSums.empty(shape, self.network.device)
        experts = len(shape) == 3
        return sums.fact(name, str(self._formats[name]), self._recipe_of(name), experts=experts)
