"""What an exact sweep costs, how soon the worst ten are sure, how often intervals hold.

Costs are ratios within one run, of processor time: other processes take none of it. The arithmetic
of a sweep is, for each layer, the share of the body from its block on, and head, softmax and KL.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import psutil
import pytest
import torch

from engine import protocol as p
from engine.formats.grammar import parse_format
from engine.measure.calibration.approximate import approximation
from engine.measure.evaluation.reference import reference_of
from engine.measure.sweep import sweep as sensitivity
from engine.measure.sweep.candidates import Tallies
from engine.measure.sweep.sweep import sweep
from engine.store.facts import FactStore
from engine.workspace import Loaded
from tests import tiny
from tests.bench.coverage import DRAWS, FEW, coverage
from tests.drive import load

FORMAT = "int4-g128"
ROUNDS = 3
TOP = 10


def opened(source: str, folder: Path, text: Path | None = None, **given: object) -> Loaded:
    """A model ready to be measured, and a store that stays empty."""
    chosen = p.Settings(text=str(text) if text else None, **given)  # type: ignore[arg-type]
    return load(source, FactStore(folder / "facts.sqlite"), chosen)


def passes(loaded: Loaded) -> tuple[float, float, float]:
    """Seconds of the body, of head with KL, and of the model's own forward, on all windows."""
    network, reference = loaded.network, reference_of(loaded)
    blocks, batches = len(network.blocks), range(len(reference.batches))
    for batch in batches:
        reference.run(batch)
    body, head, plain = [], [], []
    for _ in range(ROUNDS):
        begun = time.process_time()
        for batch in batches:
            network.final_state(reference.batches[batch], -1, None)
        body.append(time.process_time() - begun)
        begun = time.process_time()
        for batch in batches:
            reference.measure(batch, blocks, {})
        head.append(time.process_time() - begun)
        begun = time.process_time()
        for batch in batches:
            reference.plain(batch)
        plain.append(time.process_time() - begun)
    return statistics.median(body), statistics.median(head), statistics.median(plain)


def swept(loaded: Loaded, exact: str) -> tuple[float, float, dict[str, p.Sensitivity]]:
    """Seconds of the measuring alone and of it all, and the figures."""
    loaded.part(Tallies, Tallies).clear()
    rows: dict[str, p.Sensitivity] = {}
    began = begun = ended = time.process_time()
    for event in sweep(loaded, [FORMAT], "degrade", "bench", exact=exact):
        for fact in event.facts if isinstance(event, p.Learned) else ():
            if isinstance(fact, p.Control):
                begun = time.process_time()
            elif isinstance(fact, p.Sensitivity):
                rows[fact.layer] = fact
                ended = time.process_time()
    return ended - begun, time.process_time() - began, rows


def order_of(known: Mapping[str, p.Sensitivity], monkeypatch: pytest.MonkeyPatch) -> None:
    """Estimates that cost nothing, so that what is timed is the measuring."""

    def estimated(*_: object) -> Iterator[None]:
        return {
            FORMAT: {
                name: p.Estimate(
                    layer=name, format=FORMAT, kl=row.kl, kl_se=row.kl_se, dnll=row.dnll,
                    dnll_se=row.dnll_se, tokens=row.tokens,
                )
                for name, row in known.items()
            }
        }  # fmt: skip
        yield None

    monkeypatch.setattr(sensitivity, "_estimated", estimated)


def arithmetic(loaded: Loaded, body: float, head: float) -> float:
    """Seconds that the suffixes of all layers take, by the share of the body that each runs."""
    network = loaded.network
    blocks = len(network.blocks)
    return sum(
        (blocks - max(layer.start, 0)) / blocks * body + head for layer in network.layers.values()
    )


def told(name: str, loaded: Loaded, exact: str = "all") -> tuple[float, float]:
    """Print what a sweep costs; its seconds, and those of one forward."""
    before = passes(loaded)
    spent, _, rows = swept(loaded, exact)
    after = passes(loaded)
    body, head, plain = (statistics.mean(pair) for pair in zip(before, after, strict=True))
    expected = arithmetic(loaded, body, head)
    print(
        f"\n{name}: {len(rows)} layers, {exact}; head and KL {head / (body + head):.0%} of a pass;"
        f" load of the machine {psutil.getloadavg()[0]:.1f}, {torch.get_num_threads()} threads"
        f"\n  measured {spent:7.1f} s   by arithmetic {expected:7.1f} s"
        f"   ratio {spent / expected:5.2f}   aim: at most 1.1"
        f"\n  {spent / plain:5.1f} forwards, {spent / (len(rows) * plain):.2f} × (layers × one)"
    )
    return spent, plain


def test_an_exact_sweep_costs_its_suffixes(
    tmp_path: Path, prose: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order_of({}, monkeypatch)
    told("demo, standard", opened("demo", tmp_path, tokens=16384, seq_len=256))
    source = tiny.build(
        "llama", tmp_path / "deep", hidden_size=256, intermediate_size=768, num_hidden_layers=24,
        num_attention_heads=8, num_key_value_heads=4,
    )  # fmt: skip
    told(
        "24 blocks, small head (aim of the last: at most 0.6)",
        opened(str(source), tmp_path, prose, tokens=2048, seq_len=128, batch_tokens=1024),
    )


@pytest.mark.parametrize("tokens", [16384, 131072])
def test_the_worst_ten_are_sure_long_before_the_sweep_would_end(
    tokens: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the measured order in place of estimates."""
    loaded = opened("demo", tmp_path, tokens=tokens, seq_len=256, batch_tokens=2048)
    order_of({}, monkeypatch)
    whole, _, exact = swept(loaded, "all")
    order_of(exact, monkeypatch)
    spent, _, rough = swept(loaded, f"top:{TOP}")
    worst = sorted(exact, key=lambda name: -exact[name].kl)[:TOP]
    found = sorted(rough, key=lambda name: -rough[name].kl)[:TOP]
    share = sum(row.tokens for row in rough.values()) / sum(row.tokens for row in exact.values())
    print(
        f"\ndemo, {tokens} tokens: the worst {TOP} in {spent / whole:.2f} of the whole sweep"
        f" ({share:.2f} of its tokens)   aim: 0.25;"
        f" {len(set(worst) & set(found))} of {TOP} the same"
    )


def test_intervals_over_few_windows_hold_what_all_windows_say(tmp_path: Path) -> None:
    loaded = opened("demo", tmp_path, tokens=416 * 256, seq_len=256, batch_tokens=2048)
    network, reference = loaded.network, reference_of(loaded)
    chosen = [name for name in network.layers if name.endswith(("layers.0.mlp.down_proj",
        "layers.1.self_attn.q_proj", "layers.3.self_attn.o_proj", "layers.4.mlp.down_proj",
        "layers.4.self_attn.k_proj", "lm_head"))]  # fmt: skip
    print(f"\n{DRAWS} draws of {FEW} from {reference.windows.count} windows   aim: 0.90 or more")
    for name in chosen:
        held = {name: approximation(loaded, name, parse_format(FORMAT))}
        tallies = []
        for batch in range(len(reference.batches)):
            reference.run(batch)
            tallies.append(reference.measure(batch, network.layers[name].start, held))
        kl = torch.cat([tally.kl for tally in tallies]).numpy()
        dnll = torch.cat([tally.dnll for tally in tallies]).numpy()
        print(f"  {name:36} KL {coverage(kl):.3f}   ΔNLL {coverage(dnll):.3f}")
