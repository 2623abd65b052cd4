"""The document of `qtui symptoms`."""

from __future__ import annotations

from msgspec import UNSET, UnsetType

from engine import protocol as p
from engine.report.schema.comparison import DivergencePart
from engine.report.schema.parts import CalibrationPart, LayerFallback, Model, Number, Part


class SamplingPart(Part, frozen=True, kw_only=True):
    """How prompts were continued."""

    new_tokens: int
    """New tokens, at most."""
    temperature: Number
    """0 took the most likely token each time."""
    top_p: Number
    """The most likely tokens that together have this probability were chosen from."""
    seed: int
    """Of the random numbers, the same for reference and recipe."""
    chat: bool
    """Whether prompts were written by the tokenizer's chat template."""


class ChoicePart(Part, frozen=True, kw_only=True):
    """A token that may come next."""

    token: str
    """Its text."""
    p: Number
    """Its probability at temperature 1."""


class DifferencePart(Part, frozen=True, kw_only=True):
    """The first token that differs, with both distributions there."""

    token: int
    """Number of the token, from 0."""
    reference: str
    """What the reference wrote there."""
    recipe: str
    """What the recipe wrote there."""
    reference_top: list[ChoicePart]
    """The reference's most likely tokens."""
    recipe_top: list[ChoicePart]
    """The recipe's most likely tokens."""


class LoopPart(Part, frozen=True, kw_only=True):
    """A loop at the end of the recipe's text."""

    period: int
    """Tokens that repeat; 0 where there is no exact period."""
    start: int
    """Number of the first token of it."""


class PromptPart(Part, frozen=True, kw_only=True):
    """A prompt and its continuations."""

    id: str
    """What it is called."""
    topic: str | UnsetType = UNSET
    """What it is about, where that was said."""
    prompt: str
    """The prompt; a chat as its template writes it."""
    reference: str
    """What the reference wrote."""
    recipe: str
    """What the recipe wrote."""
    reference_tokens: int
    """Tokens that the reference wrote."""
    recipe_tokens: int
    """Tokens that the recipe wrote."""
    reference_surprise: Number
    """Mean NLL of the reference's text under the reference, nats per token."""
    recipe_surprise: Number
    """Mean NLL of the recipe's text under the reference, nats per token."""
    kl: Number
    """KL of the recipe from the reference over the recipe's text, nats per token."""
    first_difference: int | None
    """Number of the first token that differs; null where none does."""
    difference: DifferencePart | UnsetType = UNSET
    """What both would have said there."""
    loop: LoopPart | UnsetType = UNSET
    """The loop that the recipe ends in."""
    reference_findings: list[str]
    """Symptoms of the reference's text."""
    findings: list[str]
    """Symptoms of the recipe's text that the reference's does not have, the gravest first."""


class SymptomRate(Part, frozen=True, kw_only=True):
    """How often a symptom is there."""

    symptom: str
    """Its name, as in `findings`."""
    prompts: int
    """All prompts."""
    reference: int
    """Prompts where the reference shows it."""
    reference_ci95: tuple[Number, Number]
    """Wilson's interval of its share."""
    recipe: int
    """Prompts where the recipe shows it."""
    recipe_ci95: tuple[Number, Number]
    """Wilson's interval of its share."""
    added: int
    """Prompts where the recipe shows it and the reference nothing like it."""
    chance: Number
    """Probability of as uneven a change, were it as likely either way (exact McNemar test); null of
    kinds that are told by the reference's text, which cannot show them."""


class RestoredLayer(Part, frozen=True, kw_only=True):
    """What giving a layer, a module or a block back wins on the texts that show symptoms."""

    name: str
    """Name of the layer; or `block 3`, `block 3 self_attn`."""
    layers: list[str]
    """Layers that were given back."""
    kl: Number
    """By how much KL falls, nats per token, mean over texts."""
    kl_se: Number
    """Standard error of `kl` over texts; null of one text."""
    whole: Number
    """KL of the whole recipe on these texts."""
    texts: int
    """Texts."""
    zeroed: Number
    """Share of its weights in rows that the recipe makes all zero."""
    nonfinite: Number
    """Share of its weights that are not finite in the recipe."""


