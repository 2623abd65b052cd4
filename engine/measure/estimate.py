"""Every layer in every format from a few passes: KL and ΔNLL to second order, not measured.

For a window *s* and a change ``ΔW`` of one layer, ``z = ⟨ΔW, G_s⟩`` with ``G_s`` the gradient of the
window's summed loss. With labels drawn from the model's own distribution the loss has the Fisher
information as its curvature, which is the Gauss–Newton matrix of KL (Martens 2014, arXiv 1412.1193,
section 9): ``KL ≈ E[z²] / 2T`` nats per token. With the text's labels ``ΔNLL ≈ z / T + KL``.

``z = Σ_t z_t`` over the tokens the layer is given. Where effects of rounding on different tokens are
next to uncorrelated, ``E[z²] ≈ E[Σ z_t²]``, and the sum of squares is known far better than the
square of the sum: a window gives one draw of the latter and hundreds of terms of the former. So the
estimate is ``coupling · Σ z_t² / 2T``; ``coupling = E[z²] / E[Σ z_t²]`` is estimated over all
formats of the layer together, and drawn towards 1 by as much as it is uncertain (`COUPLING_PRIOR`).
Its bias: formats whose errors couple tokens unlike the others' get the coupling of all.

To restore a layer where all are quantised, KL has a slope:
``KL(all) − KL(all but one) ≈ ⟨ΔW, ∇KL(ref ‖ quantised)⟩ − E[z²] / 2T``, gradients and labels of the
quantised network.

The walk: regions from the head down, each block run again from its kept input with a graph of its
own; within it all windows, every format's change quantised once. Costs beside the quantising: the
reference's pass, one more forward, for each set of labels one backward without weight gradients,
and the products of `engine.measure.products`.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from engine import protocol as p
from engine.measure.account import Account
from engine.measure.approximate import approximated
from engine.measure.evaluation import baseline, run_reference
from engine.measure.products import (
    Change,
    Moments,
    Sample,
    add_effects,
    coupled,
    product_dtype,
    sample_of,
)
from engine.measure.reference import Reference
from engine.model.gradients import (
    Tap,
    Taps,
    WeightTap,
    block_gradients,
    head_gradients,
    needs_single_windows,
    opening_gradients,
    whole_gradients,
)
from engine.model.memory import memory_free
from engine.model.network import Held, StandIn
from engine.quant import QUANTISER_VERSION, Format, why_not_held
from engine.workspace import Workspace, again

COUPLING_PRIOR = 0.15
"""Standard deviation of the coupling about 1 that is expected before anything is seen."""
WHOLE = -2
"""The region of a network that cannot be resumed: all of it at once."""
DOUBTFUL_KL = 0.1
"""Nats per token beyond which a change is no small one."""

Found = dict[str, dict[str, p.Estimate]]
"""By format, by layer."""
Steps = Generator[p.AnyEvent | None, None, None]


@dataclass(frozen=True, eq=False)
class Point:
    """Where gradients are taken: the reference network, or one that holds a recipe."""

    reference: Reference
    state: Callable[[int, int], Tensor]
    """The input of a block on a micro-batch; of ``n_blocks`` the output of the last."""
    held: Mapping[str, Held]

    def held_in(self, region: int) -> dict[str, Held]:
        """What is held in a region."""
        layers = self.reference.network.layers
        return {name: held for name, held in self.held.items() if layers[name].start == region}


def estimate(
    workspace: Workspace,
    formats: Sequence[Format],
    direction: p.Direction,
    account: Account,
    job: str,
) -> Generator[p.AnyEvent | None, None, Found]:
    """Estimate every layer in every format.

    Args:
        workspace: with a loaded model.
        formats: those whose coupling is estimated together.
        direction: ``restore`` takes the formats one by one, each where all of the body holds it.
        account: counts what is estimated; its ``estimate_s`` grows.
        job: id, for progress.

    Yields:
        `Learned` with `Estimate` facts as the walk reaches the layers, and `Progress`.

    Returns:
        What is known, by format and layer; layers that cannot hold a format are left out.
    """
    found: Found = {str(format): {} for format in formats}
    yield from baseline(workspace, account)
    groups = [list(formats)] if direction == "degrade" else [[format] for format in formats]
    for group in groups:
        yield from _estimated(workspace, group, direction, account, job, found)
    return found


def _estimated(
    workspace: Workspace,
    formats: Sequence[Format],
    direction: p.Direction,
    account: Account,
    job: str,
    found: Found,
) -> Steps:
    network, reference = workspace.need_network()
    keys = {
        (name, format): _key(workspace, name, format, formats, direction)
        for name, layer in network.layers.items()
        for format in formats
        if why_not_held(format, layer.shape) is None
        and not (direction == "restore" and layer.block is None)
    }
    known = workspace.known(list(keys.values()))
    have = {at: fact for at, key in keys.items() if isinstance(fact := known.get(key), p.Estimate)}
    yield from account.found([keys[at] for at in have], list(have.values()))
    for (name, format), fact in have.items():
        found[str(format)][name] = fact
    wanted = {at: key for at, key in keys.items() if at not in have}
    if not wanted:
        return
    walk = _Walk(workspace, formats, direction, account, job, wanted)
    for learned in walk.run():
        if isinstance(learned, p.Learned):
            for fact in learned.facts:
                if isinstance(fact, p.Estimate):
                    found[fact.format][fact.layer] = fact
        yield learned


def _key(
    workspace: Workspace,
    layer: str,
    format: Format,
    together: Sequence[Format],
    direction: p.Direction,
) -> str:
    return workspace.measured_key(
        "estimate",
        layer=layer,
        format=str(format),
        together=sorted(map(str, together)),
        direction=direction,
        draws=workspace.settings.draws,
        seed=workspace.settings.seed,
        quantiser=QUANTISER_VERSION,
        scale_dtype=workspace.scale_dtype,
    )


Load = list[tuple[str, Format]]
"""Changes that are in memory together."""
Changes = dict[str, dict[Format, Change]]


class _Walk:
    """One pass over the regions of a network, from the head to the embedding."""

    def __init__(
        self,
        workspace: Workspace,
        formats: Sequence[Format],
        direction: p.Direction,
        account: Account,
        job: str,
        wanted: Mapping[tuple[str, Format], str],
    ) -> None:
        self.workspace, self.account, self.job = workspace, account, job
        self.formats, self.direction, self.wanted = formats, direction, wanted
        self.network, self.reference = workspace.need_network()
        self.draws = workspace.settings.draws
        # Losses: the text's labels, for a restore the distance from the reference, then draws.
        self.fixed = 1 if direction == "degrade" else 2
        self.losses = self.fixed + self.draws
        self.dtype = product_dtype(self.network.device, self.network.dtype)
        self.budget = workspace.settings.memory_budget or memory_free(self.network.device) // 2
        self.moments = {
            (name, format): Moments.empty(self.losses, self.reference.windows.count)
            for name, format in wanted
        }
        self.cotangents: dict[int, list[Tensor]] = {}
        """Of the state before the region, by micro-batch."""

    def run(self) -> Steps:
        """Walk; layers are told of as the walk leaves their region."""
        reference = self.reference
        batches = range(len(reference.batches))
        for batch in batches:
            yield from run_reference(reference, batch, self.account)
        point = yield from self._point()
        lowest = min(self.network.layers[name].start for name, _ in self.wanted)
        regions: list[int] = [WHOLE]
        if self.network.resumable:
            regions = list(range(len(self.network.blocks), lowest - 1, -1))
        parts = self._parts()
        steps, total = 0.0, len(regions) * len(batches)
        for number, part in enumerate(parts):
            for region in regions:
                loads = self._loads(region)
                for load in loads:
                    changes: Changes = {}
                    for name, format in load:
                        change = yield from self._change(name, format)
                        changes.setdefault(name, {})[format] = change
                    for batch in part:
                        step = self.account.timed(
                            "estimate_s",
                            lambda b=batch: self._step(  # type: ignore[misc]
                                point, region, b, changes, load is loads[-1]
                            ),
                        )
                        yield from again(step)
                        steps += 1 / len(loads)
                        detail = f"estimating {len(self.formats)} formats"
                        yield p.Progress(job=self.job, done=steps, total=total, detail=detail)
                    changes.clear()
                if number + 1 == len(parts):
                    yield from self._told(region)
            self.cotangents.clear()

    # -- what is in memory at once ---------------------------------------------------------------

    def _parts(self) -> list[range]:
        """Micro-batches whose cotangents fit a quarter of the budget."""
        reference = self.reference
        hidden = self.network.config.get_text_config().hidden_size
        state = reference.batches[0].numel() * hidden * self.network.dtype.itemsize
        fit = max(1, self.budget // 4 // max(1, self.losses * state))
        count = len(reference.batches)
        return [range(at, min(at + fit, count)) for at in range(0, count, fit)]

    def _loads(self, region: int) -> list[Load]:
        """The changes of a region's layers, in loads that fit a quarter of the budget."""
        loads: list[Load] = [[]]
        room = full = self.budget // 4
        for name, format in self.wanted:
            layer = self.network.layers[name]
            if region not in (WHOLE, layer.start):
                continue
            size = math.prod(layer.shape) * self.dtype.itemsize
            if size > room and loads[-1]:
                loads.append([])
                room = full
            loads[-1].append((name, format))
            room -= size
        return loads

    def _change(self, name: str, format: Format) -> Generator[None, None, Change]:
        before = self.account.timings.get("quantize_s", 0.0)
        held = yield from approximated(self.workspace, name, format, self.account)
        spent = self.account.timings.get("quantize_s", 0.0) - before

        def difference() -> Change:
            approx = held.weight if isinstance(held, StandIn) else held
            delta = (approx.float() - self.network.weight(name).float()).to(self.dtype)
            if isinstance(held, StandIn) and held.inputs is not None:
                return Change(delta, held.inputs, approx)
            return Change(delta)

        change = self.account.timed("estimate_s", difference)()
        self.account.timings["estimate_s"] += spent
        return change

    def _point(self) -> Generator[p.AnyEvent | None, None, Point]:
        """Where gradients are taken."""
        if self.direction == "degrade":
            return Point(self.reference, self.reference.state, {})
        from engine.measure.standing import Standing

        (format,) = self.formats
        held: dict[str, Held] = {}
        for name, layer in self.network.layers.items():
            if layer.block is not None and why_not_held(format, layer.shape) is None:
                held[name] = yield from approximated(self.workspace, name, format, self.account)
        standing = Standing(self.reference, held)
        for batch in range(len(self.reference.batches)):
            yield from again(
                self.account.timed("estimate_s", lambda b=batch: standing.run(b))  # type: ignore[misc]
            )
            yield None
        return Point(self.reference, standing.state, held)

    # -- one micro-batch of one region -------------------------------------------------------------

    def _step(self, point: Point, region: int, batch: int, changes: Changes, last: bool) -> None:
        """Go through a region; with ``last`` the cotangents move on to the state before it."""
        network, ids = self.network, self.reference.batches[batch]
        watched = list(changes)
        first = batch * self.reference.batches[0].shape[0]
        held = point.held if region == WHOLE else point.held_in(region)
        rows = len(ids)
        if region == WHOLE or needs_single_windows(network, region):
            rows = 1
        moved: list[list[Tensor]] = []
        for top in range(0, len(ids), rows):
            part = slice(top, top + rows)
            windows = slice(first + top, first + min(top + rows, len(ids)))
            if region == WHOLE:
                losses = self._losses(batch, 0, part, self.reference.windows.first)
                span = (self.reference.windows.first, self.reference.windows.seq_len - 1)
                taps = whole_gradients(network, ids[part], span, losses, held, watched)
                self._take(taps, changes, windows)
                continue
            if region == len(network.blocks):
                moved.append(self._head(point, batch, part, held, changes, windows))
                continue
            cotangents = [c[part] for c in self.cotangents[batch]]
            if region < 0:
                taps = opening_gradients(network, ids[part], cotangents, held, watched)
            else:
                state = point.state(batch, region)[part]
                taps, found = block_gradients(
                    network, ids[part], region, state, cotangents, held, watched
                )
                moved.append(found)
            self._take(taps, changes, windows)
        if last and moved:
            self.cotangents[batch] = [torch.cat(each) for each in zip(*moved, strict=True)]

    def _head(
        self,
        point: Point,
        batch: int,
        part: slice,
        held: Mapping[str, Held],
        changes: Changes,
        windows: slice,
    ) -> list[Tensor]:
        network, ids = self.network, self.reference.batches[batch][part]
        state = point.state(batch, len(network.blocks))[part]
        total: list[Tensor] = []
        for chunk, (a, b) in enumerate(self.reference.chunks):
            losses = self._losses(batch, chunk, part, a, b)
            taps, found = head_gradients(network, ids, state, (a, b), losses, held, list(changes))
            self._take(taps, changes, windows, (a, b))
            total = [x + y for x, y in zip(total, found, strict=True)] if total else found
        return total

    def _losses(
        self, batch: int, chunk: int, part: slice, a: int, b: int | None = None
    ) -> Callable[[Tensor], list[Tensor]]:
        """What makes the cotangents of logits at positions from ``a`` to before ``b``."""
        reference, network = self.reference, self.network
        b = reference.windows.seq_len - 1 if b is None else b
        ids = reference.batches[batch]
        soft: Tensor | None = None
        if self.direction == "restore":
            final = reference.state(batch, len(network.blocks))
            with torch.no_grad():
                soft = torch.softmax(network.logits(ids, final, (a, b)).float(), -1)[part]
        labels = [ids[:, a + 1 : b + 1][part]]
        draws = [
            _uniform(self.workspace.settings.seed, draw, batch, chunk, ids.shape[0], b - a)[part]
            for draw in range(self.draws)
        ]

        def losses(logits: Tensor) -> list[Tensor]:
            probable = torch.softmax(logits.float(), -1)
            upto = probable.cumsum(-1)
            drawn = [
                torch.searchsorted(upto, (u.to(upto.device) * upto[..., -1]).unsqueeze(-1))
                .squeeze(-1)
                .clamp_(max=probable.shape[-1] - 1)
                for u in draws
            ]
            del upto
            found = [_less_one(probable, label) for label in labels]
            if soft is not None:
                found.append(probable - soft)
            found += [_less_one(probable, label) for label in drawn]
            return found

        return losses

    def _take(
        self, taps: Taps, changes: Changes, windows: slice, span: tuple[int, int] | None = None
    ) -> None:
        """Add taps to the moments; ``span`` are the positions they are of, if not all."""
        samples = [self._sample(window, span) for window in range(windows.start, windows.stop)]
        for tap in taps:
            of_layer = changes[tap.layer]
            add_effects(
                tap,
                list(of_layer.values()),
                [self.moments[tap.layer, format] for format in of_layer],
                windows,
                samples,
                self.fixed,
                coupled(self.reference.windows.count)[windows],
                self.network.weight(tap.layer),
                self._embed(tap),
            )

    def _sample(self, window: int, span: tuple[int, int] | None) -> Sample:
        count = self.reference.windows.count
        if span is None:
            return sample_of(window, count, self.reference.windows.seq_len)
        return sample_of(window, count * len(self.reference.chunks), span[1] - span[0])

    def _embed(self, tap: Tap | WeightTap) -> Callable[[Tensor], Tensor] | None:
        """How an embedding turns a change of its weight into one of its output."""
        if isinstance(tap, WeightTap) or tap.inputs.is_floating_point():
            return None
        ids, module = tap.inputs, self.network.slot(tap.layer).owner

        def embed(delta: Tensor) -> Tensor:
            with self.network.holding({tap.layer: delta}):
                found: Tensor = module(ids)
            return found

        return embed

    # -- facts -------------------------------------------------------------------------------------

    def _told(self, region: int) -> Iterator[p.Learned]:
        by_layer: dict[str, list[Format]] = {}
        for name, format in self.wanted:
            if region in (WHOLE, self.network.layers[name].start):
                by_layer.setdefault(name, []).append(format)
        keys: list[str] = []
        facts: list[p.AnyFact] = []
        for name, formats in by_layer.items():
            found = [self.moments.pop((name, format)) for format in formats]
            coupling, doubt_of_it = _coupling(found, self.fixed)
            for format, moments in zip(formats, found, strict=True):
                keys.append(self.wanted[name, format])
                facts.append(self._fact(name, format, moments, coupling, doubt_of_it))
        if keys:
            self.account.measured += len(keys)
            yield p.Learned(tuple(keys), tuple(facts))

    def _fact(
        self, name: str, format: Format, moments: Moments, coupling: float, coupling_se: float
    ) -> p.Estimate:
        targets = self.reference.windows.targets
        curve = moments.square[self.fixed :].mean(0) / (2 * targets)  # [windows]
        slope = moments.total[: self.fixed] / targets
        sign = 1.0 if self.direction == "degrade" else -1.0
        bent = sign * coupling * curve
        kl = bent if self.direction == "degrade" else slope[1] + bent
        extra = float(curve.mean()) * coupling_se
        kl_mean, kl_se = _mean(kl, extra)
        dnll_mean, dnll_se = _mean(slope[0] + bent, extra)
        return p.Estimate(
            layer=name,
            format=str(format),
            direction=self.direction,
            kl=kl_mean,
            kl_se=kl_se,
            dnll=dnll_mean,
            dnll_se=dnll_se,
            tokens=self.reference.windows.count * targets,
            draws=self.draws,
            doubt=self._doubt(name, format, abs(kl_mean)),
        )

    def _doubt(self, name: str, format: Format, kl: float) -> str:
        if kl > DOUBTFUL_KL:
            return "a change this large is beyond what a quadratic model tells"
        if self.direction == "restore" and format.bits <= 3:
            return "where all is held in 3 bits or fewer, effects are no longer quadratic"
        start = self.network.layers[name].start
        routed = any(x.role == "experts" and x.start >= start for x in self.network.layers.values())
        if routed and kl > DOUBTFUL_KL / 10:
            return "routing may flip, which the estimate takes as fixed"
        return ""


