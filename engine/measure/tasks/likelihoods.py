"""Log-likelihoods of continuations, by the reference and by a recipe in one pass.

``log p(continuation | context)`` is the sum over its tokens, and it is greedy if each of them is
the most likely one: what lm-eval's ``loglikelihood`` returns. Rows are padded on the right, which
no token before the padding sees.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import msgspec
import torch
from torch import Tensor

from engine import protocol as p
from engine.errors import UsageError
from engine.formats.grammar import Format
from engine.measure.calibration.block_inputs import Events
from engine.measure.calibration.calibration import calibration_key, with_scales
from engine.measure.counts import JobCounts
from engine.measure.preemption import repeated
from engine.measure.tasks.pairs import Pair
from engine.model.network import Held, Network
from engine.session import recipe_hash
from engine.store import keys
from engine.workspace import Loaded

TOGETHER = 64
"""Pairs whose figures are one fact."""
BYTES = 256 << 20
"""Of the logits of one micro-batch."""

Weights = Callable[[], Events[Mapping[str, Held]]]
"""Makes what the layers of a recipe compute with."""


class Likelihood(NamedTuple):
    """How likely a continuation is."""

    log: float
    """Natural logarithm of its probability."""
    greedy: bool
    """Whether every token of it is the most likely one."""


class Scored(NamedTuple):
    """The same continuation, by both."""

    reference: Likelihood
    recipe: Likelihood


def score_pairs(
    loaded: Loaded,
    pairs: Sequence[Pair],
    formats: Mapping[str, Format],
    weights: Weights,
    counts: JobCounts,
) -> Events[list[Scored]]:
    """How likely the reference and a recipe find every continuation.

    Args:
        loaded: the model.
        pairs: what is scored; each different one is run once.
        formats: the recipe; layers that are not named are kept.
        weights: makes its weights; not asked where every figure is known.
        counts: of the job.

    Yields:
        `Learned` with `Likelihoods` of the reference and of the recipe, `Progress`.

    Raises:
        UsageError: the text is too long for the model, or beyond its vocabulary.
        OutOfMemoryError: the weights do not fit beside the model.
    """
    rows = list(dict.fromkeys(pairs))
    _check(loaded.network, rows)
    parts = [rows[start : start + TOGETHER] for start in range(0, len(rows), TOGETHER)]
    addresses = yield from _addresses(loaded, parts, formats)
    stored = loaded.known([each for both in addresses for each in both])
    known = {key: fact for key, fact in stored.items() if isinstance(fact, p.Likelihoods)}
    yield from counts.found(list(known), list(known.values()))
    held: Mapping[str, Held] = {}
    if any(of_recipe not in known for _, of_recipe in addresses):
        held = yield from weights()
    recipe = recipe_hash({name: str(format) for name, format in formats.items()})
    batches = [_batches(loaded, part) for part in parts]
    stage = counts.stage("scoring", sum(map(len, batches)))
    done = 0
    for part, (of_reference, of_recipe), split in zip(parts, addresses, batches, strict=True):
        missing = [
            (address, name, with_weights)
            for address, name, with_weights in ((of_reference, "", {}), (of_recipe, recipe, held))
            if address not in known
        ]
        found: dict[str, dict[int, Likelihood]] = {address: {} for address, _, _ in missing}
        for batch in split:
            yield stage.step(done)
            done += 1
            for address, _, with_weights in missing:
                step = counts.timed(
                    "score_s",
                    lambda batch=batch, part=part, on=with_weights: batch.run(part, on),  # type: ignore[misc]
                )
                found[address].update((yield from repeated(step)))
                yield None
        for address, name, _ in missing:
            ordered = [found[address][at] for at in range(len(part))]
            fact = p.Likelihoods(
                recipe=name,
                log=tuple(each.log for each in ordered),
                greedy=tuple(each.greedy for each in ordered),
            )
            known[address] = fact
            yield counts.learnt(address, fact)
    table: dict[Pair, Scored] = {}
    for part, both in zip(parts, addresses, strict=True):
        one, other = (_likelihoods(known[address]) for address in both)
        table.update(zip(part, map(Scored, one, other), strict=True))
    return [table[each] for each in pairs]


def _likelihoods(fact: p.Likelihoods) -> Iterator[Likelihood]:
    return map(Likelihood, fact.log, fact.greedy)


class _Batch(NamedTuple):
    """Pairs of a part that are run together."""

    network: Network
    places: tuple[int, ...]

    @torch.no_grad()
    def run(self, part: Sequence[Pair], held: Mapping[str, Held]) -> dict[int, Likelihood]:
        """By place in the part.

        Raises:
            Preempted: a more urgent job waits.
        """
        network = self.network
        pairs = [part[at] for at in self.places]
        # The last token is never an input: what follows it is not asked for.
        rows = [(*pair.context, *pair.continuation)[:-1] for pair in pairs]
        ids = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
        for row, tokens in enumerate(rows):
            ids[row, : len(tokens)] = torch.tensor(tokens)
        ids = ids.to(network.device)
        starts = [len(pair.context) - 1 for pair in pairs]
        ends = [start + len(pair.continuation) for start, pair in zip(starts, pairs, strict=True)]
        span = min(starts), max(ends)
        with network.holding(held):
            state = network.final_state(ids, -1, None)
            logits = network.logits(ids, state, span)
        found = {}
        for row, (at, pair) in enumerate(zip(self.places, pairs, strict=True)):
            of = logits[row, starts[row] - span[0] : ends[row] - span[0]]
            found[at] = _likelihood(of, pair.continuation)
        return found


def _likelihood(logits: Tensor, tokens: Sequence[int]) -> Likelihood:
    """Of tokens, from the logits ``[tokens, vocabulary]`` before each of them."""
    ids = torch.tensor(tokens, device=logits.device)
    logp = logits.float().log_softmax(-1)
    total = logp.gather(-1, ids.unsqueeze(-1)).double().sum()
    return Likelihood(float(total), bool((logp.argmax(-1) == ids).all()))


def _batches(loaded: Loaded, part: Sequence[Pair]) -> list[_Batch]:
    """A part cut into micro-batches of rows of about the same length, the longest first."""
    network = loaded.network
    vocabulary: int = network.model.get_input_embeddings().weight.shape[0]
    order = sorted(range(len(part)), key=lambda at: -sum(map(len, part[at])))
    found: list[_Batch] = []
    now: list[int] = []
    for at in order:
        trial = [*now, at]
        longest = sum(map(len, part[trial[0]]))
        answers = max(len(part[each].continuation) for each in trial)
        starts = [len(part[each].context) for each in trial]
        span = max(starts) - min(starts) + answers
        crowded = len(trial) * longest > loaded.batch_tokens
        if now and (crowded or 4 * vocabulary * span * len(trial) > BYTES):
            found.append(_Batch(network, tuple(now)))
            trial = [at]
        now = trial
    return [*found, _Batch(network, tuple(now))]


def _check(network: Network, pairs: Sequence[Pair]) -> None:
    vocabulary: int = network.model.get_input_embeddings().weight.shape[0]
    for pair in pairs:
        if (top := max(*pair.context, *pair.continuation)) >= vocabulary:
            raise UsageError(
                f"an item has token {top}, and the model has only {vocabulary}: tokenizer and "
                "model do not match"
            )


def _addresses(
    loaded: Loaded, parts: Sequence[Sequence[Pair]], formats: Mapping[str, Format]
) -> Events[list[tuple[str, str]]]:
    """The keys of every part's facts: of the reference, and of the recipe."""
    calibration = yield from calibration_key(loaded, formats.values(), "sequential")
    found = []
    for part in parts:
        said = msgspec.json.encode([[pair.context, pair.continuation] for pair in part])
        reference = keys.Likelihoods(
            on=loaded.opened.files,
            dtype=loaded.protocol.dtype,
            device=loaded.protocol.device.split(":")[0],
            pairs=hashlib.sha256(said).hexdigest(),
        )
        recipe = msgspec.structs.replace(
            reference,
            recipe={name: str(format) for name, format in sorted(formats.items())},
            scale_dtype=loaded.scale_dtype,
            calibration=with_scales(loaded, calibration, formats),
        )
        found.append((reference.address, recipe.address))
    return found
