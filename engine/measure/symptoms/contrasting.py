"""Prompts that fail against prompts that do not: which channels, layers and heads differ there.

Every text is a prompt with what the reference wrote after it, which has not the recipe's symptom:
what is found belongs to the prompt, and is not what the symptom looks like. All texts go through
one block together, reference and recipe:

    channel   mean |x| of a layer's input, in the reference
    layer     ‖x ΔWᵀ‖ / ‖x Wᵀ‖ on the reference's inputs
    head      KL of the recipe's attention probabilities from the reference's

The first token of a text counts for heads alone: most models attend to it whatever it is, and some
of its channels are a hundred times as large as all others.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from statistics import fmean
from typing import NamedTuple, TypeVar

import msgspec
import torch
from torch import Tensor

from engine import protocol as p
from engine.measure.counts import JobCounts
from engine.measure.errors.attention import (
    POSITIONS,
    divergence,
    probabilities,
    why_no_attention,
)
from engine.measure.preemption import repeated
from engine.measure.symptoms.labellings import Labellings
from engine.model.inputs import watch_inputs, where, why_unseen
from engine.model.lanes import Lane
from engine.model.network import Held, Network, StandIn, whole

T = TypeVar("T")

LISTED = 16
"""Channels, layers and heads of each contrast."""
LEAST_ERROR = 0.01
"""Relative output error below which a layer's does not count."""
LEAST_KL = 0.01
"""Nats a query below which a head's divergence does not count."""
LEAST = torch.finfo(torch.float32).tiny


@dataclass(eq=False)
class Contrasted:
    """A text."""

    ids: Sequence[int]
    """Tokens of the prompt, and what the reference wrote after it."""
    failing: bool


@dataclass(eq=False)
class _Seen:
    """What one text does in one block."""

    inputs: list[tuple[tuple[str, ...], Tensor, Tensor]] = field(default_factory=list)
    """Layers that share an input, mean |x| and mean x² of its channels."""
    errors: dict[str, float] = field(default_factory=dict)
    """By layer."""
    heads: list[list[float]] = field(default_factory=list)
    """KL of every head of each attention module."""


