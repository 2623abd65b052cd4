"""Methods that look at inputs, through the engine, against hooks and formulas written out here."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from torch import Tensor, nn

from engine import protocol as p
from engine.client import in_process
from engine.errors import FormatError, TextError, UsageError
from engine.formats.grammar import parse_format, without_folds
from engine.measure.calibration.approximate import (
    approximated,
    columns_kept,
    recipe_inputs,
    solved_codes,
)
from engine.measure.calibration.calibration import (
    Kept,
    calibration_key,
    need_calibration,
    with_scales,
)
from engine.measure.calibration.solve import LayerInputs, find_scale, solve
from engine.measure.calibration.text import cut_calibration
from engine.measure.counts import JobCounts
from engine.measure.evaluation.evaluate import evaluate
from engine.measure.evaluation.reference import reference_of
from engine.model.fold_groups import fold_groups
from engine.model.network import Held, StandIn
from engine.quant.gguf import GgufBlocks, quantize_gguf
from engine.quant.input_statistics import InputStatistics
from engine.quant.methods.awq import awq
from engine.quant.methods.gptq import gptq
from engine.quant.methods.outlier import outlier_columns
from engine.quant.methods.smooth import smooth_scale
from engine.quant.quantize import dequantized
from engine.service.jobs import Outcome
from engine.store import keys
from engine.store.facts import FactStore
from engine.texts.corpora import Text
from engine.workspace import Loaded
from tests import brute_force, tiny
from tests.drive import ended, facts, load, settings, until

Q, K, V = (f"model.layers.1.self_attn.{kind}_proj" for kind in "qkv")
DOWN = "model.layers.1.mlp.down_proj"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def of(arch: str) -> Path:
        if arch not in made:
            made[arch] = tiny.build(arch, tmp_path_factory.mktemp("calibration") / arch)
        return made[arch]

    return of


@pytest.fixture(scope="module")
def calib(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another text than the one that is scored."""
    path = tmp_path_factory.mktemp("text") / "calib.txt"
    path.write_text("\n".join(f"{i * 7919 % 1000} boxers sleep, {i} foxes" for i in range(600)))
    return path


Opened = Callable[..., Loaded]


@pytest.fixture
def opened(
    folder: Callable[[str], Path], prose: Path, calib: Path, tmp_path: Path
) -> Iterator[Opened]:
    stores: list[FactStore] = []

    def of(arch: str = "llama", **given: object) -> Loaded:
        chosen = {"calib": str(calib), "calib_tokens": 1024, **given}
        stores.append(FactStore(tmp_path / f"facts{len(stores)}.sqlite"))
        return load(folder(arch), stores[-1], settings(prose, **chosen))

    yield of
    for store in stores:
        store.close()


def finish(steps: Any) -> tuple[list[Any], Any]:
    """What a generator yields, and what it returns."""
    told = []
    while True:
        try:
            told.append(next(steps))
        except StopIteration as stop:
            return told, stop.value


def changed_alone(loaded: Loaded, layer: str, text: str) -> Held:
    return finish(approximated(loaded, layer, parse_format(text), JobCounts()))[1]


def windows_of(loaded: Loaded) -> Tensor:
    calibration = finish(need_calibration(loaded))[1]
    return calibration.windows.ids


@torch.no_grad()
def inputs_by_hook(
    folder: Path, ids: Tensor, layer: str, holding: dict[str, Tensor] | None = None
) -> Tensor:
    """All inputs ``[tokens, in]`` of a module, in a plain model with some weights replaced."""
    model = brute_force.load(folder)
    modules = brute_force.weights(model)
    for name, weight in (holding or {}).items():
        modules[name].weight.data = weight.clone()
    taken: list[Tensor] = []
    modules[layer].register_forward_pre_hook(
        lambda _module, args: taken.append(args[0].reshape(-1, args[0].shape[-1]).clone())
    )
    for rows in ids.split(4):
        model(input_ids=rows)
    return torch.cat(taken)


def gathered(inputs: Tensor) -> InputStatistics:
    found = InputStatistics.empty(inputs.shape[-1])
    found.add(inputs)
    return found


def close(ours: Tensor, theirs: Tensor, share: float = 1e-3) -> bool:
    """Equal but for codes that a difference in the last bits of sums may turn."""
    return float((ours - theirs).norm() / theirs.norm()) < share


# --- the text ------------------------------------------------------------------------------------


