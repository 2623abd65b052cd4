"""The sweep: every layer changed alone, measured from its own block on.

A control comes first: a layer swapped for itself must measure nothing (exactly 0 on a CPU). At the
end all body layers are changed together: the ratio of that effect to the sum of the single ones
says how far single effects may be added up. What the store knows is not measured again.
"""

from __future__ import annotations

import math
import time
from collections.abc import Generator, Sequence

from engine import protocol as p
from engine.errors import FormatError, UsageError
from engine.jobs import Steps
from engine.measure.account import Account
from engine.measure.approximate import approximated, why_not_folded
from engine.measure.calibration import calibration_parts
from engine.measure.evaluation import baseline, changed, forward_seconds, run_reference, score
from engine.measure.perplexity import Tally, difference, perplexity
from engine.model.layers import Layer
from engine.model.network import Network
from engine.quant import QUANTISER_VERSION, Format, parse_format, why_not_built, why_not_held
from engine.workspace import Workspace


def sweep(workspace: Workspace, formats: Sequence[str], direction: p.Direction, job: str) -> Steps:
    """Measure every layer in every format, each alone.

    Layers late in the network come first: they cost least, so that the table fills at once.

    Yields:
        `Learned` with `Baseline`, `Control`, `Sensitivity` and `Additivity` facts, `Fallback` for
        layers a format cannot hold, and `Progress`.

    Raises:
        FormatError: if a format does not parse or is not built.
    """
    if direction != "degrade":
        raise UsageError("a restore sweep cannot be run yet: leave the direction out")
    parsed = [parse_format(text) for text in formats]
    for format in parsed:
        if (why := why_not_built(format)) is not None:
            raise FormatError(why)
    network, _ = workspace.need_network()
    account = Account(timings={"load_s": workspace.load_s, "quantize_s": 0.0, "estimate_s": 0.0})
    reference_nll = (yield from baseline(workspace, account)).nll
    yield from _control(workspace, account)

    found: dict[str, dict[str, p.Sensitivity]] = {str(format): {} for format in parsed}
    todo: list[tuple[Layer, Format, str]] = []
    for format in parsed:
        todo += yield from _from_store(workspace, format, account, found[str(format)])
    todo.sort(key=lambda each: -each[0].start)
    total = len(todo) + sum(map(len, found.values()))
    pace = _Pace(job, network, [layer for layer, _, _ in todo], total)
    for layer, format, key in todo:
        fact = yield from _measure(workspace, layer, format, reference_nll, account, pace)
        pace.finish(layer)
        found[str(format)][layer.name] = fact
        yield account.learnt(key, fact)
    for format in parsed:
        if any(network.layers[name].block is not None for name in found[str(format)]):
            yield from _additivity(workspace, format, found[str(format)], reference_nll, account)
    if account.measured:
        account.timings["forward_s"] = yield from forward_seconds(workspace)
    return account.outcome()


def _from_store(
    workspace: Workspace, format: Format, account: Account, found: dict[str, p.Sensitivity]
) -> Generator[p.AnyEvent | None, None, list[tuple[Layer, Format, str]]]:
    """Announce what the store knows of a format, and return what is left to measure."""
    network, _ = workspace.need_network()
    keys: dict[str, str] = {}
    parts = yield from calibration_parts(workspace, [format], "reference")
    for name, layer in network.layers.items():
        why = why_not_held(format, layer.shape) or why_not_folded(workspace, name, format)
        if why is not None:
            yield p.Fallback(layer=name, format=str(format), why=why)
        else:
            keys[name] = workspace.measured_key(
                "sensitivity",
                layer=name,
                format=str(format),
                direction="degrade",
                quantiser=QUANTISER_VERSION,
                scale_dtype=workspace.scale_dtype,
                **parts,
            )
    known = workspace.known(list(keys.values()))
    for name, key in keys.items():
        if isinstance(fact := known.get(key), p.Sensitivity):
            found[name] = fact
    yield from account.found([keys[name] for name in found], list(found.values()))
    return [(network.layers[n], format, key) for n, key in keys.items() if n not in found]


