"""The tables of ``llama-perplexity --kl-divergence``, from what two models say at every position.

Names, quantiles and uncertainties are those of llama.cpp's ``tools/perplexity/perplexity.cpp``
(``kl_divergence``): a quantile is interpolated linearly, and an uncertainty is the standard error
of positions that are taken for independent.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from engine.measure.evaluation.divergence import Positions, perplexity
from engine.protocol.divergence import DELTA_P_QUANTILES, KLD_QUANTILES, DivergenceTable


def divergence_table(parts: Sequence[Positions]) -> DivergenceTable:
    """Put the positions of some chunks together.

    Args:
        parts: of a reference and another model, at least one position.
    """
    base = _joined([part.nll for part in parts])
    nll = base + _joined([part.dnll for part in parts])
    kld = _joined([part.kl for part in parts])
    delta = torch.exp(-nll) - torch.exp(-base)
    same = float(_joined([part.agree for part in parts]).mean())
    tokens = len(kld)
    ln_ratio, ln_ratio_se = _mean(nll - base)
    (log_ppl, log_ppl_se), (log_base, log_base_se) = _mean(nll), _mean(base)
    squares, squares_se = _mean(delta.square())
    rms = math.sqrt(squares)
    return DivergenceTable(
        tokens=tokens,
        ppl=perplexity(log_ppl),
        ppl_se=perplexity(log_ppl) * log_ppl_se,
        ppl_base=perplexity(log_base),
        ppl_base_se=perplexity(log_base) * log_base_se,
        correlation=_correlation(nll, base),
        ln_ratio=ln_ratio,
        ln_ratio_se=ln_ratio_se,
        kld=_with_error("mean", _mean(kld)) | _quantiles(kld, KLD_QUANTILES),
        delta_p=_with_error("mean", _mean(delta))
        | _with_error("rms", (rms, 0.5 / rms * squares_se if rms else squares_se))
        | _quantiles(delta, DELTA_P_QUANTILES),
        same_top=same,
        same_top_se=math.sqrt(same * (1 - same) / (tokens - 1)) if tokens > 1 else math.nan,
    )


def _joined(parts: Sequence[Tensor]) -> Tensor:
    return torch.cat([part.flatten().double().cpu() for part in parts])


def _mean(values: Tensor) -> tuple[float, float]:
    """Mean and standard error; the error of one value is nan."""
    count = len(values)
    error = float(values.std(unbiased=True)) / math.sqrt(count) if count > 1 else math.nan
    return float(values.mean()), error


def _correlation(some: Tensor, others: Tensor) -> float:
    """Pearson's; nan where one does not vary."""
    some, others = some - some.mean(), others - others.mean()
    norm = float(some.norm()) * float(others.norm())
    return float(some @ others) / norm if norm else math.nan


def _with_error(name: str, found: tuple[float, float]) -> dict[str, float]:
    return {name: found[0], f"{name}_se": found[1]}


def _quantiles(values: Tensor, named: Mapping[str, float]) -> dict[str, float]:
    ordered, last = values.sort().values, len(values) - 1
    found = {}
    for name, fraction in named.items():
        below = math.floor(fraction * last)
        above = min(below + 1, last)
        part = fraction * last - below
        lower, upper = float(ordered[below]), float(ordered[above])
        found[name] = lower if part == 0 else (1 - part) * lower + part * upper
    return found