def test_windows_are_drawn_by_the_seed_do_not_overlap_and_come_from_all_over() -> None:
    text = Text("counting", "\n".join(f"{i:05d}" for i in range(4000)))
    cut = [cut_calibration(tiny.tokenizer(), text, 32, 512, seed) for seed in (0, 0, 1)]
    assert torch.equal(cut[0].ids, cut[1].ids)
    assert not torch.equal(cut[0].ids, cut[2].ids)
    assert cut[0].sha256 != cut[2].sha256
    assert cut[0].ids.shape == (16, 32)
    whole = cut_calibration(tiny.tokenizer(), text, 32, 1 << 20, 0)
    again = tiny.tokenizer()(text.content, add_special_tokens=False)["input_ids"]
    assert whole.tokens > 0.9 * len(again)
    rows = {tuple(row.tolist()) for row in whole.ids}
    assert len(rows) == len(whole.ids)
    places = sorted(text.content.find(tiny.tokenizer().decode(row)) for row in cut[0].ids)
    assert places[0] >= 0
    assert places[-1] - places[0] > len(text.content) / 2


def test_no_tokens_and_too_short_a_text_are_errors() -> None:
    with pytest.raises(UsageError, match="0 calibration tokens"):
        cut_calibration(tiny.tokenizer(), Text("a", "b" * 1000), 32, 0, 0)
    with pytest.raises(TextError, match="does not fill one window of 32"):
        cut_calibration(tiny.tokenizer(), Text("short", "a few words"), 32, 512, 0)


def test_the_text_is_read_when_a_method_needs_it_and_said_once(opened: Opened) -> None:
    loaded = opened(calib="/nowhere/at/all.txt")
    changed_alone(loaded, Q, "int4-g32")
    with pytest.raises(TextError, match="--calib"):
        changed_alone(loaded, Q, "int4-g32+gptq")
    loaded = opened()
    told, _ = finish(approximated(loaded, Q, parse_format("int4-g32+gptq"), JobCounts()))
    said = [e.message for e in told if isinstance(e, p.Notice)]
    assert said == ["calibrating on calib.txt: 1,024 tokens in 32 windows of 32"]
    assert [e.windows for e in told if isinstance(e, p.Calibrated)] == [32]
    told, _ = finish(approximated(loaded, K, parse_format("int4-g32+gptq"), JobCounts()))
    assert not [event for event in told if event is not None]


# --- one layer, on the reference -----------------------------------------------------------------


@pytest.mark.parametrize(("arch", "layer"), [("llama", DOWN), ("gpt2", "transformer.h.2.mlp.c_fc")])
def test_gptq_is_that_of_the_gram_of_the_layers_inputs(
    arch: str, layer: str, opened: Opened, folder: Callable[[str], Path]
) -> None:
    loaded = opened(arch)
    ours = changed_alone(loaded, layer, "int3-g32+gptq:actorder")
    if arch == "gpt2":
        names = brute_force.weights(brute_force.load(folder(arch)))
        assert layer in names
    x = inputs_by_hook(folder(arch), windows_of(loaded), layer)
    weight = loaded.network.weight(layer)
    fmt = parse_format("int3-g32+gptq:actorder")
    theirs = gptq(weight, x.T @ x, fmt, torch.float16).approx()
    assert isinstance(ours, Tensor)
    assert close(ours, theirs)
    assert not close(ours, dequantized(weight, parse_format("int3-g32"), torch.float16), 0.05)


def test_the_head_is_calibrated_on_what_it_is_given(
    opened: Opened, folder: Callable[[str], Path]
) -> None:
    loaded = opened()
    ours = changed_alone(loaded, "lm_head", "int4-g32+gptq")
    x = inputs_by_hook(folder("llama"), windows_of(loaded), "lm_head")
    weight = loaded.network.weight("lm_head")
    theirs = gptq(weight, x.T @ x, parse_format("int4-g32+gptq"), torch.float16).approx()
    assert isinstance(ours, Tensor)
    assert close(ours, theirs)


