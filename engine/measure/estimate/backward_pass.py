"""A backward pass from the head to the embedding: first-order effects of many changes.

Regions are processed one at a time. Each block is run again from its cached input with its own
graph, for all windows, and every change of its layers is quantised once. In addition to the
quantising this costs the reference's pass, one more forward, one backward per loss without weight
gradients, and the products of `engine.measure.estimate.first_order`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import msgspec
import torch
from torch import Tensor

from engine import protocol as p
from engine.errors import EngineError
from engine.formats.grammar import Format
from engine.formats.storage import why_not_held
from engine.measure.calibration.approximate import approximated, why_not_given
from engine.measure.calibration.block_inputs import Events
from engine.measure.calibration.solve import method
from engine.measure.counts import JobCounts
from engine.measure.estimate.first_order import (
    Changes,
    Moved,
    Part,
    Sums,
    add_effects,
    drawn_windows,
    group_of,
    product_dtype,
    subtract,
)
from engine.measure.estimate.targets import less_one, uniform
from engine.measure.evaluation.beside import compact_weights
from engine.measure.evaluation.evaluate import run_recipe, run_reference
from engine.measure.evaluation.recipe_run import RecipeRun
from engine.measure.evaluation.reference import Reference, reference_of
from engine.measure.evaluation.streamed_recipe import StreamedRecipe
from engine.measure.preemption import repeated
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
from engine.model.memory_tiers import KeptTensor
from engine.model.network import Held, Preempted, StandIn, whole
from engine.session.artefact import OUTSIDE
from engine.workspace import Loaded

WHOLE = -2
"""The single region of a network that cannot be resumed."""


@dataclass(frozen=True, eq=False)
class Point:
    """The network that gradients are taken at: the reference, or one that holds a recipe."""

    reference: Reference
    state: Callable[[int, int], Tensor]
    """The input of a block on a micro-batch; for ``n_blocks`` the output of the last."""
    held: Mapping[str, Held]
    settle: Callable[[range], Events[None]] | None = None
    """If blocks are streamed, makes what is held in some regions, and frees the rest."""

    def held_in(self, region: int) -> dict[str, Held]:
        """The weights held in a region, whole: gradients of some are asked for."""
        layers = self.reference.network.layers
        return {
            name: whole(held)
            for name, held in self.held.items()
            if region == WHOLE or region in layers[name].uses
        }


ChangeSet = list[tuple[str, Format]]
"""Changes that are in memory at the same time."""
Done = dict[str, dict[Format, Sums]]
"""Results for a region's layers, by layer and format."""


LEAST_CHANGES = 64 << 20
"""Bytes of changes that are in memory together whatever the budget."""
RUN_AGAIN = 4.0
"""Formats whose products take as long as running a block again and going back through it."""


