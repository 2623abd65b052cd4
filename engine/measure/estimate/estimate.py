"""Estimates every layer in every format from a few passes: KL and ΔNLL to second order.

For a window and a change ``ΔW`` of one layer, ``z = ⟨ΔW, G⟩`` with ``G`` the gradient of the
window's summed loss. With targets drawn from the model's own distribution the loss has the Fisher
information as its curvature, the Gauss–Newton matrix of KL (Martens 2014, arXiv 1412.1193, section
9): ``KL ≈ E[z²] / 2T`` nats per token. With the text's targets ``ΔNLL ≈ z / T + KL``.

A window gives one draw of ``z²``, far too few. But ``z`` is a sum of ``z_ti`` over tokens and
rows, and the rounding errors of different rows of a weight are independent: ``E[z²]`` is about
``E[Σ_i (Σ_t z_ti)²]``, of which a window gives as many terms as the weight has rows. How far rows
do add up is seen at single tokens, of which there are many: the factor ``Σ_t (Σ_i z_ti)² / Σ_ti
z_ti²``, shrunk towards 1 by its uncertainty (`ACROSS_PRIOR`). Derived, and compared with others, in
``docs/estimates.md``.

Of a change of inputs, rounded token by token, single tokens are independent: ``Σ_t (Σ_i z_ti)²``.

For restore, where all layers are quantised, KL has a slope: ``KL(all) − KL(all but one)`` is about
``⟨ΔW, ∇KL(ref ‖ quantised)⟩ − E[z²] / 2T``, gradients and targets of the quantised network.

`backward_pass` runs through the network; this module turns its sums into figures.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping, Sequence

import msgspec
from torch import Tensor

from engine import protocol as p
from engine.formats.grammar import Format, parse_format
from engine.formats.storage import why_not_held
from engine.measure.calibration.approximate import why_not_given
from engine.measure.calibration.calibration import calibration_key, with_scales
from engine.measure.counts import JobCounts
from engine.measure.estimate.backward_pass import BackwardPass, weights_alone
from engine.measure.estimate.first_order import Sums, drawn_windows
from engine.measure.estimate.shared_pass import SharedPass, shared_by
from engine.measure.evaluation.reference import reference_of
from engine.session.artefact import OUTSIDE
from engine.store import keys
from engine.workers.crew import Crew
from engine.workspace import Loaded

ACROSS_PRIOR = 0.2
"""Prior standard deviation of the logarithm of what rows add up to."""
BEYOND = 0.08
"""Relative error of the model for small changes, part of every standard error: it is quadratic, and
takes rows to add up over a window as they do at single tokens."""
DOUBTFUL_KL = 0.1
"""Nats per token beyond which a change is not small."""

ESTIMATES, EACH_FORMAT = 4.0, 0.4
"""What estimating costs, in forward passes, and what each format adds: a first guess, until
estimating has begun and is timed."""

Found = dict[str, dict[str, p.Estimate]]
"""By format, by layer."""


def estimate(
    loaded: Loaded,
    formats: Sequence[Format],
    direction: p.Direction,
    counts: JobCounts,
    job: str,
    crew: Crew | None = None,
) -> Generator[p.AnyEvent | None, None, Found]:
    """Estimate every layer in every format.

    Args:
        loaded: the model.
        formats: for degrade, those of the settings' ``estimate_formats`` are multiplied together,
            and the others; for restore, each is taken with the whole body in it.
        direction: whether one layer holds the format, or all but one.
        counts: of the job; adds to its ``estimate_s``.
        job: id, for progress.
        crew: workers that take part of the windows.

    Yields:
        `Learned` with `Estimate` facts as the backward pass reaches the layers, and `Progress`.

    Returns:
        Known estimates, by format and layer; layers that cannot hold a format are left out.
    """
    found: Found = {str(format): {} for format in formats}
    wanted = yield from _unknown_groups(loaded, formats, direction, counts, found)
    # For degrade, all formats go through a block together; for restore, each has its own network
    # with the whole body quantised, and so its own states and cotangents.
    passes = [wanted] if direction == "degrade" else [[group] for group in wanted]
    for one in passes:
        yield from _estimated(
            loaded, [group for group in one if group], direction, counts, job, found, crew
        )
    return found


def stored_estimates(
    loaded: Loaded, formats: Sequence[Format], direction: p.Direction, counts: JobCounts
) -> Generator[p.AnyEvent | None, None, Found]:
    """Announce and return the estimates that are known; nothing is estimated."""
    found: Found = {str(format): {} for format in formats}
    yield from _unknown_groups(loaded, formats, direction, counts, found)
    return found


def all_estimated(
    loaded: Loaded, formats: Sequence[Format], direction: p.Direction
) -> Generator[p.AnyEvent | None, None, bool]:
    """Whether every estimate is known; none is announced."""
    found: Found = {str(format): {} for format in formats}
    steps = _unknown_groups(loaded, formats, direction, JobCounts(), found)
    while True:
        try:
            event = next(steps)
        except StopIteration as end:
            return not any(end.value)
        # What methods are calibrated on is announced only once.
        yield None if isinstance(event, p.Learned) else event


def _unknown_groups(
    loaded: Loaded,
    formats: Sequence[Format],
    direction: p.Direction,
    counts: JobCounts,
    found: Found,
) -> Generator[p.AnyEvent | None, None, list[dict[tuple[str, Format], str]]]:
    """`_unknown` of every group of formats that are multiplied together."""
    groups = [[format] for format in formats]
    if direction == "degrade":
        groups = together_with(loaded, formats)
    wanted: list[dict[tuple[str, Format], str]] = []
    for together in filter(None, groups):
        wanted.append((yield from _unknown(loaded, together, direction, counts, found)))
    return wanted


def _unknown(
    loaded: Loaded,
    formats: Sequence[Format],
    direction: p.Direction,
    counts: JobCounts,
    found: Found,
) -> Generator[p.AnyEvent | None, None, dict[tuple[str, Format], str]]:
    """Announce the stored estimates of formats that are multiplied together; return the other
    addresses."""
    network = loaded.network
    wanted: dict[tuple[str, Format], keys.Estimate] = {}
    for format in formats:
        calibration = yield from calibration_key(loaded, [format], "reference")
        for name, layer in network.layers.items():
            outside = direction == "restore" and layer.role in OUTSIDE
            if outside or why_not_held(format, layer.shape) or why_not_given(loaded, name, format):
                continue
            wanted[name, format] = estimate_key(
                loaded, name, format, formats, direction, calibration
            )
    have, missing = known_estimates(loaded, wanted)
    yield from counts.found(*map(list, zip(*have.values(), strict=True)) if have else ([], []))
    for (name, format), (_, fact) in have.items():
        found[str(format)][name] = fact
    return missing


def known_estimates(
    loaded: Loaded, wanted: Mapping[tuple[str, Format], keys.Estimate]
) -> tuple[dict[tuple[str, Format], tuple[str, p.Estimate]], dict[tuple[str, Format], str]]:
    """Stored estimates with their addresses, and the addresses of the others.

    An estimate that was made together with all of the settings' formats serves for one of fewer,
    too: they differ only as products of other shapes round.
    """
    usual = tuple(sorted({str(parse_format(each)) for each in loaded.settings.estimate_formats}))
    addresses: dict[tuple[str, Format], list[str]] = {}
    for at, key in wanted.items():
        others = [usual] if key.format in usual and key.together != usual else []
        addresses[at] = [
            key.address,
            *(msgspec.structs.replace(key, together=other).address for other in others),
        ]
    known = loaded.known([address for each in addresses.values() for address in each])
    have: dict[tuple[str, Format], tuple[str, p.Estimate]] = {}
    for at, each in addresses.items():
        for address in each:
            if at not in have and isinstance(fact := known.get(address), p.Estimate):
                have[at] = address, fact
    return have, {at: each[0] for at, each in addresses.items() if at not in have}


def estimate_key(
    loaded: Loaded,
    layer: str,
    format: Format,
    together: Sequence[Format],
    direction: p.Direction,
    calibration: keys.Calibration | None = None,
) -> keys.Estimate:
    """What an estimate depends on; ``together`` are formats whose products are made at once."""
    everywhere = format if direction == "restore" else None
    return keys.Estimate(
        on=loaded.evaluation,
        layer=layer,
        format=str(format),
        together=tuple(sorted(map(str, together))),
        direction=direction,
        draws=loaded.settings.draws,
        seed=loaded.settings.seed,
        scale_dtype=loaded.scale_dtype,
        calibration=with_scales(loaded, calibration, {layer: format}, everywhere),
    )


def together_with(loaded: Loaded, formats: Sequence[Format]) -> list[list[Format]]:
    """For degrade, the usual formats, which are multiplied together, and the others."""
    named = set(map(parse_format, loaded.settings.estimate_formats))
    usual = [format for format in formats if format in named]
    return [usual, [format for format in formats if format not in usual]]


def _estimated(
    loaded: Loaded,
    wanted: Sequence[dict[tuple[str, Format], str]],
    direction: p.Direction,
    counts: JobCounts,
    job: str,
    found: Found,
    crew: Crew | None,
) -> Generator[p.AnyEvent | None, None, None]:
    """Estimate what is wanted in one backward pass."""
    if not wanted:
        return
    formats = list(dict.fromkeys(format for group in wanted for _, format in group))
    groups = [list(group) for group in wanted]

    def make(batches: range | None = None) -> BackwardPass:
        return BackwardPass(loaded, formats, direction, counts, job, groups, batches=batches)

    backward, running = make(), None
    if crew:
        yield from shared_by(loaded, crew, counts, ESTIMATES + EACH_FORMAT * len(formats))
        if (hands := min(crew.ready, len(backward.batches))) > 1:
            running = SharedPass(make, backward, crew, hands).run()
    for event in running or backward.run():
        if not isinstance(event, dict):
            yield event
            continue
        for group in wanted:
            facts: dict[str, p.Estimate] = {}
            for name, of_layer in event.items():
                for format, sums in of_layer.items():
                    if (name, format) in group:
                        fact = fact_of(loaded, backward, name, format, sums)
                        facts[group[name, format]] = found[str(format)][name] = fact
            if facts:
                counts.measured += len(facts)
                yield p.Learned(tuple(facts), tuple(facts.values()))


def fact_of(
    loaded: Loaded,
    backward: BackwardPass,
    name: str,
    format: Format,
    sums: Sums,
    seen: int | None = None,
) -> p.Estimate:
    """An estimate from the sums of a pass.

    Args:
        loaded: the model.
        backward: the pass.
        name, format: the change.
        sums: of it.
        seen: how many windows the pass ran, the first ones; all if None.
    """
    windows = reference_of(loaded).windows
    count = windows.count if seen is None else seen
    sums = sums.of_first(count)
    slopes = mean_slope(sums, backward, windows.targets)
    curve, curve_se = curvature(sums, drawn_windows(windows.count)[:count], windows.targets)
    if backward.direction == "degrade":
        (slope, slope_se) = slopes[0]
        kl_mean, kl_se = curve, curve_se
        dnll_mean, dnll_se = slope + curve, math.hypot(slope_se, curve_se)
    else:
        (slope, slope_se), (of_kl, of_kl_se) = slopes
        kl_mean, kl_se = of_kl - curve, math.hypot(of_kl_se, curve_se)
        dnll_mean, dnll_se = slope - curve, math.hypot(slope_se, curve_se)
    doubts = [_doubt(loaded, backward.direction, name, format, abs(kl_mean))]
    if seen is not None:
        doubts.append(f"{seen} of {windows.count} windows so far")
    return p.Estimate(
        layer=name,
        format=str(format),
        direction=backward.direction,
        kl=kl_mean,
        kl_se=kl_se,
        dnll=dnll_mean,
        dnll_se=dnll_se,
        tokens=count * windows.targets,
        draws=loaded.settings.draws,
        doubt="; ".join(filter(None, doubts)),
    )


def mean_slope(sums: Sums, backward: BackwardPass, targets: int) -> list[tuple[float, float]]:
    """``z / T`` of every loss whose targets were not drawn, and its standard error."""
    return [_mean(_grouped(of_loss, backward.group) / targets) for of_loss in sums.slope]


def _doubt(loaded: Loaded, direction: p.Direction, name: str, format: Format, kl: float) -> str:
    """Why an estimate may be wrong; empty if trusted."""
    if not math.isfinite(kl):
        return "the gradients are not finite"
    if reference_of(loaded).windows.count < 2:
        return "of one window no error is known"
    if kl > DOUBTFUL_KL:
        return "a change this large is beyond a quadratic model"
    if direction == "restore" and format.bits <= 3:
        return "with all layers in 3 bits or fewer, effects are no longer quadratic"
    if direction == "restore" and any(method.name == "a8" for method in format.methods):
        return "with all inputs rounded, gradients pass as if they were not"
    layers = loaded.network.layers
    if layers[name].role == "experts" and weights_alone(format) != format:
        return "for experts, the rounding of inputs is not in the estimate"
    routed = any(x.role == "experts" and x.start >= layers[name].start for x in layers.values())
    if routed and kl > DOUBTFUL_KL / 10:
        return "routing may flip, which the estimate assumes fixed"
    return ""


def curvature(sums: Sums, drawn: Tensor, targets: int) -> tuple[float, float]:
    """``E[z²] / 2T`` of a change, in nats per token, and its standard error.

    Args:
        sums: of the change, closed.
        drawn: the windows whose rows were summed.
        targets: of a window.
    """
    factor, factor_se = rows_add_up(sums)
    rows, inputs = (each.mean(0)[drawn] / (2 * targets) for each in (sums.rows, sums.inputs))
    curve, error = _mean(factor * rows + inputs)
    return curve, math.hypot(error, factor * float(rows.mean()) * factor_se, curve * BEYOND)


def rows_add_up(sums: Sums) -> tuple[float, float]:
    """``E[Σ_t (Σ_i z_ti)²] / E[Σ_ti z_ti²]``, shrunk towards 1, and its relative standard error.

    The variance of its logarithm is that of a sum of squares of independent normal variables,
    ``2 Σ σ⁴ / (Σ σ²)²``, with ``z⁴ / 3`` for ``σ⁴``; the same again for what that leaves out, since
    neighbouring tokens are not quite independent.
    """
    whole, apart, fourth = (float(each.sum()) for each in sums.across)
    if not (whole > 0 and apart > 0 and math.isfinite(whole + apart + fourth)):
        return 1.0, ACROSS_PRIOR
    trust = ACROSS_PRIOR**2 / (ACROSS_PRIOR**2 + 4 / 3 * fourth / whole**2)
    return (whole / apart) ** trust, ACROSS_PRIOR * math.sqrt(1 - trust)


def _grouped(values: Tensor, group: int) -> Tensor:
    """Means over groups of consecutive windows."""
    return values.reshape(-1, group).mean(-1)


def _mean(values: Tensor) -> tuple[float, float]:
    """Mean over windows, and its standard error."""
    if len(values) < 2:
        return float(values.mean()), math.nan
    return float(values.mean()), float(values.std()) / math.sqrt(len(values))