def test_awq_is_one_scale_for_all_that_share_the_input(
    opened: Opened, folder: Callable[[str], Path]
) -> None:
    loaded = opened()
    network = loaded.network
    x = inputs_by_hook(folder("llama"), windows_of(loaded), Q)
    fmt = parse_format("int3-g32+awq")
    weights = [network.weight(name) for name in (Q, K, V)]
    scale = awq(weights, gathered(x), fmt, torch.float16).scale
    assert not torch.equal(scale, torch.ones_like(scale))
    for name, weight in zip((Q, K, V), weights, strict=True):
        ours = changed_alone(loaded, name, "int3-g32+awq")
        gain = fold_groups(network)[name].gain(scale, torch.float32)
        theirs = dequantized(weight * scale, parse_format("int3-g32"), torch.float16) * gain
        assert isinstance(ours, Tensor)
        assert close(ours, theirs), name


def test_awq_and_gptq_together_round_the_scaled_weight_on_the_scaled_inputs(
    opened: Opened, folder: Callable[[str], Path]
) -> None:
    loaded = opened()
    network = loaded.network
    ours = changed_alone(loaded, Q, "int3-g32+awq:online+gptq")
    x = inputs_by_hook(folder("llama"), windows_of(loaded), Q)
    fmt = parse_format("int3-g32+awq:online+gptq")
    weights = [network.weight(name) for name in (Q, K, V)]
    scale = awq(weights, gathered(x), fmt, torch.float16).scale
    scaled = x / scale
    theirs = gptq(weights[0] * scale, scaled.T @ scaled, fmt, torch.float16).approx() / scale
    assert isinstance(ours, Tensor)
    assert close(ours, theirs)


@torch.no_grad()
def test_int8_inputs_compute_what_a_module_written_by_hand_does(
    opened: Opened, folder: Callable[[str], Path]
) -> None:
    loaded = opened()
    network, reference = loaded.network, reference_of(loaded)
    held = changed_alone(loaded, Q, "int8+smooth.5:online+a8")
    x = inputs_by_hook(folder("llama"), windows_of(loaded), Q)
    weights = [network.weight(name) for name in (Q, K, V)]
    columns = torch.stack([weight.abs().amax(0) for weight in weights]).amax(0)
    scale = smooth_scale(x.abs().amax(0), columns, 0.5)
    rounded = dequantized(weights[0] * scale, parse_format("int8"), torch.float16)

    class ByHand(nn.Module):
        def forward(self, inputs: Tensor) -> Tensor:
            scaled = inputs / scale
            step = scaled.abs().amax(-1, keepdim=True) / 127.5
            return (scaled / step).round().clamp(-128, 127) * step @ rounded.T

    model = brute_force.load(folder("llama"))
    ids = reference.batches[0]
    before = model(input_ids=ids).logits
    model.get_submodule("model.layers.1.self_attn").q_proj = ByHand()
    theirs = model(input_ids=ids).logits
    with network.holding({Q: held}):
        ours = network.run(ids, None)
    assert float((theirs - before).norm()) > 0
    assert float((ours - theirs).norm() / (theirs - before).norm()) < 0.02


def test_a_static_scale_is_the_greatest_calibration_input(
    opened: Opened, folder: Callable[[str], Path]
) -> None:
    loaded = opened()
    held = changed_alone(loaded, DOWN, "int8+a8:static")
    x = inputs_by_hook(folder("llama"), windows_of(loaded), DOWN)
    assert isinstance(held, StandIn)
    assert held.inputs is not None
    step = x.abs().max() / 127.5
    some = x[:50]
    assert torch.allclose(held.inputs(some), (some / step).round().clamp(-128, 127) * step)


def test_outliers_stay_as_they_are_in_weights_and_inputs(
    opened: Opened, folder: Callable[[str], Path]
) -> None:
    loaded = opened()
    network = loaded.network
    x = inputs_by_hook(folder("llama"), windows_of(loaded), DOWN)
    threshold = round(float(x.abs().amax(0).median()), 3)
    held = changed_alone(loaded, DOWN, f"int8+outlier{threshold}+a8")
    columns = outlier_columns(x.abs().amax(0), threshold)
    assert 0 < len(columns) < x.shape[1]
    assert isinstance(held, StandIn)
    assert held.inputs is not None
    weight = network.weight(DOWN)
    rest = torch.ones(x.shape[1], dtype=torch.bool)
    rest[columns] = False
    assert torch.equal(held.weight[:, columns], weight[:, columns].half().float())
    given = held.inputs(x[:50])
    assert torch.equal(given[:, columns], x[:50][:, columns])
    step = x[:50][:, rest].abs().amax(-1, keepdim=True) / 127.5
    assert torch.allclose(
        given[:, rest], (x[:50][:, rest] / step).clamp(-128, 127).round() * step, atol=1e-6
    )


