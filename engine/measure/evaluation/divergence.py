"""NLL, its change, and KL over windows of tokens, in nats per token."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from scipy.special import stdtrit
from torch import Tensor


@dataclass(frozen=True)
class Tally:
    """Sums over the counted targets of each window of a micro-batch: ``[windows]``, float64."""

    dnll: Tensor
    kl: Tensor
    agree: Tensor


@dataclass(frozen=True)
class Positions:
    """Two models at every counted position of some windows: ``[windows, positions]``."""

    nll: Tensor
    """Of the reference, float32."""
    dnll: Tensor
    """How much more it is of the other model, float32."""
    kl: Tensor
    """KL(reference ‖ other), float32."""
    agree: Tensor
    """Whether their first choices are equal, bool."""
    row: int = 0
    """Number of the first window within its micro-batch."""
    first: int = 0
    """Its first position within the window, from 0."""

    def sums(self) -> Tally:
        """Sums over the positions of each window."""
        return Tally(*(each.double().sum(-1) for each in (self.dnll, self.kl, self.agree)))


def compare(
    reference: Tensor,
    lse: Tensor,
    logits: Tensor,
    targets: Tensor,
    first_choice: Tensor | None = None,
) -> Tally:
    """Sums over the positions of a chunk; see `at_positions`, whose arguments it takes."""
    return at_positions(reference, lse, logits, targets, first_choice).sums()


def at_positions(
    reference: Tensor,
    lse: Tensor,
    logits: Tensor,
    targets: Tensor,
    first_choice: Tensor | None = None,
) -> Positions:
    """Change of NLL, KL(reference ‖ changed) and top-1 agreement at each position of a chunk.

    With ``d = z' − z`` the difference of logits and ``x = d − c`` for any constant ``c`` of a
    position, ``KL = log E_p[eˣ] − E_p[x]`` and ``ΔNLL = KL + E_p[d] − d_target``, ``p`` being the
    reference's probabilities. Written with ``expm1`` and ``log1p`` small values keep their digits,
    and equal logits give exactly 0: the difference of two log-softmaxes would drown them in
    rounding. ``c`` is ``d`` at the reference's first choice, where most of ``p`` lies.

    Args:
        reference: ``[windows, positions, vocabulary]``, float32.
        lse: log-sum-exp of ``reference``, ``[windows, positions]``.
        logits: the changed model's, same shape as ``reference``; overwritten.
        targets: the next token at each position, ``[windows, positions]``.
        first_choice: the reference's most likely token, ``[windows, positions, 1]``, if known.
    """
    if first_choice is None:
        first_choice = reference.argmax(-1, keepdim=True)
    agree = logits.gather(-1, first_choice) >= logits.amax(-1, keepdim=True)
    at_target = targets.unsqueeze(-1)
    nll = lse - reference.gather(-1, at_target).squeeze(-1)
    d = logits.sub_(reference)
    d_target = d.gather(-1, at_target).squeeze(-1)
    shift = d.gather(-1, first_choice)
    p = (reference - lse.unsqueeze(-1)).exp_()
    x = d.sub_(shift)
    mean_x = torch.linalg.vecdot(p, x)
    kl = torch.log1p(torch.linalg.vecdot(p, torch.expm1(x))) - mean_x
    dnll = kl + (mean_x + shift.squeeze(-1)) - d_target
    overflowed = ~torch.isfinite(kl)
    if overflowed.any():
        # exp overflows beyond 88 nats, and tokens that both models rule out (−∞) give no number:
        # there the plain difference of log-sum-exps has digits enough.
        ruled_out = torch.isneginf(reference)
        x = torch.where(ruled_out, 0.0, x)
        mean_x = torch.linalg.vecdot(p, x)
        grown = torch.logsumexp(x + reference, -1) - lse
        kl = torch.where(overflowed, grown - mean_x, kl)
        dnll = torch.where(overflowed, grown + shift.squeeze(-1) - d_target, dnll)
    return Positions(nll, dnll, kl, agree.squeeze(-1))


@dataclass(frozen=True)
class MeanWithError:
    """A mean over windows with its standard error."""

    mean: float
    se: float
    windows: int

    def half(self, interval: float = 0.95) -> float:
        """Half the width of the confidence interval, Student's t over windows; nan for one."""
        if self.windows < 2:
            return math.nan
        return float(stdtrit(self.windows - 1, 0.5 + interval / 2)) * self.se


def mean_with_error(sums: Tensor, targets: int) -> MeanWithError:
    """Mean per token over equal windows, and its standard error.

    Args:
        sums: ``[windows]``, sums over the counted targets of each window.
        targets: counted targets of each window.
    """
    values = sums / targets
    windows = values.numel()
    se = float(values.std(unbiased=True)) / math.sqrt(windows) if windows > 1 else math.nan
    return MeanWithError(float(values.mean()), se, windows)


@dataclass(frozen=True)
class Difference:
    """Estimated effect of a change, over all windows measured so far."""

    dnll: MeanWithError
    kl: MeanWithError
    top1: MeanWithError


def difference(tallies: Sequence[Tally], targets: int) -> Difference:
    """The effect of a change, from the tallies of some micro-batches.

    Args:
        tallies: of micro-batches, in order.
        targets: counted targets of each window.
    """
    return Difference(
        mean_with_error(torch.cat([tally.dnll for tally in tallies]), targets),
        mean_with_error(torch.cat([tally.kl for tally in tallies]), targets),
        mean_with_error(torch.cat([tally.agree for tally in tallies]), targets),
    )


@dataclass(frozen=True)
class Score:
    """What a change costs, with the names that facts have for it."""

    nll: float
    ppl: float
    ppl_low: float
    """End of the interval of the difference alone."""
    ppl_high: float
    dnll: float
    dnll_se: float
    kl: float
    kl_se: float
    top1: float
    tokens: int
    """Targets that count."""


def score_of(tallies: Sequence[Tally], targets: int, nll: float) -> Score:
    """The score of a change, from the tallies of some micro-batches.

    Args:
        tallies: of micro-batches, in order.
        targets: counted targets of each window.
        nll: of the unchanged model.
    """
    found = difference(tallies, targets)
    mean, half = nll + found.dnll.mean, found.dnll.half()
    return Score(
        nll=mean,
        ppl=perplexity(mean),
        ppl_low=perplexity(mean - half),
        ppl_high=perplexity(mean + half),
        dnll=found.dnll.mean,
        dnll_se=found.dnll.se,
        kl=found.kl.mean,
        kl_se=found.kl.se,
        top1=found.top1.mean,
        tokens=found.dnll.windows * targets,
    )


def perplexity(nll: float) -> float:
    """``exp(nll)``; infinite on overflow, nan if nll is."""
    try:
        return math.exp(nll)
    except OverflowError:
        return math.inf
