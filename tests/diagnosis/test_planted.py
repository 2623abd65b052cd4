"""Every planted fault is found by name, with its cause, and nothing else is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from engine import protocol as p
from engine.diagnosis.finding import Finding
from engine.diagnosis.findings import findings as all_of
from engine.formats.grammar import parse_format
from engine.quant.quantize import dequantized
from engine.store.facts import FactStore
from tests.diagnosis.planting import State, altered, standing_out, triaged
from tests.diagnosis.test_findings import F, changed, clean, findings, without_channels

Q = "model.layers.2.self_attn.q_proj"
DOWN = "model.layers.1.mlp.down_proj"
UP = "model.layers.{}.mlp.up_proj"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[FactStore]:
    found = FactStore(tmp_path / "facts.sqlite")
    yield found
    found.close()


@pytest.fixture(scope="module")
def before(tmp_path_factory: pytest.TempPathFactory) -> set[tuple[str, str]]:
    """Findings of the demo as it is: channels that were planted when it was made."""
    folder = tmp_path_factory.mktemp("demo")
    with_store = FactStore(folder / "facts.sqlite")
    found = standing_out(triaged(altered(folder / "demo", lambda state: None), with_store))
    with_store.close()
    assert {each.id for each in found} == {"outlier-channel"}
    return {(each.id, each.layer) for each in found}


def weight(state: State, layer: str) -> torch.Tensor:
    return state[f"{layer}.weight"]


def giant_channel(state: State) -> None:
    weight(state, Q)[:, 7] *= 64


def dead_row(state: State) -> None:
    weight(state, Q)[3] = 0


def not_numbers(state: State) -> None:
    weight(state, Q)[3, 5] = float("nan")


def two_heaps(state: State) -> None:
    state[f"{Q}.weight"] = weight(state, Q) * 0.1 + 0.1 * weight(state, Q).sign()


def two_sizes_side_by_side(state: State) -> None:
    for first in range(0, weight(state, DOWN).shape[1], 128):
        weight(state, DOWN)[:, first : first + 64] /= 16


def two_sizes_by_turns(state: State) -> None:
    weight(state, DOWN)[:, ::2] /= 16


def swapped(state: State) -> None:
    one, two = (f"{UP.format(block)}.weight" for block in (1, 3))
    state[one], state[two] = state[two].clone(), state[one].clone()


def copied(state: State) -> None:
    state[f"{UP.format(3)}.weight"] = weight(state, UP.format(1)).clone()


def four_bits(state: State) -> None:
    state[f"{Q}.weight"] = dequantized(
        weight(state, Q), parse_format("int4-g32"), torch.float16
    ).half()


def eight_bits(state: State) -> None:
    known = weight(state, DOWN)
    state[f"{DOWN}.weight"] = dequantized(known, parse_format("int8"), torch.float16).half()


def through_fp8(state: State) -> None:
    known = weight(state, Q)
    state[f"{Q}.weight"] = known.to(torch.float8_e4m3fn).to(known.dtype)


def through_bfloat16(state: State) -> None:
    known = weight(state, Q)
    state[f"{Q}.weight"] = known.to(torch.bfloat16).to(known.dtype)


def other_dtype(state: State) -> None:
    state[f"{Q}.weight"] = weight(state, Q).float() * (1 + 1e-5)


def too_small(state: State) -> None:
    weight(state, Q).mul_(1e-3)


PLANTED: list[tuple[Callable[[State], None], str, str, str]] = [
    (giant_channel, "outlier-channel", Q, "channel 7 reaches"),
    (dead_row, "dead-rows", Q, "1 output row all zero"),
    (not_numbers, "not-finite", Q, "1 NaN and 0 Inf"),
    (two_heaps, "two-heaps", Q, "two heaps"),
    (two_sizes_side_by_side, "mixed-groups", DOWN, "too large"),
    (two_sizes_by_turns, "mixed-groups", DOWN, "too large"),
    (swapped, "swapped", UP.format(1), f"seems swapped with {UP.format(3)}"),
    (copied, "duplicate", UP.format(3), f"those of {UP.format(1)}"),
    (four_bits, "few-levels", Q, "rounded to 4 bits"),
    (eight_bits, "few-levels", DOWN, "rounded to 8 bits"),
    (through_fp8, "narrow-mantissa", Q, "need 3 bits"),
    (through_bfloat16, "narrow-mantissa", Q, "need 7 bits"),
    (other_dtype, "other-dtype", Q, "stored in float32"),
    (too_small, "denormals", Q, "float16 loses bits"),
]


@pytest.mark.parametrize(
    ("plant", "id", "layer", "says"), PLANTED, ids=[x[0].__name__ for x in PLANTED]
)
def test_a_fault_of_weights_is_found_in_its_layer_and_nowhere_else(
    plant: Callable[[State], None],
    id: str,
    layer: str,
    says: str,
    tmp_path: Path,
    store: FactStore,
    before: set[tuple[str, str]],
) -> None:
    found = standing_out(triaged(altered(tmp_path / "model", plant), store))
    new = [each for each in found if (each.id, each.layer) not in before]
    (at,) = [each for each in new if each.id == id]
    assert at.layer == layer
    assert says in at.sentence
    assert {(each.id, each.layer) for each in new} == {(id, layer)}


def test_a_checkpoint_of_a_quantised_one_is_told_once(tmp_path: Path, store: FactStore) -> None:
    def rounded(state: State) -> None:
        for name, each in state.items():
            if each.ndim == 2:
                state[name] = dequantized(each, parse_format("int4-g32"), torch.float16)

    session = triaged(altered(tmp_path / "model", rounded), store)
    (said,) = [each for each in all_of(session, F) if each.id == "few-levels"]
    assert said.severity == "info"
    assert "37 of 37 layers are on a grid already, of 4 bits" in said.sentence
    assert "only formats on just that grid" in said.sentence


def test_a_tied_pair_is_judged_once() -> None:
    session = without_channels(clean())
    for name in ("model.embed_tokens", "lm_head"):
        changed(session, name, worst_column=3, worst_column_sigma=20.0)
    assert [each.layer for each in findings(session, F)] == ["model.embed_tokens", "lm_head"]
    session.layers.tied, session.model = True, None
    assert [each.layer for each in findings(session, F)] == ["model.embed_tokens"]


# --- effects, activations -----------------------------------------------------------------------


def given(layer: str, **other: object) -> p.LayerActivations:
    """Inputs of a layer as in a clean model, some figures otherwise."""
    known: dict[str, object] = {
        "max": 4.0, "mean": 0.5, "std": 0.7, "p99": 2.0, "channels": 256, "channel_median": 2.0,
        "outlier_channels": (), "outlier_maxima": (), "by_median": 0, "by_mean": 0,
        "largest_norm": 20.0, "median_norm": 12.0, "position": 0, "massive": 0,
    }  # fmt: skip
    return p.LayerActivations(
        layer=layer, tokens=1000, shared_with=layer,
        input=p.Activation(**{**known, **other}),  # type: ignore[arg-type]
    )  # fmt: skip


def with_inputs(fact: p.LayerActivations) -> list[Finding]:
    session = without_channels(clean())
    session.layers.activations[session.index[fact.layer]] = fact
    return findings(session, F)


def test_a_massive_token_is_named_with_its_position() -> None:
    (found,) = with_inputs(given(DOWN, largest_norm=4800.0, position=0, massive=3))
    assert (found.id, found.layer) == ("massive-token", DOWN)
    assert "position 0 is 400× the median" in found.sentence


def test_experts_without_tokens_and_with_few_are_named() -> None:
    fact = given(DOWN)
    tokens = [700, 0, 100, 900]
    found = with_inputs(
        p.LayerActivations(
            layer=DOWN, tokens=1700, input=fact.input, shared_with=DOWN, expert_tokens=tokens
        )
    )
    assert [each.id for each in found] == ["unseen-expert", "thin-experts"]
    assert "1 of 4 experts got no token of the calibration text (1)" in found[0].sentence
    assert "expert 2 the fewest, 100" in found[1].sentence


def test_calibration_text_that_is_too_little_is_told() -> None:
    session = without_channels(clean())
    session.calibration = p.Calibrated(
        text="t", text_sha256="", tokens=600, seq_len=150, windows=4, seed=0
    )
    found = {each.id: each.sentence for each in findings(session, F)}
    assert set(found) == {"few-windows", "few-tokens"}
    assert "600 tokens of calibration text for up to 768 inputs, in 5 layers" in found["few-tokens"]


# --- rules of thumb ------------------------------------------------------------------------------


def rules(**worse: float) -> dict[str, str]:
    session = without_channels(clean(**worse))
    return {each.id: each.sentence for each in all_of(session, F) if each.severity == "info"}


def test_rules_of_thumb_hold_or_not_by_the_figures() -> None:
    assert "does not hold here" in rules()["rule-first-last"]
    assert (
        "holds for the first block, not for the last" in rules(layers__0__=4.0)["rule-first-last"]
    )
    both = rules(layers__0__=4.0, layers__4__=4.0)
    assert "to keep the first and last block holds here" in both["rule-first-last"]
    assert (
        "does not hold for v_proj and down_proj" in rules(v_proj=0.01, down_proj=0.01)["rule-kinds"]
    )
    assert "than most kinds holds here" in rules(v_proj=20.0, down_proj=20.0)["rule-kinds"]
    assert rules()["rule-perplexity"].startswith("the rule that a layer is sensitive from a per")
    assert "misses most of the damage here: the worst costs +0.0" in rules()["rule-perplexity"]
    many = rules(layers__2__=3000.0)
    assert "finds most of the damage here: 7 layers" in many["rule-perplexity"]
    single = rules(layers__2__mlp__up_proj=3000.0)
    assert "finds most of the damage here: 1 layer, " in single["rule-perplexity"]


def test_the_rule_of_groups_of_64_is_judged_by_ranges() -> None:
    for noise, says in ((0.6, "pay here"), (0.97, "do not pay here")):
        session = without_channels(clean())
        for name in session.layers.names:
            changed(session, name, noise_g64=noise)
        (found,) = [x for x in all_of(session, F) if x.id == "rule-group-64"]
        assert says in found.sentence
        # KL of a bit less is four times as much in these effects.
        assert found.evidence["left"] == pytest.approx(noise)
        assert found.evidence["mix"] == pytest.approx(4 ** -found.evidence["bits"], rel=1e-6)


def test_the_rule_of_outlier_channels_is_judged_by_effects() -> None:
    for worse, says in ((40.0, "fragile holds here"), (1.0, "fragile does not hold here")):
        session = without_channels(clean(layers__2__mlp__down_proj=worse))
        for name in session.layers.names:
            many = 12 if name == "model.layers.2.mlp.down_proj" else 0
            session.layers.activations[session.index[name]] = given(name, by_median=many)
        (found,) = [x for x in all_of(session, F) if x.id == "rule-outlier-channels"]
        assert says in found.sentence
        assert "1 of 35 layers have them" in found.sentence
