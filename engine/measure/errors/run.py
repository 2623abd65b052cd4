"""One measurement of a recipe's errors: its micro-batches, and the figures so far."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
import torch
from torch import Tensor

from engine import protocol as p
from engine.formats.grammar import Format
from engine.measure.counts import JobCounts
from engine.measure.errors.attention import POSITIONS, WINDOWS, why_no_attention
from engine.measure.errors.drift import DriftSums, Mean
from engine.measure.errors.outputs import OutputErrors
from engine.session import recipe_hash
from engine.workspace import Loaded


class Run:
    """One measurement of one recipe."""

    def __init__(
        self,
        loaded: Loaded,
        formats: Mapping[str, Format],
        ids: Tensor,
        outputs: OutputErrors,
        counts: JobCounts,
    ) -> None:
        network = loaded.network
        self.loaded, self.network, self.formats = loaded, network, formats
        self.ids, self.outputs, self.counts = ids, outputs, counts
        rows = max(1, loaded.batch_tokens // ids.shape[1])
        self.batches = [part.to(network.device) for part in torch.split(ids, rows)]
        self.firsts = list(range(0, len(ids), rows))
        """Number of the first window of each micro-batch."""
        self.embedding = Mean()
        self.blocks = [DriftSums(block) for block in range(len(network.blocks))]
        self.no_attention = why_no_attention(network)
        self._states: dict[int, tuple[Tensor, Tensor]] = {}
        """The reference's and the recipe's state of each micro-batch; the same tensor as long as
        nothing has changed it."""

    def drift(self, not_split: str = "") -> p.Drift:
        """The fact over everything that was run."""
        blocks = [each.figures() for each in self.blocks]
        if self.no_attention:
            blocks = [msgspec.structs.replace(each, attention=[]) for each in blocks]
        if not self.no_attention and not any(block.attention for block in blocks):
            kind = type(self.network.model).__name__
            self.no_attention = f"no block of {kind} returns attention probabilities"
        compared = not self.no_attention
        return p.Drift(
            recipe=recipe_hash({name: str(format) for name, format in self.formats.items()}),
            tokens=self.ids.numel(),
            embedding=self.embedding.value,
            blocks=blocks,
            attention_windows=min(WINDOWS, len(self.ids)) if compared else 0,
            attention_tokens=min(POSITIONS, self.ids.shape[1]) if compared else 0,
            no_attention=self.no_attention,
            not_split=not_split,
        )