def _coupling(found: Sequence[Moments], fixed: int) -> tuple[float, float]:
    """``E[z²] / E[Σ z_t²]`` over all formats of a layer, drawn towards 1, and its standard error."""
    some = coupled(found[0].total.shape[-1])
    whole = torch.zeros(int(some.sum()), dtype=torch.float64)
    parts = torch.zeros_like(whole)
    for moments in found:
        square = moments.square[fixed:, some].mean(0)
        if not (mean := float(square.mean())) > 0 or not math.isfinite(mean):
            continue
        whole += moments.total[fixed:, some].square().mean(0) / mean
        parts += square / mean
    windows = len(whole)
    if windows < 2 or not float(parts.sum()) > 0:
        return 1.0, COUPLING_PRIOR
    ratio = float(whole.sum() / parts.sum())
    # Standard error of a ratio of sums over windows.
    spread = (whole - ratio * parts).std() / parts.mean() / math.sqrt(windows)
    variance = float(spread) ** 2
    trust = COUPLING_PRIOR**2 / (COUPLING_PRIOR**2 + variance)
    return max(1 + trust * (ratio - 1), 0.0), COUPLING_PRIOR * math.sqrt(1 - trust)


def _mean(values: Tensor, extra: float) -> tuple[float, float]:
    """Mean over windows, and its standard error together with one that all windows share."""
    if len(values) < 2:
        return float(values.mean()), math.nan
    return float(values.mean()), math.hypot(float(values.std()) / math.sqrt(len(values)), extra)


def _less_one(probable: Tensor, labels: Tensor) -> Tensor:
    """``p − e_y``, the gradient of ``−log p_y`` with respect to the logits."""
    found = probable.clone()
    return found.scatter_add_(-1, labels.unsqueeze(-1), torch.full_like(found[..., :1], -1.0))


def _uniform(seed: int, draw: int, batch: int, chunk: int, windows: int, tokens: int) -> Tensor:
    """Uniform numbers that are the same whenever a step is done again."""
    text = f"{seed} {draw} {batch} {chunk}".encode()
    number = int.from_bytes(hashlib.sha256(text).digest()[:8], "little") >> 1
    generator = torch.Generator().manual_seed(number)
    return torch.rand(windows, tokens, generator=generator)
