"""llama.cpp's tables of a recipe against NumPy on whole logits of plain transformers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from engine.formats.grammar import parse_format
from engine.measure.counts import JobCounts
from engine.measure.symptoms.divergence import measure_divergence
from engine.measure.symptoms.weights import recipe_weights
from engine.quant.quantize import dequantized
from engine.store.facts import FactStore
from tests import tiny
from tests.drive import load, settings

FORMAT = parse_format("int3-g32")


def test_tables_of_a_recipe_equal_numpys(tmp_path: Path, prose: Path) -> None:
    from transformers import AutoModelForCausalLM

    folder = tiny.build("llama", tmp_path / "model", dtype=torch.float16)
    facts = FactStore(tmp_path / "facts.sqlite")
    loaded = load(folder, facts, settings(prose, dtype="fp32", device="cpu", tokens=256))
    formats = {
        name: FORMAT
        for name, layer in loaded.network.layers.items()
        if layer.role not in ("head", "embedding")
    }
    counts = JobCounts()
    steps = measure_divergence(
        loaded, formats, lambda: recipe_weights(loaded, formats, counts), counts
    )
    table = None
    while table is None:
        try:
            next(steps)
        except StopIteration as end:
            table = end.value
        loaded.assert_at_rest()
    ids = loaded.windows.ids
    facts.close()

    def logp(*, changed: bool) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float16)
        with torch.no_grad():
            for name, module in model.named_modules():
                if changed and name in formats:
                    assert isinstance(module, torch.nn.Linear)
                    module.weight.copy_(dequantized(module.weight, FORMAT, torch.float16))
            logits = model.float()(ids).logits[:, :-1].double()
        found: np.ndarray[tuple[int, ...], np.dtype[np.float64]] = logits.log_softmax(-1).numpy()
        return found.reshape(-1, found.shape[-1])

    one, other = logp(changed=False), logp(changed=True)
    kld = (np.exp(one) * (one - other)).sum(-1)
    next_ids = ids[:, 1:].reshape(-1, 1).numpy()
    of = [np.take_along_axis(each, next_ids, 1)[:, 0] for each in (one, other)]
    delta = np.exp(of[1]) - np.exp(of[0])
    assert table.tokens == len(kld)
    assert table.ppl == pytest.approx(np.exp(-of[1].mean()), rel=1e-4)
    assert table.ppl_base == pytest.approx(np.exp(-of[0].mean()), rel=1e-4)
    assert table.kld["mean"] == pytest.approx(kld.mean(), rel=1e-3)
    assert table.kld["mean_se"] == pytest.approx(kld.std(ddof=1) / np.sqrt(len(kld)), rel=1e-3)
    for name, share in (("max", 1), ("99%", 0.99), ("median", 0.5), ("5%", 0.05)):
        assert table.kld[name] == pytest.approx(np.quantile(kld, share), rel=2e-3, abs=1e-6)
        assert table.delta_p[name] == pytest.approx(np.quantile(delta, share), rel=2e-3, abs=1e-6)
    assert table.delta_p["rms"] == pytest.approx(np.sqrt((delta**2).mean()), rel=1e-3)
    # A batch of another size rounds differently, and may turn one of two equal choices.
    same = (one.argmax(-1) == other.argmax(-1)).mean()
    assert table.same_top == pytest.approx(same, abs=1.5 / len(kld))