def test_each_expert_is_solved_with_its_own_tokens(opened: Opened) -> None:
    loaded = opened("qwen3_moe")
    network = loaded.network
    name = "model.layers.1.mlp.experts.down_proj"
    ours = changed_alone(loaded, name, "int3-g32+gptq")
    assert isinstance(ours, Tensor)
    taken: dict[int, list[Tensor]] = {}
    owner = network.slot(name).owner
    with torch.no_grad():
        grams = _grams_of_experts(owner, network, windows_of(loaded), taken)
    assert len(grams) == network.layers[name].shape[0]
    for expert, gram in grams.items():
        weight = network.weight(name)[expert]
        theirs = gptq(weight, gram, parse_format("int3-g32+gptq"), torch.float16).approx()
        assert close(ours[expert], theirs), expert


def _grams_of_experts(
    owner: Any, network: Any, ids: Tensor, taken: dict[int, list[Tensor]]
) -> dict[int, Tensor]:
    """What the second product of every expert is given, by the formula of the block."""
    calls: list[tuple[Tensor, Tensor]] = []
    hook = owner.register_forward_pre_hook(
        lambda _module, args: calls.append((args[0].clone(), args[1].clone()))
    )
    for rows in ids.split(4):
        network.run(rows, None)
    hook.remove()
    for hidden, chosen in calls:
        for expert in range(owner.gate_up_proj.shape[0]):
            rows = hidden[(chosen == expert).any(-1)]
            gate, up = (rows @ owner.gate_up_proj[expert].T).chunk(2, -1)
            taken.setdefault(expert, []).append(torch.nn.functional.silu(gate) * up)
    inputs = {expert: torch.cat(parts) for expert, parts in taken.items()}
    return {expert: x.T @ x for expert, x in inputs.items() if len(x)}


def test_an_expert_that_no_token_reached_is_rounded_to_nearest_and_said_so() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(3, 16, 64, generator=generator)
    tokens = [torch.randn(count, 64, generator=generator) for count in (200, 0, 100)]
    parts = tuple(map(gathered, tokens))
    inputs = LayerInputs(gathered(torch.cat(tokens)), torch.cat(tokens), parts)
    fmt, plain = parse_format("int3-g32+gptq"), parse_format("int3-g32")
    found = solve(weight, inputs, fmt, None, torch.float16, "experts")
    assert found.notes == (
        "experts: 1 of 3 experts received no calibration token, and are rounded to nearest",
    )
    assert torch.equal(found.weight[1], dequantized(weight[1], plain, torch.float16))
    for expert in (0, 2):
        H = tokens[expert].T @ tokens[expert]
        theirs = gptq(weight[expert], H, fmt, torch.float16).approx()
        assert close(found.weight[expert], theirs)
    shared = LayerInputs(inputs.statistics, inputs.sample)
    with pytest.raises(FormatError, match="no calibration token"):
        solve(weight, LayerInputs(gathered(tokens[1]), tokens[1]), fmt, None, torch.float16, "up")
    assert solve(weight, shared, fmt, None, torch.float16, "experts").notes == ()


def test_imatrix_weighs_by_the_mean_square_of_the_layers_inputs(
    opened: Opened, folder: Callable[[str], Path]
) -> None:
    loaded = opened()
    weight, x = (
        loaded.network.weight(DOWN),
        inputs_by_hook(folder("llama"), windows_of(loaded), DOWN),
    )
    ours, plain = changed_alone(loaded, DOWN, "q4_1+imatrix"), parse_format("q4_1")
    importance = x.square().mean(0)
    theirs = quantize_gguf(weight, plain, importance=importance).approx()
    assert isinstance(ours, Tensor)
    # The last bits of sums may turn which scale a block takes, of two that are as good.
    apart = (ours - theirs).reshape(-1, 32).norm(dim=1) > 1e-6 * theirs.norm()
    assert float(apart.float().mean()) < 0.02
    costs = [float(((each - weight).square() * importance).sum()) for each in (ours, theirs)]
    assert costs[0] == pytest.approx(costs[1], rel=1e-3)
    assert not close(ours, dequantized(weight, plain, torch.float16), 1e-2)


