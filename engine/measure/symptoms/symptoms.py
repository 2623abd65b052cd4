"""Continues prompts by the reference and by a recipe, and keeps what came of each as a fact."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from engine import protocol as p
from engine.errors import UsageError
from engine.formats.grammar import parse_format
from engine.measure.calibration.calibration import calibration_key, with_scales
from engine.measure.counts import JobCounts
from engine.measure.symptoms.continuing import Continuing
from engine.measure.symptoms.tracing import (
    failing_prompts,
    healthy_prompts,
    reference_failures,
    trace,
)
from engine.measure.symptoms.weights import recipe_weights
from engine.measure.whole_model import refuse_streamed
from engine.model.generation import why_not_cached
from engine.model.network import Network
from engine.service.jobs import Steps
from engine.session import recipe_hash
from engine.store import keys
from engine.texts.prompts import Tokens, read_prompts, tokenised, typed
from engine.workspace import Loaded


def find_symptoms(
    loaded: Loaded, command: p.FindSymptoms, layers: Mapping[str, str], job: str
) -> Steps:
    """Continue prompts by the reference and by a recipe.

    Args:
        loaded: the model.
        command: names the prompts, and how they are continued.
        layers: the recipe: formats by name of the layers that are not kept.
        job: id, for progress.

    Yields:
        `Continuing`, `Progress`, `Learned` with a `Continued` of every prompt.

    Raises:
        TextError: the prompts cannot be read.
        UsageError: no layer is changed, or a prompt is too long for the model.
        OutOfMemoryError: the recipe does not fit beside the model.
    """
    counts = JobCounts(timings={"load_s": loaded.load_s}, job=job)
    network = loaded.network
    if not layers:
        raise UsageError("every layer is as stored: give some layer a format first")
    if unknown := [name for name in layers if name not in network.layers]:
        raise UsageError(f"the model has no layer {unknown[0]!r}")
    formats = {name: parse_format(text) for name, text in sorted(layers.items())}
    recipe = {name: str(format) for name, format in formats.items()}
    tokenizer = _tokenizer(loaded)
    how = command.sampling
    prompts = _prompts(loaded, command, tokenizer)
    part = yield from calibration_key(loaded, formats.values(), "sequential")
    calibration = with_scales(loaded, part, formats)
    addresses = _addresses(loaded, recipe, calibration, prompts, how)
    known = {
        key: fact
        for key, fact in loaded.known([each for each, _ in addresses]).items()
        if isinstance(fact, p.Continued)
    }
    yield from counts.found(list(known), list(known.values()))
    found = p.Symptoms(recipe_hash(recipe), tuple(prompt for _, prompt in addresses))
    left = [at for at, (address, _) in enumerate(addresses) if address not in known]
    if not left and not command.why:
        return msgspec.structs.replace(counts.outcome(), result=found)
    refuse_streamed(network, "symptoms", "once for every new token")
    held = yield from recipe_weights(loaded, formats, counts)
    if why := (caching := loaded.part(_Caching, lambda: _Caching(network))).why_not:
        yield p.Notice("info", f"every new token runs the whole text again: {why}")
    continuing = Continuing(
        network, tokenizer, how, end_tokens(network, tokenizer), held,
        seed=loaded.settings.seed, cached=not caching.why_not, counts=counts,
    )  # fmt: skip
    where = {id(prompts[at]): addresses[at] for at in left}
    batches = list(continuing.batches([prompts[at] for at in left], loaded.batch_tokens))
    stage = counts.stage("continuing", 2 * how.new_tokens * len(batches))
    for batch in batches:
        both = yield from continuing.pair(batch, stage)
        scores = yield from continuing.scored(batch, both[1], held)
        places = [where[id(each)] for each in batch]
        of = [prompt for _, prompt in places]
        facts = continuing.facts(batch, both, scores, of, found.recipe)
        for (address, _), fact in zip(places, facts, strict=True):
            known[address] = fact
            yield counts.learnt(address, fact)
    if command.why:
        done = [known[address] for address, _ in addresses]
        failing = failing_prompts(done, prompts)
        if failing:
            traced = yield from trace(
                loaded, failing, healthy_prompts(done, prompts), reference_failures(done),
                held, continuing,
                lambda texts: keys.SymptomRestored(
                    on=loaded.opened.files,
                    recipe=recipe,
                    scale_dtype=loaded.scale_dtype,
                    dtype=loaded.protocol.dtype,
                    device=loaded.protocol.device.split(":")[0],
                    prompts=hashlib.sha256(repr((texts, how)).encode()).hexdigest(),
                    layers=(),
                    calibration=calibration,
                ),
                counts,
            )  # fmt: skip
            found = msgspec.structs.replace(found, failing=traced)
    return msgspec.structs.replace(counts.outcome(), result=found)


class _Caching:
    """Whether the model goes on from a cache of keys and values; a part of it."""

    def __init__(self, network: Network) -> None:
        self.why_not = why_not_cached(network)


def _tokenizer(loaded: Loaded) -> Any:
    from engine.model.load import load_tokenizer

    settings = loaded.settings
    return load_tokenizer(
        loaded.opened.path,
        trust_remote_code=settings.trust_remote_code,
        follow_links=settings.follow_links,
    )


def _prompts(loaded: Loaded, command: p.FindSymptoms, tokenizer: Any) -> list[Tokens]:
    how = command.sampling
    given = read_prompts(Path(command.file)) if command.file else []
    found = tokenised([*given, *typed(command.prompts)], tokenizer, chat=how.chat)
    text = loaded.network.config.get_text_config()
    most = getattr(text, "max_position_embeddings", None)
    vocabulary = loaded.network.model.get_input_embeddings().weight.shape[0]
    for each in found:
        if most is not None and len(each.ids) + how.new_tokens > most:
            raise UsageError(
                f"prompt {each.prompt.id} has {len(each.ids)} tokens, and the model takes {most}: "
                f"with {how.new_tokens} new ones it is too long"
            )
        if max(each.ids) >= vocabulary:
            raise UsageError(
                f"prompt {each.prompt.id} has token {max(each.ids)}, and the model has only "
                f"{vocabulary}: tokenizer and model do not match"
            )
    return found


def end_tokens(network: Network, tokenizer: Any) -> frozenset[int]:
    """Tokens that end a text, as the model, its generation settings and the tokenizer say.

    What is no token of the model is left out: configs write -1, or a token of another vocabulary.
    """
    vocabulary = network.model.get_input_embeddings().weight.shape[0]
    found: set[object] = set()
    generation = getattr(network.model, "generation_config", None)
    for owner in (generation, network.config, network.config.get_text_config(), tokenizer):
        token = getattr(owner, "eos_token_id", None)
        found.update(token if isinstance(token, list | tuple) else [token])
    return frozenset(each for each in found if type(each) is int and 0 <= each < vocabulary)


def _addresses(
    loaded: Loaded,
    recipe: Mapping[str, str],
    calibration: keys.Calibration | None,
    prompts: Sequence[Tokens],
    how: p.Sampling,
) -> list[tuple[str, str]]:
    """For every prompt, the address of its fact, and its key among the prompts of a recipe."""
    seed = loaded.settings.seed if how.temperature else 0
    found = []
    for each in prompts:
        ids = ",".join(map(str, each.ids))
        said = repr((ids, each.prompt.id, how.new_tokens, how.temperature, how.top_p, seed))
        prompt = hashlib.sha256(said.encode()).hexdigest()
        key = keys.Continued(
            on=loaded.opened.files,
            recipe=recipe,
            scale_dtype=loaded.scale_dtype,
            dtype=loaded.protocol.dtype,
            device=loaded.protocol.device.split(":")[0],
            prompt=prompt,
            id=each.prompt.id,
            rephrases=each.prompt.rephrases,
            topic=each.prompt.topic,
            calibration=calibration,
        )
        found.append((key.address, prompt[:16]))
    return found
