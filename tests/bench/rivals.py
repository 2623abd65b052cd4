"""Our plan beside the rules of other tools: same options, units and windows, in one run.

    python -m tests.bench.rivals MODEL [--text FILE --tokens N --seq-len N] --kept FILE.json

For every budget, the recipe of each rule (`tests.bench.rival_rules`, by the tool's own score of
`tests.bench.rival_scores`) and of ``qtui plan`` with at most 20 forward passes, and what each
measures: KL on the windows that all of them saw, and on as many windows after those that none saw.
Ratios are of paired windows, with twice their standard error. What was computed is kept in a file,
so that a run cut short goes on; ``--as NAME`` makes the plan again under another name, to see two
versions of the planner in one table. ``--bits mixes --formats q2_k,q3_k,q4_k,q5_k,q6_k`` takes the
sizes of llama.cpp's mixes as budgets, with the mix in the table.

Two rules measure every unit in every format: Model Optimizer's ``kl_div`` at the unchanged model,
ExLlamaV3 at a model wholly in one format. They get our estimates of the same, unless ``--exact``.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import pytest
import torch
from torch import Tensor

from engine import protocol as p
from engine.formats.grammar import parse_format
from engine.measure.calibration.approximate import approximated
from engine.measure.counts import JobCounts
from engine.measure.estimate.further import further
from engine.measure.evaluation.evaluate import baseline, whole_reference
from engine.measure.evaluation.reference import reference_of
from engine.model.network import whole
from engine.plan.baselines import baselines
from engine.plan.proposal import limit_of, solved
from engine.plan.units import Choice, Unit, recipe_of, units_of
from engine.planning import planning
from engine.planning.planning import ESTIMATING, Events, Planner, Scored, Tried
from engine.planning.rules import rules_of
from engine.profiles import load_profile
from engine.recipes.changes import canonical, resolve
from engine.recipes.mixes import MIXES
from engine.session import recipe_hash
from engine.session.artefact import OUTSIDE
from engine.store.facts import FactStore
from engine.workspace import Loaded
from tests import brute_force
from tests.bench import rival_rules as rules
from tests.bench import rival_scores as scores
from tests.bench.against_exact import measure, through
from tests.bench.truth import machine
from tests.drive import load

T = TypeVar("T")
Recipe = dict[str, str]

BITS = "3.25,3.5,4.25,4.5,5.25"
FORWARDS = 20.0
NOISE = (0.05, 0.1, 0.2)
"""Relative noise by which HIGGS finds how sensitive a layer is."""
OURS = "plan"


class Kept:
    """What was computed, in a file of JSON."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.all: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}

    def of(self, section: str, key: str, make: Callable[[], T]) -> T:
        """A value, made where it is not there yet."""
        found = self.all.setdefault(section, {})
        if key not in found:
            found[key] = make()
            self.path.write_text(json.dumps(self.all))
        return found[key]  # type: ignore[no-any-return]


@dataclass
class Bench:
    """One model with its options."""

    loaded: Loaded
    """On the windows that every rule sees."""
    wide: Loaded
    """On as many windows more, or on the same."""
    kept: Kept
    planner: Planner
    """With estimates of every layer."""
    units: list[Unit]
    """Of the body, every unit's choices by their bits."""
    command: p.Plan

    @property
    def formats(self) -> tuple[str, ...]:
        return self.command.formats

    @property
    def seen(self) -> int:
        """Windows that every rule sees, the first ones."""
        return reference_of(self.loaded).windows.count

    @cached_property
    def order(self) -> list[int]:
        """The windows that every rule sees, then the others: the engine shuffles them."""
        seen = {tuple(ids) for ids in reference_of(self.loaded).windows.ids.tolist()}
        every = [tuple(ids) in seen for ids in reference_of(self.wide).windows.ids.tolist()]
        assert sum(every) == self.seen, "windows of more tokens hold those of fewer"
        return sorted(range(len(every)), key=lambda at: not every[at])

    def per_window(self, recipe: Mapping[str, str]) -> Tensor:
        """KL of a recipe on every window, float64: those seen, then the others."""

        def make() -> list[float]:
            return of_windows(self.wide, recipe).tolist()

        section = "recipes" if self.wide is not self.loaded else "recipes, seen"
        found = self.kept.of(section, recipe_hash(recipe), make)
        return torch.tensor(found, dtype=torch.float64)[self.order]

    def exact(self, recipe: Mapping[str, str]) -> float:
        """KL of a recipe on the windows seen."""

        def make() -> float:
            return float(of_windows(self.loaded, recipe).mean())

        return self.kept.of("exact", recipe_hash(recipe), make) if recipe else 0.0

    def limit(self, budget: p.Budget) -> float:
        """Bits that the body may take."""
        return limit_of(self.planner.session, budget).bits


