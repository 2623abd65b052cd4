"""A recipe scored from where it differs from one before has the score it has on its own."""

from __future__ import annotations

import random
import weakref
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from engine import protocol as p
from engine.formats.grammar import Format, parse_format
from engine.measure.counts import JobCounts
from engine.measure.evaluation import evaluate as evaluation
from engine.measure.evaluation.evaluate import evaluate, made_from
from engine.measure.evaluation.recipe_run import RecentRuns
from engine.measure.evaluation.reference import Reference, reference_of
from engine.model.network import Compact, Held
from engine.quant.quantize import dequantized
from engine.store.facts import FactStore
from engine.workspace import Loaded, Workspace
from tests import tiny
from tests.drive import load, settings

Recipe = dict[str, str]
BLOCKS, BATCHES = 6, 4


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory, prose: Path) -> Callable[[str], Loaded]:
    """Loaded models of six blocks; facts and states are for each test to replace."""
    made: dict[str, Loaded] = {}
    sizes = {"gpt2": {"n_layer": BLOCKS}, "gemma4": {}}

    def of(arch: str) -> Loaded:
        if arch not in made:
            folder = tmp_path_factory.mktemp("recipes") / arch
            tiny.build(arch, folder, **sizes.get(arch, {"num_hidden_layers": BLOCKS}))
            made[arch] = load(folder, FactStore(folder / "facts"), settings(prose))
        return made[arch]

    return of


@pytest.fixture
def anew(opened: Callable[[str], Loaded], tmp_path: Path) -> Callable[..., Loaded]:
    """A model that has measured nothing."""
    numbers = iter(range(1000))

    def of(arch: str = "llama", budget: int = 1 << 30) -> Loaded:
        loaded = opened(arch)
        reference = Reference(loaded.network, loaded.windows, 128, budget)
        assert len(reference.batches) == BATCHES
        facts = FactStore(tmp_path / f"facts-{next(numbers)}")
        workspace = Workspace(facts, loaded.settings)
        opened_anew = replace(loaded.opened, workspace=workspace)
        return replace(loaded, opened=opened_anew, _parts={Reference: reference})

    return of


def run(loaded: Loaded, recipe: Recipe, cancel_after: int | None = None) -> p.RecipeScore:
    """The score of a recipe; of one cancelled after some micro-batches, the unfinished one."""
    steps = evaluate(loaded, recipe, "job")
    seen: list[p.RecipeScore] = []
    for event in steps:
        if isinstance(event, p.RecipePartial):
            seen.append(event.score)
        elif isinstance(event, p.Learned):
            loaded.opened.workspace.facts.put(event.keys, event.facts)
            seen += [fact for fact in event.facts if isinstance(fact, p.RecipeScore)]
        if len(seen) == cancel_after:
            steps.close()
            break
    return seen[-1]


