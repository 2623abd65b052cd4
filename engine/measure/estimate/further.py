"""What further changes of a recipe would add to its KL, estimated at that recipe.

Around a recipe ``R``, with gradients and targets of the network that holds it,

    KL(R with δ) − KL(R) ≈ ⟨δ, ∇KL(ref ‖ R)⟩ + E[⟨δ, G⟩²] / 2T,   δ = Ŵ' − Ŵ_R of one layer.

The first term, which is zero at the unchanged model, holds what layers of the recipe do together:
where two errors add up, undoing one of them gains more than it costs alone.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping, Sequence

from engine import protocol as p
from engine.formats.grammar import Format
from engine.formats.storage import why_not_held
from engine.measure.calibration.approximate import why_not_given
from engine.measure.calibration.calibration import calibration_key, with_scales
from engine.measure.counts import JobCounts
from engine.measure.estimate.backward_pass import BackwardPass, weights_alone
from engine.measure.estimate.estimate import curvature, mean_slope
from engine.measure.estimate.first_order import Sums, drawn_windows
from engine.measure.evaluation.reference import reference_of
from engine.session import recipe_hash
from engine.store import keys
from engine.workspace import Loaded

Further = dict[str, dict[str, p.FurtherEstimate]]
"""By layer, by format."""


def further(
    loaded: Loaded,
    recipe: Mapping[str, Format],
    formats: Sequence[Format],
    counts: JobCounts,
    job: str,
) -> Generator[p.AnyEvent | None, None, Further]:
    """Estimate what every layer adds to a recipe's KL in every other format, and as stored.

    Formats that change inputs are left out, and layers that hold one: rounded inputs have no
    difference to their weights alone that could be multiplied.

    Args:
        loaded: the model.
        recipe: formats of the layers that are not kept.
        formats: to estimate; kept formats among them for the layers that they leave as stored.
        counts: of the job.
        job: id, for progress.

    Yields:
        `Learned` with `FurtherEstimate` facts, and `Progress`.
    """
    held = {name: str(format) for name, format in sorted(recipe.items())}
    calibration = yield from calibration_key(loaded, [*recipe.values(), *formats], "reference")
    together = tuple(sorted(map(str, formats)))
    addresses: dict[tuple[str, Format], str] = {}
    for name, layer in loaded.network.layers.items():
        if name in recipe and weights_alone(recipe[name]) != recipe[name]:
            continue
        for format in formats:
            same = str(format) == held.get(name) or (format.kept and name not in recipe)
            impossible = why_not_held(format, layer.shape) or why_not_given(loaded, name, format)
            if same or impossible or weights_alone(format) != format:
                continue
            addresses[name, format] = keys.FurtherEstimate(
                on=loaded.evaluation,
                recipe=held,
                layer=name,
                format=str(format),
                together=together,
                draws=loaded.settings.draws,
                seed=loaded.settings.seed,
                scale_dtype=loaded.scale_dtype,
                calibration=with_scales(loaded, calibration, {**recipe, name: format}),
            ).address
    found: Further = {}
    known = loaded.known(list(addresses.values()))
    for (name, format), address in addresses.items():
        fact = known.get(address)
        if isinstance(fact, p.FurtherEstimate):
            counts.known += 1
            found.setdefault(name, {})[str(format)] = fact
    wanted = [at for at, address in addresses.items() if address not in known]
    if not wanted:
        return found
    unknown = list(dict.fromkeys(format for _, format in wanted))
    backward = BackwardPass(
        loaded, unknown, "degrade", counts, job, [wanted], {n: recipe[n] for n in held}
    )
    for event in backward.run():
        if not isinstance(event, dict):
            yield event
            continue
        facts = {
            addresses[name, format]: _fact(loaded, backward, held, name, format, sums)
            for name, of_layer in event.items()
            for format, sums in of_layer.items()
        }
        for fact in facts.values():
            found.setdefault(fact.layer, {})[fact.format] = fact
        counts.measured += len(facts)
        if facts:
            yield p.Learned(tuple(facts), tuple(facts.values()))
    return found


def _fact(
    loaded: Loaded,
    backward: BackwardPass,
    held: Mapping[str, str],
    name: str,
    format: Format,
    sums: Sums,
) -> p.FurtherEstimate:
    windows = reference_of(loaded).windows
    ((slope, slope_se),) = mean_slope(sums, backward, windows.targets)
    curve, curve_se = curvature(sums, drawn_windows(windows.count), windows.targets)
    return p.FurtherEstimate(
        layer=name,
        format=str(format),
        recipe=recipe_hash(held),
        kl=slope + curve,
        kl_se=math.hypot(slope_se, curve_se),
    )
