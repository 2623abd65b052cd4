"""Statistics that were merged are those of one pass."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from engine.measure.calibrating.course import Course
from engine.measure.calibrating.gathering import Gathering
from engine.measure.calibrating.input_sums import InputSums, SetStatistics, run_over
from engine.measure.calibrating.own_samples import own_samples
from engine.measure.calibrating.windows import SetWindows
from engine.measure.calibration.calibration import SAMPLE
from engine.measure.counts import JobCounts
from engine.model.inputs import shared_inputs
from engine.model.load import load_network
from engine.model.network import Network
from engine.model.selfcheck import check_on_window
from engine.texts.text import Text
from tests import tiny


def tokens(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, 6, generator=torch.Generator().manual_seed(seed))


def test_merging_equals_adding_all_at_once() -> None:
    x, device = tokens(2000), torch.device("cpu")
    whole = InputSums((8, 6), device, 0)
    whole.add(x, None, "layer")
    merged = InputSums((8, 6), device, 1)
    for seed, part in enumerate(x.split(700)):
        each = InputSums((8, 6), device, seed)
        each.add(part, None, "layer")
        merged.merge(each, "layer")
    gram = x.double().T @ x.double()
    for found in (whole, merged):
        assert found.tokens == 2000
        ours = found.inputs().statistics
        torch.testing.assert_close(ours.gram, gram.float(), rtol=1e-4, atol=1e-2)
        torch.testing.assert_close(found.energy(), gram.diagonal(), rtol=1e-5, atol=0)
        torch.testing.assert_close(ours.maximum, x.abs().amax(0))
    assert len(merged.sample) == SAMPLE
    rows = {tuple(row) for row in x.tolist()}
    assert {tuple(row) for row in merged.sample.tolist()} <= rows


def test_a_sample_is_drawn_from_all_parts() -> None:
    merged = InputSums((8, 6), torch.device("cpu"), 0)
    for seed in range(4):
        part = InputSums((8, 6), torch.device("cpu"), seed)
        part.add(torch.full((1000, 6), float(seed)), None, "layer")
        merged.merge(part, "layer")
    counts = [int((merged.sample[:, 0] == seed).sum()) for seed in range(4)]
    assert sum(counts) == SAMPLE
    assert min(counts) > SAMPLE // 8


def test_experts_have_their_own_sums_and_those_without_tokens_are_counted() -> None:
    found = InputSums((3, 8, 6), torch.device("cpu"), 0)
    found.add(tokens(5), 0, "experts")
    found.add(tokens(7, 1), 2, "experts")
    assert (found.tokens, found.unseen) == (12, 1)
    assert found.inputs().statistics.tokens == 12
    assert [each.tokens for each in found.inputs().experts] == [5, 0, 7]


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Network:
    folder: Path = tiny.build("llama", tmp_path_factory.mktemp("sums") / "llama")
    network = load_network(folder, device="cpu", dtype="fp32")
    check_on_window(network, tiny.ids(1, 16))
    return network


def gathered(network: Network, ids: Tensor) -> SetStatistics:
    shares = shared_inputs(network)
    body = [name for name, layer in network.layers.items() if layer.block is not None]
    wanted = tuple(dict.fromkeys(shares[name][0] for name in body))
    found = SetStatistics(network, wanted, 0)
    for _ in run_over(network, list(ids.split(2)), wanted, found.take, JobCounts(), ""):
        network.assert_at_rest()
    found.samples = len(ids)
    return found


def test_a_pass_gives_what_hooks_on_a_plain_forward_see(llama: Network) -> None:
    ids = tiny.ids(4, 16)
    seen: dict[str, list[Tensor]] = {}
    modules = dict(llama.model.named_modules())
    hooks = [
        modules[name].register_forward_pre_hook(
            lambda _m, args, name=name: seen.setdefault(name, []).append(args[0])
        )
        for name, layer in llama.layers.items()
        if layer.block is not None
    ]
    with torch.no_grad():
        for part in ids.split(2):
            llama.model(input_ids=part)
    for hook in hooks:
        hook.remove()
    for name, sums in gathered(llama, ids).sums.items():
        x = torch.cat([each.flatten(0, 1) for each in seen[name]]).double()
        torch.testing.assert_close(
            sums.inputs().statistics.gram.double(), x.T @ x, rtol=1e-4, atol=1e-4
        )


def test_more_windows_cost_a_pass_over_the_new_ones_alone(llama: Network) -> None:
    ids = tiny.ids(6, 16)
    whole, first = gathered(llama, ids), gathered(llama, ids[:2])
    first.merge(gathered(llama, ids[2:]))
    assert first.samples == whole.samples == 6
    for name, sums in whole.sums.items():
        merged = first.sums[name].inputs().statistics
        torch.testing.assert_close(merged.gram, sums.inputs().statistics.gram, rtol=1e-4, atol=1e-4)
        assert merged.tokens == sums.tokens == 6 * 16


def test_sums_of_some_windows_do_not_depend_on_what_else_was_gathered(llama: Network) -> None:
    """Parts of two windows: to the last digit, and as hooks on plain forwards see them."""
    ids = tiny.ids(7, 16)
    windows = SetWindows("set", Text("set", ""), ids, 5)
    wanted = tuple(gathered(llama, ids[:1]).sums)

    def sums(*asked: tuple[int, int]) -> SetStatistics:
        counts = Course()
        gathering = Gathering(llama, windows, wanted, 32, counts)
        for first in {first for first, _ in asked}:
            gathering.begin(first)
        found = SetStatistics(llama, wanted, 0)
        for first, end in asked:
            found = _ended(chain(gathering.up_to(end), gathering.of(first, end)))
            assert found.samples == end - first
        assert counts.passed >= (found.samples) * 16
        return found

    def chain(*steps: Generator[Any, None, Any]) -> Generator[Any, None, Any]:
        found = None
        for each in steps:
            found = yield from each
        return found

    for alone, together in (
        (((0, 5),), ((0, 1), (0, 3), (0, 4), (0, 5))),
        (((0, 7),), ((0, 2), (3, 7), (0, 7))),
        (((3, 7),), ((0, 1), (0, 7), (3, 7))),
    ):
        first, end = alone[0]
        once, again, plain = sums(*alone), sums(*together), gathered(llama, ids[first:end])
        for name, one in once.sums.items():
            ours, theirs = one.inputs(), again.sums[name].inputs()
            assert torch.equal(ours.statistics.gram, theirs.statistics.gram)
            assert torch.equal(ours.sample.sort(0).values, theirs.sample.sort(0).values)
            gram = plain.sums[name].inputs().statistics.gram
            torch.testing.assert_close(ours.statistics.gram, gram, rtol=1e-4, atol=1e-4)


def _ended(steps: Generator[Any, None, Any]) -> Any:
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value


def test_own_samples_are_drawn_from_the_models_distribution(llama: Network) -> None:
    """Against whole forwards without a cache, with the same random numbers."""

    def drawn(samples: int, seq_len: int) -> Tensor:
        found: Tensor = _ended(own_samples(llama, samples, seq_len, 3, 257))
        return found

    found = drawn(3, 8)
    assert found.shape == (3, 8)
    assert torch.equal(drawn(2, 8), found[:2])
    for row in range(3):
        draw = torch.Generator().manual_seed(3 * 1_000_003 + row)
        ids = torch.randint(257, (1,), generator=draw)
        for _ in range(7):
            with torch.no_grad():
                logits = llama.model(input_ids=ids[None]).logits[0, -1, :257]
            ids = torch.cat([ids, torch.multinomial(logits.softmax(-1), 1, generator=draw)])
        assert ids.tolist() == found[row].tolist()
