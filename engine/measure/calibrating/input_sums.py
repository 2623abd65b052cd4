"""Statistics of the inputs of all layers, gathered in one pass over some windows, and merged.

They are those of the unchanged model, so that what was gathered on some windows stays right when
more are added: a larger number of samples costs a pass over the new ones alone.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Sequence
from functools import partial

import torch
from torch import Tensor

from engine import protocol as p
from engine.measure.calibration.calibration import SAMPLE
from engine.measure.calibration.solve import LayerInputs
from engine.measure.counts import JobCounts
from engine.measure.preemption import repeated
from engine.model.inputs import watch_inputs, watched_layers
from engine.model.network import Network
from engine.quant.input_statistics import InputStatistics

Events = Generator[p.AnyEvent | None, None, None]
Take = Callable[[str, int | None, Tensor], None]


class InputSums:
    """Sums over the tokens that one input was seen with, and a sample of them.

    The sample is those tokens that drew the lowest numbers, so that it is the same however the
    tokens were gathered: at once, or some of them elsewhere and merged.

    Args:
        shape: of a weight with this input.
        device: where sums are kept.
        seed: of the draws; another one for every part that is merged.
    """

    def __init__(self, shape: Sequence[int], device: torch.device, seed: int) -> None:
        width, experts = shape[-1], shape[0] if len(shape) == 3 else 0
        self.all = InputStatistics.empty(width, device)
        self.experts = [InputStatistics.empty(width, device) for _ in range(experts)]
        self.sample = torch.empty(0, width, device=device)
        self._drawn = torch.empty(0)
        self._generator = torch.Generator().manual_seed(seed)

    @torch.no_grad()
    def add(self, inputs: Tensor, expert: int | None, name: str) -> None:
        """Add tokens ``[tokens, in]``, of one expert if the layer has some.

        Raises:
            FormatError: an input is not finite.
        """
        rows = inputs.detach().reshape(-1, inputs.shape[-1])
        (self.all if expert is None else self.experts[expert]).add(rows, name)
        drawn = torch.rand(len(rows), generator=self._generator)
        lowest = drawn.argsort()[:SAMPLE]
        some = rows[lowest.to(rows.device)].to(self.sample.device, torch.float32)
        self._take(some, drawn[lowest])

    def merge(self, other: InputSums, name: str) -> None:
        """Add what another was given, as if its tokens had been added here."""
        self.all.merge(other.all, name)
        for mine, theirs in zip(self.experts, other.experts, strict=True):
            mine.merge(theirs, name)
        self._take(other.sample, other._drawn)

    def _take(self, sample: Tensor, drawn: Tensor) -> None:
        both = torch.cat([self._drawn, drawn])
        lowest = both.argsort()[:SAMPLE]
        rows = torch.cat([self.sample, sample])
        self.sample, self._drawn = rows[lowest.to(rows.device)], both[lowest]

    def inputs(self) -> LayerInputs:
        """As methods take them; of experts, all together too."""
        whole = self.all
        if self.experts:
            whole = InputStatistics.empty(whole.width, whole.gram.device)
            for each in self.experts:
                whole.merge(each)
        return LayerInputs(whole, self.sample, tuple(self.experts))

    def energy(self) -> Tensor:
        """``Σ x²`` of every channel, float64 ``[in]`` on the CPU."""
        parts = self.experts or [self.all]
        return torch.stack([each.gram.diagonal().double() for each in parts]).sum(0).cpu()

    @property
    def tokens(self) -> int:
        """Tokens; of experts, each token once for every expert it was routed to."""
        return sum(each.tokens for each in self.experts or [self.all])

    @property
    def unseen(self) -> int:
        """Experts that no token reached."""
        return sum(not each.tokens for each in self.experts)


class SetStatistics:
    """`InputSums` of every input of the layers of a recipe."""

    def __init__(self, network: Network, wanted: Collection[str], seed: int) -> None:
        """
        Args:
            network: whose layers they are.
            wanted: layers, one for each input.
            seed: of the samples.
        """
        self._network = network
        self.samples = 0
        """Windows that were added."""
        self.sums = {
            name: InputSums(network.layers[name].shape, network.device, seed + at)
            for at, name in enumerate(wanted)
        }

    def take(self, name: str, expert: int | None, inputs: Tensor) -> None:
        """Add inputs ``[tokens, in]`` of a layer."""
        self.sums[name].add(inputs, expert, name)

    def merge(self, other: SetStatistics) -> None:
        """Add what was gathered elsewhere, of the same layers."""
        for name, sums in other.sums.items():
            self.sums[name].merge(sums, name)
        self.samples += other.samples

    def energies(self) -> dict[str, tuple[Tensor, int]]:
        """Of every input, ``Σ x²`` of its channels and the number of tokens."""
        return {name: (sums.energy(), sums.tokens) for name, sums in self.sums.items()}


class Energies:
    """``Σ x²`` of every channel of every input: what a distance needs, in few bytes."""

    def __init__(self) -> None:
        self._sums: dict[str, tuple[Tensor, int]] = {}

    @torch.no_grad()
    def take(self, name: str, expert: int | None, inputs: Tensor) -> None:
        """Add inputs ``[tokens, in]`` of a layer."""
        energy = inputs.float().square().sum(0, dtype=torch.float64).cpu()
        before, tokens = self._sums.get(name, (torch.zeros_like(energy), 0))
        self._sums[name] = before + energy, tokens + len(inputs)

    def energies(self) -> dict[str, tuple[Tensor, int]]:
        """Of every input, ``Σ x²`` of its channels and the number of tokens."""
        return dict(self._sums)


def statistics_bytes(network: Network, wanted: Collection[str]) -> int:
    """Bytes of one `SetStatistics`."""
    size = 0
    for name in wanted:
        shape = network.layers[name].shape
        size += 4 * shape[-1] * (shape[-1] * max(1, shape[0] if len(shape) == 3 else 1) + SAMPLE)
    return size


def run_over(
    network: Network,
    batches: Sequence[Tensor],
    wanted: Collection[str],
    take: Take,
    counts: JobCounts,
    label: str,
) -> Events:
    """Run the unchanged model over windows once, and pass inputs of layers to ``take``.

    Args:
        network: resident, at its reference weights.
        batches: micro-batches of tokens.
        wanted: the layers.
        take: see `watch_inputs`.
        counts: of the job.
        label: what progress says it is about.
    """
    by_block: dict[int, list[str]] = {}
    for block in range(-1, len(network.blocks) + 1):
        names = [name for name in watched_layers(network, block) if name in wanted]
        if names:
            by_block[block] = names
    last = max(by_block, default=-1)
    stage = counts.stage("calibrating", len(batches))
    for done, ids in enumerate(batches):
        yield stage.step(done, label)
        state: Tensor | None = None
        for block in range(-1, last + 1):
            names = by_block.get(block, [])
            if block < 0 and not names:
                continue
            step = partial(watch_inputs, network, ids, block, state, take, {}, names)
            state = yield from repeated(counts.timed("calibrate_s", step))
            yield None