def of_windows(loaded: Loaded, recipe: Mapping[str, str]) -> Tensor:
    """KL of a recipe on every window, nats per token."""
    through(whole_reference(loaded, JobCounts()))
    held = {
        name: through(approximated(loaded, name, parse_format(text), JobCounts()))
        for name, text in recipe.items()
    }
    return measure(loaded, held).kl


def learned(loaded: Loaded, steps: Generator[object, None, T]) -> T:
    """What a job's steps return, its facts stored."""

    def stored() -> Generator[object, None, T]:
        while True:
            try:
                event = next(steps)
            except StopIteration as stop:
                return stop.value  # type: ignore[no-any-return]
            if isinstance(event, p.Learned):
                loaded.opened.workspace.facts.put(event.keys, event.facts)
            yield event

    return through(stored())


def opened(given: argparse.Namespace, tokens: int) -> Loaded:
    """The model on so many tokens, in float32, with a store of facts beside the kept file."""
    chosen = load_profile("quick").settings(
        "quick", text=given.text, tokens=tokens, seq_len=given.seq_len, device="cpu", dtype="fp32"
    )
    loaded = load(given.model, FactStore(given.kept.with_suffix(".sqlite")), chosen)
    learned(loaded, baseline(loaded, JobCounts()))
    return loaded


def bench_of(given: argparse.Namespace) -> Bench:
    """Everything that rules choose from."""
    loaded = opened(given, given.tokens)
    wide = opened(given, 2 * given.tokens) if given.others else loaded
    asked = given.formats.split(",") if given.formats else loaded.settings.estimate_formats
    command = p.Plan(budget=p.Budget(bits=16.0), formats=tuple(canonical(asked)))
    planner = Planner(loaded, command, "bench")
    learned(loaded, planner.learn())
    layers = planner.session.layers
    found = units_of(planner.session, rules_of(planner.session, command, "float32"))
    body = [unit for unit in found if layers.roles[planner.session.index[unit.name]] not in OUTSIDE]
    units = [
        Unit(unit.layers, tuple(sorted(unit.choices, key=lambda choice: choice.body_bits)))
        for unit in body
    ]
    return Bench(loaded, wide, Kept(given.kept), planner, units, command)


# Options as each tool scores them


def options(bench: Bench, score: Callable[[Unit, Choice], float]) -> rules.Options:
    """Every unit's options; leaving it as stored costs nothing."""
    return [
        [
            rules.Option(choice.body_bits, score(unit, choice) if any(choice.formats) else 0.0)
            for choice in unit.choices
        ]
        for unit in bench.units
    ]


def sums(found: scores.Scores) -> Callable[[Unit, Choice], float]:
    """Scores of layers added up."""
    return lambda unit, choice: math.fsum(
        found[held][name] for name, held in zip(unit.layers, choice.formats, strict=True)
    )


def plain_scores(bench: Bench, model: str) -> dict[str, Any]:
    """Scores that need gradients of plain transformers."""

    def make() -> dict[str, Any]:
        names = [name for unit in bench.units for name in unit.layers]
        source = bench.loaded.opened.path
        windows = reference_of(bench.loaded).windows.ids
        plain = scores.Plain(brute_force.load(source), names, windows)
        rounded = {format: dict(plain.original) for format in bench.formats}
        for unit in bench.units:
            for choice in unit.choices:
                for name, text in zip(unit.layers, choice.formats, strict=True):
                    if text:
                        steps = approximated(bench.loaded, name, parse_format(text), JobCounts())
                        held = whole(through(steps))
                        assert isinstance(held, Tensor)
                        rounded[text][name] = held.float()
        absolute, aligned = scores.wholly_rounded(plain, rounded)
        return {
            "squares": scores.squares(plain, rounded),
            "absolute": absolute,
            "aligned": aligned,
            "traces": scores.traces(plain),
            "errors": scores.squared_errors(plain, rounded),
            "norms": {n: float(w.double().square().sum()) for n, w in plain.original.items()},
            "sizes": {name: weight.numel() for name, weight in plain.original.items()},
        }

    return bench.kept.of("scores", "plain", make)


