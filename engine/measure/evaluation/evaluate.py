"""A recipe's score: NLL, perplexity and KL of the network with several layers changed at once."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Generator, Mapping

import msgspec

from engine import protocol as p
from engine.errors import UsageError
from engine.formats.grammar import Format, parse_format
from engine.formats.storage import stored_bits
from engine.measure.calibration.approximate import approximated, columns_kept, recipe_inputs
from engine.measure.calibration.block_inputs import RecipeInputs
from engine.measure.calibration.calibration import calibration_parts
from engine.measure.counts import Account
from engine.measure.evaluation.divergence import Tally, difference, mean_with_error, perplexity
from engine.measure.evaluation.recipe_run import RecentRuns, RecipeRun
from engine.measure.evaluation.reference import Reference
from engine.model.memory import memory_free
from engine.model.network import Held, Network
from engine.quant import QUANTISER_VERSION
from engine.service.jobs import Steps
from engine.session import recipe_hash
from engine.session.artefact import Size, artefact_size, bits_as_stored
from engine.workspace import Workspace, again

Found = Generator[p.AnyEvent | None, None, p.RecipeScore]


def evaluate(workspace: Workspace, layers: Mapping[str, str], job: str) -> Steps:
    """Score a recipe, partial scores after every micro-batch.

    Args:
        workspace: with a loaded model.
        layers: names of the layers that are not kept, with the format each holds.
        job: id, for progress.

    Yields:
        `RecipePartial`, `Progress`, at last `Learned` with a `RecipeScore`.
    """
    account = Account(timings={"load_s": workspace.load_s})
    nll = (yield from baseline(workspace, account)).nll
    yield from score(workspace, layers, nll, account, job)
    return account.outcome()


def baseline(
    workspace: Workspace, account: Account
) -> Generator[p.AnyEvent | None, None, p.Baseline]:
    """The unchanged model's score, from the store if it is there."""
    _, reference = workspace.need_network()
    key = workspace.measured_key("baseline")
    known = workspace.known([key]).get(key)
    if isinstance(known, p.Baseline):
        yield from account.found([key], [known])
        return known
    for batch in range(len(reference.batches)):
        yield from run_reference(reference, batch, account)
    found = mean_with_error(reference.nll_sums(), reference.windows.targets)
    counted = reference.windows.count * reference.windows.targets
    fact = p.Baseline(found.mean, found.se, perplexity(found.mean), counted)
    yield account.learnt(key, fact)
    return fact


def run_reference(
    reference: Reference, batch: int, account: Account
) -> Generator[None, None, None]:
    """Run the unchanged network on one micro-batch, if it was not yet."""
    if not reference.known(batch):
        yield from again(account.timed("measure_s", lambda: reference.run(batch)))
        yield None


def changed(
    workspace: Workspace,
    batch: int,
    start: int,
    weights: Mapping[str, Held],
    account: Account,
) -> Generator[None, None, Tally]:
    """Compare one micro-batch of the network holding ``weights`` with the reference."""
    _, reference = workspace.need_network()
    yield from run_reference(reference, batch, account)
    step = account.timed("measure_s", lambda: reference.measure(batch, start, weights))
    return (yield from again(step))


def score(
    workspace: Workspace, layers: Mapping[str, str], nll: float, account: Account, job: str = ""
) -> Found:
    """One recipe's score, from the store if it is there.

    Args:
        workspace: with a loaded model.
        layers: names of the layers that are not kept, with the format each holds.
        nll: the unchanged model's.
        account: counts what is measured.
        job: with a job's id, partial scores and progress come before, and the recipe's states are
            kept for the recipe after it.
    """
    network, reference = workspace.need_network()
    unknown = [name for name in layers if name not in network.layers]
    if unknown:
        raise UsageError(f"the model has no layer {unknown[0]!r}")
    formats = {name: parse_format(text) for name, text in layers.items()}
    recipe = {name: str(format) for name, format in sorted(formats.items())}
    parts = yield from calibration_parts(workspace, formats.values(), "sequential")
    key = workspace.measured_key(
        "recipe",
        recipe=recipe,
        quantiser=QUANTISER_VERSION,
        scale_dtype=workspace.scale_dtype,
        **parts,
    )
    known = workspace.known([key]).get(key)
    if isinstance(known, p.RecipeScore):
        yield from account.found([key], [known])
        return known

    if workspace.recent_runs is None:
        workspace.recent_runs = RecentRuns()
    recent = workspace.recent_runs if job else RecentRuns()
    run = recent.of_recipe(reference, made_from(network, formats), keep=bool(job))
    # Where all changed layers do not fit beside the model, each step quantises them again.
    together = sum(math.prod(network.layers[n].shape) for n in layers) * network.dtype.itemsize
    fits = together <= memory_free(network.device) // 2
    states = yield from recipe_inputs(workspace, formats)
    tallies: list[Tally] = []
    total = len(reference.batches)
    try:
        for batch in range(total):
            yield from run_reference(reference, batch, account)
            if not run.known(batch):
                yield from _run(workspace, run, recent, formats, states, batch, account)
            if not fits:
                run.recipe.clear()
            tallies.append(run.tally(batch))
            done = batch + 1 == total
            size = recipe_size(workspace, formats, columns_kept(workspace, states))
            fact = _score(recipe, size, nll, tallies, reference, done)
            if states is not None:
                fact = msgspec.structs.replace(fact, calibration="sequential")
            if done:
                yield account.learnt(key, fact)
            elif job:
                yield p.RecipePartial(fact)
                yield p.Progress(job=job, done=batch + 1, total=total)
            else:
                yield None
    finally:  # cancelled too: what it has run serves the next one
        recent.remember(run)
    return fact