def _measure(
    workspace: Workspace,
    layer: Layer,
    format: Format,
    reference_nll: float,
    account: Account,
    pace: _Pace,
) -> Generator[p.AnyEvent | None, None, p.Sensitivity]:
    _, reference = workspace.need_network()
    detail = f"{layer.name} {format}"
    yield pace.at(0.0, detail)
    approx = yield from approximated(workspace, layer.name, format, account)
    tallies: list[Tally] = []
    batches = len(reference.batches)
    for batch in range(batches):
        tallies.append(
            (yield from changed(workspace, batch, layer.start, {layer.name: approx}, account))
        )
        yield pace.at((batch + 1) / batches, detail)
    targets = reference.windows.targets
    found = difference(tallies, targets)
    dnll, kl, top1 = found.dnll, found.kl, found.top1
    before, half = perplexity(reference_nll), dnll.half()
    return p.Sensitivity(
        layer=layer.name,
        format=str(format),
        kl=kl.mean,
        kl_se=kl.se,
        dnll=dnll.mean,
        dnll_se=dnll.se,
        dppl=perplexity(reference_nll + dnll.mean) - before,
        dppl_low=perplexity(reference_nll + dnll.mean - half) - before,
        dppl_high=perplexity(reference_nll + dnll.mean + half) - before,
        tokens=reference.windows.count * targets,
        top1=top1.mean,
    )


def _control(
    workspace: Workspace, account: Account
) -> Generator[p.AnyEvent | None, None, p.Control]:
    """Swap a layer of the middle block and the head, each for itself.

    On a device whose kernels may round the same product differently twice, the floor is what
    running the same twice gives; on a CPU the control is that already.
    """
    network, reference = workspace.need_network()
    key = workspace.measured_key("control")
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
    targets = reference.windows.targets
    for start, name in first.items():
        same = {name: network.weight(name).clone()}
        tally = yield from changed(workspace, 0, start, same, account)
        dnll = float(tally.dnll.abs().max()) / targets
        kl = float(tally.kl.abs().max()) / targets
        if not worst[0] or max(dnll, kl) > max(worst[1:]) or math.isnan(dnll + kl):
            worst = (name, dnll, kl)
        yield None
    floor = (0.0, 0.0)
    if network.device.type != "cpu":
        tally = yield from changed(workspace, 0, -1, {}, account)
        floor = (float(tally.dnll.abs().max()) / targets, float(tally.kl.abs().max()) / targets)
    fact = p.Control(*worst, *floor)
    yield account.learnt(key, fact)
    return fact


def _additivity(
    workspace: Workspace,
    format: Format,
    found: dict[str, p.Sensitivity],
    nll: float,
    account: Account,
) -> Generator[p.AnyEvent | None, None, None]:
    """Change all body layers at once: that is the uniform recipe, kept as its score too."""
    network, _ = workspace.need_network()
    body = {name: fact for name, fact in found.items() if network.layers[name].block is not None}
    layers = {name: str(format) for name in body}
    together = yield from score(workspace, layers, nll, account)
    sum_kl = math.fsum(fact.kl for fact in body.values())
    sum_dnll = math.fsum(fact.dnll for fact in body.values())
    fact = p.Additivity(
        format=str(format),
        layers=len(body),
        kl=together.kl / sum_kl if sum_kl else math.nan,
        dnll=together.dnll / sum_dnll if sum_dnll else math.nan,
        together_kl=together.kl,
        sum_kl=sum_kl,
    )
    parts = yield from calibration_parts(workspace, [format], "sequential")
    key = workspace.measured_key(
        "additivity",
        recipe=layers,
        quantiser=QUANTISER_VERSION,
        scale_dtype=workspace.scale_dtype,
        **parts,
    )
    if key in workspace.known([key]):
        yield from account.found([key], [fact])
    else:
        yield account.learnt(key, fact)


class _Pace:
    """Progress of a sweep in layers, and the time left by how long a unit of work has taken."""

    def __init__(self, job: str, network: Network, todo: Sequence[Layer], total: int) -> None:
        block = sum(math.prod(x.shape) for x in network.layers.values() if x.block == 0)
        head = sum(math.prod(x.shape) for x in network.layers.values() if x.role == "head")
        # Work is counted in blocks. Head, softmax and KL read the logits several times: about
        # twice the head's product.
        self._head = 2 * head / block if block else 1.0
        self._blocks = len(network.blocks)
        self._left = math.fsum(self._work(layer) for layer in todo)
        self._done = 0.0
        self._begun = time.perf_counter()
        self._job, self._total, self._layers = job, total, total - len(todo)

    def _work(self, layer: Layer) -> float:
        return self._blocks - max(layer.start, 0) + self._head

    def finish(self, layer: Layer) -> None:
        """One layer is done."""
        self._left -= self._work(layer)
        self._done += self._work(layer)
        self._layers += 1

    def at(self, share: float, detail: str) -> p.Progress:
        """Progress with ``share`` of the layer in flight done."""
        spent = time.perf_counter() - self._begun
        left = self._left * spent / self._done if self._done else math.nan
        done = self._layers + share
        return p.Progress(
            job=self._job, done=done, total=self._total, seconds_left=left, detail=detail
        )