def noise_slopes(bench: Bench, levels: Sequence[float]) -> dict[str, float]:
    """KL by which noise of relative power 1 would change the model, through the origin."""

    def make() -> dict[str, float]:
        random = torch.Generator().manual_seed(0)
        through(whole_reference(bench.loaded, JobCounts()))
        found = {}
        for unit in bench.units:
            for name in unit.layers:
                weight = bench.loaded.network.weight(name)
                scale = weight.float().square().mean().sqrt()
                above = below = 0.0
                for level in levels:
                    noise = torch.randn(weight.shape, generator=random) * scale * level
                    kl = float(measure(bench.loaded, {name: weight + noise}).kl.mean())
                    above, below = above + kl * level**2, below + level**4
                found[name] = above / below
        return found

    return bench.kept.of("scores", f"noise {levels}", make)


def widths(bench: Bench) -> dict[str, list[int]]:
    """Stored bits of every unit in each integer format, the smallest format first."""
    found = {
        format: [
            next(c.body_bits for c in unit.choices if set(c.formats) == {format})
            for unit in bench.units
        ]
        for format in bench.formats
        if parse_format(format).family == "integer"
    }
    return dict(sorted(found.items(), key=lambda item: sum(item[1])))


def regained(bench: Bench, base: Recipe, *, exact: bool) -> Callable[[Unit, Sequence[str]], float]:
    """What one unit in other formats changes of the KL of a recipe."""

    def measured(unit: Unit, formats: Sequence[str]) -> float:
        changed = {**base, **dict(zip(unit.layers, formats, strict=True))}
        stored = {name: held for name, held in changed.items() if held}
        return bench.exact(stored) - bench.exact(base)

    def estimates() -> dict[str, dict[str, float]]:
        formats = [parse_format(text) for text in (*bench.formats, "fp32")]
        held = {name: parse_format(text) for name, text in base.items()}
        found = learned(bench.loaded, further(bench.loaded, held, formats, JobCounts(), ""))
        return {
            name: {text: fact.kl for text, fact in of_layer.items()}
            for name, of_layer in found.items()
        }

    found = {} if exact else bench.kept.of("regained", recipe_hash(base), estimates)

    def estimated(unit: Unit, formats: Sequence[str]) -> float:
        return math.fsum(
            found[name][held or "fp32"]
            for name, held in zip(unit.layers, formats, strict=True)
            if held != base[name]
        )

    return measured if exact else estimated


# Rules


def mlx(bench: Bench, found: dict[str, Any], limit: float) -> Recipe | None:
    """The largest integer format that fits everywhere, and the next one for some."""
    bits = widths(bench)
    order = list(bits)
    fitting = [format for format in order if sum(bits[format]) <= limit]
    if not fitting or fitting[-1] == order[-1]:
        return None
    low, high = fitting[-1], order[len(fitting)]
    aligned, sizes = found["aligned"][low][high], found["sizes"]
    sensitivity = [
        sum(aligned[name] for name in unit.layers) / sum(sizes[name] for name in unit.layers)
        for unit in bench.units
    ]
    raised = rules.two_levels(sensitivity, bits[low], bits[high], limit)
    if raised is None:
        return None
    return {
        name: high if up else low
        for unit, up in zip(bench.units, raised, strict=True)
        for name in unit.layers
    }


def exllama(bench: Bench, limit: float, *, exact: bool) -> Recipe | None:
    """The largest integer format that fits everywhere, and units raised by what each regains.

    The tool takes the model that it begins with from the user: whole models are made at several
    bitrates, and the one just below the size that is wanted is improved from the larger ones.
    """
    fitting = [format for format, bits in widths(bench).items() if sum(bits) <= limit]
    if not fitting:
        return None
    base = {name: fitting[-1] for unit in bench.units for name in unit.layers}
    gain = regained(bench, base, exact=exact)
    larger, units = [], []
    for unit in bench.units:
        now = next(c for c in unit.choices if set(c.formats) == {fitting[-1]})
        above = [c for c in unit.choices if c.body_bits > now.body_bits]
        larger.append([now, *above])
        units.append(
            [rules.Option(now.body_bits, 0.0)]
            + [rules.Option(c.body_bits, gain(unit, c.formats)) for c in above]
        )
    chosen = rules.greedy_per_bit(units, limit)
    if chosen is None:
        return None
    return {
        name: held
        for unit, choices, at in zip(bench.units, larger, chosen, strict=True)
        for name, held in zip(unit.layers, choices[at].formats, strict=True)
        if held
    }


