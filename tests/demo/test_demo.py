"""The bundled checkpoint: an ordinary small Llama, with outlier channels that change nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from engine.demo import DEMO_PATH
from engine.demo.plant import FACTOR, PLANTED, rescale
from engine.measure.weights.statistics import weight_statistics
from engine.texts import stdlib as stdlib_text
from engine.texts.corpora import held_out_library
from tests import brute_force

MOST_BYTES = 12_000_000


def test_layout_is_the_ordinary_one_and_small() -> None:
    config = json.loads((DEMO_PATH / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert (config["hidden_size"], config["intermediate_size"]) == (256, 768)
    assert config["num_key_value_heads"] < config["num_attention_heads"]
    assert 4 <= config["num_hidden_layers"] <= 6
    assert 2000 <= config["vocab_size"] <= 4096
    state = load_file(DEMO_PATH / "model.safetensors")
    assert {tensor.dtype for tensor in state.values()} == {torch.float16}
    assert sum(file.stat().st_size for file in DEMO_PATH.iterdir()) <= MOST_BYTES
    assert (DEMO_PATH / "tokenizer.json").exists()


def test_planted_channels_do_not_change_the_function() -> None:
    """Perplexity with and without them, in float32 over the same windows."""
    ids = brute_force.windows(DEMO_PATH, held_out_library().content, 2048, 256)
    planted = AutoModelForCausalLM.from_pretrained(DEMO_PATH, dtype=torch.float32).eval()
    with_outliers = brute_force.baseline(planted, ids, 8)
    state = dict(planted.state_dict())
    rescale(state, 1 / FACTOR)  # in place: the model's own tensors
    without = brute_force.baseline(planted, ids, 8)
    assert with_outliers == pytest.approx(without, abs=1e-5)
    rescale(state, FACTOR)
    assert brute_force.baseline(planted, ids, 8) == with_outliers


def test_planted_channels_are_outliers_in_three_layers() -> None:
    state = load_file(DEMO_PATH / "model.safetensors")
    assert len({planted.layer for planted in PLANTED}) == 3
    for planted in PLANTED:
        found = weight_statistics(state[f"{planted.layer}.weight"])
        columns = {channel.index for channel in found.columns}
        assert set(planted.columns) <= columns, planted


def test_perplexity_is_that_of_a_trained_model() -> None:
    """Far below a uniform guess over the vocabulary, on modules it has not seen."""
    ids = brute_force.windows(DEMO_PATH, held_out_library().content, 4096, 256)
    model = AutoModelForCausalLM.from_pretrained(DEMO_PATH, dtype=torch.float32).eval()
    assert 2.718281828 ** brute_force.baseline(model, ids, 8) < 40


def test_held_out_modules_are_no_training_text() -> None:
    held_out = dict(stdlib_text.modules("held-out"))
    trained = dict(stdlib_text.modules("train"))
    assert held_out
    assert len(trained) > 5 * len(held_out)
    assert not held_out.keys() & trained.keys()
    assert not set(held_out.values()) & set(trained.values())


def test_split_depends_on_names_alone(tmp_path: Path) -> None:
    for name in ("a", "b", "argparse", "subprocess"):
        (tmp_path / f"{name}.py").write_text(f"# {name}\n")
    names = {name for name, _ in stdlib_text.modules("held-out", tmp_path)}
    assert names == {n for n in ("a", "b", "argparse", "subprocess") if stdlib_text.is_held_out(n)}
    assert {"argparse", "subprocess"} <= names  # as the demo was trained
