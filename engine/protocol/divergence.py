"""How far one model's predictions are from another's, as llama.cpp says it."""

from __future__ import annotations

import msgspec

KLD_QUANTILES = {
    "max": 1.0,
    "99.9%": 0.999,
    "99%": 0.99,
    "95%": 0.95,
    "90%": 0.9,
    "median": 0.5,
    "10%": 0.1,
    "5%": 0.05,
    "1%": 0.01,
    "0.1%": 0.001,
    "min": 0.0,
}
"""Quantiles of the KL divergence, by the names of ``llama-perplexity --kl-divergence``."""
DELTA_P_QUANTILES = {
    "max": 1.0,
    "99.9%": 0.999,
    "99%": 0.99,
    "95%": 0.95,
    "90%": 0.9,
    "75%": 0.75,
    "median": 0.5,
    "25%": 0.25,
    "10%": 0.1,
    "5%": 0.05,
    "1%": 0.01,
    "0.1%": 0.001,
    "min": 0.0,
}
"""The same of Δp."""


class ScoreAtPositions(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """A recipe at the positions of windows that have so many tokens before them."""

    first: int
    """Tokens before the first of these predictions."""
    last: int
    """Tokens before the last."""
    ppl_reference: float
    """Of the unchanged model."""
    ppl: float
    dnll: float
    """Nats per token."""
    dnll_se: float
    """Its standard error over windows."""
    kl: float
    """Nats per token."""
    kl_se: float


class ScoreOnText(msgspec.Struct, frozen=True, kw_only=True):
    """A recipe on one evaluation text, as a whole and by position in its windows."""

    name: str
    """As the text was asked for."""
    text: str
    """What was read."""
    sha256: str
    """Hash of it."""
    tokens: int
    """Targets that count."""
    windows: int
    ppl_reference: float
    """Of the unchanged model."""
    ppl: float
    ppl_low: float
    """End of the interval of the difference alone."""
    ppl_high: float
    dnll: float
    """Nats per token."""
    dnll_se: float
    kl: float
    """Nats per token."""
    kl_se: float
    top1: float
    """Share of positions where both have the same first choice."""
    positions: tuple[ScoreAtPositions, ...]
    """By the number of tokens before a prediction, without gaps."""


class MeasuredTexts(msgspec.Struct, frozen=True):
    """A recipe on several texts."""

    recipe: str
    """Its hash."""
    texts: tuple[ScoreOnText, ...]
    """In the order in which they were named."""


class DivergenceTable(msgspec.Struct, frozen=True, kw_only=True):
    """The tables that ``llama-perplexity --kl-divergence`` prints.

    Its uncertainties are standard errors of positions that are taken for independent; those of a
    score, over windows, are larger.
    """

    tokens: int
    """Positions that count."""
    ppl: float
    """Perplexity of the other model: ``PPL(Q)``."""
    ppl_se: float
    ppl_base: float
    """Of the reference: ``PPL(base)``."""
    ppl_base_se: float
    correlation: float
    """Of the logarithms of both, position by position."""
    ln_ratio: float
    """Mean ``ln(PPL(Q)/PPL(base))``."""
    ln_ratio_se: float
    kld: dict[str, float]
    """``mean`` with ``mean_se``, and quantiles by the names of `KLD_QUANTILES`; nats."""
    delta_p: dict[str, float]
    """Change of the probability of the token that follows, 0 to 1: ``mean`` with ``mean_se``,
    ``rms`` with ``rms_se``, and quantiles by the names of `DELTA_P_QUANTILES`."""
    same_top: float
    """Share of positions where both have the same first choice, 0 to 1: ``Same top p``."""
    same_top_se: float