class ContrastedChannelPart(Part, frozen=True, kw_only=True):
    """An input channel of a layer, in the reference."""

    layer: str
    """Its layer; of several with this input, the one that errs most by the channel."""
    channel: int
    """Its number."""
    failing: Number
    """Mean absolute value over the tokens of prompts that fail, without the first of each."""
    healthy: Number
    """The same of the others."""
    chance: Number
    """Chance of so large a difference in any channel of any layer (permutation test)."""
    share: Number
    """Part of the layer's output error on failing prompts that comes in by it."""
    share_healthy: Number
    """The same on the others."""


class ContrastedLayerPart(Part, frozen=True, kw_only=True):
    """The error of a layer's outputs on the reference's inputs."""

    layer: str
    """Name of the layer."""
    failing: Number
    """Relative error, mean over prompts that fail."""
    healthy: Number
    """The same of the others; null if there are none."""
    chance: Number
    """Chance of so large a difference in any layer; null if there are no others."""


class ContrastedHeadPart(Part, frozen=True, kw_only=True):
    """A head of attention."""

    block: int
    """Its block."""
    module: int
    """Which of the attention modules of the block."""
    head: int
    """Its number."""
    failing: Number
    """KL of the recipe's attention from the reference's, nats a query, mean over prompts that
    fail."""
    healthy: Number
    """The same of the others; null if there are none."""
    chance: Number
    """Chance of so large a difference in any head; null if there are no others."""


class ContrastPart(Part, frozen=True, kw_only=True):
    """Prompts that show a symptom against others, each with what the reference wrote."""

    failing: int
    """Prompts that show one."""
    healthy: int
    """Prompts on which neither the recipe nor the reference fails."""
    reference_fails: int | UnsetType = UNSET
    """Prompts that are left out, since the reference fails on them by itself; absent if none."""
    channels: list[ContrastedChannelPart]
    """Channels that differ most."""
    layers: list[ContrastedLayerPart]
    """Layers that differ most."""
    heads: list[ContrastedHeadPart]
    """Heads that differ most; without other prompts those that diverge most."""
    why: str | UnsetType = UNSET
    """Why something could not be compared."""


class CurePart(Part, frozen=True, kw_only=True):
    """Something that may help."""

    sentence: str
    """In words."""
    tried: bool
    """Whether it was measured that the symptom is gone."""
    layers: list[str]
    """Layers to keep, where it is that."""


class CausePart(Part, frozen=True, kw_only=True):
    """Why the recipe shows a symptom, where something was measured that shows it."""

    symptom: str
    """The most frequent one that the recipe adds."""
    cause: str
    """Such as `layers`, `head`, `zero-scales`, `spread`, `channels`, `attention-head`, `topic`."""
    sentence: str
    """In words."""
    layers: list[str]
    """Layers that it is about."""
    evidence: dict[str, Number]
    """The figures behind it, by name."""
    fix: str | UnsetType = UNSET
    """The cheapest fix."""
    fixes: list[CurePart]
    """All, the cheapest first."""


class PromptSetPart(Part, frozen=True, kw_only=True):
    """Prompts that a recipe continued in one way, in a report."""

    sampling: SamplingPart
    """How they were continued."""
    prompts: int
    """How many."""
    same: int
    """Of them, those where both wrote the same."""
    alarms: int
    """Of them, those where the recipe shows a symptom that the reference does not."""
    rates: list[SymptomRate]
    """Every symptom that was seen, the gravest first."""
    restored: list[RestoredLayer]
    """What was given back, as in `qtui.symptoms/1`."""
    contrast: ContrastPart | UnsetType = UNSET
    """What is different inside the model where prompts fail."""
    causes: list[CausePart]
    """Causes that were measured, the surest first."""
    examples: list[PromptPart]
    """The first prompts with a symptom."""


