"""Candidates of a sweep: units in a format, measured micro-batch by micro-batch.

*Degrade* changes one unit of the reference network. *Restore* gives one unit its own weights back
while the rest of the body holds the format; the gain is the difference of two comparisons with the
reference, window by window:

    ΔKL = KL(ref ‖ all quantised) − KL(ref ‖ all but the unit),   ΔNLL = NLL(all) − NLL(all but it)
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from engine import protocol as p
from engine.formats.grammar import Format, needs_calibration
from engine.formats.storage import why_not_held
from engine.measure.block_loop import Crossing, cross, with_head
from engine.measure.calibration.approximate import approximated, why_not_given
from engine.measure.calibration.calibration import with_scales
from engine.measure.counts import JobCounts
from engine.measure.evaluation.beside import compact_weights
from engine.measure.evaluation.divergence import Tally, difference, perplexity
from engine.measure.evaluation.evaluate import changed, run_recipe, run_reference
from engine.measure.evaluation.recipe_run import RecipeRun
from engine.measure.evaluation.reference import Reference, reference_of
from engine.measure.evaluation.streamed_recipe import StreamedRecipe
from engine.measure.preemption import repeated
from engine.measure.sweep.top_k import Evidence, evidence
from engine.measure.sweep.units import Unit
from engine.model.memory import memory_free
from engine.model.network import Held, held_bytes
from engine.store import keys
from engine.workspace import Loaded


class Tallies(dict[str, list[Tally]]):
    """Tallies of measurements that have not seen all windows, by the key of the full figure.

    Cached with the model, so that another sweep resumes them.
    """


@dataclass(eq=False)
class Candidate:
    """A unit to measure in a format."""

    unit: Unit
    """Those of its layers that can hold the format."""
    key: str
    """Key of the figure on all windows."""
    tallies: list[Tally]
    """Tallies of the micro-batches measured so far, in order; cached with the model until
    complete."""
    held: dict[str, Held] | None = None
    """The unit's weights in the format, if they are kept between two micro-batches."""


@dataclass(eq=False)
class SweepTable:
    """All units in one format: known figures, and candidates still to measure."""

    format: Format
    direction: p.Direction
    by: p.By
    calibration: keys.Calibration | None = None
    """The calibration part of keys."""
    todo: list[Candidate] = field(default_factory=list)
    """In the order in which to measure them."""
    found: dict[str, p.Sensitivity] = field(default_factory=dict)
    """Figures of this sweep, measured or from the store, by unit name."""
    body: set[str] = field(default_factory=set)
    """Names of the units other than embedding and head."""


def why_not(loaded: Loaded, layer: str, format: Format) -> str | None:
    """Why a layer cannot hold a format; None if it can."""
    network = loaded.network
    why = why_not_held(format, network.layers[layer].shape)
    return why or why_not_given(loaded, layer, format)


def figure_key(loaded: Loaded, unit: Unit, table: SweepTable, exactness: str = "") -> str:
    """Content address of a unit's figure.

    Args:
        loaded: the model.
        unit: what is changed.
        table: its format, direction and division into units.
        exactness: what the figure was measured for, if not on all windows.
    """
    everywhere = table.format if table.direction == "restore" else None
    of_unit = dict.fromkeys(unit.layers, table.format)
    part = with_scales(loaded, table.calibration, of_unit, everywhere)
    return keys.Sensitivity(
        on=loaded.evaluation,
        layer=unit.name,
        format=str(table.format),
        direction=table.direction,
        scale_dtype=loaded.scale_dtype,
        by=table.by,
        layers=() if table.by == "layer" else unit.layers,
        effort=exactness,
        calibration=part,
    ).address


