"""The control (what a no-op measures) and the floor (what rounding alone may cause).

Below the floor a figure says nothing: another order of the same additions would have produced it.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping
from functools import partial

import torch
from torch import Tensor

from engine import protocol as p
from engine.measure.block_loop import cross
from engine.measure.counts import JobCounts
from engine.measure.evaluation.divergence import Tally
from engine.measure.evaluation.evaluate import changed, run_reference
from engine.measure.evaluation.reference import Reference, reference_of
from engine.measure.preemption import repeated
from engine.model.inputs import watching
from engine.model.lanes import Lane
from engine.model.memory import memory_free
from engine.model.network import Held, Network, StandIn
from engine.store import keys
from engine.workspace import Loaded

FEW_TOKENS = 8
AGAIN = "again"
"""Names the run that changes nothing, where a device may round differently twice."""
Swapped = tuple[str, float, float]
"""A layer that was swapped for itself, and the largest |ΔNLL| and |KL| of it."""


def control(
    loaded: Loaded, counts: JobCounts, then: float = 0.0
) -> Generator[p.AnyEvent | None, None, p.Control]:
    """Swap a layer of the middle block and the head, each for itself; then measure the floor.

    The swap measures exactly 0 on a CPU. The floor is measured on the first micro-batch with
    everything rounded differently that is mathematically the same; where kernels may round the same
    product differently twice, repeating the same run counts too.
    """
    network, reference = loaded.network, reference_of(loaded)
    key = keys.Control(on=loaded.evaluation).address
    known = loaded.known([key]).get(key)
    if isinstance(known, p.Control):
        yield from counts.found([key], [known])
        return known
    first: dict[int, str] = {}
    for name, layer in network.layers.items():
        if layer.start in (len(network.blocks) // 2, len(network.blocks)):
            first.setdefault(layer.start, name)
    stage = counts.stage("control", len(first) + 2 + (network.device.type != "cpu"), then)
    yield from run_reference(reference, 0, counts)
    if network.streamed:
        fact = yield from _in_one_pass(reference, first, counts)
        yield counts.learnt(key, fact)
        return fact
    worst = ("", 0.0, 0.0)
    for done, (start, name) in enumerate(first.items()):
        yield stage.step(done, name)
        same = {name: network.weight(name).clone()}
        tally = yield from changed(loaded, 0, start, same, counts)
        worst = _worse(worst, name, *_largest(reference, [tally]))
    yield stage.step(len(first))
    step = counts.timed("measure_s", lambda: rounded_otherwise(network, reference.batches[0]))
    held = yield from repeated(step)
    yield stage.step(len(first) + 1)
    tallies = [(yield from changed(loaded, 0, -1, held, counts))]
    if network.device.type != "cpu":
        yield stage.step(len(first) + 2)
        tallies.append((yield from changed(loaded, 0, -1, {}, counts)))
    yield None
    fact = p.Control(*worst, *_largest(reference, tallies))
    yield counts.learnt(key, fact)
    return fact


def _worse(before: Swapped, name: str, dnll: float, kl: float) -> Swapped:
    if not before[0] or max(dnll, kl) > max(before[1:]) or math.isnan(dnll + kl):
        return name, dnll, kl
    return before


def _in_one_pass(
    reference: Reference, swapped: Mapping[int, str], counts: JobCounts
) -> Generator[p.AnyEvent | None, None, p.Control]:
    """The same where blocks are streamed: each is read once for all that is compared."""
    network, ids = reference.network, reference.batches[0]
    end = len(network.blocks)
    few = Lane(network, ids[:1, :FEW_TOKENS], -1, None)
    seen: set[str] = set()
    tallies: dict[str, Tally] = {}
    held: dict[str, dict[str, Held]] = {name: {} for name in ("", *swapped.values())}
    moved: dict[torch.Size, Tensor] = {}

    def note(name: str, _expert: int | None, _inputs: Tensor) -> None:
        seen.add(name)

    def run_few(stretch: range, names: list[str]) -> None:
        with watching(network, names, note):
            few.advance(stretch.stop)

    def run_head(names: list[str]) -> None:
        with watching(network, names, note), torch.no_grad():
            network.logits(few.ids, few.reached(), slice(None))

    def hold(names: list[str]) -> None:
        for name in names:
            if name in seen:
                held[""][name] = _columns_moved(network, name, moved)
            if name in swapped.values():
                held[name][name] = network.weight(name).clone()

    def prepare(stretch: range) -> Generator[None, None, None]:
        names = _added_up(network, range(stretch.start, stretch.stop))
        for own in held.values():
            for name in [n for n in own if 0 <= network.layers[n].last < stretch.start]:
                del own[name]
        yield from repeated(partial(run_few, stretch, names))
        hold(names)
        if stretch.stop == end:
            after = _added_up(network, range(end, end + 1))
            yield from repeated(partial(run_head, after))
            hold(after)
        yield None

    crossings = []
    starts = {"": -1, **{name: start for start, name in swapped.items()}}
    if network.device.type != "cpu":
        starts[AGAIN], held[AGAIN] = -1, {}
    for name, start in starts.items():

        def take(tally: Tally, name: str = name) -> None:
            tallies[name] = tally

        crossings.append(reference.changed(0, start, held[name], take))
    yield from cross(network, crossings, counts, prepare=prepare, phase="control")
    worst: Swapped = ("", 0.0, 0.0)
    for name in swapped.values():
        worst = _worse(worst, name, *_largest(reference, [tallies[name]]))
    otherwise = [tally for name, tally in tallies.items() if name not in swapped.values()]
    return p.Control(*worst, *_largest(reference, otherwise))


def _added_up(network: Network, regions: range) -> list[str]:
    """Layers that first act in these regions and add up products in a kernel of their own."""
    return [
        name
        for name, layer in network.layers.items()
        if layer.start in regions and layer.role not in ("embedding", "experts")
    ]


def rounded_otherwise(network: Network, ids: Tensor) -> dict[str, Held]:
    """Every layer with its input columns in another order.

    The same products are added in another order: mathematically nothing changes. In 16 bits they
    are added in 32 and rounded once, mostly to the same value; there every input is also rounded
    once more, as happens once anything before it has changed.

    Embeddings are left out since they add nothing up, as are experts, and layers whose weight a
    kernel uses without calling them; of the others as many as half of the free memory holds, the
    last first.

    Args:
        network: at its reference weights.
        ids: ``[batch, tokens]``; a few of them show which layers are called.

    Raises:
        Preempted: a more urgent job waits.
    """
    called: set[str] = set()

    def note(name: str, _expert: int | None, _inputs: Tensor) -> None:
        called.add(name)

    with watching(network, _added_up(network, range(-1, len(network.blocks) + 1)), note):
        network.resume(ids[:1, :FEW_TOKENS], -1, None)
    room = memory_free(network.device) // 2
    held: dict[str, Held] = {}
    moved: dict[torch.Size, Tensor] = {}
    for name in reversed(network.layers):
        weight = network.weight(name)
        if name not in called:
            continue
        if (room := room - weight.nbytes) < 0:
            break
        held[name] = _columns_moved(network, name, moved)
    return held


def _columns_moved(network: Network, name: str, moved: dict[torch.Size, Tensor]) -> StandIn:
    """A layer with its input columns in another order; see `_rounded_again` for ``moved``."""
    weight = network.weight(name)
    order = torch.randperm(weight.shape[-1], generator=_seeded(weight)).to(weight.device)
    return StandIn(weight[:, order], partial(_rounded_again, order, moved))


def _rounded_again(order: Tensor, moved: dict[torch.Size, Tensor], inputs: Tensor) -> Tensor:
    """Inputs in another order; in 16 bits also changed by up to half of ``eps``, relative.

    Args:
        order: of the columns.
        moved: by how much inputs of each shape are changed, drawn when first needed: the same for
            all layers, since they share inputs.
        inputs: ``[…, in]``.
    """
    if inputs.element_size() < 4:
        if inputs.shape not in moved:
            chance = torch.rand(inputs.shape, generator=_seeded(inputs))
            moved[inputs.shape] = (1 + (chance - 0.5) * torch.finfo(inputs.dtype).eps).to(
                inputs.device
            )
        inputs = (inputs.float() * moved[inputs.shape]).to(inputs.dtype)
    return inputs[..., order]


def _seeded(inputs: Tensor) -> torch.Generator:
    """The same generator for all inputs of this width, since projections share inputs."""
    return torch.Generator().manual_seed(inputs.shape[-1])


def _largest(reference: Reference, tallies: list[Tally]) -> tuple[float, float]:
    """Largest |ΔNLL| and |KL| of a window, nats per token."""
    targets = reference.windows.targets
    dnll = torch.cat([tally.dnll for tally in tallies]).abs().max()
    kl = torch.cat([tally.kl for tally in tallies]).abs().max()
    return float(dnll) / targets, float(kl) / targets