def rivals(bench: Bench, given: argparse.Namespace) -> dict[str, Callable[[float], Recipe | None]]:
    """Every rule by its name, from a limit of bits to a recipe."""
    found = plain_scores(bench, given.model)

    def by(rule: Callable[[rules.Options, float], list[int] | None], units: rules.Options) -> Any:
        def chosen(limit: float) -> Recipe | None:
            at = rule(units, limit)
            return None if at is None else recipe_of(bench.units, at)

        return chosen

    def traced(unit: Unit, choice: Choice) -> float:
        return 0.5 * math.fsum(
            found["traces"][name] / found["sizes"][name] * found["errors"][held][name]
            for name, held in zip(unit.layers, choice.formats, strict=True)
        )

    made = {
        "ModelOpt gradient": by(rules.integer_programme, options(bench, sums(found["squares"]))),
        "AutoRound AutoScheme": by(
            rules.dynamic_programme, options(bench, sums(found["absolute"]))
        ),
        "½ tr(H) MSE": by(rules.integer_programme, options(bench, traced)),
        "mlx-lm": lambda limit: mlx(bench, found, limit),
    }
    if not given.quick:
        slopes = noise_slopes(bench, NOISE)

        def linear(unit: Unit, choice: Choice) -> float:
            return math.fsum(
                slopes[name] * found["errors"][held][name] / found["norms"][name]
                for name, held in zip(unit.layers, choice.formats, strict=True)
            )

        made["HIGGS α t²"] = by(rules.integer_programme, options(bench, linear))

    def alone(unit: Unit, choice: Choice) -> float:
        recipe = dict(zip(unit.layers, choice.formats, strict=True))
        return bench.exact(recipe) if given.exact else choice.kl

    made["ModelOpt kl_div"] = by(rules.threshold_of_largest, options(bench, alone))
    made["ExLlamaV3"] = lambda limit: exllama(bench, limit, exact=given.exact)
    if given.exact:
        made["sum of exact KL"] = by(rules.integer_programme, options(bench, alone))
    return made


# Ours


class Counting(Planner):
    """A planner that counts what is stored already like what it computes.

    So facts are shared by budgets, by versions of the planner and by runs, and each plan still has
    the forward passes that it is allowed.
    """

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.counted: set[str] = set()

    def learn(self, *, stored: bool = False) -> Events:
        """See `Planner.learn`."""
        yield from super().learn(stored=stored)
        self.spent = ESTIMATING

    def measured(self, recipe: Mapping[str, str]) -> Scored:
        """See `Planner.measured`."""
        spent = self.spent + self._first("score", recipe)
        found = yield from super().measured(recipe)
        self.spent = spent
        return found

    def at_recipe(self, units: Sequence[Unit], tried: Tried) -> Generator[Any, None, Any]:
        """See `Planner.at_recipe`."""
        spent = self.spent + ESTIMATING * self._first("further", tried.recipe)
        found = yield from super().at_recipe(units, tried)
        self.spent = spent
        return found

    def _first(self, what: str, recipe: Mapping[str, str]) -> bool:
        key = f"{what} {recipe_hash(recipe)}"
        new = key not in self.counted
        self.counted.add(key)
        return new


def planned(bench: Bench, budget: p.Budget) -> dict[str, Any]:
    """``qtui plan`` for a budget."""
    command = msgspec.structs.replace(bench.command, budget=budget, forwards=FORWARDS)
    begun = time.perf_counter()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(planning, "Planner", Counting)
        found = learned(bench.loaded, planning.plan(bench.loaded, command, "")).result
    assert isinstance(found, p.Planned)
    return {
        "recipe": found.recipe,
        "predicted": found.point.kl,
        "forwards": found.forwards,
        "seconds": time.perf_counter() - begun,
    }


# Tables


def ratio(ours: Tensor, theirs: Tensor) -> str:
    """Ours over theirs, with twice the standard error over paired windows."""
    mean = float(ours.mean() / theirs.mean())
    error = float((ours - mean * theirs).std() / math.sqrt(len(ours)) / theirs.mean())
    return f"{mean:.3f} ± {2 * error:.3f}"


