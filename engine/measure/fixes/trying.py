"""Tries other formats on layers: errors first, then the KL of the formats that matter.

The quick formats of every layer come first. Calibration inputs are gathered once for all of them.
KL is measured on all windows, as a sweep does, for formats that none betters in both size and
(estimated) KL, until the forward passes that were granted are spent: first the smallest that should
win back enough. What is measured takes the place of estimates, so that the next choice is a better
one.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence

from engine import protocol as p
from engine.diagnosis.fixes import LayerFix, front, layer_fixes
from engine.diagnosis.thresholds import thresholds
from engine.errors import EngineError
from engine.formats.alternatives import alternatives
from engine.formats.grammar import FOLDED, Format, parse_format
from engine.formats.storage import why_not_held
from engine.measure.calibration.approximate import approximated, why_not_given
from engine.measure.calibration.calibration import Calibration, need_calibration
from engine.measure.calibration.solve import LayerInputs
from engine.measure.counts import JobCounts
from engine.measure.evaluation.evaluate import baseline
from engine.measure.fixes.addresses import effect_address, effect_table, tried_address
from engine.measure.fixes.errors import tried_errors
from engine.measure.sweep.candidates import (
    Candidate,
    CandidateMeasurement,
    Tallies,
    figure_key,
)
from engine.model.cost import cost_of
from engine.model.inputs import why_not_gathered, why_unseen
from engine.service.jobs import Steps
from engine.session import Session, apply
from engine.workspace import Loaded

Events = Generator[p.AnyEvent | None, None, None]


def try_fixes(
    loaded: Loaded,
    session: Session,
    layers: Sequence[str],
    format: str,
    forwards: float,
    job: str,
) -> Steps:
    """Try every alternative to a format on some layers.

    Args:
        loaded: the model.
        session: what is known; what the job finds is folded into it.
        layers: names, in the order in which to try them.
        format: canonical; to better.
        forwards: plain forward passes that measuring may take for each layer.
        job: id, for progress.

    Yields:
        `Learned` with `FormatTried` and `Sensitivity` facts, `Fallback` for layers that cannot hold
        the format, and `Progress`.

    Raises:
        TextError: the calibration text cannot be read.
    """
    counts = JobCounts(timings={"load_s": loaded.load_s}, job=job)
    trying = _Trying(loaded, session, parse_format(format), counts)
    able = []
    for layer in layers:
        why = why_not_held(trying.base, loaded.network.layers[layer].shape)
        if why is None:
            able.append(layer)
        else:
            yield p.Fallback(layer=layer, format=format, why=why)
    yield from trying.errors_of(able)
    for layer in able:
        yield from trying.measure(layer, forwards)
    return counts.outcome()


class _Trying:
    """What a job on fixes shares between its layers."""

    def __init__(self, loaded: Loaded, session: Session, base: Format, counts: JobCounts) -> None:
        self.loaded, self.session, self.base, self.counts = loaded, session, base, counts
        self.network, self.cost = loaded.network, cost_of(loaded.network)

    def _learnt(self, key: str, fact: p.AnyFact) -> p.Learned:
        event = self.counts.learnt(key, fact)
        apply(self.session, event)
        return event

    def _found(self, keys_: Sequence[str], facts: Sequence[p.AnyFact]) -> Events:
        for event in self.counts.found(keys_, facts):
            apply(self.session, event)
            yield event

    # --- errors -----------------------------------------------------------------------------------

    def errors_of(self, layers: Sequence[str]) -> Events:
        """Errors of weights and outputs of every layer in every alternative."""
        calibration = yield from need_calibration(self.loaded)
        wanted = [
            (at, layer, parse_format(text))
            for layer in layers
            for at, text in enumerate(alternatives(str(self.base), self._shape(layer)))
        ]
        wanted.sort(key=lambda each: each[0])
        addresses = {
            (layer, fmt): tried_address(self.loaded, layer, fmt, calibration)
            for _, layer, fmt in wanted
        }
        known = self.loaded.known(list(addresses.values()))
        have = [key for key in addresses.values() if key in known]
        yield from self._found(have, [known[key] for key in have])
        todo = [at for at, key in addresses.items() if key not in known]
        stage = self.counts.stage("quantising", len(todo))
        for done, (layer, fmt) in enumerate(todo):
            yield stage.step(done, layer, str(fmt))
            fact = yield from self._tried(layer, fmt, calibration)
            yield self._learnt(addresses[layer, fmt], fact)

    def _shape(self, layer: str) -> tuple[int, ...]:
        return self.network.layers[layer].shape

    def _tried(
        self, layer: str, fmt: Format, calibration: Calibration
    ) -> Generator[p.AnyEvent | None, None, p.FormatTried]:
        why = why_not_given(self.loaded, layer, fmt)
        if why is not None:
            return _refused(layer, fmt, why)
        inputs = yield from self._inputs(layer, calibration)
        try:
            held = yield from approximated(self.loaded, layer, fmt, self.counts)
        except EngineError as error:  # a scale that overflows, inputs that are not finite
            return _refused(layer, fmt, str(error))

        def compared() -> p.FormatTried:
            scaled = any(method.name in FOLDED for method in fmt.methods)
            found = tried_errors(self.network.weight(layer), held, inputs, scaled=scaled)
            return p.FormatTried(
                layer=layer,
                format=str(fmt),
                weight_error=found.weight,
                output_error=found.output,
                tokens=found.tokens,
                columns=calibration.columns.get((layer, str(fmt), ""), 0),
            )

        return self.counts.timed("compare_s", compared)()

    def _inputs(
        self, layer: str, calibration: Calibration
    ) -> Generator[p.AnyEvent | None, None, LayerInputs | None]:
        """A layer's calibration inputs; None where there are none of one place."""
        if why_unseen(self.network, layer) or why_not_gathered(self.network, layer):
            return None
        return (yield from calibration.inputs(layer, calibration.reference, self.counts))

    # --- KL ---------------------------------------------------------------------------------------

    def measure(self, layer: str, forwards: float) -> Events:
        """Measure the KL of the formats that matter, as long as there are forward passes left."""
        nll = (yield from baseline(self.loaded, self.counts)).nll
        yield from self._known_effects(layer)
        start = self.network.layers[layer].start
        one = self.cost.resumed(start) / self.cost.resumed(0)
        most = max(1, int(forwards / one))
        stage = self.counts.stage("measuring", most)
        for done in range(most):
            chosen = self._next(layer)
            if chosen is None:
                return
            yield stage.step(done, layer, chosen)
            yield from self._measured(layer, parse_format(chosen), nll)

    def _known_effects(self, layer: str) -> Events:
        """Announce what the store has measured of a layer's alternatives."""
        addresses: dict[str, None] = {}
        for fix in layer_fixes(self.session, layer, str(self.base)):
            if fix.format and not fix.measured and not fix.refused:
                fmt = parse_format(fix.format)
                addresses[(yield from effect_address(self.loaded, layer, fmt))] = None
        known = self.loaded.known(list(addresses))
        yield from self._found(list(known), list(known.values()))

    def _next(self, layer: str) -> str | None:
        """The format whose KL matters most; None if all of those that matter are measured."""
        fixes = layer_fixes(self.session, layer, str(self.base))
        base = next(each for each in fixes if each.format == str(self.base))
        if not base.measured:
            return base.format
        left = [
            each
            for each in front(fixes)
            if each.format and not each.measured and each.kl < base.kl_measured
        ]
        if not left:
            return None
        enough = thresholds(self.session).wins_back
        return min(left, key=lambda fix: _urgency(fix, enough)).format

    def _measured(self, layer: str, fmt: Format, nll: float) -> Events:
        table, unit = yield from effect_table(self.loaded, layer, fmt)
        key = figure_key(self.loaded, unit, table)
        tallies = self.loaded.part(Tallies, Tallies)
        candidate = Candidate(unit, key, tallies.setdefault(key, []))
        measuring = CandidateMeasurement(self.loaded, table, nll, self.counts)
        try:
            for due in measuring.turns([candidate], measuring.micro_batches):
                yield from measuring.measure(due, keep=True)
                yield None
            fact = measuring.figure(candidate)
            measuring.drop(candidate)
        finally:
            measuring.close()
        yield self._learnt(key, fact)


def _urgency(fix: LayerFix, enough: float) -> tuple[bool, float]:
    """First the smallest formats that should win back enough, then those that win back most."""
    wins = fix.recovered >= enough
    return not wins, fix.bits if wins else -fix.recovered


def _refused(layer: str, fmt: Format, why: str) -> p.FormatTried:
    nan = math.nan
    return p.FormatTried(
        layer=layer, format=str(fmt), weight_error=nan, output_error=nan, tokens=0, refused=why
    )
