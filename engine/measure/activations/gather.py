"""Activation statistics of all layers, in one forward pass over the calibration text."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor

from engine import protocol as p
from engine.measure.activations.sums import ActivationSums, above
from engine.measure.block_loop import reading
from engine.measure.calibration.calibration import Calibration, need_calibration
from engine.measure.counts import FACTS_IN_ONE_EVENT, JobCounts
from engine.measure.preemption import repeated
from engine.model.block_modules import block_modules
from engine.model.inputs import run_to_head, shared_inputs, watch_all, watching_all
from engine.model.lanes import Lane
from engine.model.network import Network
from engine.store import keys
from engine.workspace import Loaded

RULES = 6.0
"""An outlier channel's maximum is so many times the median, or the mean, of all channels' maxima:
both rules are in use (SmoothQuant's analyses take the median, LLM.int8() a fixed 6.0 on normed
inputs)."""
LISTED = 16
"""Outlier channels of a tensor that are listed, the largest first."""
MASSIVE = 20.0
"""A massive token's norm is so many times the median norm, or more."""

Events = Generator[p.AnyEvent | None, None, None]


def activations(loaded: Loaded, counts: JobCounts) -> Events:
    """Measure the inputs and outputs of every layer.

    Yields:
        `Learned` with a `LayerActivations` of every layer that can be watched, and `Progress`.

    Raises:
        TextError: the calibration text cannot be read.
    """
    calibration = yield from need_calibration(loaded)
    network = loaded.network
    addresses = {
        name: keys.Activations(
            on=loaded.opened.files,
            layer=name,
            dtype=loaded.protocol.dtype,
            device=loaded.protocol.device.split(":")[0],
            calibration=calibration.key("reference"),
            modules=True,
        ).address
        for name, layer in network.layers.items()
        if layer.role != "embedding"
    }
    known = loaded.known(list(addresses.values()))
    have = {key: known[key] for key in addresses.values() if key in known}
    yield from counts.found(list(have), list(have.values()))
    if len(have) == len(addresses):
        return
    gathered = Gathered(network, calibration.windows.ids.shape[1])
    stage = counts.stage("activations", len(calibration.batches))
    if network.streamed:
        yield from _block_by_block(network, calibration, gathered, counts)
    else:
        for batch in range(len(calibration.batches)):
            yield stage.step(batch)
            watched = partial(step, network, calibration, gathered, batch)
            yield from repeated(counts.timed("activations_s", watched))
    facts = {
        addresses[name]: gathered.fact(name) for name in addresses if addresses[name] not in have
    }
    counts.measured += len(facts)
    listed = list(facts.items())
    for at in range(0, len(listed), FACTS_IN_ONE_EVENT):
        some = listed[at : at + FACTS_IN_ONE_EVENT]
        yield p.Learned(tuple(key for key, _ in some), tuple(fact for _, fact in some))


def _block_by_block(
    network: Network, calibration: Calibration, gathered: Gathered, counts: JobCounts
) -> Events:
    """The same where blocks are streamed: each is read once for all micro-batches."""
    waiting, end = calibration.reference.waiting, len(network.blocks)
    lanes = [Lane(network, ids, -1, None, take=waiting) for ids in calibration.batches]

    def advance(lane: Lane, stretch: range) -> None:
        with _watched(network, gathered, stretch):
            lane.advance(stretch.stop)

    def finish(lane: Lane) -> None:
        with _watched(network, gathered, range(end, end + 1)):
            run_to_head(network, lane.ids, lane.reached())

    stretches = network.stretches(-1, end)
    stage = counts.stage("activations", len(stretches))
    for done, stretch in enumerate(stretches):
        yield stage.step(done, detail=reading(stretch, end))
        with network.at_hand(stretch):
            for lane in lanes:
                one = partial(advance, lane, stretch)
                yield from repeated(counts.timed("activations_s", one))
                yield None
    for lane in lanes:
        yield from repeated(counts.timed("activations_s", partial(finish, lane)))
        yield None


@contextmanager
def _watched(network: Network, gathered: Gathered, regions: range) -> Iterator[None]:
    """Inside, forwards are added to what is gathered, at the end: a preempted one adds nothing."""
    found = Gathered(network, gathered.seq_len)
    take = found.take_input, found.take_output, found.take_module
    with watching_all(network, regions, *take):
        yield
    gathered.merge(found)


def step(network: Network, calibration: Calibration, gathered: Gathered, batch: int) -> None:
    """Add what one micro-batch of the calibration text shows.

    Raises:
        Preempted: ``should_stop`` said so; nothing has been added.
    """
    found = Gathered(network, gathered.seq_len)  # a step that is preempted has added nothing
    ids = calibration.batches[batch]
    watch_all(network, ids, found.take_input, found.take_output, found.take_module)
    gathered.merge(found)