def _run(
    workspace: Workspace,
    run: RecipeRun,
    recent: RecentRuns,
    formats: Mapping[str, Format],
    states: RecipeInputs | None,
    batch: int,
    account: Account,
) -> Generator[p.AnyEvent | None, None, None]:
    """Run one micro-batch from the last block up to which a recipe before was the same."""
    network, _ = workspace.need_network()
    below, start = recent.below(run, batch)
    at = below.nearest(batch, start)
    for name in sorted(formats, key=lambda name: network.layers[name].start):
        format = formats[name]
        if name in run.recipe or network.layers[name].start < at:
            continue
        held = recent.weight(run, name)
        if held is None and states is not None:
            held = states.settled.get(name)
        if held is None:
            held = yield from approximated(workspace, name, format, account, states)
        if states is not None:
            states.settled[name] = held
        run.recipe[name] = held
        if workspace.should_stop():
            yield None
    recent.make_room(run, batch, below, start)
    step = account.timed("measure_s", lambda: run.run(batch, below, start))
    yield from again(step)


def made_from(network: Network, formats: Mapping[str, Format]) -> dict[str, str]:
    """What each layer's weight in a recipe is made from beside the one it has, as a word.

    Its format alone; but from the first block on in which a format has methods, all formats up to
    the layer's block: a method may look at what comes in there, and at the layers beside it.
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


def recipe_size(
    workspace: Workspace, formats: Mapping[str, Format], columns: Mapping[str, int] | None = None
) -> Size:
    """How large the artefact of a recipe is; layers that are not named are kept.

    Args:
        workspace: with the checkpoint's rows.
        formats: the recipe.
        columns: input channels that ``+outlier`` keeps, where it is known; else none are counted.
    """
    rows = list(workspace.rows.values())
    bits = [
        bits_as_stored(row.shape, row.dtype)
        if (format := formats.get(row.name)) is None
        else stored_bits(format, row.shape, (columns or {}).get(row.name, 0))
        for row in rows
    ]
    return artefact_size(
        [row.role for row in rows],
        [row.shape for row in rows],
        bits,
        [row.name in formats for row in rows],
        workspace.other_bytes,
        tied=workspace.network is not None and workspace.network.tied,
    )


def _score(
    recipe: Mapping[str, str],
    size: Size,
    nll: float,
    tallies: list[Tally],
    reference: Reference,
    done: bool,
) -> p.RecipeScore:
    targets = reference.windows.targets
    found = difference(tallies, targets)
    dnll, kl, top1 = found.dnll, found.kl, found.top1
    half = dnll.half()
    return p.RecipeScore(
        recipe=recipe_hash(recipe),
        nll=nll + dnll.mean,
        ppl=perplexity(nll + dnll.mean),
        ppl_low=perplexity(nll + dnll.mean - half),
        ppl_high=perplexity(nll + dnll.mean + half),
        dnll=dnll.mean,
        dnll_se=dnll.se,
        kl=kl.mean,
        kl_se=kl.se,
        top1=top1.mean,
        tokens=dnll.windows * targets,
        bits_per_weight=size.bits_per_weight,
        bytes=size.bytes,
        done=done,
    )


def forward_seconds(workspace: Workspace) -> Generator[None, None, float]:
    """Seconds of one plain forward pass over the same tokens: what other timings are held against.

    The model's own forward with whole logits, micro-batch by micro-batch, nothing kept.
    """
    _, reference = workspace.need_network()
    account = Account()
    for batch in range(len(reference.batches)):
        yield from again(account.timed("forward", lambda batch=batch: reference.plain(batch)))  # type: ignore[misc]
        yield None
    return account.timings.get("forward", 0.0)
