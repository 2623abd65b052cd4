"""How well estimates agree with exact values, and one line about the machine they come from."""

from __future__ import annotations

import datetime
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import psutil
from scipy.stats import spearmanr

TOP = 10
"""How many of the worst layers should be the same."""
NEAR = (0.8, 1.25)
"""Estimated over exact KL, where an estimate is called right."""


@dataclass(frozen=True)
class Truth:
    """Estimates of many layers in one format held against exact values on the same tokens."""

    layers: int
    rank_kl: float
    """Spearman's rank correlation."""
    rank_dnll: float
    rank_dnll_with: float
    """The same once the `TOP` estimated worst have shown how much of KL is in ΔNLL: each takes its
    own share in place of 1, and the others the median, which another format would give them too."""
    top: int
    """Of the ten estimated worst, how many are among the ten worst."""
    top_near: int
    """The same, those counted too that are within one standard error of the tenth."""
    right: float
    """Share of layers whose KL is estimated within `NEAR` of the exact one."""
    ratio: float
    """Median of estimated over exact KL."""
    covered: float
    """Share of layers whose KL is estimated within two of its standard errors of the exact one."""
    spread: float
    """Root mean square of the error over the standard error: far below 1 where these are too large.
    They hold the spread over windows, which both values share."""


def hold_against(
    estimated: Sequence[tuple[float, float, float]], exact: Sequence[tuple[float, float, float]]
) -> Truth:
    """Compare estimates with exact values, layer by layer.

    Args:
        estimated: KL, its standard error, ΔNLL of each layer.
        exact: KL, its standard error, ΔNLL of each layer, in the same order.
    """
    kl, kl_se, dnll = np.array(estimated).T
    true_kl, true_se, true_dnll = np.array(exact).T
    top = min(TOP, len(kl))
    chosen, worst = np.argsort(-kl)[:top], np.argsort(-true_kl)[:top]
    tenth = true_kl[worst[-1]]
    ratios = kl / true_kl
    shares = (true_dnll - (dnll - kl)) / true_kl
    taken = np.where(np.isin(np.arange(len(kl)), chosen), shares, np.median(shares[chosen]))
    return Truth(
        layers=len(kl),
        rank_kl=float(spearmanr(kl, true_kl).statistic),
        rank_dnll=float(spearmanr(dnll, true_dnll).statistic),
        rank_dnll_with=float(spearmanr(dnll - kl + taken * kl, true_dnll).statistic),
        top=len(set(chosen) & set(worst)),
        top_near=int(sum(true_kl[i] + true_se[i] >= tenth for i in chosen)),
        right=float(np.mean((ratios >= NEAR[0]) & (ratios <= NEAR[1]))),
        ratio=float(np.median(ratios)),
        covered=float(np.mean(abs(kl - true_kl) <= 2 * kl_se)),
        spread=float(np.sqrt(np.mean(((kl - true_kl) / kl_se) ** 2))),
    )


def machine() -> str:
    """Its kind, how busy it is, and the versions that figures may depend on."""
    import torch
    import transformers

    flags = torch.backends.cpu.get_cpu_capability()
    return (
        f"{datetime.date.today()}, {os.cpu_count()} cores ({platform.machine()}, {flags}), "
        f"{psutil.virtual_memory().total / 2**30:.0f} GiB, "
        f"{torch.cuda.get_device_name() if torch.cuda.is_available() else 'no GPU'}, "
        f"{torch.get_num_threads()} threads, load {psutil.getloadavg()[0]:.1f}, "
        f"Python {platform.python_version()}, torch {torch.__version__}, "
        f"transformers {transformers.__version__}"
    )
