"""Estimates every layer in every format from a few passes: KL and ΔNLL to second order.

For a window *s* and a change ``ΔW`` of one layer, ``z = ⟨ΔW, G_s⟩`` with ``G_s`` the gradient of
the window's summed loss. With targets drawn from the model's own distribution the loss has the
Fisher information as its curvature, the Gauss–Newton matrix of KL (Martens 2014, arXiv 1412.1193,
section 9): ``KL ≈ E[z²] / 2T`` nats per token. With the text's targets ``ΔNLL ≈ z / T + KL``.

``z = Σ_t z_t`` over the layer's tokens. Rounding errors on different tokens are nearly
uncorrelated,
so that ``E[z²] ≈ E[Σ z_t²]``; and the sum of squares is known far better than the square of the
sum: a window gives one draw of the latter and many terms of the former. So the estimate is
``coupling · Σ z_t² / 2T``, where ``coupling = E[z²] / E[Σ z_t²]`` is estimated from all of a
layer's formats together, shrunk towards 1 by its uncertainty (`COUPLING_PRIOR`). Its bias: a format
whose errors couple tokens differently gets the coupling of all.

For restore, where all layers are quantised, KL has a slope: ``KL(all) − KL(all but one)`` is about
``⟨ΔW, ∇KL(ref ‖ quantised)⟩ − E[z²] / 2T``, gradients and targets of the quantised network.

`backward_pass` runs through the network; this module turns its sums into figures.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence

import torch
from torch import Tensor

from engine import protocol as p
from engine.formats.grammar import Format, parse_format
from engine.formats.storage import why_not_held
from engine.measure.calibration.approximate import why_not_given
from engine.measure.calibration.calibration import calibration_key
from engine.measure.counts import JobCounts
from engine.measure.estimate.backward_pass import BackwardPass, weights_alone
from engine.measure.estimate.first_order import Moments, coupled
from engine.measure.evaluation.reference import reference_of
from engine.session.artefact import OUTSIDE
from engine.store import keys
from engine.workspace import Loaded

COUPLING_PRIOR = 0.25
"""Prior standard deviation of the coupling about 1."""
BEYOND = 0.05
"""Relative error of the quadratic model for small changes: part of every standard error."""
DOUBTFUL_KL = 0.1
"""Nats per token beyond which a change is not small."""

Found = dict[str, dict[str, p.Estimate]]
"""By format, by layer."""


def estimate(
    loaded: Loaded,
    formats: Sequence[Format],
    direction: p.Direction,
    counts: JobCounts,
    job: str,
) -> Generator[p.AnyEvent | None, None, Found]:
    """Estimate every layer in every format.

    Args:
        loaded: the model.
        formats: for degrade, those of the settings' ``estimate_formats`` share one coupling per
            layer, and the others another; for restore, each is taken with the whole body in it.
        direction: whether one layer holds the format, or all but one.
        counts: of the job; adds to its ``estimate_s``.
        job: id, for progress.

    Yields:
        `Learned` with `Estimate` facts as the backward pass reaches the layers, and `Progress`.

    Returns:
        Known estimates, by format and layer; layers that cannot hold a format are left out.
    """
    found: Found = {str(format): {} for format in formats}
    groups = [[format] for format in formats]
    if direction == "degrade":
        named = set(map(parse_format, loaded.settings.estimate_formats))
        usual = [format for format in formats if format in named]
        groups = [usual, [format for format in formats if format not in usual]]
    wanted: list[dict[tuple[str, Format], str]] = []
    for together in filter(None, groups):
        wanted.append((yield from _unknown(loaded, together, direction, counts, found)))
    # For degrade, all formats go through a block together; for restore, each has its own network
    # with the whole body quantised, and so its own states and cotangents.
    passes = [wanted] if direction == "degrade" else [[group] for group in wanted]
    for one in passes:
        yield from _estimated(
            loaded, [group for group in one if group], direction, counts, job, found
        )
    return found


def _unknown(
    loaded: Loaded,
    formats: Sequence[Format],
    direction: p.Direction,
    counts: JobCounts,
    found: Found,
) -> Generator[p.AnyEvent | None, None, dict[tuple[str, Format], str]]:
    """Announce the stored estimates of formats that share a coupling; return the other
    addresses."""
    network = loaded.network
    addresses: dict[tuple[str, Format], str] = {}
    for format in formats:
        calibration = yield from calibration_key(loaded, [format], "reference")
        for name, layer in network.layers.items():
            outside = direction == "restore" and layer.role in OUTSIDE
            if outside or why_not_held(format, layer.shape) or why_not_given(loaded, name, format):
                continue
            addresses[name, format] = keys.Estimate(
                on=loaded.evaluation,
                layer=name,
                format=str(format),
                together=tuple(sorted(map(str, formats))),
                direction=direction,
                draws=loaded.settings.draws,
                seed=loaded.settings.seed,
                scale_dtype=loaded.scale_dtype,
                calibration=calibration,
            ).address
    known = loaded.known(list(addresses.values()))
    have = {
        at: fact for at, key in addresses.items() if isinstance(fact := known.get(key), p.Estimate)
    }
    yield from counts.found([addresses[at] for at in have], list(have.values()))
    for (name, format), fact in have.items():
        found[str(format)][name] = fact
    return {at: address for at, address in addresses.items() if at not in have}


def _estimated(
    loaded: Loaded,
    wanted: Sequence[dict[tuple[str, Format], str]],
    direction: p.Direction,
    counts: JobCounts,
    job: str,
    found: Found,
) -> Generator[p.AnyEvent | None, None, None]:
    """Estimate what is wanted in one backward pass, with one coupling per group."""
    if not wanted:
        return
    formats = list(dict.fromkeys(format for group in wanted for _, format in group))
    groups = [list(group) for group in wanted]
    backward = BackwardPass(loaded, formats, direction, counts, job, groups)
    for event in backward.run():
        if not isinstance(event, dict):
            yield event
            continue
        for group in wanted:
            facts: dict[str, p.Estimate] = {}
            for name, of_layer in event.items():
                moments_of = {f: m for f, m in of_layer.items() if (name, f) in group}
                if not moments_of:
                    continue
                coupling = _coupling(list(moments_of.values()), backward.fixed)
                for format, moments in moments_of.items():
                    fact = _fact(loaded, backward, name, format, moments, coupling)
                    facts[group[name, format]] = found[str(format)][name] = fact
            if facts:
                counts.measured += len(facts)
                yield p.Learned(tuple(facts), tuple(facts.values()))


def _fact(
    loaded: Loaded,
    backward: BackwardPass,
    name: str,
    format: Format,
    moments: Moments,
    coupling: tuple[float, float],
) -> p.Estimate:
    reference = reference_of(loaded)
    targets = reference.windows.targets
    slope = moments.total[: backward.fixed] / targets  # [losses, windows], nats per token
    curve = moments.square[backward.fixed :].mean(0) / (2 * targets)
    shared = float(curve.mean()) * math.hypot(coupling[1], BEYOND)
    if backward.direction == "degrade":
        kl = coupling[0] * curve
        dnll = _grouped(slope[0] + kl, backward.group)
    else:
        kl = _grouped(slope[1] - coupling[0] * curve, backward.group)
        dnll = _grouped(slope[0] - coupling[0] * curve, backward.group)
    kl_mean, kl_se = _mean(kl, shared)
    dnll_mean, dnll_se = _mean(dnll, shared)
    return p.Estimate(
        layer=name,
        format=str(format),
        direction=backward.direction,
        kl=kl_mean,
        kl_se=kl_se,
        dnll=dnll_mean,
        dnll_se=dnll_se,
        tokens=reference.windows.count * targets,
        draws=loaded.settings.draws,
        doubt=_doubt(loaded, backward.direction, name, format, abs(kl_mean)),
    )


def _doubt(loaded: Loaded, direction: p.Direction, name: str, format: Format, kl: float) -> str:
    """Why an estimate may be wrong; empty if trusted."""
    if not math.isfinite(kl):
        return "the gradients are not finite"
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


def _coupling(found: Sequence[Moments], fixed: int) -> tuple[float, float]:
    """``E[z²] / E[Σ z_t²]`` of a layer, shrunk towards 1, and its standard error."""
    some = coupled(found[0].total.shape[-1])
    whole = torch.zeros(int(some.sum()), dtype=torch.float64)
    parts = torch.zeros_like(whole)
    for moments in found:
        square = moments.square[fixed:, some].mean(0)
        if not (mean := float(square.mean())) > 0 or not math.isfinite(mean):
            continue
        whole += moments.total[fixed:, some].square().mean(0) / mean
        parts += square / mean
    windows = len(whole)
    if windows < 2 or not float(parts.sum()) > 0:
        return 1.0, COUPLING_PRIOR
    ratio = float(whole.sum() / parts.sum())
    # Standard error of a ratio of sums over windows.
    spread = (whole - ratio * parts).std() / parts.mean() / math.sqrt(windows)
    variance = float(spread) ** 2
    trust = COUPLING_PRIOR**2 / (COUPLING_PRIOR**2 + variance)
    return max(1 + trust * (ratio - 1), 0.0), COUPLING_PRIOR * math.sqrt(1 - trust)


def _grouped(values: Tensor, group: int) -> Tensor:
    """Means over groups of consecutive windows."""
    return values.reshape(-1, group).mean(-1)


def _mean(values: Tensor, extra: float) -> tuple[float, float]:
    """Mean over windows, and its standard error combined with a shared one."""
    if len(values) < 2:
        return float(values.mean()), math.nan
    return float(values.mean()), math.hypot(float(values.std()) / math.sqrt(len(values)), extra)
