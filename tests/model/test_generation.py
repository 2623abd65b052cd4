"""Continuations equal those of `transformers.generate`, token for token."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from itertools import accumulate
from typing import Any

import pytest
import torch
from torch import Tensor

from engine.model.generation import (
    Generation,
    choose,
    shared_prefix,
    uniform_numbers,
    why_not_cached,
)
from engine.model.network import Network, Preempted
from tests import tiny

ARCHITECTURES = (
    "llama", "qwen3", "gemma3", "mistral", "phi3", "gpt2", "opt", "falcon", "mixtral", "qwen3_moe",
    "gemma2",
)  # fmt: skip
PROMPTS = [[5, 9, 14, 3, 77, 21, 8, 40, 2], [11, 4], [200, 31, 7, 19, 60], [1]]
NEW = 12


def ours(network: Network, prompts: list[list[int]] = PROMPTS, **more: Any) -> Generation:
    batch = Generation(network, prompts, **{"held": {}, "new_tokens": NEW, **more})
    while not batch.done:
        batch.step(0.0)
    network.assert_at_rest()
    return batch


def padded(prompts: list[list[int]], pad: int = 0) -> tuple[Tensor, Tensor]:
    longest = max(map(len, prompts))
    ids = torch.tensor([[pad] * (longest - len(each)) + each for each in prompts])
    mask = torch.tensor([[0] * (longest - len(each)) + [1] * len(each) for each in prompts])
    return ids, mask


def generated(model: Any, prompts: list[list[int]], stop: int | None, **more: Any) -> list[Any]:
    """What transformers makes of the same batch, without what follows a stop."""
    ids, mask = padded(prompts)
    out = model.generate(
        input_ids=ids, attention_mask=mask, max_new_tokens=NEW, pad_token_id=0, eos_token_id=stop,
        **{"do_sample": False, **more},
    )  # fmt: skip
    found = []
    for row in out[:, ids.shape[1] :].tolist():
        if stop in row:
            row = row[: row.index(stop) + 1]
        found.append(row)
    return found


@pytest.mark.parametrize("network", ARCHITECTURES, indirect=True)
def test_greedy_tokens_are_those_of_transformers(network: Network) -> None:
    assert why_not_cached(network) == ""
    free = generated(network.model, PROMPTS, None)
    assert ours(network).tokens == free
    stop = free[0][4]
    batch = ours(network, stops={stop})
    assert batch.tokens == generated(network.model, PROMPTS, stop)
    assert batch.ended == [row[-1] == stop for row in batch.tokens]


@pytest.mark.parametrize("network", ARCHITECTURES, indirect=True)
def test_sampled_tokens_are_those_of_the_same_numbers(
    network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`generate` draws with `torch.multinomial`: here it takes our numbers instead."""
    numbers = torch.stack([uniform_numbers(prompt, 7, NEW) for prompt in PROMPTS])
    step = iter(range(NEW))

    def drawn(probabilities: Tensor, num_samples: int, **_more: Any) -> Tensor:
        at = next(step)
        rows = []
        for row, p in enumerate(probabilities.double()):
            sums = list(accumulate(p.tolist()))
            target = float(numbers[row, at]) * sums[-1]
            rows.append([next(token for token, total in enumerate(sums) if total > target)])
        return torch.tensor(rows)

    monkeypatch.setattr(torch, "multinomial", drawn)
    theirs = generated(
        network.model, PROMPTS, None, do_sample=True, temperature=0.8, top_k=0, top_p=1.0
    )
    monkeypatch.undo()
    assert ours(network, temperature=0.8, seed=7).tokens == theirs


@pytest.mark.parametrize("network", ["mamba"], indirect=True)
def test_a_model_without_such_a_cache_runs_whole(network: Network) -> None:
    assert "takes no cache" in why_not_cached(network)
    one = [PROMPTS[0]]
    assert ours(network, one, cached=False).tokens == generated(network.model, one, None)