def test_imatrix_weighs_what_awq_has_scaled(opened: Opened, folder: Callable[[str], Path]) -> None:
    loaded = opened()
    weights = [loaded.network.weight(name) for name in (Q, K, V)]
    x = inputs_by_hook(folder("llama"), windows_of(loaded), Q)
    ours = changed_alone(loaded, Q, "q4_1+awq:online+imatrix")
    scale = awq(weights, gathered(x), parse_format("q4_1+awq:online"), torch.float16).scale
    squares = (x / scale).square().mean(0)
    theirs = quantize_gguf(weights[0] * scale, parse_format("q4_1"), importance=squares).approx()
    assert isinstance(ours, Tensor)
    assert close(ours, theirs / scale)


def test_imatrix_has_an_importance_of_every_expert() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(3, 16, 64, generator=generator)
    tokens = [torch.randn(count, 64, generator=generator) ** 3 for count in (200, 0, 100)]
    inputs = LayerInputs(gathered(torch.cat(tokens)), torch.cat(tokens), (*map(gathered, tokens),))
    found = solve(weight, inputs, parse_format("q4_0+imatrix"), None, torch.float16, "experts")
    assert found.notes == (
        "experts: 1 of 3 experts received no calibration token: all their inputs count the same",
    )
    for expert, x in enumerate(tokens):
        squares = x.square().mean(0) if len(x) else torch.ones(64)
        theirs = quantize_gguf(weight[expert], parse_format("q4_0"), importance=squares)
        assert torch.equal(found.weight[expert], theirs.approx())
        assert found.form is not None
        assert isinstance(found.form.stored, GgufBlocks)
        assert torch.equal(found.form.stored.blocks[expert], theirs.blocks)


# --- whole recipes -------------------------------------------------------------------------------


def test_a_recipe_is_calibrated_on_what_its_earlier_blocks_give(
    opened: Opened, folder: Callable[[str], Path]
) -> None:
    loaded = opened()
    network = loaded.network
    text, first = "int3-g32+gptq", "model.layers.0.mlp.down_proj"
    formats = {first: parse_format(text), DOWN: parse_format(text)}
    counts = JobCounts()
    _, states = finish(recipe_inputs(loaded, formats))
    _, later = finish(approximated(loaded, DOWN, formats[DOWN], counts, states))
    earlier = states.settled[first]
    assert torch.equal(earlier, changed_alone(loaded, first, text))
    ids = windows_of(loaded)
    x = inputs_by_hook(folder("llama"), ids, DOWN, holding={first: earlier})
    weight = network.weight(DOWN)
    theirs = gptq(weight, x.T @ x, parse_format(text), torch.float16).approx()
    assert close(later, theirs)
    assert not torch.equal(later, changed_alone(loaded, DOWN, text))


def test_imatrix_weighs_by_the_unchanged_model_whatever_the_recipe(opened: Opened) -> None:
    loaded = opened()
    text, first = "q4_1+imatrix", "model.layers.0.mlp.down_proj"
    formats = {first: parse_format("int3-g32+gptq"), DOWN: parse_format(text)}
    found = finish(solved_codes(loaded, formats, JobCounts()))[1].forms
    assert isinstance(found[DOWN].stored, GgufBlocks)
    ours = changed_alone(loaded, DOWN, text)
    assert isinstance(ours, Tensor)
    assert torch.equal(found[DOWN].approx(), ours)
    _, states = finish(recipe_inputs(loaded, formats))
    _, later = finish(approximated(loaded, DOWN, formats[DOWN], JobCounts(), states))
    assert torch.equal(later, ours)
    assert not states.settled  # no block before it had to be quantised


