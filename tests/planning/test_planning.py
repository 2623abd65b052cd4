"""Plans that measure: what further changes add, and the job from estimates to a document."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest
import torch
from torch.nn import functional
from transformers import AutoModelForCausalLM

from engine import protocol as p
from engine.errors import InfeasibleError, UsageError
from engine.formats.grammar import parse_format
from engine.measure.counts import JobCounts
from engine.measure.estimate.further import further
from engine.measure.evaluation.evaluate import baseline, score
from engine.measure.evaluation.reference import reference_of
from engine.planning.job import PLAN
from engine.planning.known import plan_known
from engine.planning.planning import Tried, _within_kl, plan, plan_stored
from engine.quant.quantize import dequantized
from engine.service.jobs import Context
from engine.session import Session, encode_session
from engine.store.facts import FactStore
from engine.workspace import Loaded
from tests import tiny
from tests.drive import load, settings
from tests.exact import in_float32
from tests.plan.test_proposal import known
from tests.qtui import replay as r

RECIPE = {"self_attn.q_proj": "int4-g32", "mlp.down_proj": "int3-g32"}
FORMATS = ("int2-g32", "int3-g32", "int4-g32", "int8")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.build("llama", tmp_path_factory.mktemp("planning") / "llama")


@pytest.fixture
def loaded(source: Path, prose: Path, tmp_path: Path) -> Loaded:
    chosen = settings(prose, estimate_formats=FORMATS, tokens=256)
    return load(source, FactStore(tmp_path / "facts.sqlite"), chosen)


def drained(steps: Any) -> tuple[list[Any], Any]:
    events = []
    while True:
        try:
            events.append(next(steps))
        except StopIteration as stop:
            return events, stop.value


def held(loaded: Loaded) -> dict[str, str]:
    return {
        name: format
        for name in loaded.network.layers
        for kind, format in RECIPE.items()
        if name.endswith(kind)
    }


def weight_in(loaded: Loaded, name: str, format: str) -> torch.Tensor:
    weight = loaded.network.weight(name)
    return dequantized(weight, parse_format(format), torch.float16) if format else weight


def test_further_slopes_are_gradients_of_kl_at_the_recipe(
    loaded: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    """⟨δ, ∇KL⟩ with the gradient of plain autograd, in the model that holds the recipe."""
    in_float32(monkeypatch)
    recipe = held(loaded)
    seen: dict[tuple[str, str], float] = {}
    from engine.measure.estimate import further as module

    def slope(sums: Any, backward: Any, targets: int) -> list[tuple[float, float]]:
        assert len(sums.slope) == 1
        return [(float(sums.slope[0].mean() / targets), 0.0)]

    monkeypatch.setattr(module, "mean_slope", slope)
    monkeypatch.setattr(module, "curvature", lambda *_: (0.0, 0.0))
    parsed = {name: parse_format(format) for name, format in recipe.items()}
    formats = [parse_format(each) for each in ("int8", "fp32")]
    _, found = drained(further(loaded, parsed, formats, JobCounts(), ""))
    for layer, by_format in found.items():
        for format, fact in by_format.items():
            seen[layer, format] = fact.kl

    model = AutoModelForCausalLM.from_pretrained(loaded.opened.path, dtype=torch.float32).eval()
    untied = model.get_output_embeddings()
    untied.weight = torch.nn.Parameter(untied.weight.detach().clone())
    windows = reference_of(loaded).windows
    with torch.no_grad():
        before = model(input_ids=windows.ids).logits[:, :-1].log_softmax(-1)
        for name, format in recipe.items():
            model.get_parameter(f"{name}.weight").copy_(weight_in(loaded, name, format))
    after = model(input_ids=windows.ids).logits[:, :-1].log_softmax(-1)
    kl = functional.kl_div(after, before, log_target=True, reduction="sum") / before[..., 0].numel()
    kl.backward()
    assert kl > 0
    for (layer, format), slope_found in seen.items():
        gradient = model.get_parameter(f"{layer}.weight").grad
        assert gradient is not None
        plain = "" if format == "fp32" else format
        delta = weight_in(loaded, layer, plain) - weight_in(loaded, layer, recipe.get(layer, ""))
        expected = float((delta * gradient).sum())
        assert slope_found == pytest.approx(expected, rel=2e-3, abs=2e-6), (layer, format)
    # Only layers of the recipe can go back to what is stored.
    assert {layer for layer, format in seen if format == "fp32"} == set(recipe)
    assert {layer for layer, format in seen if format == "int8"} == set(loaded.network.layers)


def test_further_estimates_are_stored_for_that_recipe_alone(loaded: Loaded) -> None:
    parsed = {name: parse_format(format) for name, format in held(loaded).items()}
    formats = [parse_format("int8")]
    events, found = drained(further(loaded, parsed, formats, JobCounts(), ""))
    for event in events:
        if isinstance(event, p.Learned):
            loaded.opened.workspace.facts.put(event.keys, event.facts)
    counts = JobCounts()
    _, same = drained(further(loaded, parsed, formats, counts, ""))
    assert (counts.measured, same) == (0, found)
    counts = JobCounts()
    parsed.popitem()
    drained(further(loaded, parsed, formats, counts, ""))
    assert counts.measured == len(loaded.network.layers)


def test_a_plan_fits_is_measured_and_is_no_worse_than_simple_rules(loaded: Loaded) -> None:
    events, outcome = drained(plan(loaded, p.Plan(budget=p.Budget(bits=4.7), formats=FORMATS), "j"))
    found = outcome.result
    assert isinstance(found, p.Planned)
    assert found.point.bits_per_weight <= 4.7
    tried = [
        fact
        for event in events
        if isinstance(event, p.Learned)
        for fact in event.facts
        if isinstance(fact, p.RecipeScore)
    ]
    assert found.point.score is not None
    assert found.forwards <= 20
    # Measured alone, it scores what the plan says, and as well as the best that was tried.
    counts = JobCounts()
    _, base = drained(baseline(loaded, counts))
    _, alone = drained(score(loaded, found.recipe, base.nll, counts))
    assert alone.kl == pytest.approx(found.point.score.kl, rel=1e-6)
    fitting = [each.kl for each in tried if each.bits_per_weight <= 4.7]
    assert found.point.score.kl == min(fitting)
    assert set(found.baselines) == {"uniform", "first-last", "greedy"}
    assert all(point.score is not None for point in found.baselines.values())
    by_unit = {unit.layers: unit.format for unit in found.units}
    for layers, format in by_unit.items():
        assert {found.recipe.get(layer, "") for layer in layers} == {format}
    assert any(len(layers) == 3 for layers in by_unit), "q, k and v are one unit"
    assert any(isinstance(event, p.Progress) for event in events)


def test_without_forwards_the_effects_that_a_session_knows_are_enough() -> None:
    session = known()
    before = encode_session(session)
    command = p.Plan(budget=p.Budget(bits=5.0), formats=("int4-g128", "int8"), forwards=0)
    found = plan_known(session, command, "bfloat16").result
    assert isinstance(found, p.Planned)
    assert found.point.score is None
    assert found.point.bits_per_weight <= 5.0
    assert found.point.kl < found.baselines["uniform"].kl
    assert encode_session(session) == before
    with pytest.raises(InfeasibleError, match="sweep first"):
        plan_known(Session(), command, "bfloat16")
    for column in (*session.effects.measured.values(), *session.effects.estimated.values()):
        column[3] = None
    with pytest.raises(InfeasibleError, match="1 of 6 layers are not known yet"):
        plan_known(session, command, "bfloat16")


def test_a_budget_of_kl_is_kept_as_measured(loaded: Loaded) -> None:
    uniform = {name: "int4-g32" for name, x in loaded.network.layers.items() if x.block is not None}
    counts = JobCounts()
    _, base = drained(baseline(loaded, counts))
    _, whole = drained(score(loaded, uniform, base.nll, counts))
    asked = p.Plan(budget=p.Budget(kl=whole.kl), formats=FORMATS)
    _, outcome = drained(plan(loaded, asked, "j"))
    found = outcome.result
    assert found.point.score.kl <= whole.kl
    assert found.point.bytes <= whole.bytes


def test_a_target_leaves_out_what_it_cannot_store(loaded: Loaded) -> None:
    formats = ("q4_0", "int4-g32", "int8")
    asked = p.Plan(budget=p.Budget(bits=5.2), formats=formats, to="checkpoint", forwards=1)
    _, outcome = drained(plan(loaded, asked, "j"))
    assert "q4_0" not in outcome.result.recipe.values()
    alone = p.Plan(budget=p.Budget(bits=5.2), formats=("q4_0",), to="checkpoint", forwards=1)
    with pytest.raises(InfeasibleError, match="no recipe fits"):
        drained(plan(loaded, alone, "j"))


class Tries:
    """A planner whose recipes measure more than they predict, and more each time than before."""

    def __init__(self, *found: float) -> None:
        self.command = p.Plan(budget=p.Budget(kl=0.01))
        self._found = iter(found)
        self.aims: list[float | None] = []

    def room(self, forwards: float) -> bool:
        return True

    def attempt(self, units: Any, budget: p.Budget) -> Any:
        self.aims.append(budget.kl)
        kl = next(self._found)
        score = msgspec.structs.replace(r.score("x", ppl=20.0, half=0.1), kl=kl, bytes=1000)
        yield None
        return Tried({}, [], 0.0, 0.0, score), 0.0


def test_a_kl_that_was_not_reached_is_no_answer() -> None:
    reached = Tries(0.02, 0.012, 0.0099)
    _, (tried, _) = drained(_within_kl(cast("Any", reached), []))
    assert tried.score.kl == 0.0099
    assert reached.aims == sorted(cast("list[float]", reached.aims), reverse=True)
    with pytest.raises(InfeasibleError, match=r"within KL 0.01: the nearest has 0.011"):
        drained(_within_kl(cast("Any", Tries(0.02, 0.015, 0.011, 0.012, 0.013)), []))


def test_a_pinned_format_is_estimated_for_its_layer_and_chosen_for_no_other(loaded: Loaded) -> None:
    layer = "model.layers.0.mlp.down_proj"
    asked = p.Plan(
        budget=p.Budget(bits=5.2), formats=("int4-g32", "int8"), pins={layer: "nf4-g64"}, forwards=1
    )
    _, outcome = drained(plan(loaded, asked, "j"))
    held = outcome.result.recipe
    assert held[layer] == "nf4-g64"
    assert list(held.values()).count("nf4-g64") == 1


@pytest.mark.parametrize(
    "command",
    [
        p.Plan(budget=p.Budget(bits=math.inf)),
        p.Plan(budget=p.Budget(bits=math.nan)),
        p.Plan(budget=p.Budget(gib=1.0, context=5, batch=0)),
        p.Plan(budget=p.Budget(gib=1.0, context=5, cache_bits=7)),
        p.Plan(budget=p.Budget(bits=4.0), forwards=math.nan),
        p.Plan(budget=p.Budget(bits=4.0), forwards=-1),
        p.Plan(budget=p.Budget()),
        p.Plan(budget=p.Budget(bits=4.0, kl=1.0)),
        p.Plan(budget=p.Budget(bits=4.0, context=5)),
        p.Plan(budget=p.Budget(bits=4.0), to="nowhere"),
        p.Plan(budget=p.Budget(bits=4.0), pins={"re:(": "int8"}),
    ],
)
def test_a_command_that_makes_no_sense_is_refused_when_it_arrives(command: p.Plan) -> None:
    with pytest.raises(UsageError):
        PLAN.accept(Context(None, known()), command)


def test_a_plan_of_what_is_stored_is_that_of_the_effects_and_computes_none(
    source: Path, prose: Path, tmp_path: Path
) -> None:
    store = FactStore(tmp_path / "facts.sqlite")
    loaded = load(source, store, settings(prose, estimate_formats=FORMATS, tokens=256))
    command = p.Plan(budget=p.Budget(bits=4.5), formats=FORMATS, forwards=0, stored=True)
    with pytest.raises(InfeasibleError, match="sweep first"):
        drained(plan_stored(loaded, command, "job"))
    measured = msgspec.structs.replace(command, forwards=8.0, stored=False)
    events, first = drained(plan(loaded, measured, "job"))
    for event in events:
        if isinstance(event, p.Learned):
            store.put(event.keys, event.facts)
    _, outcome = drained(plan_stored(loaded, command, "job"))
    assert outcome.measured == 0
    assert outcome.resumed > len(loaded.network.layers)
    assert [point.kl for point in outcome.result.frontier] == [
        point.kl for point in first.result.frontier
    ]
    assert outcome.result.recipe
