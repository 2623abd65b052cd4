"""Estimates held against exact measurement, on a checkpoint and a text of your own.

    python -m tests.bench.against_exact FOLDER TEXT --formats int4-g128,int8 --every 5 --draws 1,2,4

Measures the layers of every Nth block exactly, another block for each kind of layer, and all layers
outside the blocks; estimates them with each number of draws; prints a row for each. With
``--direction restore``, layers of the body are given back one by one where all of it is quantised.
What was measured is kept in a file, so that a run cut short goes on.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, TypeVar

import msgspec
import torch
from torch import Tensor

from engine import protocol as p
from engine.formats.grammar import Format, parse_format
from engine.formats.storage import why_not_held
from engine.measure.calibration.approximate import approximated, why_not_given
from engine.measure.counts import JobCounts
from engine.measure.estimate.estimate import estimate
from engine.measure.evaluation.evaluate import baseline
from engine.measure.evaluation.reference import reference_of
from engine.model.network import Held
from engine.protocol import Settings
from engine.session.artefact import OUTSIDE
from engine.store import keys
from engine.store.facts import FactStore
from engine.workspace import Loaded
from tests.bench.truth import NEAR, TOP, hold_against, machine
from tests.drive import load

T = TypeVar("T")
Exact = dict[str, list[float]]
"""KL, its standard error and ΔNLL by the address of the measurement."""


def through(steps: Generator[object, None, T]) -> T:
    """What a job's steps return."""
    while True:
        try:
            next(steps)
        except StopIteration as stop:
            return stop.value  # type: ignore[no-any-return]


def chosen(loaded: Loaded, every: int) -> Iterator[str]:
    """Layers of every Nth block, those of a kind two blocks after those of the kind before."""
    kinds: dict[str, int] = {}
    for name, layer in loaded.network.layers.items():
        shift = 2 * kinds.setdefault(name.rpartition(".")[2], len(kinds))
        if layer.block is None or (layer.block + shift) % every == 0:
            yield name


class Effect(NamedTuple):
    """Of each window, nats per token."""

    kl: Tensor
    dnll: Tensor

    def figures(self) -> list[float]:
        """KL, its standard error and ΔNLL."""
        error = float(self.kl.std()) / len(self.kl) ** 0.5
        return [float(self.kl.mean()), error, float(self.dnll.mean())]


def measure(loaded: Loaded, held: Mapping[str, Held]) -> Effect:
    """The effect of some layers that hold other weights."""
    reference = reference_of(loaded)
    start = min(loaded.network.layers[name].start for name in held)
    batches = range(len(reference.batches))
    tallies = [reference.measure(batch, start, held) for batch in batches]
    targets = reference.windows.targets
    return Effect(
        torch.cat([tally.kl for tally in tallies]) / targets,
        torch.cat([tally.dnll for tally in tallies]) / targets,
    )


@dataclass
class Measurements:
    """Of single layers in one format and direction."""

    loaded: Loaded
    format: Format
    direction: p.Direction
    counts: JobCounts
    body: dict[str, Held] = field(default_factory=dict)
    """For restoring, all layers of the body in the format."""
    whole: Effect | None = None
    """Of all of it."""

    def able(self, name: str) -> bool:
        """Whether a layer is measured in this format."""
        layer = self.loaded.network.layers[name]
        if self.direction == "restore" and layer.role in OUTSIDE:
            return False
        held = why_not_held(self.format, layer.shape) is None
        return held and why_not_given(self.loaded, name, self.format) is None

    def figures(self, name: str) -> list[float]:
        """KL, its standard error and ΔNLL of one layer."""
        if self.direction == "degrade":
            return measure(self.loaded, {name: self._held(name)}).figures()
        if self.whole is None:
            layers = self.loaded.network.layers
            self.body = {each: self._held(each) for each in layers if self.able(each)}
            self.whole = measure(self.loaded, self.body)
        others = {each: held for each, held in self.body.items() if each != name}
        but = measure(self.loaded, others)
        return Effect(self.whole.kl - but.kl, self.whole.dnll - but.dnll).figures()

    def _held(self, name: str) -> Held:
        return through(approximated(self.loaded, name, self.format, self.counts))


