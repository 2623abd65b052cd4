"""Calibration inputs of layers, gathered when a method needs them, and their cache.

States before blocks are cached within a budget of bytes and recomputed from the nearest cached one.
Statistics of inputs and solved weights are cached too, the least recently used evicted first. The
cache changes how long calibrating takes, never its result.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any, Generic, TypeVar

import msgspec
import torch
from torch import Tensor

from engine import protocol as p
from engine.formats.grammar import Format, folds
from engine.measure.calibration.block_inputs import BlockInputs, Events, ReferenceInputs
from engine.measure.calibration.importance import gathers, key_of, need_importances, weighs
from engine.measure.calibration.solve import LayerInputs, Scaling
from engine.measure.calibration.text import CalibrationWindows, cut_calibration
from engine.measure.counts import JobCounts
from engine.measure.preemption import repeated
from engine.model.fold_groups import fold_groups
from engine.model.inputs import shared_inputs, watch_inputs, watched_layers
from engine.model.network import Held, Network
from engine.quant.input_statistics import InputStatistics
from engine.store import keys
from engine.texts.bos import bos_token
from engine.texts.corpora import calibration_text
from engine.workspace import Loaded

SAMPLE = 512
"""Tokens of an input that are kept as samples."""

T = TypeVar("T")


class Kept(Generic[T]):
    """A cache of values by key within a budget of bytes; evicts the least recently used."""

    def __init__(self, budget: int) -> None:
        self._budget = budget
        self._values: OrderedDict[Any, tuple[T, int]] = OrderedDict()

    def get(self, key: object) -> T | None:
        """The cached value of a key."""
        if key not in self._values:
            return None
        self._values.move_to_end(key)
        return self._values[key][0]

    def keep(self, key: object, value: T, size: int) -> None:
        """Cache a value of this many bytes, unless it exceeds the whole budget."""
        self._values.pop(key, None)
        if size > self._budget:
            return
        self._values[key] = value, size
        total = sum(size for _, size in self._values.values())
        while total > self._budget:
            _, (_, least) = self._values.popitem(last=False)
            total -= least


class Calibration:
    """The calibration text, and what was gathered with it.

    Args:
        network: at its reference weights.
        windows: the text.
        batch_tokens: tokens in a micro-batch; at least one window.
        budget: bytes; a quarter each for states and solved weights, half for statistics.
    """

    def __init__(
        self, network: Network, windows: CalibrationWindows, batch_tokens: int, budget: int
    ) -> None:
        self.network, self.windows = network, windows
        rows = max(1, batch_tokens // windows.ids.shape[1])
        self.batches = [ids.to(network.device) for ids in torch.split(windows.ids, rows)]
        self.reference = ReferenceInputs(network, self.batches, budget // 4)
        self.shares = shared_inputs(network)
        """For every layer those with the same input, the first of which stands for all of them in
        what is gathered."""
        self.solved: Kept[Held] = Kept(budget // 4)
        """What layers compute with, by layer, format and the states' prefix."""
        self.columns: dict[tuple[str, str, str], int] = {}
        """Input channels that ``+outlier`` keeps in 16 bits, by the same keys as `solved`."""
        self.scalings: Kept[Scaling] = Kept(budget // 16)
        """By fold group, format and prefix."""
        self.said: set[str] = set()
        """Notes already reported."""
        self._room = budget // 2
        self._known: Kept[LayerInputs] = Kept(self._room)

    def key(self, mode: str) -> keys.Calibration:
        """The part of a key for figures that use this calibration.

        Args:
            mode: ``reference`` or ``sequential``: which model's inputs were used.
        """
        windows = self.windows
        return keys.Calibration(
            text=windows.text.sha256,
            windows=windows.sha256,
            tokens=windows.tokens,
            seq_len=windows.ids.shape[1],
            seed=windows.seed,
            mode=mode,
        )

    def inputs(self, layer: str, states: BlockInputs, counts: JobCounts) -> Events[LayerInputs]:
        """Statistics of a layer's inputs; gathered for its whole block if they fit.

        Raises:
            FormatError: an input is not finite.
        """
        share = self.shares[layer][0]
        known = self._known.get((states.prefix, share))
        if known is not None:
            return known
        wanted = self._gathered_together(layer)
        found = yield from self._gather(layer, wanted, states, counts)
        for name, inputs in found.items():
            self._known.keep((states.prefix, name), inputs, inputs.bytes)
        return found[share]

    def _gathered_together(self, layer: str) -> set[str]:
        """The inputs of the layer's block, or only its own if all together take too much memory."""
        layers = self.network.layers
        start = layers[layer].start
        names = {
            self.shares[name][0]
            for name in watched_layers(self.network, start)
            if layers[name].start == start
        }
        size = 0
        for name in names:
            shape = layers[name].shape
            size += 4 * shape[-1] ** 2 * (1 + (shape[0] if len(shape) == 3 else 0))
        return names if size <= self._room else {self.shares[layer][0]}

    def _gather(
        self, layer: str, wanted: set[str], states: BlockInputs, counts: JobCounts
    ) -> Events[dict[str, LayerInputs]]:
        network, block = self.network, self.network.layers[layer].start
        yield from states.prepare(block, counts)
        found = {
            name: _Gathered(network.layers[name].shape, network.device, self.windows.seed)
            for name in sorted(wanted)
        }
        a_batch = math.ceil(SAMPLE / len(self.batches))

        def take(name: str, expert: int | None, inputs: Tensor) -> None:
            if name in found:
                found[name].add(inputs, expert, a_batch, name)

        def step(batch: int) -> None:
            state = states.before(batch, block)
            # A preempted one has added nothing.
            watch_inputs(network, self.batches[batch], block, state, take, states.held())

        with network.at_hand([block]):
            for batch in range(len(self.batches)):
                yield from repeated(counts.timed("calibrate_s", partial(step, batch)))
                yield None
        return {name: each.result() for name, each in found.items()}


class _Gathered:
    """Running sums over the tokens of one input."""

    def __init__(self, shape: tuple[int, ...], device: torch.device, seed: int) -> None:
        width = shape[-1]
        self._all = InputStatistics.empty(width, device)
        experts = shape[0] if len(shape) == 3 else 0
        self._experts = [InputStatistics.empty(width, device) for _ in range(experts)]
        self._sample: list[Tensor] = []
        self._generator = torch.Generator().manual_seed(seed)

    @torch.no_grad()
    def add(self, inputs: Tensor, expert: int | None, sample: int, name: str) -> None:
        rows = inputs.detach().reshape(-1, inputs.shape[-1])
        if expert is None:
            self._all.add(rows, name)
        else:
            self._experts[expert].add(rows, name)
        if len(rows):
            drawn = torch.randperm(len(rows), generator=self._generator)[:sample]
            some = rows[drawn.sort().values.to(rows.device)]
            self._sample.append(some.to(self._all.gram.device, torch.float32))

    def result(self) -> LayerInputs:
        for each in self._experts:
            self._all.merge(each)
        sample = torch.cat(self._sample) if self._sample else self._all.gram.new_empty(0)
        if len(sample) > SAMPLE:
            drawn = torch.randperm(len(sample), generator=self._generator)[:SAMPLE]
            sample = sample[drawn.sort().values.to(sample.device)]
        return LayerInputs(self._all, sample, tuple(self._experts))


# --- for a loaded model --------------------------------------------------------------------------


def need_calibration(loaded: Loaded) -> Events[Calibration]:
    """The calibration of a loaded model; its text is read, cut and announced on first use.

    Raises:
        TextError: the text cannot be read, or does not fill a window.
        UsageError: the number of tokens is 0.
    """
    if (known := loaded.find(Calibration)) is not None:
        return known
    from engine.model.load import load_tokenizer
    from engine.model.quiet import quiet

    opened, settings, notices = loaded.opened, loaded.settings, list[str]()
    tokenizer = load_tokenizer(
        opened.path,
        trust_remote_code=settings.trust_remote_code,
        follow_links=settings.follow_links,
    )
    text = calibration_text(
        settings.calib, demo=opened.demo, notify=notices.append, tokenizer=tokenizer
    )
    seq_len = loaded.windows.seq_len
    bos = bos_token(tokenizer) if settings.bos else None
    with quiet():
        windows = cut_calibration(
            tokenizer, text, seq_len, settings.calib_tokens, settings.seed, bos
        )
    budget = loaded.budget() // 4
    found = loaded.part(
        Calibration, lambda: Calibration(loaded.network, windows, loaded.batch_tokens, budget)
    )
    for sentence in notices:
        yield p.Notice("warning", sentence)
    count = len(windows.ids)
    cut = f"{count} window{'' if count == 1 else 's'} of {seq_len}"
    said = f"calibrating on {text.name}: {windows.tokens:,} tokens in {cut}"
    short = windows.tokens < settings.calib_tokens - settings.calib_tokens % seq_len
    if short or windows.tokens > settings.calib_tokens:
        said += f", instead of {settings.calib_tokens:,}"
    yield p.Notice("info", said)
    yield p.Calibrated(
        text=text.name,
        text_sha256=text.sha256,
        column=text.column,
        documents=text.documents,
        skipped=text.skipped,
        tokens=windows.tokens,
        seq_len=seq_len,
        windows=count,
        seed=settings.seed,
    )
    return found


def calibration_key(
    loaded: Loaded, formats: Iterable[Format], mode: str
) -> Events[keys.Calibration | None]:
    """The calibration part of a key; None if no format needs calibration inputs.

    Args:
        loaded: the model.
        formats: all that the figure depends on.
        mode: ``reference`` or ``sequential``: which model's inputs were used.
    """
    used, key = list(formats), None
    if any(gathers(loaded, each) for each in used):
        key = (yield from need_calibration(loaded)).key(mode)
    if weighs(used) and (given := (yield from need_importances(loaded))) is not None:
        return key_of(given, key, mode)
    return key


def with_scales(
    loaded: Loaded,
    part: keys.Calibration | None,
    formats: Mapping[str, Format],
    everywhere: Format | None = None,
) -> keys.Calibration | None:
    """The calibration part of a key of a figure that depends on these layers in these formats.

    Args:
        loaded: the model.
        part: from `calibration_key`.
        formats: by layer.
        everywhere: a format of the whole body, as where one layer of it is restored.
    """
    if part is None or not any(map(folds, [*formats.values(), *filter(None, [everywhere])])):
        return part
    groups = fold_groups(loaded.network)
    names: Iterable[str] = (name for name, fmt in formats.items() if folds(fmt))
    if everywhere is not None and folds(everywhere):
        names = groups
    absorbed = any(name in groups and groups[name].kind == "layer" for name in names)
    return msgspec.structs.replace(part, scales="powers of two") if absorbed else part
