"""A method with the statistics of a calibration set: the weights it makes, and what they score."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass
from functools import partial

import torch

from engine import protocol as p
from engine.formats.grammar import Format, needs_calibration
from engine.measure.calibrating.input_sums import SetStatistics
from engine.measure.calibrating.windows import EvaluationText, SetWindows
from engine.measure.calibration.approximate import approximation, held_of, solved_from
from engine.measure.calibration.calibration import Kept
from engine.measure.calibration.solve import LayerInputs, Scaling
from engine.measure.counts import JobCounts
from engine.measure.evaluation.divergence import Tally, difference, mean_with_error, perplexity
from engine.measure.evaluation.evaluate import run_reference
from engine.measure.preemption import repeated
from engine.model.inputs import shared_inputs
from engine.model.network import Held
from engine.store import keys
from engine.workspace import Loaded

SCALINGS = 64 << 20
"""Bytes of scales that layers of a fold group share."""


@dataclass(frozen=True, eq=False)
class Variant:
    """Windows of a set that a method is calibrated on."""

    windows: SetWindows
    first: int
    end: int
    samples: int
    """Windows of the whole, of which this may be a half."""
    part: p.CalibratedOn = ""

    @property
    def key(self) -> keys.Calibration:
        """The part of a key."""
        return self.windows.key(self.first, self.end)

    @property
    def said(self) -> str:
        """For progress."""
        half = f", {self.part}" if self.part else ""
        return f"{self.windows.name} {self.samples} × {self.windows.seq_len}{half}"


def quantised(
    loaded: Loaded,
    formats: Mapping[str, Format],
    statistics: SetStatistics,
    counts: JobCounts,
    said: str,
) -> Generator[p.AnyEvent | None, None, dict[str, Held]]:
    """What every layer of a recipe computes with, calibrated on these statistics.

    Args:
        loaded: the model.
        formats: the recipe.
        statistics: of the inputs of its layers.
        counts: of the job.
        said: for progress.

    Raises:
        FormatError: see `engine.measure.calibration.solve.solve`.
    """
    network, shares = loaded.network, shared_inputs(loaded.network)
    scalings: Kept[Scaling] = Kept(SCALINGS)
    inputs: dict[str, LayerInputs] = {}
    stage = counts.stage("quantising", len(formats))
    held: dict[str, Held] = {}
    for done, name in enumerate(sorted(formats, key=lambda name: network.layers[name].start)):
        yield stage.step(done, said, str(formats[name]))
        if not needs_calibration(formats[name]):
            plain = partial(approximation, loaded, name, formats[name])
            held[name] = counts.timed("quantize_s", plain)()
            continue
        share = shares[name][0]
        if share not in inputs:
            inputs = {share: statistics.sums[share].inputs()}
        solution, _ = yield from solved_from(
            loaded, name, formats[name], inputs[share], scalings, counts
        )
        held[name] = held_of(solution, solution.weight.to(network.dtype))
        yield None
    return held


def scored(
    loaded: Loaded,
    text: EvaluationText,
    weights: Mapping[str, Held],
    variant: Variant,
    method: str,
    counts: JobCounts,
) -> Generator[p.AnyEvent | None, None, p.CalibrationScore]:
    """The score of weights on one text, against the unchanged model.

    Args:
        loaded: the model.
        text: to score on.
        weights: of all layers that are changed.
        variant: what they were calibrated on.
        method: the format that was asked for.
        counts: of the job.
    """
    network, reference = loaded.network, text.reference
    start = min(network.layers[name].start for name in weights)
    tallies: list[Tally] = []
    stage = counts.stage("measuring", len(reference.batches))
    for batch in range(len(reference.batches)):
        yield stage.step(batch, f"{variant.said} on {text.name}")
        yield from run_reference(reference, batch, counts)
        step = partial(reference.measure, batch, start, weights)
        tallies.append((yield from repeated(counts.timed("measure_s", step))))
        yield None
    targets = reference.windows.targets
    found = difference(tallies, targets)
    unchanged = mean_with_error(reference.nll_sums(), targets).mean
    kls = torch.cat([tally.kl for tally in tallies]) / targets
    return p.CalibrationScore(
        set=variant.windows.name,
        text=text.name,
        method=method,
        seq_len=variant.windows.seq_len,
        samples=variant.samples,
        part=variant.part,
        nll=unchanged + found.dnll.mean,
        ppl=perplexity(unchanged + found.dnll.mean),
        nll_reference=unchanged,
        kl=found.kl.mean,
        kl_se=found.kl.se,
        top1=found.top1.mean,
        tokens=reference.windows.count * targets,
        kls=tuple(float(each) for each in kls),
    )