def address(loaded: Loaded, name: str, format: Format, direction: p.Direction) -> str:
    """Of a measurement: another checkpoint, text or window has another."""
    return keys.Sensitivity(
        on=loaded.evaluation,
        layer=name,
        format=str(format),
        direction=direction,
        scale_dtype=loaded.scale_dtype,
    ).address


def exact_of(
    loaded: Loaded,
    formats: Sequence[Format],
    direction: p.Direction,
    every: int,
    kept: Path,
    counts: JobCounts,
) -> dict[tuple[str, str], list[float]]:
    """The chosen layers by format and name; what is not in the file yet is measured."""
    known: Exact = json.loads(kept.read_text()) if kept.exists() else {}
    found: dict[tuple[str, str], list[float]] = {}
    for format in formats:
        measuring = Measurements(loaded, format, direction, counts)
        for name in filter(measuring.able, chosen(loaded, every)):
            if (key := address(loaded, name, format, direction)) not in known:
                known[key] = measuring.figures(name)
                kept.write_text(json.dumps(known))
            found[str(format), name] = known[key]
    return found


def main() -> None:
    """Print a table of one row for each format and number of draws."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder")
    parser.add_argument("text")
    parser.add_argument("--formats", default="int3-g128,int4-g128,int8,nf4,q4_k,int4-g128+a8")
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--seq-len", type=int, default=512)
    parser.add_argument("--direction", choices=("degrade", "restore"), default="degrade")
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--draws", default="1")
    parser.add_argument("--kept", type=Path, default=Path("exact.json"))
    given = parser.parse_args()
    formats = [parse_format(text) for text in given.formats.split(",")]
    settings = Settings(
        text=given.text, tokens=given.tokens, seq_len=given.seq_len, device="cpu", dtype="fp32",
        estimate_formats=tuple(map(str, formats)),
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as home:
        loaded = load(given.folder, FactStore(Path(home, "facts.sqlite")), settings)
        counts = JobCounts()
        through(baseline(loaded, counts))
        exact = exact_of(loaded, formats, given.direction, given.every, given.kept, counts)
        print(f"\n{machine()}\n")
        header = (
            "format | K | layers | rank of KL | rank of ΔNLL, with shares of ten | "
            f"top {TOP}, with near-ties | KL within {NEAR[0]}–{NEAR[1]} | "
            "within two errors, root mean square | ratio"
        )
        print(f"| {header} |\n|{'---|' * (header.count('|') + 1)}")
        for draws in map(int, given.draws.split(",")):
            loaded.opened.workspace.settings = msgspec.structs.replace(settings, draws=draws)
            begun = time.perf_counter()
            found = through(estimate(loaded, formats, given.direction, JobCounts(), "bench"))
            took = f"{time.perf_counter() - begun:.0f} s for all formats"
            for text, by_layer in found.items():
                both = [name for name in by_layer if (text, name) in exact]
                if len(both) <= TOP:
                    print(f"| `{text}` | {draws} | {len(both)}, too few |")
                    continue
                it = hold_against(
                    [(e.kl, e.kl_se, e.dnll) for e in (by_layer[name] for name in both)],
                    [tuple(exact[text, name]) for name in both],  # type: ignore[misc]
                )
                print(
                    f"| `{text}` | {draws} | {it.layers} | {it.rank_kl:.3f} | "
                    f"{it.rank_dnll:.3f}, {it.rank_dnll_with:.3f} | "
                    f"{it.top}, {it.top_near} | {it.right:.0%} | "
                    f"{it.covered:.0%}, {it.spread:.2f} | {it.ratio:.2f} |"
                )
            print(f"\n{draws} draws: {took}\n")


if __name__ == "__main__":
    main()
