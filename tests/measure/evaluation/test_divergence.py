"""Windows and differences of logits, against float64."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from engine.errors import TextError, UsageError
from engine.measure.evaluation.divergence import compare, mean_with_error
from engine.texts.windows import cut

VOCABULARY = 50


def plainly(reference: Tensor, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """ΔNLL and KL at every position by two float64 log-softmaxes."""
    before = reference.double().log_softmax(-1)
    after = logits.double().log_softmax(-1)
    index = targets.unsqueeze(-1)
    dnll = (before.gather(-1, index) - after.gather(-1, index)).squeeze(-1)
    p = before.exp()
    kl = torch.where(p == 0, 0.0, p * (before - after)).sum(-1)
    return dnll.sum(-1), kl.sum(-1)


def draw(seed: int, scale: float, shift: float) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    reference = torch.randn(3, 7, VOCABULARY, generator=generator) * scale
    change = torch.randn(3, 7, VOCABULARY, generator=generator) * shift
    targets = torch.randint(0, VOCABULARY, (3, 7), generator=generator)
    return reference, reference + change, targets


@pytest.mark.parametrize("scale", [0.1, 3.0, 30.0])
@pytest.mark.parametrize("shift", [1e-4, 0.1, 5.0, 200.0])
def test_differences_are_those_of_two_log_softmaxes(scale: float, shift: float) -> None:
    reference, logits, targets = draw(1, scale, shift)
    dnll, kl = plainly(reference, logits, targets)
    found = compare(reference, torch.logsumexp(reference, -1), logits.clone(), targets)
    torch.testing.assert_close(found.kl, kl, rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(found.dnll, dnll, rtol=1e-4, atol=2e-5)


def test_equal_logits_give_exactly_nothing() -> None:
    reference, _, targets = draw(2, 5.0, 0.0)
    found = compare(reference, torch.logsumexp(reference, -1), reference.clone(), targets)
    assert not found.kl.any()
    assert not found.dnll.any()
    assert torch.equal(found.agree, torch.full((3,), 7.0, dtype=torch.float64))


def test_small_divergences_keep_their_digits() -> None:
    """At 1e-9 nats the difference of two float32 log-softmaxes is rounding alone."""
    reference, logits, targets = draw(3, 3.0, 1e-4)
    exact = plainly(reference, logits, targets)[1]
    found = compare(reference, torch.logsumexp(reference, -1), logits.clone(), targets)
    torch.testing.assert_close(found.kl, exact, rtol=2e-3, atol=0)


@pytest.mark.parametrize(
    "extreme", ["huge", "one-hot", "ruled out in both", "ruled out in the changed"]
)
def test_extreme_logits(extreme: str) -> None:
    reference, logits, targets = draw(4, 3.0, 0.5)
    if extreme == "huge":
        reference, logits = reference * 3000, logits * 3000
    elif extreme == "one-hot":
        reference[..., 5] += 500
    elif extreme == "ruled out in both":
        reference[..., 7], logits[..., 7] = -math.inf, -math.inf
        targets[targets == 7] = 8
    else:
        logits[..., 7] = -math.inf
        targets[targets == 7] = 8
    dnll, kl = plainly(reference, logits, targets)
    found = compare(reference, torch.logsumexp(reference, -1), logits.clone(), targets)
    torch.testing.assert_close(found.kl, kl, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found.dnll, dnll, rtol=1e-4, atol=2e-3)


@given(
    have=st.integers(0, 400),
    seq_len=st.integers(2, 60),
    tokens=st.integers(2, 500),
    stride=st.one_of(st.none(), st.integers(1, 59)),
)
def test_windows_are_the_first_of_the_text(
    have: int, seq_len: int, tokens: int, stride: int | None
) -> None:
    ids = torch.arange(have)
    if stride is not None and stride >= seq_len:
        with pytest.raises(UsageError):
            cut(ids, seq_len, tokens, stride)
        return
    if have < seq_len:
        with pytest.raises(TextError, match="fewer than one window"):
            cut(ids, seq_len, tokens, stride)
        return
    windows = cut(ids, seq_len, tokens, stride)
    step = stride or seq_len
    assert windows.targets == (stride or seq_len - 1)
    assert windows.count <= max(1, tokens // seq_len)
    for number, row in enumerate(windows.ids):
        assert torch.equal(row, ids[number * step : number * step + seq_len])
    if stride is not None and windows.count > 1:
        # No target is counted twice, none between the first and the last is left out.
        counted = [int(t) for row in windows.ids for t in row[-windows.targets :]]
        assert counted == list(range(counted[0], counted[0] + len(counted)))


def test_the_interval_is_student_s() -> None:
    values = torch.tensor([3.0, 5.0, 4.0, 8.0, 2.0], dtype=torch.float64)
    found = mean_with_error(values * 10, 10)
    expected = stats.ttest_1samp(values.numpy(), 0.0).confidence_interval(0.95)
    assert found.mean - found.half() == pytest.approx(expected.low)
    assert found.mean + found.half() == pytest.approx(expected.high)
    assert math.isnan(mean_with_error(values[:1], 10).se)
