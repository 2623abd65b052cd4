"""The language model of a model that also sees is swept as plain ones are."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForMultimodalLM

from engine import protocol as p
from tests import brute_force, wrappers
from tests.drive import facts, settings, sweeps


def test_a_sweep_of_a_wrapper_equals_the_brute_force_loop(tmp_path: Path, prose: Path) -> None:
    source = wrappers.build("mistral3", tmp_path / "mistral3")
    chosen = settings(prose, tokens=128, seq_len=32, batch_tokens=64)
    (events,) = sweeps(source, chosen, p.Sweep())
    rows = [f for f in facts(events, p.Sensitivity) if isinstance(f, p.Sensitivity)]
    assert len(rows) == 2 * 7 + 2

    model = AutoModelForMultimodalLM.from_pretrained(source, dtype=torch.float32).eval()
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    if head.weight is embedding.weight:
        head.weight = torch.nn.Parameter(embedding.weight.detach().clone())
    ids = brute_force.windows(source, prose.read_text(), 128, 32)
    (measured,) = facts(events, p.Baseline)
    assert isinstance(measured, p.Baseline)
    assert measured.nll == pytest.approx(brute_force.baseline(model, ids, 2), abs=1e-6)
    modules = brute_force.weights(model)
    compared = 0
    for row in rows:
        # On disk the language model has another place in the whole than in memory.
        module = modules[row.layer.replace("language_model.model.", "model.language_model.")]
        weight = brute_force.oriented(module)
        changed = brute_force.quantised(weight, 4, 32, torch.float16)
        expected = brute_force.effect(model, module, changed, ids, 2)
        assert brute_force.close(row.kl, expected.kl), row.layer
        compared += 1
    assert compared == len(rows)