def test_a_prefix_that_all_share_is_run_once(loaded: Callable[[str], Network]) -> None:
    network = loaded("llama")
    common = list(range(30, 60))
    prompts = [common + each for each in PROMPTS]
    assert shared_prefix(prompts) == 30
    widths: list[int] = []
    run = network.run

    def watched(ids: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        widths.append(ids.numel())
        return run(ids, *args, **kwargs)

    network.run = watched  # type: ignore[method-assign]
    try:
        found = ours(network, prompts)
    finally:
        del network.run
    assert widths[:2] == [30, 4 * 9]
    assert found.tokens == generated(network.model, prompts, None)


@pytest.mark.parametrize("network", ["mistral"], indirect=True)
def test_a_window_is_not_stretched_by_padding_in_the_middle(network: Network) -> None:
    prompts = [list(range(30, 60)) + each for each in PROMPTS]
    assert ours(network, prompts).tokens == generated(network.model, prompts, None)


def test_held_weights_are_held_in_a_step_alone(loaded: Callable[[str], Network]) -> None:
    network = loaded("llama")
    name = "model.layers.1.mlp.down_proj"
    held = {name: torch.zeros_like(network.weight(name))}
    changed = ours(network, held=held).tokens
    copy = deepcopy(network.model)
    with torch.no_grad():
        copy.get_submodule(name).weight.zero_()
    assert changed == generated(copy, PROMPTS, None)
    assert changed != ours(network).tokens


def test_a_more_urgent_job_is_let_in_between_tokens(folder: Callable[[str], Any]) -> None:
    from engine.model.load import load_network

    network = load_network(folder("llama"), device="cpu")
    expected = ours(network).tokens
    batch = Generation(network, PROMPTS, held={}, new_tokens=NEW)
    network.should_stop = lambda: True
    with pytest.raises(Preempted):
        batch.step(60.0)
    network.should_stop = None
    batch.step(0.0)
    network.should_stop = lambda: True
    for taken in range(2, NEW + 1):
        batch.step(60.0)
        network.assert_at_rest()
        assert batch.taken == taken
    assert batch.tokens == expected


def test_choosing_follows_the_cumulative_sum() -> None:
    logits = torch.tensor([[0.1, 0.2, 0.0, 0.7]]).log()
    for number, token in ((0.0, 0), (0.0999, 0), (0.1001, 1), (0.2999, 1), (0.3001, 3), (0.999, 3)):
        found = choose(logits, torch.tensor([number], dtype=torch.float64), 1.0)
        assert found.item() == token
    # of the two most likely, which together have 0.9
    for number, token in ((0.0, 1), (0.22, 1), (0.23, 3), (0.9999999, 3)):
        found = choose(logits, torch.tensor([number], dtype=torch.float64), 1.0, top_p=0.85)
        assert found.item() == token


def test_choices_are_the_most_likely_ones(loaded: Callable[[str], Network]) -> None:
    network = loaded("gpt2")
    batch = ours(network)
    ids = torch.tensor([PROMPTS[0] + batch.tokens[0]])
    with torch.no_grad():
        logp = network.model(input_ids=ids).logits.log_softmax(-1)
    for at, choices in enumerate(batch.choices[0]):
        expected = logp[0, len(PROMPTS[0]) + at - 1].topk(5)
        assert [token for token, _ in choices] == expected.indices.tolist()
        assert [value for _, value in choices] == pytest.approx(expected.values.tolist(), abs=1e-4)
        assert choices[0][0] == batch.tokens[0][at]
    assert all(map(all, [batch.finite]))


def test_numbers_that_are_not_finite_are_told(loaded: Callable[[str], Network]) -> None:
    network = loaded("llama")
    held = {"lm_head": torch.full_like(network.weight("lm_head"), float("nan"))}
    assert ours(network, held=held).finite == [False] * len(PROMPTS)
    assert max(map(max, ours(network, held=held).tokens)) < tiny.VOCABULARY
