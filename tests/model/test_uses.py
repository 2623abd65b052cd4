"""Where layers act, of models straight from a config; and models that cannot be measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from engine import protocol as p
from engine.client import in_process
from engine.errors import CheckpointError, EngineError
from engine.formats.grammar import parse_format
from engine.measure.calibration.approximate import why_not_given
from engine.model.fold_groups import fold_groups
from engine.model.inputs import shared_inputs
from engine.model.network import Network
from engine.model.uses import unused
from engine.store.facts import FactStore
from tests import tiny
from tests.drive import ended, load, settings, until
from tests.model.small import small


def test_layers_act_where_their_names_say_in_a_plain_model() -> None:
    network = small("LlamaConfig", tie_word_embeddings=False)
    assert network.unlike_names() == {}
    assert network.layers["model.embed_tokens"].uses == (-1,)
    assert network.layers["model.layers.1.mlp.up_proj"].uses == (1,)
    assert network.layers["lm_head"].uses == (3,)
    assert network.without_effect == ()


def test_what_a_decoder_without_its_encoder_does_not_use_is_found() -> None:
    """BART's decoder alone: nothing is attended to across."""
    network = small(
        "BartConfig",
        d_model=64,
        decoder_layers=2,
        decoder_attention_heads=4,
        decoder_ffn_dim=128,
        encoder_layers=1,
        is_decoder=True,
        is_encoder_decoder=False,
    )
    idle = set(network.without_effect)
    assert idle == {name for name in network.layers if ".encoder_attn." in name} != set()
    assert set(unused(network, tiny.ids(1, 32))) == idle


def test_a_layer_that_acts_on_long_texts_alone_is_not_called_unused() -> None:
    class Late(nn.Module):
        """Adds something from the 25th token on."""

        def __init__(self, inner: Any) -> None:
            super().__init__()
            self.inner, self.late = inner, nn.Linear(64, 64, bias=False)

        def forward(self, x: torch.Tensor) -> Any:
            out = self.inner(x)
            if x.shape[1] < 24:
                return out
            return torch.cat([out[:, :24], out[:, 24:] + self.late(x[:, 24:])], 1)

    def change_mlp(model: Any) -> None:
        model.model.layers[1].mlp = Late(model.model.layers[1].mlp)

    network = small("LlamaConfig", change=change_mlp)
    assert network.without_effect == ("model.layers.1.mlp.late",)
    assert unused(network, tiny.ids(1, 20)) == network.without_effect
    assert unused(network, tiny.ids(1, 32)) == ()


def test_a_weight_computed_with_outside_of_any_graph_is_found_by_changing_it() -> None:
    class Detached(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.proj = nn.Linear(64, 64, bias=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            with torch.no_grad():
                return self.proj(x)

    def change_mlp(model: Any) -> None:
        model.model.layers[1].mlp = Detached()

    network = small("LlamaConfig", change=change_mlp)
    assert network.layers["model.layers.1.mlp.proj"].start == 1
    assert network.without_effect == ()


def test_a_module_in_two_blocks_is_one_layer() -> None:
    def share(model: Any) -> None:
        model.model.layers[2].mlp = model.model.layers[0].mlp

    network = small("LlamaConfig", change=share)
    layer = network.layers["model.layers.0.mlp.up_proj"]
    assert layer.uses == (0, 2)
    assert len(layer.modules) == 2
    assert "model.layers.2.mlp.up_proj" not in network.layers
    assert len(network.slots(layer.name)) == 1


def test_a_norm_that_another_block_uses_takes_no_scale() -> None:
    def share(model: Any) -> None:
        model.model.layers[2].input_layernorm = model.model.layers[0].input_layernorm

    groups = fold_groups(small("LlamaConfig", change=share))
    for block in (0, 2):
        assert groups[f"model.layers.{block}.self_attn.q_proj"].kind == "none"
    assert "other blocks" in groups["model.layers.2.self_attn.q_proj"].why_not
    assert groups["model.layers.1.self_attn.q_proj"].kind == "norm"


def test_methods_that_need_inputs_are_refused_for_a_shared_weight(
    tmp_path: Path, prose: Path
) -> None:
    folder = tiny.build("zamba2", tmp_path / "zamba2")
    loaded = load(folder, FactStore(tmp_path / "facts"), settings(prose, tokens=64))
    name = "model.layers.1.shared_transformer.self_attn.q_proj"
    why = why_not_given(loaded, name, parse_format("int4-g32+gptq"))
    assert why is not None
    assert "acts in blocks 1 and 4" in why
    assert why_not_given(loaded, name, parse_format("int4-g32+a8")) is None
    # an adapter that reads the same input, in one of the blocks alone
    adapter = name.replace("self_attn.q_proj", "feed_forward.gate_up_proj_adapter_list.1.0")
    assert loaded.network.layers[adapter].uses == (4,)
    assert shared_inputs(loaded.network)[adapter] == (adapter,)
    assert why_not_given(loaded, adapter, parse_format("int4-g32+gptq")) is None
    assert loaded.network.layers[name].repeated


def test_a_model_that_writes_into_its_weights_is_refused() -> None:
    with pytest.raises(CheckpointError, match="writes into its own weights"):
        small("RwkvConfig", hidden_size=64, attention_hidden_size=64, context_length=64)


def test_a_model_that_draws_at_random_is_refused() -> None:
    class Random(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + torch.randn_like(x)

    def change_mlp(model: Any) -> None:
        model.model.layers[1].mlp = Random()

    with pytest.raises(EngineError, match="other logits each time"):
        small("LlamaConfig", change=change_mlp)


def test_every_slot_of_a_shared_weight_is_swapped_and_restored() -> None:
    def share(model: Any) -> None:
        for kind in ("up_proj", "down_proj"):
            ours, theirs = (getattr(model.model.layers[i].mlp, kind) for i in (0, 2))
            theirs.weight = ours.weight

    network: Network = small("LlamaConfig", change=share)
    name, ids = "model.layers.0.mlp.up_proj", tiny.ids(1, 16)
    assert len(network.slots(name)) == 2
    weight = network.weight(name).flip(0).clone()
    with network.holding({name: weight}):
        changed = network.run(ids, None)
        assert all(torch.equal(slot.parameter, weight) for slot in network.slots(name))
    network.assert_at_rest()
    with torch.no_grad():
        network.slot(name).parameter.copy_(weight)
    assert torch.equal(network.run(ids, None), changed)


def test_a_uniform_recipe_gives_a_shared_weight_the_format_without_the_method(
    tmp_path: Path, prose: Path
) -> None:
    folder = tiny.build("zamba2", tmp_path / "zamba2")
    chosen = settings(prose, tokens=64, calib=str(prose), calib_tokens=128, seq_len=32)
    name = "model.layers.1.shared_transformer.self_attn.q_proj"
    client = in_process(str(folder))
    try:
        client.send(p.Open(str(folder), chosen))
        client.send(p.Evaluate("int4-g32+gptq"))
        events = until(client, ended("evaluate"))
        assert isinstance(events[-1], p.JobEnded)
        assert events[-1].status == "done", events[-1].message
        client.send(p.SetFormat((name,), "int4-g32+gptq"))
        refused = until(client, lambda event: isinstance(event, p.Refused))[-1]
    finally:
        client.close()
    found = {event.layer: event for event in events if isinstance(event, p.Fallback)}
    assert found[name].holds == "int4-g32"
    assert "acts in blocks 1 and 4" in found[name].why
    assert isinstance(refused, p.Refused)
    assert "acts in blocks 1 and 4" in refused.message
