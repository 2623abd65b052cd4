"""What a change of nothing measures, and how far rounding alone moves a figure.

Below that floor a figure says nothing: another order of the same additions would have given it.
"""

from __future__ import annotations

import math
from collections.abc import Generator

import torch

from engine import protocol as p
from engine.measure.account import Account
from engine.measure.evaluation import changed, run_reference
from engine.measure.perplexity import Tally, compare
from engine.measure.reference import Reference
from engine.workspace import Workspace, again

FLOOR_WINDOWS = 4
"""Windows of the first micro-batch that are evaluated in another composition."""


def control(
    workspace: Workspace, account: Account
) -> Generator[p.AnyEvent | None, None, p.Control]:
    """Swap a layer of the middle block and the head, each for itself; then measure the floor.

    The swap measures exactly 0 on a CPU. On a device whose kernels may round the same product
    differently twice, running the same twice counts for the floor too.
    """
    network, reference = workspace.need_network()
    key = workspace.measured_key("control", floor="composition")
    known = workspace.known([key]).get(key)
    if isinstance(known, p.Control):
        yield from account.found([key], [known])
        return known
    first: dict[int, str] = {}
    for name, layer in network.layers.items():
        if layer.start in (len(network.blocks) // 2, len(network.blocks)):
            first.setdefault(layer.start, name)
    yield from run_reference(reference, 0, account)
    worst = ("", 0.0, 0.0)
    for start, name in first.items():
        same = {name: network.weight(name).clone()}
        tally = yield from changed(workspace, 0, start, same, account)
        dnll, kl = _largest(reference, [tally])
        if not worst[0] or max(dnll, kl) > max(worst[1:]) or math.isnan(dnll + kl):
            worst = (name, dnll, kl)
        yield None
    tallies: list[Tally] = []
    if network.device.type != "cpu":
        tallies.append((yield from changed(workspace, 0, -1, {}, account)))
        yield None
    for window in range(min(FLOOR_WINDOWS, reference.batches[0].shape[0])):
        step = account.timed("measure_s", lambda window=window: recomposed(reference, window))  # type: ignore[misc]
        tallies.append((yield from again(step)))
        yield None
    fact = p.Control(*worst, *_largest(reference, tallies))
    yield account.learnt(key, fact)
    return fact


@torch.no_grad()
def recomposed(reference: Reference, window: int) -> Tally:
    """The unchanged network on one window, in a micro-batch of another size than it stands in.

    Mathematically the same; matrices of another height are multiplied in another order. A window of
    a micro-batch is evaluated alone, one that is a micro-batch by itself beside a copy.

    Args:
        reference: of the network.
        window: of the first micro-batch.

    Returns:
        Of one window, against its own micro-batch.

    Raises:
        Preempted: something more urgent came.
    """
    network, whole = reference.network, reference.batches[0]
    row = whole[window : window + 1]
    other = row if whole.shape[0] > 1 else torch.cat([whole, whole])
    before = network.final_state(whole, -1, None)
    after = network.final_state(other, -1, None)
    sums = [torch.zeros(1, dtype=torch.float64) for _ in range(3)]
    for a, b in reference.chunks:
        own = network.logits(whole, before, (a, b))[window : window + 1].float()
        again = network.logits(other, after, (a, b))[:1].float().clone()
        lse = torch.logsumexp(own, -1)
        found = compare(own, lse, again, row[:, a + 1 : b + 1])
        for total, part in zip(sums, (found.dnll, found.kl, found.agree), strict=True):
            total += part.cpu()
    return Tally(*sums)


def _largest(reference: Reference, tallies: list[Tally]) -> tuple[float, float]:
    """Largest |ΔNLL| and |KL| of a window, nats per token."""
    targets = reference.windows.targets
    dnll = torch.cat([tally.dnll for tally in tallies]).abs().max()
    kl = torch.cat([tally.kl for tally in tallies]).abs().max()
    return float(dnll) / targets, float(kl) / targets