class Gathered:
    """Sums of every layer's inputs and outputs."""

    def __init__(self, network: Network, seq_len: int) -> None:
        """
        Args:
            network: whose layers they are.
            seq_len: of a window.
        """
        self.network, self.seq_len = network, seq_len
        self.inputs: dict[str, ActivationSums] = {}
        """Of layers that share an input, by the first of them."""
        self.outputs: dict[str, ActivationSums] = {}
        self.expert_tokens: dict[str, list[int]] = {}
        """Tokens that each expert was given."""
        self.modules: dict[str, ActivationSums] = {}
        """Of outputs of modules that are not those of their last layers."""
        self._shares = shared_inputs(network)
        self._ends = {each.last: each.name for each in block_modules(network)}
        """Modules by their last layers."""

    def take_input(self, layer: str, expert: int | None, values: Tensor) -> None:
        """Add inputs ``[tokens, in]`` of a layer, or of one of its experts."""
        if expert is not None:
            shape = self.network.layers[layer].shape
            tokens = self.expert_tokens.setdefault(layer, [0] * shape[0])
            tokens[expert] += len(values)
        if self._shares[layer][0] == layer:
            of_all = self.inputs.setdefault(layer, ActivationSums.empty(values.shape[-1]))
            of_all.add(values, self.seq_len if expert is None else 0)

    def take_output(self, layer: str, values: Tensor) -> None:
        """Add outputs ``[tokens, out]`` of a layer."""
        values = values.reshape(-1, values.shape[-1])
        found = self.outputs.setdefault(layer, ActivationSums.empty(values.shape[-1]))
        found.add(values, self.seq_len)

    def take_module(self, module: str, values: Tensor | None) -> None:
        """Add outputs ``[batch, tokens, out]`` of a module; None for those of its last layer."""
        if values is not None:
            values = values.reshape(-1, values.shape[-1])
            found = self.modules.setdefault(module, ActivationSums.empty(values.shape[-1]))
            found.add(values, self.seq_len)

    def merge(self, other: Gathered) -> None:
        """Add what another has seen."""
        for mine, theirs in (
            (self.inputs, other.inputs),
            (self.outputs, other.outputs),
            (self.modules, other.modules),
        ):
            for name, sums in theirs.items():
                mine.setdefault(name, ActivationSums.empty(len(sums.maximum))).merge(sums)
        for name, tokens in other.expert_tokens.items():
            before = self.expert_tokens.get(name, [0] * len(tokens))
            self.expert_tokens[name] = [a + b for a, b in zip(before, tokens, strict=True)]

    def fact(self, layer: str) -> p.LayerActivations:
        """The fact of one layer."""
        shared = self._shares.get(layer, (layer,))[0]
        inputs, outputs = self.inputs.get(shared), self.outputs.get(layer)
        module = self._ends.get(layer, "")
        returned = self.modules.get(module, outputs) if module else None
        shape = self.network.layers[layer].shape
        if inputs is None:  # nothing reached it, which is worth knowing too
            inputs = ActivationSums.empty(shape[-1])
        none = [0] * shape[0] if len(shape) == 3 else []
        return p.LayerActivations(
            layer=layer,
            tokens=inputs.tokens,
            input=of_tensor(inputs),
            output=None if outputs is None else of_tensor(outputs),
            shared_with=shared,
            module=module,
            module_output=None if returned is None else of_tensor(returned),
            expert_tokens=self.expert_tokens.get(layer, none),
        )


def of_tensor(sums: ActivationSums) -> p.Activation:
    """The figures of one tensor."""
    maximum = sums.maximum
    median, mean = float(maximum.median()), float(maximum.mean())
    outliers = torch.nonzero(maximum > RULES * median).flatten()
    order = outliers[maximum[outliers].argsort(descending=True)][:LISTED].tolist()
    largest = float(maximum.max()) if len(maximum) else 0.0
    usual = sums.typical_norm()
    return p.Activation(
        max=largest,
        mean=sums.mean,
        std=sums.std,
        p99=sums.quantile(0.99),
        channels=len(maximum),
        channel_median=median,
        outlier_channels=tuple(order),
        outlier_maxima=tuple(float(maximum[at]) for at in order),
        by_median=len(outliers),
        by_mean=int((maximum > RULES * mean).sum()),
        largest_norm=sums.largest,
        median_norm=usual,
        position=sums.position,
        massive=above(sums.norms, MASSIVE * usual) if usual > 0 else 0,
        nonfinite=sums.nonfinite,
    )