class BackwardPass:
    """One pass over the regions of a network, from the head to the embedding."""

    def __init__(
        self,
        loaded: Loaded,
        formats: Sequence[Format],
        direction: p.Direction,
        counts: JobCounts,
        job: str,
        wanted: Sequence[Sequence[tuple[str, Format]]],
        recipe: Mapping[str, Format] | None = None,
        batches: range | None = None,
    ) -> None:
        """
        Args:
            loaded: the loaded model.
            formats: all formats wanted; for restore, one.
            direction: as of a sweep.
            counts: counts the seconds.
            job: id, for progress.
            wanted: groups of layers and formats. Each group is multiplied on its own, since
                products of other shapes round differently.
            recipe: formats of layers that are not kept: changes are then further changes of this
                recipe, and the only loss that is not drawn is the distance from the reference.
            batches: the micro-batches to run, all if None; sums of other windows stay zero.
        """
        self.recipe = recipe
        self.loaded, self.counts, self.job = loaded, counts, job
        self.formats, self.direction = formats, direction
        self.groups = [list(group) for group in wanted]
        self.wanted = [one for group in self.groups for one in group]
        self.network, self.reference = loaded.network, reference_of(loaded)
        self.batches = range(len(self.reference.batches)) if batches is None else batches
        self.draws = loaded.settings.draws
        # Losses: the text's targets (for restore, the distance from the reference), then draws.
        self.fixed = 1 if direction == "degrade" or recipe is not None else 2
        self.losses = self.fixed + self.draws
        self.dtype = product_dtype(self.network.device, self.network.dtype)
        self.budget = loaded.budget()
        self._reading = ""
        self.sums = {
            (name, format): self.empty(self.reference.windows.count) for name, format in self.wanted
        }
        self.group = group_of(self.reference.windows.count, len(self.reference.batches[0]))
        self.cotangents: dict[int, list[Tensor] | list[KeptTensor]] = {}
        """Of the state before the region, by micro-batch; if blocks are streamed, wherever there is
        room."""

    def run(self) -> Generator[p.AnyEvent | Done | None, None, None]:
        """Run the pass.

        Yields:
            Progress, and the results for a region's layers when the pass leaves it.
        """
        for batch in self.batches:
            yield from run_reference(self.reference, batch, self.counts)
        point = yield from self._point()
        regions = [WHOLE]
        if self.network.resumable:
            lowest = min(self.network.layers[name].start for name, _ in self.wanted)
            regions = list(range(len(self.network.blocks), lowest - 1, -1))
        # The outer loop is over parts if the cotangents of all windows do not fit. Of a streamed
        # network there is one part, so that a block is read once.
        parts = self._parts()
        costs = self._costs(regions)
        begun, whole = 0.0, math.fsum(costs) * len(parts)
        for number, part in enumerate(parts):
            for region, cost in zip(regions, costs, strict=True):
                self._reading = self._said_of(region)
                with self.network.at_hand([region]):
                    if point.settle is not None:
                        yield from point.settle(range(region, region + 1))
                    yield from self._region(point, region, part, begun / whole, cost / whole)
                begun += cost
                if number + 1 == len(parts):
                    yield self._done(region)
            self.cotangents.clear()

    def _costs(self, regions: Sequence[int]) -> list[float]:
        """How long each region takes, in weights that are changed: for progress."""
        layers = self.network.layers
        weights = [(RUN_AGAIN, name) for name in layers] + [(1.0, name) for name, _ in self.wanted]
        found = dict.fromkeys(regions, 1.0)
        for factor, name in weights:
            for region in (WHOLE, *layers[name].uses):
                if region in found:
                    found[region] += factor * math.prod(layers[name].shape)
        return [found[region] for region in regions]

    def empty(self, windows: int) -> Sums:
        """Sums of one change over so many windows, none of which was run."""
        return Sums.empty(self.fixed, self.losses - self.fixed, windows)

    def _region(
        self, point: Point, region: int, part: range, begun: float, share: float
    ) -> Events[None]:
        """Process all changes of a region, on some micro-batches; see `_take_through`."""
        sets = [chosen for group in self.groups for chosen in self._change_sets(region, group)]
        sets = [chosen for chosen in sets if chosen] or [[]]  # cotangents must pass in any case
        each = share / len(sets)
        for at, chosen in enumerate(sets):
            last = at + 1 == len(sets)
            yield from self._take_through(
                point, region, chosen, part, begun + at * each, each, last=last
            )

    def _take_through(
        self,
        point: Point,
        region: int,
        chosen: ChangeSet,
        part: range,
        begun: float,
        share: float,
        *,
        last: bool,
    ) -> Events[None]:
        """Process changes that are in memory together in a region, on some micro-batches.

        Args:
            begun: share of the pass already done.
            share: share of the pass that this call is.
            point, region, chosen, part, last: see `run` and `_step`.
        """
        formats: dict[str, list[Format]] = {}
        for name, format in chosen:
            formats.setdefault(name, []).append(format)
        changes: dict[str, Changes] = {}
        for name, of_layer in formats.items():
            changes[name] = yield from self._changes(point, name, of_layer)
            yield None

        for done, batch in enumerate(part, 1):

            def step(batch: int = batch) -> None:
                self._step(point, region, batch, changes, last)

            yield from repeated(self.counts.timed("estimate_s", step))
            yield self.progress(begun + share * done / len(part))

    def progress(self, share: float) -> p.Progress:
        """Progress, once this share of the pass is done."""
        total, count = len(self.network.layers), len(self.formats)
        return p.Progress(
            job=self.job, done=share * total, total=total, phase="estimating",
            detail=f"{count} format{'s' if count > 1 else ''}{self._reading}",
        )  # fmt: skip

    def _said_of(self, region: int) -> str:
        """Which block is read, for progress; empty if none is."""
        blocks = len(self.network.blocks)
        reads = self.network.streamed and 0 <= region < blocks
        return f", reading block {region + 1} of {blocks}" if reads else ""

    def _done(self, region: int) -> Done:
        done: Done = {}
        for name, format in self.wanted:
            if region in (WHOLE, self.network.layers[name].start):
                sums = self.sums.pop((name, format))
                sums.close()
                done.setdefault(name, {})[format] = sums
        return done

    # -- memory ----------------------------------------------------------------------------------

    def _parts(self) -> list[range]:
        """Micro-batches whose cotangents fit an eighth of the budget; all if blocks are
        streamed."""
        if self.network.streamed:
            return [self.batches]
        reference = self.reference
        values = reference.batches[0].numel() * self.network.state_size
        state = values * self.network.dtype.itemsize
        fit = max(1, self.budget // 8 // max(1, self.losses * state))
        return [self.batches[at : at + fit] for at in range(0, len(self.batches), fit)]

    def _change_sets(self, region: int, group: Sequence[tuple[str, Format]]) -> list[ChangeSet]:
        """A group's changes of a region's layers, in sets that fit an eighth of the budget.

        All changes of a layer are in one set if they fit half of it: products of other shapes round
        differently, and a figure should not depend on the budget.
        """
        of_layer: dict[str, list[tuple[int, Format]]] = {}
        for name, format in group:
            layer = self.network.layers[name]
            if region != WHOLE and region not in layer.uses:
                continue
            size = math.prod(layer.shape) * self.dtype.itemsize
            if self._is_moved(name, format):
                size += 2 * math.prod(layer.shape) * self.network.dtype.itemsize
            of_layer.setdefault(name, []).append((size, format))
        sets: list[ChangeSet] = [[]]
        room = full = max(self.budget // 8, LEAST_CHANGES)
        for name, changes in of_layer.items():
            together = [changes]
            if sum(size for size, _ in changes) > max(self.budget // 2, LEAST_CHANGES):
                together = [[each] for each in changes]
            for some in together:
                size = sum(each for each, _ in some)
                if size > room and sets[-1]:
                    sets.append([])
                    room = full
                sets[-1] += [(name, format) for _, format in some]
                room -= size
        return sets

    def _is_moved(self, name: str, format: Format) -> bool:
        """Whether the format also changes the layer's inputs, and gradients can account for it.

        For experts only the gradient of the weight is known: there only the weight changes.
        """
        return method(format, "a8") is not None and self.network.layers[name].role != "experts"

    def _changes(self, point: Point, name: str, formats: Sequence[Format]) -> Events[Changes]:
        weight = self.network.weight(name)
        # Of a further change, what the recipe holds; otherwise the reference's.
        before = weight if self.recipe is None else _weight_of(point.held.get(name, weight))
        deltas = torch.empty(len(formats), *weight.shape, dtype=self.dtype, device=weight.device)
        moved: dict[Format, Moved] = {}
        for at, format in enumerate(formats):
            if self.loaded.should_stop():
                yield None
            held = yield from self._held(point, name, format)
            if isinstance(held, StandIn) and held.inputs is not None:
                alone = yield from self._quantised(name, weights_alone(format))
                moved[format] = Moved(held, _weight_of(alone))
                held = alone
            step = partial(subtract, _weight_of(held), before, deltas[at])
            self.counts.timed("estimate_s", step)()
        return Changes(tuple(formats), deltas, moved)

    def _held(self, point: Point, name: str, format: Format) -> Events[Held]:
        """What a layer computes with in a format; for experts, with unchanged inputs."""
        if self.network.layers[name].role == "experts":
            format = weights_alone(format)
        elif self.recipe is None and (held := point.held.get(name)) is not None:
            return held  # for restore there is one format, and the whole body holds it
        return (yield from self._quantised(name, format))

    def _quantised(self, name: str, format: Format, *, compact: bool = False) -> Events[Held]:
        spent = self.counts.timings
        before = spent.get("quantize_s", 0.0)
        held = yield from approximated(self.loaded, name, format, self.counts, compact=compact)
        more = spent.get("quantize_s", 0.0) - before
        spent["estimate_s"] = spent.get("estimate_s", 0.0) + more
        return held

    def _point(self) -> Events[Point]:
        """The network that gradients are taken at."""
        network = self.network
        if self.recipe is not None:
            formats = dict(self.recipe)
            what = "every layer of the recipe, beside the model,"
        elif self.direction == "degrade":
            return Point(self.reference, self.reference.state, {})
        else:
            (format,) = self.formats
            formats = {
                name: format
                for name, layer in network.layers.items()
                if layer.role not in OUTSIDE
                and why_not_held(format, layer.shape) is None
                and why_not_given(self.loaded, name, format) is None
            }
            what = "every layer of the body in a format, beside the model,"
        if network.streamed:
            streamed = StreamedRecipe(self.reference, formats, self._quantised)
            for batch in self.batches:
                yield from run_recipe(
                    streamed.run, batch, self.counts, "estimate_s", streamed.settle
                )
            return Point(self.reference, streamed.run.state, streamed.run.recipe, streamed.settle)
        compact = compact_weights(self.reference, formats, what)
        held: dict[str, Held] = {}
        for name, format in formats.items():
            held[name] = yield from self._quantised(name, format, compact=compact)
            yield self.progress(0.0)
        recipe = RecipeRun(self.reference, held)
        for batch in self.batches:
            yield from run_recipe(recipe, batch, self.counts, "estimate_s")
            yield self.progress(0.0)
        return Point(self.reference, recipe.state, held)

    # -- one micro-batch of one region -------------------------------------------------------------

    def _step(
        self, point: Point, region: int, batch: int, changes: Mapping[str, Changes], last: bool
    ) -> None:
        """Process a region; with ``last`` the cotangents move on to the state before it."""
        network, ids = self.network, self.reference.batches[batch]
        watched = list(changes)
        first = batch * self.reference.batches[0].shape[0]
        whole = slice(first, first + len(ids))
        held = point.held_in(region)
        rows = len(ids)
        if region == WHOLE or needs_single_windows(network, region):
            rows = 1
        # A step that was preempted and will be repeated must leave nothing in the sums.
        found = {
            (name, format): self.empty(len(ids))
            for name, of_layer in changes.items()
            for format in of_layer.formats
        }
        state = point.state(batch, region) if region >= 0 else None
        before_region = [
            each if isinstance(each, Tensor) else each.read()
            for each in self.cotangents.get(batch, ())
        ]
        moved: list[list[Tensor]] = []
        for top in range(0, len(ids), rows):
            part = slice(top, top + rows)
            windows = slice(first + top, first + min(top + rows, len(ids)))
            if region == WHOLE:
                span = (self.reference.windows.first, self.reference.windows.seq_len - 1)
                losses = self._losses(batch, part, *span)
                taps = whole_gradients(network, ids[part], span, losses, held, watched)
                self._take(taps, changes, found, windows)
                continue
            if region == len(network.blocks):
                moved.append(self._head(state, batch, part, held, changes, found, windows))
                continue
            cotangents = [_of_windows(c, part, len(ids)) for c in before_region]
            if state is None:
                taps = opening_gradients(network, ids[part], cotangents, held, watched)
            else:
                taps, before = block_gradients(
                    network,
                    ids[part],
                    region,
                    _of_windows(state, part, len(ids)),
                    cotangents,
                    held,
                    watched,
                )
                moved.append(before)
            self._take(taps, changes, found, windows)
        for (name, format), sums in found.items():
            if len(network.layers[name].uses) == 1:
                sums.close()  # rows of a layer that acts in several regions add up before
            self.sums[name, format].add(sums, whole)
        if last and moved:
            together = [torch.cat(each) for each in zip(*moved, strict=True)]
            self.cotangents[batch] = together
            if network.streamed:
                self.cotangents[batch] = list(map(self.reference.memory.must_put, together))

    def _head(
        self,
        state: Tensor | None,
        batch: int,
        part: slice,
        held: Mapping[str, Held],
        changes: Mapping[str, Changes],
        into: Mapping[tuple[str, Format], Sums],
        windows: slice,
    ) -> list[Tensor]:
        assert state is not None
        network, ids = self.network, self.reference.batches[batch][part]
        state = _of_windows(state, part, len(self.reference.batches[batch]))
        total: list[Tensor] = []
        for a, b in self.reference.chunks:
            if self.loaded.should_stop():
                raise Preempted
            losses = self._losses(batch, part, a, b)
            taps, found = head_gradients(network, ids, state, (a, b), losses, held, list(changes))
            self._take(taps, changes, into, windows, (a, b))
            total = [x + y for x, y in zip(total, found, strict=True)] if total else found
        return total

    def _losses(self, batch: int, part: slice, a: int, b: int) -> Callable[[Tensor], list[Tensor]]:
        """Returns the cotangents of logits at positions ``a`` to ``b`` (exclusive)."""
        reference, network = self.reference, self.network
        ids = reference.batches[batch][part]
        soft: Tensor | None = None
        if self.direction == "restore" or self.recipe is not None:
            final = reference.state(batch, len(network.blocks))
            final = _of_windows(final, part, len(reference.batches[batch]))
            with torch.no_grad():
                soft = torch.softmax(network.logits(ids, final, (a, b)).float(), -1)
        targets = ids[:, a + 1 : b + 1]
        first = batch * reference.batches[0].shape[0] + part.start
        windows = range(first, first + len(ids))
        seed, seq_len = self.loaded.settings.seed, reference.windows.seq_len
        draws = [uniform(seed, draw, windows, seq_len)[:, a:b] for draw in range(self.draws)]

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
            found = [] if self.recipe is not None else [less_one(probable, targets)]
            if soft is not None:
                found.append(probable - soft)
            found += [less_one(probable, each) for each in drawn]
            return found

        return losses

    def _take(
        self,
        taps: Taps,
        changes: Mapping[str, Changes],
        into: Mapping[tuple[str, Format], Sums],
        windows: slice,
        span: tuple[int, int] | None = None,
    ) -> None:
        """Add taps to sums; ``span`` gives their positions, if not all."""
        first = windows.start - windows.start % self.reference.batches[0].shape[0]
        part = Part(
            slice(windows.start - first, windows.stop - first),
            range(windows.start, windows.stop),
            self.reference.windows.count * (len(self.reference.chunks) if span else 1),
            drawn_windows(self.reference.windows.count)[windows],
            self.group,
            self.fixed,
        )
        cast: dict[tuple[object, ...], Tensor] = {}
        for tap in taps:
            given = tap.gradients[0] if isinstance(tap, WeightTap) else tap.inputs
            if not isinstance(tap, WeightTap) and given.is_floating_point():
                # Layers that share an input share its cast.
                key = (given.data_ptr(), given.shape, given.stride())
                given = cast.setdefault(key, given.to(self.dtype))
            of_layer = changes[tap.layer]
            sums = {format: into[tap.layer, format] for format in of_layer.formats}
            add_effects(tap, of_layer, sums, part, given, self._embed(tap))

    def _embed(self, tap: Tap | WeightTap) -> Callable[[Tensor], Tensor] | None:
        """Maps a change of an embedding's weight to one of its output."""
        if isinstance(tap, WeightTap) or tap.inputs.is_floating_point():
            return None
        ids, module = tap.inputs, self.network.slot(tap.layer).owner

        def embed(delta: Tensor) -> Tensor:
            with self.network.holding({tap.layer: delta}):
                found: Tensor = module(ids)
            return found

        return embed


def _of_windows(state: Tensor, part: slice, windows: int) -> Tensor:
    """Some windows of a state, which a few models carry in several streams before the windows."""
    if range(windows)[part] == range(windows):
        return state
    if len(state) != windows:
        raise EngineError(
            "the hidden state between blocks is not one row a window, so the experts of this model "
            "cannot be estimated; measure them with --exact all"
        )
    return state[part]


def _weight_of(held: Held) -> Tensor:
    found = whole(held)
    return found.weight if isinstance(found, StandIn) else found


def weights_alone(format: Format) -> Format:
    """The format without its changes of inputs."""
    left = tuple(each for each in format.methods if each.name != "a8")
    return msgspec.structs.replace(format, methods=left)
