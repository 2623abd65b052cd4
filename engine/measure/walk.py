"""A walk through a network from the head to the embedding: first-order effects of many changes.

Regions come one after another; each block is run again from its kept input with a graph of its own,
for all windows, and every change of its layers is quantised once. Beside the quantising this costs
the reference's pass, one more forward, for each loss one backward without weight gradients, and the
products of `engine.measure.products`.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from engine import protocol as p
from engine.artefact import OUTSIDE
from engine.measure.account import Account
from engine.measure.approximate import approximated, why_not_given
from engine.measure.calibration_states import Events
from engine.measure.evaluation import run_reference
from engine.measure.products import (
    Change,
    LayerChanges,
    Moments,
    Part,
    Sample,
    add_effects,
    coupled,
    group_of,
    product_dtype,
    sample_of,
)
from engine.measure.reference import Reference
from engine.measure.standing import Standing
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
from engine.quant import Format, why_not_held
from engine.workspace import Workspace, again

WHOLE = -2
"""The region of a network that cannot be resumed: all of it at once."""


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


Load = list[tuple[str, Format]]
"""Changes that are in memory together."""
Done = dict[str, dict[Format, Moments]]
"""What was found of a region's layers, by layer and format."""
Changes = dict[str, LayerChanges]


class Walk:
    """One pass over the regions of a network, from the head to the embedding."""

    def __init__(
        self,
        workspace: Workspace,
        formats: Sequence[Format],
        direction: p.Direction,
        account: Account,
        job: str,
        wanted: Sequence[tuple[str, Format]],
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
        self.group = group_of(self.reference.windows.count, len(self.reference.batches[0]))
        self.cotangents: dict[int, list[Tensor]] = {}
        """Of the state before the region, by micro-batch."""

    def run(self) -> Generator[p.AnyEvent | Done | None, None, None]:
        """Walk.

        Yields:
            Progress, and what was found of the layers of a region as the walk leaves it.
        """
        reference = self.reference
        for batch in range(len(reference.batches)):
            yield from run_reference(reference, batch, self.account)
        point = yield from self._point()
        regions = [WHOLE]
        if self.network.resumable:
            lowest = min(self.network.layers[name].start for name, _ in self.wanted)
            regions = list(range(len(self.network.blocks), lowest - 1, -1))
        parts = self._parts()
        for number, part in enumerate(parts):
            for passed, region in enumerate(regions):
                loads = self._loads(region)
                for load in loads:
                    share = (number + passed / len(regions)) / len(parts)
                    last = load is loads[-1]
                    yield from self._load(point, region, load, part, share, last=last)
                if number + 1 == len(parts):
                    yield self._done(region)
            self.cotangents.clear()

    def _load(
        self, point: Point, region: int, load: Load, part: range, share: float, *, last: bool
    ) -> Events[None]:
        """Take the changes of one load through a region, on some micro-batches."""
        made: dict[str, list[tuple[Format, Change]]] = {}
        for name, format in load:
            change = yield from self._change(name, format)
            made.setdefault(name, []).append((format, change))
        changes = {
            name: LayerChanges(
                [change for _, change in those], [self.moments[name, f] for f, _ in those]
            )
            for name, those in made.items()
        }
        made.clear()

        for batch in part:

            def step(batch: int = batch) -> None:
                self._step(point, region, batch, changes, last)

            yield from again(self.account.timed("estimate_s", step))
            yield p.Progress(
                job=self.job,
                done=share * len(self.network.layers),
                total=len(self.network.layers),
                detail=f"estimating {_formats(len(self.formats))}",
            )

    def _done(self, region: int) -> Done:
        done: Done = {}
        for name, format in self.wanted:
            if region in (WHOLE, self.network.layers[name].start):
                done.setdefault(name, {})[format] = self.moments.pop((name, format))
        return done

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

    def _change(self, name: str, format: Format) -> Events[Change]:
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

    def _point(self) -> Events[Point]:
        """Where gradients are taken."""
        if self.direction == "degrade":
            return Point(self.reference, self.reference.state, {})
        (format,) = self.formats
        held: dict[str, Held] = {}
        for name, layer in self.network.layers.items():
            if layer.role in OUTSIDE or why_not_held(format, layer.shape) is not None:
                continue
            if why_not_given(self.workspace, name, format) is None:
                held[name] = yield from approximated(self.workspace, name, format, self.account)
                yield None
        standing = Standing(self.reference, held)
        for batch in range(len(self.reference.batches)):

            def run(batch: int = batch) -> None:
                standing.run(batch)

            yield from again(self.account.timed("estimate_s", run))
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
        part = Part(
            windows,
            [self._sample(window, span) for window in range(windows.start, windows.stop)],
            coupled(self.reference.windows.count)[windows],
            self.group,
            self.fixed,
        )
        cast: dict[int, Tensor] = {}
        for tap in taps:
            given = tap.gradients[0] if isinstance(tap, WeightTap) else tap.inputs
            if not isinstance(tap, WeightTap) and given.is_floating_point():
                # Layers that share an input share its cast.
                given = cast.setdefault(given.data_ptr(), given.to(self.dtype))
            weight = self.network.weight(tap.layer)
            add_effects(tap, changes[tap.layer], part, given, weight, self._embed(tap))

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


def _formats(count: int) -> str:
    return "1 format" if count == 1 else f"{count} formats"


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
