"""Layers that were swapped, by the norms of their rows and columns."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import spearmanr

from engine import protocol as p
from engine.measure.weights.belonging import (
    SKETCH,
    Heads,
    Placed,
    Profile,
    heads_of,
    misplaced,
    profile_of,
    sketch,
)

HEADS = Heads(8, 4)
BLOCKS = 12
WIDE = 512


def cosine(a: bytes, b: bytes) -> float:
    one, two = (np.frombuffer(each, np.int8).astype(float) for each in (a, b))
    return float(one @ two / np.linalg.norm(one) / np.linalg.norm(two))


@pytest.mark.parametrize("length", [64, 128, 1536, 9000])
def test_sketches_correlate_as_ranks_do(length: int) -> None:
    random = np.random.default_rng(length)
    for share in (0.0, 0.5, 0.95):
        a, noise = random.lognormal(size=(2, length))
        b = a**share * noise ** (1 - share)
        expected = spearmanr(a, b).statistic
        within = 0.02 if length <= SKETCH else 4 / SKETCH**0.5
        assert cosine(sketch(a), sketch(b)) == pytest.approx(expected, abs=within)


def test_norms_that_are_alike_have_no_sketch() -> None:
    assert sketch(np.ones(64)) == b""
    assert sketch(np.array([1.0, np.nan] * 40)) == b""
    assert profile_of("qkv_proj", 1, np.arange(64.0), np.arange(64.0), HEADS) == Profile()


def test_heads_are_read_from_a_config() -> None:
    assert heads_of({"num_attention_heads": 8, "num_key_value_heads": 2}) == Heads(8, 2)
    assert heads_of({"text_config": {"num_attention_heads": 8}}) == Heads(8, 8)
    assert heads_of({"n_head": 12}) == Heads(12, 12)
    assert heads_of({}) == Heads()


def model(seed: int, balanced: float) -> dict[str, Placed]:
    """Layers of a model: ``balanced`` is how far partners' norms go together, from 0 to 1."""
    random = np.random.default_rng(seed)
    found: dict[str, Placed] = {}

    def add(name: str, shape: tuple[int, int], rows: np.ndarray, columns: np.ndarray) -> None:
        kind = name.rpartition(".")[2]
        sketches = profile_of(kind, 1, rows, columns, HEADS)
        fact = p.LayerWeights(
            layer=name, outliers=p.Outliers(4.0, 0, 0.0, 0.0), range_ratio=1.0, waste=0.0,
            kurtosis=0.0, nan=0, inf=0, zero_rows=0, rows=sketches.rows, columns=sketches.columns,
        )  # fmt: skip
        found[name] = Placed(name, kind, shape, fact)

    for block in range(BLOCKS):
        at = f"model.layers.{block}."
        shared = random.lognormal(0, 0.5, WIDE)

        def like(shared: np.ndarray = shared) -> np.ndarray:
            found: np.ndarray = shared**balanced * random.lognormal(0, 0.1, WIDE)
            return found

        stream = random.lognormal(0, 0.1, 64)
        add(at + "mlp.up_proj", (WIDE, 64), like(), stream)
        add(at + "mlp.gate_proj", (WIDE, 64), random.lognormal(0, 0.5, WIDE), stream)
        add(at + "mlp.down_proj", (64, WIDE), stream, like())
    return found


def after_swap(layers: dict[str, Placed], one: str, two: str) -> tuple[p.Swap, ...]:
    weights = {one: layers[two].weights, two: layers[one].weights}
    return misplaced(
        [each._replace(weights=weights.get(name, each.weights)) for name, each in layers.items()]
    )


@pytest.mark.parametrize("kind", ["up_proj", "down_proj"])
def test_two_swapped_layers_are_named(kind: str) -> None:
    layers = model(0, balanced=1.0)
    assert misplaced(list(layers.values())) == ()
    for i, j in ((0, 1), (2, 9), (5, 11)):
        one, two = (f"model.layers.{block}.mlp.{kind}" for block in (i, j))
        (found,) = after_swap(layers, one, two)
        assert found.fits > 0.8
        assert abs(found.own) < 0.5
        # Nothing beside these tells which of the two partners it is: both are named.
        named = {found.layer, found.other}
        assert named == {one, two} or found.partner == kind


def test_a_swap_of_whole_blocks_or_of_layers_without_partners_is_not_seen() -> None:
    layers = model(1, balanced=1.0)
    one, two = (f"model.layers.{block}.mlp.gate_proj" for block in (2, 7))
    assert after_swap(layers, one, two) == ()


def test_models_that_were_never_trained_show_nothing() -> None:
    for seed in range(100):
        assert misplaced(list(model(seed, balanced=0.0).values())) == ()
