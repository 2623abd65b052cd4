"""Scores a recipe: NLL, perplexity and KL of the network with several layers changed at once."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Generator, Mapping
from contextlib import ExitStack

import msgspec

from engine import protocol as p
from engine.errors import UsageError
from engine.formats.grammar import Format, parse_format
from engine.formats.storage import stored_bits
from engine.measure.block_loop import cross, with_head
from engine.measure.calibration.approximate import approximated, columns_kept, recipe_inputs
from engine.measure.calibration.block_inputs import Events, RecipeInputs
from engine.measure.calibration.calibration import calibration_key, with_scales
from engine.measure.counts import JobCounts
from engine.measure.evaluation.beside import compact_weights
from engine.measure.evaluation.divergence import Tally, mean_with_error, perplexity, score_of
from engine.measure.evaluation.recipe_run import RecentRuns, RecipeRun
from engine.measure.evaluation.reference import Reference, reference_of
from engine.measure.preemption import repeated
from engine.model.memory import memory_needed
from engine.model.network import Held, Network
from engine.service.jobs import Steps
from engine.session import recipe_hash
from engine.session.artefact import OUTSIDE, Size, artefact_size
from engine.store import keys
from engine.workspace import Loaded, Opened
from engine.workspace.opened import row_bits

Found = Generator[p.AnyEvent | None, None, p.RecipeScore]


def evaluate(loaded: Loaded, layers: Mapping[str, str], job: str) -> Steps:
    """Score a recipe, with partial scores after every micro-batch.

    Args:
        loaded: the model.
        layers: formats by name of the layers that are not kept.
        job: id, for progress.

    Yields:
        `RecipePartial`, `Progress`, finally `Learned` with a `RecipeScore`.
    """
    counts = JobCounts(timings={"load_s": loaded.load_s}, job=job)
    nll = (yield from baseline(loaded, counts)).nll
    yield from score(loaded, layers, nll, counts, job)
    return counts.outcome()


def baseline(
    loaded: Loaded, counts: JobCounts, then: float = 0.0
) -> Generator[p.AnyEvent | None, None, p.Baseline]:
    """The unchanged model's score, from the store if it is there.

    Args:
        loaded: the model.
        counts: of the job.
        then: micro-batches that the job takes as long as afterwards, for the time left.
    """
    reference = reference_of(loaded)
    key = keys.Baseline(on=loaded.evaluation).address
    known = loaded.known([key]).get(key)
    if isinstance(known, p.Baseline) and math.isfinite(known.nll):  # earlier versions stored nan
        yield from counts.found([key], [known])
        return known
    yield from whole_reference(loaded, counts, then)
    found = mean_with_error(reference.nll_sums(), reference.windows.targets)
    counted = reference.windows.count * reference.windows.targets
    fact = p.Baseline(found.mean, found.se, perplexity(found.mean), counted)
    yield counts.learnt(key, fact)
    return fact


def whole_reference(
    loaded: Loaded, counts: JobCounts, then: float = 0.0
) -> Generator[p.AnyEvent | None, None, None]:
    """Run the unchanged network on every micro-batch, where it was not run yet."""
    reference = reference_of(loaded)
    unknown = [each for each in range(len(reference.batches)) if not reference.known(each)]
    stage = counts.stage("reference", len(unknown), then)
    later = then / max(1, len(unknown))
    for done, batch in enumerate(unknown):
        if not loaded.network.streamed:
            yield stage.step(done)
        yield from run_reference(reference, batch, counts, later)
    if unknown:
        counts.forward = stage.spent / len(unknown) * len(reference.batches)


def not_finite(loaded: Loaded, what: str) -> p.Notice:
    """Says that a change makes logits that are not finite, and what to try."""
    dtype = loaded.protocol.dtype
    other = "--dtype bf16 or fp32" if dtype == "float16" else "--dtype fp32"
    cause = "the unchanged model's are" if dtype == "float32" else f"try {other}"
    return p.Notice(
        "error",
        f"{what}: the changed model's logits in {dtype} are not finite ({cause}): its figures are "
        "null",
    )


def run_reference(
    reference: Reference, batch: int, counts: JobCounts, then: float = 0.0
) -> Generator[p.AnyEvent | None, None, None]:
    """Run the unchanged network on one micro-batch and those that go with it, if not yet run.

    Args:
        reference: of the network.
        batch: index of the micro-batch.
        counts: of the job.
        then: passes over all windows that the job takes as long as afterwards, for the time left.
    """
    if not reference.known(batch):
        network = reference.network
        unknown = [each for each in reference.together(batch) if not reference.known(each)]
        crossings = list(map(reference.set_out, unknown))
        later = then * len(network.blocks)
        yield from cross(network, crossings, counts, phase="reference", then=later)


def run_recipe(
    run: RecipeRun,
    batch: int,
    counts: JobCounts,
    timing: str = "measure_s",
    settle: Callable[[range], Events[None]] | None = None,
) -> Generator[p.AnyEvent | None, None, None]:
    """Run a recipe with known weights on one micro-batch and those that go with it.

    Args:
        run: of the recipe.
        batch: index of the micro-batch.
        counts: of the job.
        timing: what the seconds are counted under.
        settle: makes the weights of regions as they are reached, where they are not known.
    """
    if not run.known(batch):
        unknown = [each for each in run.reference.together(batch) if not run.known(each)]
        for each in unknown:
            yield from run_reference(run.reference, each, counts)
        run.plan()
        crossings = [run.set_out(each) for each in unknown]
        network = run.reference.network
        end = len(network.blocks)

        def prepare(stretch: range) -> Events[None]:
            if settle is not None:
                yield from settle(with_head(stretch, end))

        if all(crossing.lane.at == end for crossing in crossings):
            yield from prepare(range(end, end))
        yield from cross(network, crossings, counts, timing, prepare, phase="measuring")


def changed(
    loaded: Loaded,
    batch: int,
    start: int,
    weights: Mapping[str, Held],
    counts: JobCounts,
) -> Generator[p.AnyEvent | None, None, Tally]:
    """Compare one micro-batch of the network holding ``weights`` with the reference."""
    reference = reference_of(loaded)
    yield from run_reference(reference, batch, counts)
    step = counts.timed("measure_s", lambda: reference.measure(batch, start, weights))
    return (yield from repeated(step))


def score(
    loaded: Loaded,
    layers: Mapping[str, str],
    nll: float,
    counts: JobCounts,
    job: str = "",
    stage: p.Phase = "measuring",
) -> Found:
    """One recipe's score, from the store if it is there.

    Args:
        loaded: the model.
        layers: formats by name of the layers that are not kept.
        nll: of the unchanged model.
        counts: of the job.
        job: with a job's id, partial scores and progress are yielded, and the recipe's states are
            cached for the next recipe.
        stage: what progress calls it.
    """
    network, reference = loaded.network, reference_of(loaded)
    unknown = [name for name in layers if name not in network.layers]
    if unknown:
        raise UsageError(f"the model has no layer {unknown[0]!r}")
    formats = {name: parse_format(text) for name, text in layers.items()}
    recipe = canonical(formats)
    key = yield from score_key(loaded, formats)
    known = loaded.known([key]).get(key)
    if isinstance(known, p.RecipeScore):
        known = sized(loaded, known)
        yield from counts.found([key], [known])
        return known

    recent = loaded.part(RecentRuns, RecentRuns) if job else RecentRuns()
    run = recent.of_recipe(reference, made_from(network, formats), keep=bool(job))
    if network.streamed:
        # If all changed layers do not fit in addition to the model, each step quantises them again.
        together = memory_needed((network.layers[n].shape for n in layers), network.dtype)
        fits, compact = together <= loaded.budget() // 4, False
    else:
        what = "every layer of the recipe, beside the model,"
        fits, compact = True, compact_weights(reference, formats, what)
    states = yield from recipe_inputs(loaded, formats)
    tallies: list[Tally] = []
    total = len(reference.batches)
    steps = counts.stage(stage, total)
    try:
        for batch in range(total):
            yield from run_reference(reference, batch, counts)
            if not run.known(batch):
                yield from _run(
                    loaded, run, recent, formats, states, batch, counts, compact=compact, fits=fits
                )
            if not fits:
                run.recipe.clear()
            tallies.append(run.tally(batch))
            done = batch + 1 == total
            size = recipe_size(
                loaded.opened,
                formats,
                columns_kept(loaded, states),
                tied=loaded.network.tied,
            )
            fact = _score(recipe, size, nll, tallies, reference, done)
            if states is not None:
                fact = msgspec.structs.replace(fact, calibration="sequential")
            if done:
                if not math.isfinite(fact.kl) or not math.isfinite(fact.dnll):
                    yield not_finite(loaded, "this recipe")
                yield counts.learnt(key, fact)
            elif job:
                yield p.RecipePartial(fact)
            if not done:
                yield steps.step(batch + 1)
    finally:  # also when cancelled: the next run reuses what this one computed
        recent.remember(run)
    return fact


def canonical(formats: Mapping[str, Format]) -> dict[str, str]:
    """A recipe as it is hashed: printed formats, by names in alphabetical order."""
    return {name: str(format) for name, format in sorted(formats.items())}


def score_key(loaded: Loaded, formats: Mapping[str, Format]) -> Events[str]:
    """The address of a recipe's score in the store.

    Args:
        loaded: the model.
        formats: by name of the layers that are not kept, all of which it has.
    """
    layers = loaded.network.layers
    part = yield from calibration_key(loaded, formats.values(), "sequential")
    return keys.RecipeScore(
        on=loaded.evaluation,
        recipe=canonical(formats),
        scale_dtype=loaded.scale_dtype,
        weights="body" if any(layers[name].role in OUTSIDE for name in formats) else "",
        calibration=with_scales(loaded, part, formats),
    ).address


def _run(
    loaded: Loaded,
    run: RecipeRun,
    recent: RecentRuns,
    formats: Mapping[str, Format],
    states: RecipeInputs | None,
    batch: int,
    counts: JobCounts,
    *,
    compact: bool,
    fits: bool,
) -> Generator[p.AnyEvent | None, None, None]:
    """Run a micro-batch and those that go with it, from the first block that differs."""
    network, reference = loaded.network, reference_of(loaded)
    batches = [each for each in reference.together(batch) if not run.known(each)]
    for each in batches:
        yield from run_reference(reference, each, counts)
    parts = {each: recent.below(run, each) for each in batches}
    lowest = min(below.nearest(each, start) for each, (below, start) in parts.items())
    end = len(network.blocks)
    left = [name for name in formats if name not in run.recipe]
    stage = counts.stage("calibrating" if states is not None else "quantising", len(left))

    def settle(stretch: range) -> Generator[p.AnyEvent | None, None, None]:
        if not fits:
            run.drop_before(stretch.start)
        regions = with_head(stretch, end)
        for name in sorted(formats, key=lambda name: network.layers[name].start):
            if network.layers[name].acts_in(regions) and name not in run.recipe:
                done = sum(name in run.recipe for name in left)
                yield stage.step(done, name, str(formats[name]))
                yield from _settle(
                    loaded, run, recent, name, formats[name], states, counts, compact=compact
                )
                if loaded.should_stop():
                    yield None

    stretches = network.stretches(lowest, end) or [range(end, end)]
    with ExitStack() as first:
        first.enter_context(network.at_hand(stretches[0]))

        def prepare(stretch: range) -> Generator[p.AnyEvent | None, None, None]:
            first.close()  # the loop has its blocks at hand by itself
            yield from settle(stretch)

        yield from settle(stretches[0])
        # Only now: undoing a toggle while its weights are computed leaves all states.
        for each, (below, start) in parts.items():
            recent.make_room(run, each, below, start)
        run.plan()
        crossings = [run.set_out(each, *parts[each]) for each in batches]
        yield from cross(network, crossings, counts, prepare=prepare, phase="measuring")


def _settle(
    loaded: Loaded,
    run: RecipeRun,
    recent: RecentRuns,
    name: str,
    format: Format,
    states: RecipeInputs | None,
    counts: JobCounts,
    *,
    compact: bool,
) -> Generator[p.AnyEvent | None, None, None]:
    """Set the weight of a layer in a run: that of an earlier recipe, or a new one."""
    held = recent.weight(run, name)
    if held is None and states is not None:
        held = states.settled.get(name)
    if held is None:
        held = yield from approximated(loaded, name, format, counts, states, compact=compact)
    if states is not None:
        states.settled[name] = held
    run.recipe[name] = held


def made_from(network: Network, formats: Mapping[str, Format]) -> dict[str, str]:
    """Identifies how each layer's weight in a recipe is made, in addition to its stored weight.

    By its format alone; but from the first block that uses methods on, by all formats up to the
    layer's block, since a method may use the inputs there and the other layers of the block.
    """
    by_start: dict[int, list[str]] = {}
    for name in sorted(formats):
        by_start.setdefault(network.layers[name].start, []).append(name)
    made: dict[str, str] = {}
    so_far = hashlib.sha256()
    methods = False
    for start in sorted(by_start):
        names = by_start[start]
        so_far.update(repr([(name, str(formats[name])) for name in names]).encode())
        methods = methods or any(formats[name].methods for name in names)
        after = f" after {so_far.hexdigest()}" if methods else ""
        made.update({name: f"{formats[name]}{after}" for name in names})
    return made


def sized(loaded: Loaded, fact: p.RecipeScore) -> p.RecipeScore:
    """A score with the bits of all layers, which a fact of an earlier version lacks."""
    if fact.bits_all:
        return fact
    # Only the bytes of such a fact count the columns that ``+outlier`` kept: less than 8 bits off.
    opened, tied = loaded.opened, loaded.network.tied
    counted = (row for row in opened.rows.values() if not (tied and row.role == "head"))
    weights = sum(math.prod(row.shape) for row in counted)
    bits = 8 * (fact.bytes - opened.other_bytes)
    return msgspec.structs.replace(fact, bits_all=bits / weights if weights else 0.0)


def recipe_size(
    opened: Opened,
    formats: Mapping[str, Format],
    columns: Mapping[str, int] | None = None,
    *,
    tied: bool = False,
) -> Size:
    """Size of a recipe's artefact; layers that are not named are kept.

    Args:
        opened: the checkpoint.
        formats: the recipe.
        columns: input channels that ``+outlier`` keeps, if known; otherwise none are counted.
        tied: whether the model has one tensor for head and embedding.
    """
    rows = list(opened.rows.values())
    bits = [
        row_bits(row)
        if (format := formats.get(row.name)) is None
        else stored_bits(format, row.shape, (columns or {}).get(row.name, 0))
        for row in rows
    ]
    return artefact_size(
        [row.role for row in rows],
        [row.shape for row in rows],
        bits,
        [row.name in formats for row in rows],
        opened.other_bytes,
        tied=tied,
    )


def _score(
    recipe: Mapping[str, str],
    size: Size,
    nll: float,
    tallies: list[Tally],
    reference: Reference,
    done: bool,
) -> p.RecipeScore:
    return p.RecipeScore(
        recipe=recipe_hash(recipe),
        **vars(score_of(tallies, reference.windows.targets, nll)),
        bits_per_weight=size.bits_per_weight,
        bits_all=size.bits_all,
        bytes=size.bytes,
        done=done,
    )


def forward_seconds(loaded: Loaded, job: str = "") -> Generator[p.AnyEvent | None, None, float]:
    """Seconds of one plain forward pass over the same tokens, as a unit for other timings.

    Uses the model's own forward with all logits, micro-batch by micro-batch, and caches nothing.
    """
    reference = reference_of(loaded)
    counts = JobCounts(job=job)
    if loaded.network.streamed:
        crossings = [reference.plain_crossing(batch) for batch in range(len(reference.batches))]
        yield from cross(loaded.network, crossings, counts, "forward", phase="timing")
        return counts.timings.get("forward", 0.0)
    stage = counts.stage("timing", len(reference.batches))
    for batch in range(len(reference.batches)):
        yield stage.step(batch)
        yield from repeated(counts.timed("forward", lambda batch=batch: reference.plain(batch)))  # type: ignore[misc]
        yield None
    return counts.timings.get("forward", 0.0)