class Contrasting:
    """All texts on their way through the blocks.

    Args:
        network: at rest.
        texts: some of which fail.
        held: the recipe's weights.
        counts: of the job.
    """

    def __init__(
        self,
        network: Network,
        texts: Sequence[Contrasted],
        held: Mapping[str, Held],
        counts: JobCounts,
    ) -> None:
        self._network, self._texts, self._held, self._counts = network, texts, held, counts
        failing = [each.failing for each in texts]
        self._failing = torch.tensor(failing)
        self._labels = failing
        self._both = not all(failing)
        """Whether there are texts that do not fail."""
        if self._both:
            self._channel_labels = Labellings(failing)
        self._why = why_no_attention(network)
        self._left_out: dict[str, int] = {}
        """How many layers of blocks are not compared, by what they are."""
        self._channels: list[p.ContrastedChannel] = []
        self._errors: dict[str, list[float]] = {}
        self._heads: dict[tuple[int, int, int], list[float]] = {}

    def run(
        self, recipe: str, prompts: str
    ) -> Generator[p.AnyEvent | None, None, p.SymptomContrast]:
        """Run all blocks.

        Args:
            recipe: its hash.
            prompts: see `SymptomRestored`.
        """
        if self._network.resumable:
            yield from self._blocks()
        failing = int(self._failing.sum())
        left_out = ", ".join(f"{what} ({many})" for what, many in self._left_out.items())
        return p.SymptomContrast(
            recipe=recipe,
            prompts=prompts,
            failing=failing,
            healthy=len(self._texts) - failing,
            channels=tuple(self._listed_channels()),
            layers=tuple(self._contrasted_layers()),
            heads=tuple(self._contrasted_heads()),
            why="; ".join(filter(None, [self._why, left_out and f"not compared: {left_out}"])),
        )

    def _blocks(self) -> Generator[p.AnyEvent | None, None, None]:
        network = self._network
        ids = [torch.tensor([each.ids]).to(network.device) for each in self._texts]
        lanes = [(Lane(network, each, -1, None), Lane(network, each, -1, None)) for each in ids]
        stage = self._counts.stage("activations", (1 + len(network.blocks)) * len(lanes))
        for block in range(-1, len(network.blocks)):
            region = range(block, block + 1)
            here = {n: whole(h) for n, h in self._held.items() if network.layers[n].acts_in(region)}
            apart = self._apart(block, here)
            seen: list[_Seen] = []
            for at, lane in enumerate(lanes):
                yield stage.step((block + 1) * len(lanes) + at, f"block {max(block, 0)}")
                lane[1].held = here
                if block >= 0:
                    watch = partial(self._watched, block, *lane, apart)
                    seen.append((yield from self._timed(watch)))
                for each in lane:
                    yield from self._timed(partial(each.advance, block + 1))
                yield None
            if block >= 0:
                self._take(block, seen, apart)

    def _timed(self, step: Callable[[], T]) -> Generator[None, None, T]:
        return (yield from repeated(self._counts.timed("contrast_s", step)))

    def _apart(self, block: int, here: Mapping[str, Tensor | StandIn]) -> dict[str, Tensor]:
        """``ΔW`` of the layers of a block whose inputs are plain, float32 ``[out, in]``."""
        found = {}
        for name, held in here.items():
            layer = self._network.layers[name]
            if layer.block != block:
                continue
            if what := self._why_left_out(name, held):
                self._left_out[what] = self._left_out.get(what, 0) + 1
                continue
            held = held.weight if isinstance(held, StandIn) else held
            weight = self._network.weight(name)
            found[name] = held.to(weight.device, weight.dtype).float() - weight.float()
        return found

    def _why_left_out(self, name: str, held: Tensor | StandIn) -> str:
        """What a layer is whose inputs do not tell its error; empty if they do."""
        layer = self._network.layers[name]
        if layer.role == "experts":
            return "layers of experts"
        if layer.repeated or why_unseen(self._network, name) is not None:
            return "layers whose inputs cannot be watched, or that several blocks share"
        if isinstance(held, StandIn) and held.inputs is not None:
            return "layers whose inputs are changed as well"
        return ""

    @torch.no_grad()
    def _watched(self, block: int, one: Lane, other: Lane, apart: Mapping[str, Tensor]) -> _Seen:
        """What one text does in one block.

        Args:
            block: its index.
            one: the reference, before the block.
            other: the recipe.
            apart: see `_apart`.

        Raises:
            Preempted: a more urgent job waits; nothing has changed.
        """
        network, seen = self._network, _Seen()
        groups: dict[tuple[int, int, int], int] = {}
        alive: list[Tensor] = []  # until the block has run: memory is not used twice

        def take(name: str, _expert: int | None, inputs: Tensor) -> None:
            alive.append(inputs)
            x = inputs[min(1, len(inputs) - 1) :].float()
            at = groups.setdefault(where(inputs), len(seen.inputs))
            if at < len(seen.inputs):
                names, size, square = seen.inputs[at]
                seen.inputs[at] = (*names, name), size, square
            else:
                seen.inputs.append(((name,), x.abs().mean(0), x.square().mean(0)))
            error, size = x @ apart[name].T, x @ network.weight(name).float().T
            seen.errors[name] = float(error.norm() / size.norm().clamp(min=LEAST))

        if apart:
            watch_inputs(network, one.ids, block, one.reached(), take, names=list(apart))
        if not self._why:
            both = (self._probabilities(block, lane) for lane in (one, other))
            seen.heads = [divergence(p, q) for p, q in zip(*both, strict=True)]
        return seen

    def _probabilities(self, block: int, lane: Lane) -> list[Tensor]:
        ids, state = lane.ids[:, :POSITIONS], lane.reached()[:, :POSITIONS]
        region = range(block, block + 1)
        layers = self._network.layers
        held = {name: each for name, each in lane.held.items() if layers[name].acts_in(region)}
        return probabilities(self._network, ids, block, state, held)

    # --- what was seen ------------------------------------------------------------------------

    def _take(self, block: int, seen: Sequence[_Seen], apart: Mapping[str, Tensor]) -> None:
        """Add what all texts do in a block."""
        for one in seen:
            for name, error in one.errors.items():
                self._errors.setdefault(name, []).append(error)
            for module, heads in enumerate(one.heads):
                for head, kl in enumerate(heads):
                    self._heads.setdefault((block, module, head), []).append(max(kl, 0.0))
        for at, (names, _, _) in enumerate(seen[0].inputs):
            size = torch.stack([one.inputs[at][1] for one in seen])
            square = torch.stack([one.inputs[at][2] for one in seen])
            self._take_channels(names, size.cpu(), square.cpu(), apart)

    def _take_channels(
        self, names: Sequence[str], size: Tensor, square: Tensor, apart: Mapping[str, Tensor]
    ) -> None:
        """Keep the channels of an input that differ most.

        Args:
            names: layers that share it.
            size: mean |x|, ``[texts, channels]``.
            square: mean x².
            apart: see `_apart`.
        """
        if not self._both:
            return
        found = self._channel_labels.differences(size, float(size.mean()))
        there, others = (square[self._failing].mean(0), square[~self._failing].mean(0))
        parts = {
            name: (there * column, others * column)
            for name in names
            for column in [apart[name].square().sum(0).cpu()]
        }
        for at in found.topk(min(LISTED, len(found))).indices.tolist():
            if not found[at] > 0:
                continue
            shares = {name: tuple(map(partial(_share, at), both)) for name, both in parts.items()}
            layer = max(shares, key=lambda name: shares[name][0])
            self._channels.append(
                p.ContrastedChannel(
                    layer=layer,
                    channel=at,
                    failing=float(size[self._failing, at].mean()),
                    healthy=float(size[~self._failing, at].mean()),
                    difference=float(found[at]),
                    chance=math.nan,
                    share=shares[layer][0],
                    share_healthy=shares[layer][1],
                )
            )

    def _listed_channels(self) -> list[p.ContrastedChannel]:
        """Those of all layers that differ most, with their chances."""
        best = sorted(self._channels, key=lambda each: -each.difference)[:LISTED]
        return [
            msgspec.structs.replace(each, chance=self._channel_labels.chance(each.difference))
            for each in best
        ]

    def _listed(self, found: Mapping[T, list[float]], floor: float) -> list[tuple[T, _Figures]]:
        """Things measured on every text, those that differ most first; without other texts than
        failing ones, those that are largest.
        """
        things = [each for each, values in found.items() if len(values) == len(self._failing)]
        if not things:
            return []
        values = torch.tensor([found[each] for each in things], dtype=torch.float64).T
        there = values[self._failing].mean(0)
        if not self._both:
            nan = math.nan
            order = there.nan_to_num().argsort(descending=True)[:LISTED].tolist()
            return [(things[at], _Figures(float(there[at]), nan, nan, nan)) for at in order]
        labellings = Labellings(self._labels)
        differences = labellings.differences(values, floor)
        order = differences.argsort(descending=True)[:LISTED].tolist()
        others = values[~self._failing].mean(0)
        return [
            (
                things[at],
                _Figures(float(there[at]), float(others[at]), by, labellings.chance(by)),
            )
            for at in order
            for by in [float(differences[at])]
            if by > 0
        ]

    def _contrasted_layers(self) -> list[p.ContrastedLayer]:
        found = self._listed(self._errors, LEAST_ERROR)
        return [p.ContrastedLayer(layer=name, **each._asdict()) for name, each in found]

    def _contrasted_heads(self) -> list[p.ContrastedHead]:
        every = [kl for values in self._heads.values() for kl in values if math.isfinite(kl)]
        found = self._listed(self._heads, max(LEAST_KL, fmean(every)) if every else LEAST_KL)
        return [
            p.ContrastedHead(block=block, module=module, head=head, **each._asdict())
            for (block, module, head), each in found
        ]


class _Figures(NamedTuple):
    failing: float
    healthy: float
    difference: float
    chance: float


def _share(at: int, parts: Tensor) -> float:
    """One of some parts, of their sum."""
    total = float(parts.sum())
    return float(parts[at]) / total if total > 0 else 0.0