class CandidateMeasurement:
    """Measures the candidates of one table."""

    def __init__(self, loaded: Loaded, table: SweepTable, nll: float, counts: JobCounts) -> None:
        """
        Args:
            loaded: the model.
            table: of the candidates.
            nll: of the unchanged model.
            counts: of the job.
        """
        self.loaded, self._table, self._nll = loaded, table, nll
        self.counts = counts
        """Of the job that measures now."""
        self._everything: RecipeRun | None = None
        self._body: StreamedRecipe | None = None
        network, self._reference = loaded.network, reference_of(loaded)
        self._room = memory_free(network.device) // 4

    @property
    def micro_batches(self) -> int:
        """Number of micro-batches."""
        return len(self._reference.batches)

    @property
    def lanes(self) -> int:
        """How many candidates are best measured side by side."""
        return self._reference.lanes

    @property
    def windows(self) -> int:
        """Number of windows."""
        return self._reference.windows.count

    def groups(self, candidates: Sequence[Candidate]) -> Iterator[Sequence[Candidate]]:
        """Candidates that are measured side by side.

        One if blocks are resident: its figure is complete before the next one starts, and only its
        weights are in memory. If blocks are streamed, as many as there may be lanes.
        """
        size = self._reference.lanes
        for at in range(0, len(candidates), size):
            yield candidates[at : at + size]

    def turns(self, group: Sequence[Candidate], until: int) -> Iterator[Sequence[Candidate]]:
        """Which of a group to measure next on a micro-batch, until all have seen ``until`` of them.

        A candidate is listed once per micro-batch; those listed together are measured together.
        """
        due = [each for each in group for _ in range(len(each.tallies), until)]
        size = self._reference.lanes
        for at in range(0, len(due), size):
            yield due[at : at + size]

    def measure(
        self, due: Sequence[Candidate], *, keep: bool
    ) -> Generator[p.AnyEvent | None, None, None]:
        """Measure candidates on their next micro-batches.

        Args:
            due: each gets one more tally every time it is listed; see `turns`.
            keep: whether weights are always kept; otherwise only if there is memory. If blocks are
                streamed none are: they are computed while the block is in memory.

        Raises:
            FormatError: see `approximated`.
            OutOfMemoryError: the whole body, quantised, does not fit in addition to the model.
        """
        if self.loaded.network.streamed:
            yield from self._together(due)
            return
        for candidate in due:
            batch = len(candidate.tallies)
            if self._table.direction == "degrade":
                held = yield from self._weights(candidate, keep=keep)
                tally = yield from changed(
                    self.loaded, batch, candidate.unit.start, held, self.counts
                )
            else:
                tally = yield from self._given_back(candidate, batch)
            candidate.tallies.append(tally)

    def drop(self, candidate: Candidate) -> None:
        """Free a candidate's weights, and its tallies once they cover all windows."""
        if candidate.held is not None:
            self._room += _size(candidate.held)
            candidate.held = None
        if len(candidate.tallies) == self.micro_batches:
            self.loaded.part(Tallies, Tallies).pop(candidate.key, None)

    def figure(self, candidate: Candidate) -> p.Sensitivity:
        """The figure from a candidate's tallies so far."""
        targets = self._reference.windows.targets
        found = difference(candidate.tallies, targets)
        dnll, kl = found.dnll, found.kl
        half = dnll.half()
        start, sign = self._nll, 1.0
        if self._everything is not None:
            together = [self._everything.tally(i) for i in range(len(candidate.tallies))]
            start, sign = self._nll + difference(together, targets).dnll.mean, -1.0

        def dppl(change: float) -> float:
            return sign * (perplexity(start + sign * change) - perplexity(start))

        return p.Sensitivity(
            layer=candidate.unit.name,
            format=str(self._table.format),
            direction=self._table.direction,
            kl=kl.mean,
            kl_se=kl.se,
            dnll=dnll.mean,
            dnll_se=dnll.se,
            dppl=dppl(dnll.mean),
            dppl_low=dppl(dnll.mean - half),
            dppl_high=dppl(dnll.mean + half),
            tokens=kl.windows * targets,
            by=self._table.by,
            top1=found.top1.mean,
        )

    def seen(self, candidate: Candidate) -> Evidence:
        """The KL of a candidate in the windows measured so far."""
        sums = torch.cat([tally.kl for tally in candidate.tallies])
        return evidence(sums.numpy().astype(np.float64) / self._reference.windows.targets)

    def known(self, fact: p.Sensitivity) -> Evidence:
        """The evidence of a figure from the store."""
        return Evidence(fact.kl, fact.kl_se, fact.tokens // self._reference.windows.targets)

    def prepare(self) -> Generator[p.AnyEvent | None, None, None]:
        """Do before the first candidate what all share: for restore, the quantised network."""
        if self._table.direction == "restore":
            stage = self.counts.stage("together", self.micro_batches)
            for batch in range(self.micro_batches):
                if self._everything is not None:
                    yield stage.step(batch)
                yield from self._quantised_body(batch)

    def close(self) -> None:
        """Free what all candidates share."""
        self._everything = self._body = None

    def _weights(
        self, candidate: Candidate, *, keep: bool
    ) -> Generator[p.AnyEvent | None, None, dict[str, Held]]:
        if candidate.held is not None:
            return candidate.held
        held = yield from self._quantised(candidate.unit.layers)
        if keep or _size(held) <= self._room:
            self._room -= _size(held)
            candidate.held = held
        return held

    def _quantised(
        self, layers: tuple[str, ...], *, compact: bool = False
    ) -> Generator[p.AnyEvent | None, None, dict[str, Held]]:
        held: dict[str, Held] = {}
        method = needs_calibration(self._table.format)
        stage = self.counts.stage("calibrating" if method else "quantising", len(layers))
        for done, name in enumerate(layers):
            if len(layers) > 1:
                yield stage.step(done, name, str(self._table.format))
            held[name] = yield from approximated(
                self.loaded, name, self._table.format, self.counts, compact=compact
            )
            if self.loaded.should_stop():
                yield None
        return held

    def _together(self, due: Sequence[Candidate]) -> Generator[p.AnyEvent | None, None, None]:
        """Measure candidates in one pass over the blocks; each unit's weights are computed on the
        way."""
        network, reference = self.loaded.network, self._reference
        ways: list[_CandidateRun] = []
        seen: dict[str, int] = {}
        for candidate in due:
            name = candidate.unit.name
            batch = seen[name] = seen.get(name, len(candidate.tallies) - 1) + 1
            yield from run_reference(reference, batch, self.counts)
            base: RecipeRun | Reference = reference
            if self._table.direction == "restore":
                base = yield from self._quantised_body(batch)
            ways.append(_CandidateRun(candidate, batch, base))
        held: dict[str, dict[str, Held]] = {candidate.unit.name: {} for candidate in due}
        units = {candidate.unit.name: candidate.unit for candidate in due}
        layers, end = network.layers, len(network.blocks)

        def settle(stretch: range) -> Generator[p.AnyEvent | None, None, None]:
            regions = with_head(stretch, end)
            if self._body is not None:
                yield from self._body.settle(regions)
            for name, unit in units.items():
                own = held[name]
                passed = [n for n in own if layers[n].start >= 0 and layers[n].last < stretch.start]
                for layer in passed:
                    del own[layer]
                for layer in unit.layers:
                    if layer not in own and layers[layer].acts_in(regions):
                        own[layer] = yield from self._own_weight(layer)

        crossings = [each.set_out(held[each.candidate.unit.name]) for each in ways]
        if all(crossing.lane.at == end for crossing in crossings):
            yield from settle(range(end, end))
        yield from cross(network, crossings, self.counts, prepare=settle)
        for each in ways:
            each.candidate.tallies.append(each.tally())

    def _own_weight(self, layer: str) -> Generator[p.AnyEvent | None, None, Held]:
        """What a candidate sets a layer to: the format, or its original weight."""
        if self._table.direction == "restore":
            return self.loaded.network.weight(layer)
        return (yield from self._one(layer, self._table.format))

    def _quantised_body(self, batch: int) -> Generator[p.AnyEvent | None, None, RecipeRun]:
        """The network with its whole body in the format, run on a micro-batch."""
        reference = self._reference
        if self._everything is None:
            layers = body_holding(self.loaded, self._table.format)
            formats = dict.fromkeys(layers, self._table.format)
            if self.loaded.network.streamed:
                self._body = StreamedRecipe(reference, formats, self._one)
                self._everything = self._body.run
            else:
                what = "every layer of the body in a format, beside the model,"
                compact = compact_weights(reference, formats, what)
                held = yield from self._quantised(layers, compact=compact)
                self._everything = RecipeRun(reference, held)
        settle = None if self._body is None else self._body.settle
        yield from run_recipe(self._everything, batch, self.counts, settle=settle)
        return self._everything

    def _one(self, layer: str, _format: Format) -> Generator[p.AnyEvent | None, None, Held]:
        return (yield from self._quantised((layer,)))[layer]

    def _given_back(
        self, candidate: Candidate, batch: int
    ) -> Generator[p.AnyEvent | None, None, Tally]:
        network, reference = self.loaded.network, self._reference
        counts = self.counts
        yield from run_reference(reference, batch, counts)
        everything = yield from self._quantised_body(batch)
        together = everything.tally(batch)
        own = {name: network.weight(name) for name in candidate.unit.layers}
        step = counts.timed(
            "measure_s", lambda: everything.measure(batch, candidate.unit.start, own)
        )
        without = yield from repeated(step)
        return gained(together, without)


class _CandidateRun:
    """A candidate on one micro-batch, going through the blocks with others."""

    def __init__(self, candidate: Candidate, batch: int, base: RecipeRun | Reference) -> None:
        self.candidate, self.batch, self.base = candidate, batch, base
        self._found: Tally | None = None

    def set_out(self, own: dict[str, Held]) -> Crossing:
        """Where the candidate's change begins; ``own`` gets its weights as their blocks are
        reached."""
        return self.base.changed(self.batch, self.candidate.unit.start, own, self._take)

    def _take(self, tally: Tally) -> None:
        self._found = tally

    def tally(self) -> Tally:
        """The result, once it has reached the end."""
        assert self._found is not None, "it has not arrived"
        if isinstance(self.base, RecipeRun):
            return gained(self.base.tally(self.batch), self._found)
        return self._found


def gained(together: Tally, without: Tally) -> Tally:
    """The gain of restoring a unit: all quantised, minus all but the unit."""
    return Tally(together.dnll - without.dnll, together.kl - without.kl, without.agree)


def body_holding(loaded: Loaded, format: Format) -> tuple[str, ...]:
    """Layers except embedding and head that can hold a format: what a uniform recipe changes."""
    network = loaded.network
    return tuple(
        name
        for name, layer in network.layers.items()
        if layer.role not in ("embedding", "head") and why_not(loaded, name, format) is None
    )


def _size(held: Mapping[str, Held]) -> int:
    return sum(map(held_bytes, held.values()))
