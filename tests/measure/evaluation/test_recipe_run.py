"""A network that holds a recipe: what changes from there equals the whole forward, to the bit."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from engine.formats.grammar import parse_format
from engine.measure.evaluation.divergence import Tally, compare
from engine.measure.evaluation.recipe_run import RecipeRun
from engine.measure.evaluation.reference import Reference
from engine.model.load import load_network
from engine.model.network import Held, Network, Preempted, StandIn
from engine.quant.quantize import dequantized
from engine.texts.windows import Windows, cut
from tests import tiny

ARCHITECTURES = ["llama", "gpt2", "qwen3_moe", "gemma4"]
SEQ_LEN, COUNT, BATCH = 16, 6, 32
ALL = 1 << 30


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Network]:
    made: dict[str, Network] = {}

    def of(arch: str) -> Network:
        if arch not in made:
            folder = tiny.build(arch, tmp_path_factory.mktemp("recipe_runs") / arch)
            made[arch] = load_network(folder, device="cpu")
        return made[arch]

    return of


@pytest.fixture(params=ARCHITECTURES)
def network(request: pytest.FixtureRequest, loaded: Callable[[str], Network]) -> Iterator[Network]:
    found = loaded(request.param)
    yield found
    found.should_stop = None
    found.assert_at_rest()


def text() -> Windows:
    return cut(tiny.ids(1, SEQ_LEN * COUNT)[0], SEQ_LEN, SEQ_LEN * COUNT)


def reference_of(network: Network, budget: int = ALL) -> Reference:
    reference = Reference(network, text(), BATCH, budget)
    assert len(reference.batches) == 3
    for batch in range(len(reference.batches)):
        reference.run(batch)
    return reference


def quantised(network: Network, name: str, format: str = "int4-g32") -> Tensor:
    return dequantized(network.weight(name), parse_format(format), torch.float16)


def everywhere(network: Network, format: str = "int4-g32") -> dict[str, Held]:
    return {name: quantised(network, name, format) for name in network.layers}


def whole(network: Network, reference: Reference, batch: int, weights: dict[str, Held]) -> Tally:
    """Plain transformers, loaded anew, with the weights written into it: nothing of ours runs."""
    model = AutoModelForCausalLM.from_pretrained(network.config.name_or_path, dtype=torch.float32)
    ids = reference.batches[batch]
    with torch.no_grad():
        before = model.eval()(input_ids=ids, use_cache=False).logits[:, :-1]
        head = model.get_output_embeddings()
        head.weight = torch.nn.Parameter(head.weight.detach().clone())
        for name, weight in weights.items():
            layer = network.layers[name]
            experts = layer.role == "experts"
            parameter = model.get_parameter(layer.module if experts else f"{layer.module}.weight")
            assert isinstance(weight, Tensor)
            parameter.copy_(weight.T if layer.role == "conv1d" else weight)
        after = model(input_ids=ids, use_cache=False).logits[:, :-1]
    return compare(before, torch.logsumexp(before, -1), after, ids[:, 1:])


def same(one: Tally, other: Tally) -> bool:
    """Equal to the last bit."""
    return all(
        torch.equal(getattr(one, part), getattr(other, part)) for part in ("dnll", "kl", "agree")
    )


def some(network: Network) -> list[str]:
    """A layer of every boundary: embedding, each block, head."""
    first: dict[int, str] = {}
    for name, layer in network.layers.items():
        first.setdefault(layer.start, name)
    assert set(first) == set(range(-1, len(network.blocks) + 1))
    return list(first.values())


def test_a_standing_scores_what_plain_transformers_scores(network: Network) -> None:
    reference, recipe = reference_of(network), everywhere(network)
    run = RecipeRun(reference, recipe)
    for batch in range(len(reference.batches)):
        found = run.tally(batch)
        assert same(found, whole(network, reference, batch, recipe))
        assert bool((found.kl > 0).all())


def test_a_layer_given_back_equals_the_whole_forward_without_it(network: Network) -> None:
    reference, recipe = reference_of(network), everywhere(network)
    run = RecipeRun(reference, recipe)
    run.run(1)
    quantised_all = run.tally(1)
    for name in some(network):
        found = run.measure(1, network.layers[name].start, {name: network.weight(name)})
        rest = {other: held for other, held in recipe.items() if other != name}
        assert same(found, whole(network, reference, 1, rest)), name
        assert not same(found, quantised_all), name


def test_a_layer_changed_further_equals_the_whole_forward_with_it(network: Network) -> None:
    reference, recipe = reference_of(network), everywhere(network)
    run = RecipeRun(reference, recipe)
    run.run(0)
    for name in some(network):
        changed = {name: quantised(network, name, "int2-g32")}
        found = run.measure(0, network.layers[name].start, changed)
        assert same(found, whole(network, reference, 0, {**recipe, **changed})), name


def test_giving_everything_back_measures_exactly_nothing(network: Network) -> None:
    reference = reference_of(network)
    run = RecipeRun(reference, everywhere(network))
    run.run(0)
    found = run.measure(0, -1, {name: network.weight(name) for name in network.layers})
    assert (float(found.dnll.abs().max()), float(found.kl.abs().max())) == (0.0, 0.0)
    assert bool((found.agree == SEQ_LEN - 1).all())


def test_a_standing_of_nothing_is_the_reference(network: Network) -> None:
    reference = reference_of(network)
    run = RecipeRun(reference, {})
    for name in some(network):
        start, changed = network.layers[name].start, {name: quantised(network, name)}
        run.run(0)
        assert same(run.measure(0, start, changed), reference.measure(0, start, changed)), name
    assert float(run.tally(0).kl.abs().max()) == 0.0


@pytest.mark.parametrize("arch", ["llama", "gemma4"])
@pytest.mark.parametrize("budget", [1, 40_000, 100_000])
def test_without_room_for_states_every_figure_is_the_same(
    arch: str, budget: int, loaded: Callable[[str], Network]
) -> None:
    network = loaded(arch)
    plenty, little = reference_of(network), reference_of(network, budget)
    recipe = everywhere(network)
    free, bound = RecipeRun(plenty, recipe), RecipeRun(little, recipe)
    for batch in range(3):
        assert same(free.tally(batch), bound.tally(batch))
        for k in range(len(network.blocks) + 1):
            assert torch.equal(free.state(batch, k), bound.state(batch, k)), k
            assert torch.equal(plenty.state(batch, k), little.state(batch, k)), k
        for name in some(network):
            start, changed = network.layers[name].start, {name: network.weight(name)}
            assert same(free.measure(batch, start, changed), bound.measure(batch, start, changed))


def test_states_are_those_of_the_forward_that_holds_the_recipe(network: Network) -> None:
    reference, recipe = reference_of(network), everywhere(network)
    run = RecipeRun(reference, recipe)
    run.run(2)
    with network.holding(recipe):
        expected = network.states(reference.batches[2])
    for k, state in enumerate(expected):
        assert torch.equal(run.state(2, k), state), k
    assert not torch.equal(expected[-1], reference.state(2, len(network.blocks)))


def test_changed_inputs_are_held_with_the_recipe_and_given_back(
    loaded: Callable[[str], Network],
) -> None:
    network = loaded("llama")
    reference, name = reference_of(network), "model.layers.1.mlp.down_proj"
    coarse = StandIn(network.weight(name), lambda x: (x * 4).round() / 4)
    run = RecipeRun(reference, {name: coarse})
    assert float(run.tally(0).kl.min()) > 0
    back = run.measure(0, 1, {name: network.weight(name)})
    assert float(back.kl.abs().max()) == 0.0


def test_a_forward_that_is_broken_off_leaves_nothing_behind(
    loaded: Callable[[str], Network],
) -> None:
    network = loaded("llama")
    reference, recipe = reference_of(network), everywhere(network)
    used = reference.memory.room.used
    run = RecipeRun(reference, recipe)
    asked = 0

    def at_the_third_block() -> bool:
        nonlocal asked
        asked += 1
        return asked == 3

    network.should_stop = at_the_third_block
    with pytest.raises(Preempted):
        run.run(0)
    network.should_stop = None
    network.assert_at_rest()
    assert not run.known(0)
    assert reference.memory.room.used == used
    assert same(run.tally(0), RecipeRun(reference, recipe).tally(0))


def test_a_change_before_the_block_it_is_measured_from_is_refused(
    loaded: Callable[[str], Network],
) -> None:
    network = loaded("llama")
    run = RecipeRun(reference_of(network), {})
    name = "model.layers.1.mlp.down_proj"
    with pytest.raises(ValueError, match="before block 2"):
        run.measure(0, 2, {name: quantised(network, name)})


def test_there_is_no_state_before_the_embedding(loaded: Callable[[str], Network]) -> None:
    network = loaded("llama")
    reference = reference_of(network)
    for k in (-1, len(network.blocks) + 1):
        with pytest.raises(ValueError, match="no boundary"):
            reference.state(0, k)