class TaskItem(Part, frozen=True, kw_only=True):
    """An item of a task whose answer the recipe changed."""

    id: str
    """What it is called."""
    prompt: str
    """The end of its prompt."""
    right: str
    """The right answer."""
    reference: str
    """What the reference answered; empty where it did not write the right answer."""
    recipe: str
    """What the recipe answered."""
    reference_right: bool
    """Whether the reference is right."""
    recipe_right: bool
    """Whether the recipe is."""


class TaskMetric(Part, frozen=True, kw_only=True):
    """A task by one metric."""

    metric: str
    """``acc``: the most likely choice; ``acc_norm``: the same by log-likelihood over characters;
    ``exact``: whether the answer is written greedily; or a metric of lm-eval."""
    accuracy_reference: Number
    """Share of items that the reference has right."""
    accuracy_reference_ci95: tuple[Number, Number]
    """Wilson's interval of it."""
    accuracy: Number
    """Share of items that the recipe has right."""
    accuracy_ci95: tuple[Number, Number]
    """Wilson's interval of it."""
    difference: Number
    """Of the two."""
    difference_ci95: tuple[Number, Number]
    """Newcombe's interval of it, for the same items."""
    flips: int
    """Items that were right and are wrong, or the other way."""
    flips_ci95: tuple[Number, Number]
    """Wilson's interval of their share."""
    lost: int
    """Of these, those that only the reference has right."""
    gained: int
    """Of these, those that only the recipe has right."""
    chance: Number
    """Probability of as uneven a change, were it as likely either way (exact McNemar test)."""


class TaskPart(TaskMetric, frozen=True, kw_only=True):
    """A task that both answered, by its first metric."""

    name: str
    """What it is called."""
    items: int
    """How many it has."""
    changed: int
    """Items whose answer changed, also from one wrong answer to another."""
    other_metrics: list[TaskMetric]
    """The same by its other metrics."""
    changed_items: list[TaskItem]
    """The first of the items whose answer changed, those that flipped before others."""


class SymptomsDocument(Part, frozen=True, kw_only=True, tag_field="schema", tag="qtui.symptoms/1"):
    """Prompts continued by the reference and by a recipe, side by side."""

    resumed: int
    """Number of results taken from the cache."""
    model: Model
    """The reference."""
    protocol: p.Protocol | UnsetType = UNSET
    """Text and windows of the session; of it, only arithmetic and device matter to prompts."""
    calibration: CalibrationPart | UnsetType = UNSET
    """The text that methods of the recipe used."""
    versions: dict[str, str]
    """Versions of libraries that figures may depend on, by name."""
    recipe: str
    """What the recipe is called."""
    fallbacks: list[LayerFallback]
    """Layers that do not have the format that was asked for."""
    sampling: SamplingPart
    """How prompts were continued."""
    rates: list[SymptomRate]
    """Every symptom that was seen, the gravest first."""
    alarms: int
    """Prompts where the recipe shows a symptom that the reference does not."""
    prompts: list[PromptPart]
    """All prompts, in their order."""
    restored: list[RestoredLayer]
    """Layers, modules of blocks, and blocks that were given back where symptoms show, the one that
    wins most first; last those that win no more than a part of them by itself."""
    contrast: ContrastPart | UnsetType = UNSET
    """What is different inside the model where prompts fail, where layers were given back."""
    causes: list[CausePart]
    """Causes that were measured, the surest first."""
    tasks: list[TaskPart]
    """Tasks that both answered."""
    divergence: DivergencePart | UnsetType = UNSET
    """Both at every position of the evaluation windows, in llama.cpp's tables."""
    timings: dict[str, Number]
    """Seconds by what they were spent on."""