@contextmanager
def counted(loaded: Loaded) -> Iterator[Counter[int]]:
    """How often each block computes."""
    network = loaded.network
    runs: Counter[int] = Counter()

    def counting(i: int, forward: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            runs[i] += 1
            return forward(*args, **kwargs)

        return run

    for i, block in enumerate(network.blocks.modules):
        block.__dict__["forward"] = counting(i, block.forward)
    try:
        yield runs
    finally:
        for block in network.blocks.modules:
            del block.__dict__["forward"]
        network.assert_at_rest()


def layer(loaded: Loaded, start: int) -> str:
    """A layer of a block."""
    network = loaded.network
    return next(name for name, each in network.layers.items() if each.start == start)


@pytest.mark.parametrize(
    ("arch", "budget"),
    [
        ("llama", 1 << 30),
        ("llama", 1_500_000),
        ("llama", 1),
        ("gpt2", 1 << 30),
        ("gemma4", 1 << 30),
    ],
)
def test_any_walk_of_toggles_scores_what_each_recipe_scores_alone(
    arch: str, budget: int, anew: Callable[..., Loaded]
) -> None:
    walker = anew(arch, budget)
    network, reference = walker.network, reference_of(walker)
    choice = random.Random(5)
    alone: dict[str, p.RecipeScore] = {}
    recipe: Recipe = {}
    history: list[Recipe] = []
    finished = 0
    for step in range(10):
        before = dict(recipe)
        if step % 5 == 4 and history:
            recipe = history.pop()  # undone
        else:
            for name in choice.sample(sorted(network.layers), 1 if step else 12):
                recipe[name] = choice.choice(["int4-g32", "int3-g32", "int8"])
            if step % 4 == 3:
                del recipe[choice.choice(sorted(recipe))]
            history.append(before)
        cancel = choice.choice([None, None, 1, 2])
        found = run(walker, recipe, cancel)
        if found.done:
            finished += 1
        key = f"{recipe} {found.tokens}"
        if key not in alone:
            alone[key] = run(anew(arch), recipe, None if found.done else cancel)
        assert found == alone[key], step
    assert 3 <= finished < 10
    assert reference.memory.room.peak <= max(budget, 20_000)


def test_a_toggle_in_a_late_block_runs_no_block_before_it(anew: Callable[..., Loaded]) -> None:
    loaded = anew()
    everywhere = {layer(loaded, i): "int4-g32" for i in range(-1, BLOCKS)}
    run(loaded, everywhere)
    with counted(loaded) as runs:
        run(loaded, {**everywhere, layer(loaded, 4): "int3-g32"})
    assert runs == {4: BATCHES, 5: BATCHES}
    with counted(loaded) as runs:
        run(loaded, {**everywhere, layer(loaded, BLOCKS): "int8"})
    assert runs[3] == 0  # the head and block 4 are what differs
    with counted(loaded) as runs:
        run(loaded, {layer(loaded, 5): "int8"})
    assert runs == {5: BATCHES}  # nearer to the reference than to any recipe before


def test_only_what_changed_is_quantised_again(
    anew: Callable[..., Loaded], monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = anew()
    asked: list[str] = []
    approximated = evaluation.approximated

    def watched(
        loaded: Loaded, name: str, format: Format, counts: JobCounts, recipe: Any, **how: bool
    ) -> Generator[p.AnyEvent | None, None, Held]:
        asked.append(name)
        return (yield from approximated(loaded, name, format, counts, recipe, **how))

    monkeypatch.setattr(evaluation, "approximated", watched)
    everywhere = {layer(loaded, i): "int4-g32" for i in range(-1, BLOCKS)}
    run(loaded, everywhere)
    assert sorted(asked) == sorted(everywhere)
    asked.clear()
    run(loaded, {**everywhere, layer(loaded, 2): "int3-g32"})
    assert asked == [layer(loaded, 2)]


@pytest.mark.parametrize("arch", ["llama", "gpt2", "mixtral"])
def test_weights_that_do_not_fit_are_kept_compact_and_score_the_same(
    arch: str, anew: Callable[..., Loaded], monkeypatch: pytest.MonkeyPatch
) -> None:
    layers = anew(arch).network.layers
    held = {name: "int4-g32" for name, each in layers.items() if each.role != "router"}
    held |= dict.fromkeys(list(held)[1::3], "int8") | {next(iter(held)): "bf16"}
    expected = run(anew(arch), held)
    loaded, alive = anew(arch, budget=1), Counter[str]()
    network, most, kinds = loaded.network, [0], Counter[str]()
    approximated = evaluation.approximated

    def watched(
        loaded: Loaded, name: str, format: Format, counts: JobCounts, recipe: Any, **how: bool
    ) -> Generator[p.AnyEvent | None, None, Held]:
        found = yield from approximated(loaded, name, format, counts, recipe, **how)
        kinds[type(found).__name__] += 1
        if not isinstance(found, Compact):
            return found

        def make() -> Tensor:
            weight = found.make()
            alive[name] += 1
            most[0] = max(most[0], sum(alive.values()))
            weakref.finalize(weight, alive.subtract, [name])
            return weight

        return replace(found, make=make)

    monkeypatch.setattr(evaluation, "approximated", watched)
    assert run(loaded, held) == expected
    assert kinds == {"Compact": len(held) - 1, "Tensor": 1}  # each is quantised once
    blocks = Counter(network.layers[name].block for name in held)
    assert 0 < most[0] <= max(blocks.values()) + 1  # of one block, and a head
    assert not +alive


def test_a_cancelled_score_leaves_its_micro_batches_to_the_next(
    anew: Callable[..., Loaded],
) -> None:
    loaded = anew()
    everywhere = {layer(loaded, i): "int4-g32" for i in range(BLOCKS)}
    run(loaded, everywhere)
    first = {**everywhere, layer(loaded, 1): "int3-g32"}
    run(loaded, first, cancel_after=1)
    with counted(loaded) as runs:
        run(loaded, first)
    assert runs == dict.fromkeys(range(1, BLOCKS), BATCHES - 1)  # one was there

    run(loaded, {**first, layer(loaded, 0): "int8"}, cancel_after=2)
    with counted(loaded) as runs:
        run(loaded, {**first, layer(loaded, 0): "int8", layer(loaded, 4): "int8"})
    # Two micro-batches go on from the cancelled one's block 4, two from the one before's block 0.
    assert runs == {**dict.fromkeys(range(4), BATCHES - 2), 4: BATCHES, 5: BATCHES}


def test_many_quick_toggles_do_not_push_out_the_recipe_that_was_run_whole(
    anew: Callable[..., Loaded],
) -> None:
    loaded = anew()
    everywhere = {layer(loaded, i): "int4-g32" for i in range(BLOCKS)}
    run(loaded, everywhere)
    for format in ("int2-g32", "int3-g32", "int5-g32", "int6-g32"):
        run(loaded, {**everywhere, layer(loaded, 3): format}, cancel_after=1)
    with counted(loaded) as runs:
        run(loaded, {**everywhere, layer(loaded, 3): "int8"})
    assert runs == dict.fromkeys((3, 4, 5), BATCHES)


def test_where_the_budget_holds_one_recipe_the_next_takes_its_place(
    anew: Callable[..., Loaded],
) -> None:
    reference = reference_of(anew())
    sizes = reference.sizes
    budget = sizes.states(1) * 2 + sizes.logits + sizes.states(1) // 3
    loaded = anew(budget=budget)
    reference = reference_of(loaded)
    reference.memory.beyond = []  # nowhere else
    recipe = {layer(loaded, i): "int4-g32" for i in range(BLOCKS)}
    run(loaded, recipe)
    assert reference.states.every == 1
    for format in ("int3-g32", "int5-g32", "int6-g32"):
        with counted(loaded) as runs:
            run(loaded, recipe := {**recipe, layer(loaded, 4): format})
        assert sum(runs[i] for i in range(4)) <= 4, format  # one micro-batch at the most
        assert reference.memory.room.peak <= budget


def test_weights_made_from_other_inputs_are_not_taken_for_those_of_the_same_format(
    anew: Callable[..., Loaded], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Methods calibrated block by block: an equal format, another weight."""
    current: Recipe = {}

    def sequential(
        loaded: Loaded, name: str, format: Format, counts: JobCounts, recipe: Any, **how: bool
    ) -> Generator[None, None, Held]:
        network = loaded.network
        start = network.layers[name].start
        before = sorted((n, f) for n, f in current.items() if network.layers[n].start < start)
        yield None
        plain = dequantized(network.weight(name), parse_format("int4-g32"), torch.float16)
        seed = sum(map(ord, repr(before)))
        noise = torch.randn(plain.shape, generator=torch.Generator().manual_seed(seed))
        return plain + 0.01 * noise

    monkeypatch.setattr(evaluation, "approximated", sequential)

    def score(loaded: Loaded, recipe: Mapping[str, str]) -> p.RecipeScore:
        current.clear()
        current.update(recipe)
        return run(loaded, dict(recipe))

    loaded = anew()
    recipe = {layer(loaded, i): "int4-g32+gptq" for i in range(BLOCKS)}
    score(loaded, recipe)
    for i, format in ((1, "int3-g32"), (4, "int8"), (0, "int4-g32+gptq:damp=.02")):
        recipe = {**recipe, layer(loaded, i): format}
        with counted(loaded) as runs:
            found = score(loaded, recipe)
        assert runs[i] == BATCHES
        assert sum(runs[j] for j in range(i)) == 0
        assert found == score(anew(), recipe)


def test_what_a_weight_is_made_from_reaches_as_far_as_methods_look(
    anew: Callable[..., Loaded],
) -> None:
    loaded = anew()
    network = loaded.network
    names = [layer(loaded, i) for i in range(BLOCKS)]

    def made(**formats: str) -> dict[str, str]:
        recipe = {names[int(key[1:])]: parse_format(text) for key, text in formats.items()}
        return made_from(network, recipe)

    plain = made(b0="int4-g32", b1="int4-g32", b4="int4-g32")
    assert plain == made(b1="int4-g32", b4="int4-g32") | {names[0]: plain[names[0]]}
    one = made(b0="int4-g32", b1="int4-g32+gptq", b4="int4-g32")
    other = made(b0="int8", b1="int4-g32+gptq", b4="int4-g32")
    assert one[names[0]] == plain[names[0]]
    assert one[names[1]] != other[names[1]]
    assert one[names[4]] != other[names[4]]
    later = made(b0="int4-g32", b1="int4-g32+gptq", b4="int8")
    assert later[names[1]] == one[names[1]]


def test_what_recipes_held_is_given_back(anew: Callable[..., Loaded]) -> None:
    loaded = anew()
    network, reference = loaded.network, reference_of(loaded)
    run(loaded, {})
    alone = reference.memory.room.used
    for format in ("int4-g32", "int3-g32", "int8"):
        run(loaded, dict.fromkeys(network.layers, format))
    recent = loaded.find(RecentRuns)
    assert recent is not None
    two = reference.memory.room.used
    run(loaded, dict.fromkeys(network.layers, "int2-g32"))
    assert reference.memory.room.used == two  # never more than two recipes
    assert two > alone

    weights: list[Tensor] = [network.weight(name) for name in network.layers]
    whole = sum(weight.nbytes for weight in weights)
    assert two - alone == 2 * (whole + reference.sizes.states(1))