def row(bench: Bench, name: str, recipe: Recipe, best: Recipe) -> str:
    """One line of a table."""
    seen = bench.seen
    kl, ours = bench.per_window(recipe), bench.per_window(best)
    error = float(kl[:seen].std()) / math.sqrt(seen)
    size = bench.planner.session.size_of(recipe).bits_per_weight
    same = recipe == best
    cells = [
        name, f"{size:.3f}", f"{1000 * float(kl[:seen].mean()):.2f} ± {1000 * error:.2f}",
        "" if same else ratio(ours[:seen], kl[:seen]),
    ]  # fmt: skip
    if len(kl) > seen:
        cells += [f"{1000 * float(kl[seen:].mean()):.2f}"]
        cells += ["" if same else ratio(ours[seen:], kl[seen:])]
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    """Print a table for every budget."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("model")
    parser.add_argument("--text")
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--seq-len", type=int, default=256)
    parser.add_argument("--formats", help="to choose from; empty means those of the profile quick")
    parser.add_argument("--bits", default=BITS, help="or ``mixes``: what each of llama.cpp's takes")
    parser.add_argument("--kept", type=Path, required=True)
    parser.add_argument(
        "--no-others", dest="others", action="store_false", help="measure no other windows"
    )
    parser.add_argument("--as", dest="name", default=OURS, help="name of the plan in the tables")
    parser.add_argument("--again", action="store_true", help="make the plan of that name again")
    parser.add_argument(
        "--exact", action="store_true",
        help="measure every unit in every format for the rules that do, in place of our estimates",
    )  # fmt: skip
    parser.add_argument(
        "--quick",
        action="store_true",
        help="leave out HIGGS, which measures every layer with noise",
    )
    given = parser.parse_args()
    bench = bench_of(given)
    print(f"{machine()}\n", flush=True)
    if given.bits == "mixes":
        for name, recipe in mixes(bench).items():
            bits = bench.planner.session.size_of(recipe).bits_per_weight
            table(bench, given, bits, {name: recipe})
        return
    for bits in map(float, given.bits.split(",")):
        table(bench, given, bits, {})


def mixes(bench: Bench) -> dict[str, Recipe]:
    """What llama.cpp's mixes give the body, of those whose types a plan may choose too."""
    session = bench.planner.session
    body = {name for unit in bench.units for name in unit.layers}
    found: dict[str, Recipe] = {}
    for name in MIXES:
        asked, _ = resolve(session, "kept", {}, named=name, tied=session.tied)
        recipe = {layer: held for layer, held in asked.items() if layer in body}
        if set(recipe.values()) <= set(bench.formats) and recipe not in found.values():
            found[name] = recipe
    return found


def table(
    bench: Bench, given: argparse.Namespace, bits: float, beside: Mapping[str, Recipe]
) -> None:
    """All rules for one budget, and recipes beside them."""
    budget = p.Budget(bits=bits)
    session = bench.planner.session
    plans = bench.kept.all.setdefault("plans", {}).setdefault(f"{bits:g}", {})
    if given.again or given.name not in plans:
        plans[given.name] = planned(bench, budget)
        bench.kept.path.write_text(json.dumps(bench.kept.all))
    command = msgspec.structs.replace(bench.command, budget=budget)
    first = solved(session, bench.units, budget)
    found: dict[str, Recipe] = {name: each["recipe"] for name, each in plans.items()}
    found["first solution"] = recipe_of(bench.units, first.chosen.tolist())
    for name, rule in rivals(bench, given).items():
        recipe = rule(bench.limit(budget))
        if recipe is not None:
            found[name] = recipe
    found.update(baselines(session, rules_of(session, command, "float32"), budget))
    found.update(beside)
    ours = found[given.name]
    heads = ["rule", "bits", "KL·10³", "ours / it"]
    heads += ["on other windows", "ours / it there"] if given.others else []
    print(f"\n{bits:g} bits\n\n| {' | '.join(heads)} |\n|{'---|' * len(heads)}")
    for name in sorted(found, key=lambda name: float(seen_kl(bench, found[name]))):
        print(row(bench, name, found[name], ours), flush=True)
    for name, each in plans.items():
        print(f"\n{name}: predicted {1000 * each['predicted']:.2f}, {each['forwards']:g} forwards")


def seen_kl(bench: Bench, recipe: Recipe) -> Tensor:
    """Mean KL on the windows that the rules saw."""
    found = bench.per_window(recipe)
    return found[: bench.seen].mean()


if __name__ == "__main__":
    main()
