"""Blocks whose weights are there only while they are at hand, as of a source that reads them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from engine.model.network import Network


class StreamedBlocks:
    """Keeps every parameter of the blocks aside, and puts it into the module for the time being."""

    def __init__(self, modules: Sequence[nn.Module], at_once: int = 1) -> None:
        self.modules, self.at_once = modules, at_once
        self.outside, self.pace = False, 0.0
        self.reads = [0] * len(modules)
        """How often each block was read."""
        self.most = 0
        """How many blocks had their weights together."""
        self._open = [0] * len(modules)
        self._own = [list(module.parameters()) for module in modules]
        self._values = {p: p.data for parameters in self._own for p in parameters}
        for parameters in self._own:
            self._empty(parameters)

    def __len__(self) -> int:
        return len(self.modules)

    @contextmanager
    def block(self, k: int) -> Iterator[nn.Module]:
        """The block, read unless it is open already."""
        if not self._open[k]:
            self.reads[k] += 1
            for parameter in self._own[k]:
                parameter.data = self._values[parameter]
        self._open[k] += 1
        self.most = max(self.most, sum(map(bool, self._open)))
        try:
            yield self.modules[k]
        finally:
            self._open[k] -= 1
            if not self._open[k]:
                self._empty(self._own[k])

    def reference(self, k: int, parameter: nn.Parameter) -> Tensor:
        """The values that are kept aside; what is outside of blocks has its own."""
        return self._values.get(parameter, parameter)

    def _empty(self, parameters: Sequence[nn.Parameter]) -> None:
        for parameter in parameters:
            parameter.data = torch.empty(0, dtype=parameter.dtype, device=parameter.device)


@contextmanager
def streamed(network: Network, at_once: int = 1) -> Iterator[StreamedBlocks]:
    """The network with its blocks streamed; afterwards they are resident again."""
    resident = network.blocks
    source = StreamedBlocks(resident.modules, at_once)
    network.blocks = source
    try:
        yield source
    finally:
        network.blocks = resident
        for k, module in enumerate(resident.modules):
            for parameter in module.parameters():
                parameter.data = source.reference(k, parameter)