def test_what_did_not_change_is_not_solved_again(
    opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    from engine.measure.calibration import approximate

    loaded = opened()
    solved: list[str] = []
    real = approximate.solve

    def spy(*args: Any) -> Any:
        solved.append(args[5])
        return real(*args)

    monkeypatch.setattr(approximate, "solve", spy)
    text = "int4-g32+gptq"
    layers = [f"model.layers.{i}.mlp.up_proj" for i in range(3)]
    finish(evaluate(loaded, dict.fromkeys(layers, text), "job"))
    assert solved == layers
    finish(evaluate(loaded, {**dict.fromkeys(layers, text), layers[1]: "int3-g32+gptq"}, "job"))
    assert solved[3:] == layers[1:]
    del solved[:]
    finish(evaluate(loaded, dict.fromkeys(layers[:2], text), "job"))
    assert solved == []


def test_kept_columns_count_in_the_size_of_a_recipe(opened: Opened) -> None:
    loaded = opened()
    told, _ = finish(evaluate(loaded, {DOWN: "int8+outlier2"}, "job"))
    plain, _ = finish(evaluate(loaded, {DOWN: "int8"}, "job"))
    (ours,) = list(facts([e for e in told if e], p.RecipeScore))
    (theirs,) = list(facts([e for e in plain if e], p.RecipeScore))
    assert isinstance(ours, p.RecipeScore)
    assert isinstance(theirs, p.RecipeScore)
    formats = {DOWN: parse_format("int8+outlier2")}
    columns = columns_kept(loaded, finish(recipe_inputs(loaded, formats))[1])[DOWN]
    assert columns > 0
    out = loaded.network.layers[DOWN].shape[0]
    assert ours.bytes == theirs.bytes + columns * (out * 16 + 32) // 8
    assert (ours.calibration, theirs.calibration) == ("sequential", "")


def test_a_model_that_cannot_be_resumed_is_calibrated_by_whole_forwards(opened: Opened) -> None:
    loaded = opened("gemma4")
    network = loaded.network
    assert not network.resumable
    names = [name for name, layer in network.layers.items() if layer.kind == "o_proj"][1:3]
    told, _ = finish(evaluate(loaded, dict.fromkeys(names, "int4-g32+gptq"), "job"))
    (score,) = list(facts([e for e in told if e], p.RecipeScore))
    assert isinstance(score, p.RecipeScore)
    assert score.kl > 0
    network.assert_at_rest()


# --- what figures depend on ----------------------------------------------------------------------


def test_keys_change_with_text_tokens_and_seed_and_not_with_the_budget(
    opened: Opened, prose: Path
) -> None:
    def part(**given: object) -> keys.Calibration:
        loaded = opened(**given)
        return finish(calibration_key(loaded, [parse_format("int4+gptq")], "reference"))[1]

    usual = part()
    assert isinstance(usual, keys.Calibration)
    assert part(memory_budget=1) == usual
    assert part(batch_tokens=32) == usual
    for changed in ({"calib": str(prose)}, {"calib_tokens": 512}, {"seed": 1}, {"seq_len": 16}):
        assert part(**changed) != usual, changed
    loaded = opened(calib="/nowhere/at/all.txt")
    for text in ("int4", "int8+a8", "int4+clip"):
        assert finish(calibration_key(loaded, [parse_format(text)], "reference"))[1] is None


def test_scales_that_a_layer_absorbs_have_a_key_of_their_own(opened: Opened) -> None:
    """They were chosen freely once; those of norms are as they were."""
    loaded, fmt = opened(), parse_format("int4-g32+awq")
    part = finish(calibration_key(loaded, [fmt], "reference"))[1]
    assert "scales" not in msgspec.to_builtins(part)
    assert with_scales(loaded, part, {Q: fmt}) == part
    assert with_scales(loaded, part, {Q: fmt, DOWN: fmt}) != part
    assert with_scales(loaded, part, {Q: fmt}, everywhere=fmt) != part
    assert with_scales(loaded, part, {DOWN: parse_format("int4-g32+gptq")}) == part
    assert with_scales(loaded, part, {DOWN: parse_format("int4-g32+awq:online")}) == part


def test_a_layer_is_asked_to_absorb_powers_of_two_and_a_norm_is_not(
    opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, bool] = {}

    def spy(by: str, *args: Any, exact: bool) -> Tensor:
        asked[args[-1]] = exact
        return find_scale(by, *args, exact=exact)

    monkeypatch.setattr("engine.measure.calibration.approximate.find_scale", spy)
    loaded = opened()
    for layer in (DOWN, Q):
        changed_alone(loaded, layer, "int4-g32+awq")
    assert asked == {DOWN: True, Q: False}
    changed_alone(loaded, DOWN, "int4-g32+awq:online")  # nothing absorbs it
    assert asked[DOWN] is False


def test_what_is_kept_changes_no_weight(opened: Opened) -> None:
    formats = dict.fromkeys((Q, DOWN, "lm_head"), "int3-g32+gptq")
    plenty, nothing = opened(), opened(memory_budget=1)
    for name, text in formats.items():
        assert torch.equal(changed_alone(plenty, name, text), changed_alone(nothing, name, text))


def test_least_recently_used_goes_first() -> None:
    kept: Kept[str] = Kept(10)
    for key in "abc":
        kept.keep(key, key, 4)
    assert kept.get("a") is None
    assert kept.get("b") == "b"
    kept.keep("d", "d", 4)
    assert (kept.get("c"), kept.get("b"), kept.get("d")) == (None, "b", "d")
    kept.keep("e", "e", 11)
    assert kept.get("e") is None


def test_preempted_in_the_middle_of_calibration_nothing_changes(opened: Opened) -> None:
    quiet, busy = opened(), opened()
    network = busy.network
    asked = 0

    def stop() -> bool:
        nonlocal asked
        asked += 1
        return asked % 5 == 0

    network.should_stop = stop
    steps = approximated(busy, DOWN, parse_format("int3-g32+gptq"), JobCounts())
    while True:
        try:
            next(steps)
        except StopIteration as done:
            ours = done.value
            break
        network.assert_at_rest()
    assert asked > 15
    assert torch.equal(ours, changed_alone(quiet, DOWN, "int3-g32+gptq"))


def test_cancelled_in_the_middle_of_calibration_leaves_nothing_stale(opened: Opened) -> None:
    loaded, fresh = opened(), opened()
    network = loaded.network
    layers = dict.fromkeys((Q, "model.layers.0.mlp.up_proj", DOWN), "int4-g32+gptq")
    whole = sum(1 for _ in evaluate(fresh, layers, "job"))
    for stop in range(1, whole, 7):
        steps = evaluate(loaded, layers, "job")
        for _ in range(stop):
            next(steps, None)
        steps.close()
        network.assert_at_rest()
    scores = [
        list(facts([e for e in finish(evaluate(w, layers, "job"))[0] if e], p.RecipeScore))
        for w in (loaded, fresh)
    ]
    assert scores[0] == scores[1]


# --- through the engine --------------------------------------------------------------------------


def test_without_an_absorber_a_toggle_is_refused_and_a_recipe_falls_back(
    folder: Callable[[str], Path], prose: Path, calib: Path
) -> None:
    client = in_process(str(folder("llama")))
    try:
        client.send(p.Open(str(folder("llama")), settings(prose, calib=str(calib))))
        until(client, ended("open"))
        assert client.session.model is not None
        alone = next(iter(client.session.model.why_not_folded))
        client.send(p.SetFormat((alone,), "int4-g32+awq"))
        refused = until(client, lambda e: isinstance(e, p.Refused))[-1]
        assert isinstance(refused, p.Refused)
        assert client.session.model.why_not_folded[alone] in refused.message
        assert ":online" in refused.message
        client.send(p.SetFormat((alone,), "int4-g32+awq:online"))
        until(client, ended("evaluate"))
        client.send(p.Evaluate(format="int4-g32+awq"))
        events = until(client, ended("evaluate"))
        fallbacks = {e.layer: e for e in events if isinstance(e, p.Fallback)}
        body = {
            name
            for name in client.session.model.why_not_folded
            if client.session.layers.roles[client.session.index[name]] != "head"
        }
        assert set(fallbacks) == body
        assert fallbacks[alone].format == "int4-g32+awq"
        assert fallbacks[alone].holds == "int4-g32"
        client.send(p.Evaluate(layers={"model.embed_tokens": "int4-g32+gptq"}))
        refused = until(client, lambda e: isinstance(e, p.Refused))[-1]
        assert isinstance(refused, p.Refused)
        assert "embedding" in refused.message
    finally:
        client.close()


@pytest.mark.parametrize("arch", ["llama", "gpt2", "qwen3_moe"])
@pytest.mark.parametrize(
    "text",
    ["int4-g32+awq+gptq", "q4_0+imatrix", "int8+smooth.5+a8", "int8+outlier3+a8", "int8+a8:static"],
)
def test_every_method_is_scored_on_every_architecture(arch: str, text: str, opened: Opened) -> None:
    loaded = opened(arch)
    network = loaded.network
    groups, fmt = fold_groups(network), parse_format(text)
    layers = {
        name: str(without_folds(fmt) if groups[name].why_not else fmt)
        for name, layer in network.layers.items()
        if layer.block == 1
    }
    told, outcome = finish(evaluate(loaded, layers, "job"))
    (score,) = list(facts([e for e in told if e], p.RecipeScore))
    assert isinstance(outcome, Outcome)
    assert isinstance(score, p.RecipeScore)
    assert 0 < score.kl < 1
    network.assert_at_rest()
