"""``qtui sweep demo --json -`` against the brute-force loop, and ``qtui eval`` beside it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from engine.demo import DEMO_PATH
from engine.texts.corpora import held_out_library
from tests import brute_force, forked

TOKENS = int(os.environ.get("QTUI_TEST_TOKENS", "2048"))
"""Of the long comparison."""
BATCH = 8


@pytest.mark.slow
@pytest.mark.parametrize("tokens", [256, pytest.param(TOKENS, marks=pytest.mark.soak)])
def test_the_documents_of_demo_agree_with_the_brute_force_loop(
    tokens: int, own_folders: Path
) -> None:
    (own_folders / "config" / "qtui").mkdir()
    length = ("--tokens", str(tokens), "--seq-len", str(seq_len := min(256, tokens // 2)))
    # Two micro-batches, as any longer text has.
    profile = f"[standard]\nbatch_tokens = {min(1024, tokens // 2)}\n"
    (own_folders / "config" / "qtui" / "profiles.toml").write_text(profile)
    document = forked.ran("sweep", "demo", *length, folder=own_folders)
    model = brute_force.load(DEMO_PATH)
    ids = brute_force.windows(DEMO_PATH, held_out_library().content, tokens, seq_len)
    assert document["protocol"]["tokens"] == ids.numel()
    control = document["control"]
    assert (control["max_abs_dnll"], control["max_abs_kl"]) == (0.0, 0.0)
    assert 0.0 < control["floor_dnll"] < 1e-5
    assert 0.0 <= control["floor_kl"] < 1e-7
    nll = brute_force.baseline(model, ids, BATCH)
    assert document["baseline"]["nll"] == pytest.approx(nll, abs=1e-6)
    modules = brute_force.weights(model)
    assert [row["name"] for row in document["layers"]] == list(
        dict.fromkeys(row["name"] for row in document["layers"])
    )
    assert {row["name"] for row in document["layers"]} == set(modules)
    before = list(brute_force.log_probabilities(model, ids, BATCH))
    body: dict[str, torch.Tensor] = {}
    for row in document["layers"]:
        module = modules[row["name"]]
        changed = brute_force.quantised(brute_force.oriented(module), 4, 128, torch.float16)
        if row["block"] >= 0:
            body[row["name"]] = changed
        expected = brute_force.effect(model, module, changed, ids, BATCH, before)
        measured = row["measured"]
        assert brute_force.close(measured["kl"], expected.kl), (row, expected)
        assert brute_force.close(measured["dnll"], expected.dnll), (row, expected)

    # The uniform recipe, by the sweep's own end and by `qtui eval`, against all weights changed.
    for name, changed in body.items():
        modules[name].weight.data = changed
    together = brute_force.baseline(model, ids, BATCH)
    evaluated = forked.ran("eval", "demo", *length, "--format", "int4-g128", folder=own_folders)
    assert evaluated["recipe"]["nll"] == pytest.approx(together, abs=1e-6)
    assert evaluated["resumed"] == 2  # baseline and recipe: the sweep measured both
    # 4 bits, and a 16-bit scale and a 4-bit zero point for each 128 weights.
    assert evaluated["recipe"]["bits_per_weight"] == pytest.approx(4 + 20 / 128)
