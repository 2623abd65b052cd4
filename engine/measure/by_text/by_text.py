"""Scores a recipe on several evaluation texts, and by position in their windows."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
from torch import Tensor

from engine import protocol as p
from engine.formats.grammar import Format, parse_format
from engine.measure.by_text.positions import PositionSums, buckets, by_position
from engine.measure.calibrating.windows import EvaluationText, evaluation_texts
from engine.measure.calibration.block_inputs import Events
from engine.measure.calibration.calibration import calibration_key, with_scales
from engine.measure.counts import JobCounts
from engine.measure.evaluation.divergence import Tally, mean_with_error, perplexity, score_of
from engine.measure.evaluation.evaluate import evaluate, run_reference
from engine.measure.preemption import repeated
from engine.measure.symptoms.weights import recipe_weights
from engine.measure.whole_model import refuse_streamed
from engine.model.load import load_tokenizer
from engine.model.network import Held
from engine.model.quiet import quiet
from engine.service.jobs import Steps
from engine.session import recipe_hash
from engine.store import keys
from engine.workspace import Loaded


def measure_texts(
    loaded: Loaded, asked: tuple[str, ...], layers: Mapping[str, str], job: str
) -> Steps:
    """Score a recipe as an evaluation does, then on each text and by position in its windows.

    Args:
        loaded: the model.
        asked: texts as ``--text`` takes them; the session's own if there are none.
        layers: formats by name of the layers that are not kept.
        job: id, for progress.

    Yields:
        See `evaluate`; `Learned` with a `RecipeOnText` for each text.

    Raises:
        UsageError: the model has no such layer, or is streamed from disk.
        TextError: a text cannot be read, or does not fill a window.
        OutOfMemoryError: the recipe's weights do not fit beside the model.
    """
    refuse_streamed(
        loaded.network, "several texts, and figures by position,", "once for every few windows",
        "evaluate one text at a time",
    )  # fmt: skip
    whole = yield from evaluate(loaded, layers, job)
    counts = JobCounts(whole.measured, whole.resumed, dict(whole.timings), job)
    opened, settings = loaded.opened, loaded.settings
    tokenizer = load_tokenizer(
        opened.path,
        trust_remote_code=settings.trust_remote_code,
        follow_links=settings.follow_links,
    )
    with quiet():
        texts = evaluation_texts(loaded, asked, tokenizer)
    formats = {name: parse_format(text) for name, text in sorted(layers.items())}
    scores = []
    for text in texts:
        scores.append((yield from _on_text(loaded, text, formats, counts)))
    found = p.MeasuredTexts(_hash(formats), tuple(scores))
    return msgspec.structs.replace(counts.outcome(), result=found)


def _hash(formats: Mapping[str, Format]) -> str:
    return recipe_hash({name: str(format) for name, format in formats.items()})


def _on_text(
    loaded: Loaded, text: EvaluationText, formats: Mapping[str, Format], counts: JobCounts
) -> Events[p.ScoreOnText]:
    """A recipe's score on one text, from the store if it is there."""
    calibration = yield from calibration_key(loaded, formats.values(), "sequential")
    address = keys.RecipeOnText(
        on=text.evaluation,
        recipe={name: str(format) for name, format in formats.items()},
        scale_dtype=loaded.scale_dtype,
        calibration=with_scales(loaded, calibration, formats),
        text=text.name,
    ).address
    known = loaded.known([address]).get(address)
    if isinstance(known, p.RecipeOnText):
        yield from counts.found([address], [known])
        return known.score
    held = yield from recipe_weights(loaded, formats, counts)
    score = yield from _measured(loaded, text, held, counts)
    yield counts.learnt(address, p.RecipeOnText(_hash(formats), score))
    return score


def _measured(
    loaded: Loaded, text: EvaluationText, held: Mapping[str, Held], counts: JobCounts
) -> Events[p.ScoreOnText]:
    network, reference = loaded.network, text.reference
    windows = reference.windows
    ranges = buckets(windows.first + 1, windows.seq_len - 1)
    start = min((network.layers[name].start for name in held), default=len(network.blocks))
    tallies: list[Tally] = []
    sums: list[Tensor] = []
    stage = counts.stage("measuring", len(reference.batches))
    for batch, ids in enumerate(reference.batches):
        yield stage.step(batch, text.name)
        yield from run_reference(reference, batch, counts)

        def step(batch: int = batch, rows: int = len(ids)) -> tuple[Tally, Tensor]:
            found = PositionSums(rows, ranges)  # a new one where a step is repeated
            tally = reference.measure(batch, start, held, found.take)
            return tally, found.sums

        tally, parts = yield from repeated(counts.timed("measure_s", step))
        tallies.append(tally)
        sums.append(parts)
        yield None
    before = mean_with_error(reference.nll_sums(), windows.targets)
    found = score_of(tallies, windows.targets, before.mean)
    return p.ScoreOnText(
        name=text.name,
        text=text.text.name,
        sha256=text.text.sha256,
        tokens=found.tokens,
        windows=windows.count,
        ppl_reference=perplexity(before.mean),
        ppl=found.ppl,
        ppl_low=found.ppl_low,
        ppl_high=found.ppl_high,
        dnll=found.dnll,
        dnll_se=found.dnll_se,
        kl=found.kl,
        kl_se=found.kl_se,
        top1=found.top1,
        positions=by_position(sums, ranges),
    )
