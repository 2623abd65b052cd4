"""The document of `qtui eval`."""

from __future__ import annotations

from msgspec import UNSET, UnsetType

from engine import protocol as p
from engine.report.schema.parts import (
    BaselinePart,
    CalibrationPart,
    LayerFallback,
    Model,
    Number,
    Part,
)


class RecipePart(Part, frozen=True, kw_only=True):
    """A recipe's score and its size."""

    name: str
    """How the user named the recipe."""
    nll: Number
    """Mean negative log-likelihood, nats per token."""
    ppl: Number
    """Perplexity, ``exp(nll)``."""
    ppl_ci95: tuple[Number, Number]
    """95% interval of ``ppl``."""
    dnll: Number
    """Change of NLL, nats per token."""
    dnll_se: Number
    """Standard error of ``dnll`` over windows."""
    kl: Number
    """KL divergence from the unchanged model, nats per token."""
    kl_se: Number
    """Standard error of ``kl`` over windows."""
    top1_agreement: Number
    """Share of positions where both models have the same top token, 0 to 1."""
    bits_per_weight: Number | UnsetType = UNSET
    """Stored bits per weight of the body: codes, scales and zero points."""
    bits_all: Number | UnsetType = UNSET
    """The same over every layer, head and embedding among them; the weights of a tied pair count
    once."""
    bytes: int | UnsetType = UNSET
    """Size of the whole artefact."""


class PositionsPart(Part, frozen=True, kw_only=True):
    """A recipe at the positions of windows that have so many tokens before them."""

    first: int
    """Tokens before the first of these predictions."""
    last: int
    """Tokens before the last."""
    ppl_reference: Number
    """Perplexity of the unchanged model."""
    ppl: Number
    """Perplexity of the recipe."""
    dnll: Number
    """Change of NLL, nats per token."""
    dnll_se: Number
    """Standard error of ``dnll`` over windows."""
    kl: Number
    """KL divergence from the unchanged model, nats per token."""
    kl_se: Number
    """Standard error of ``kl`` over windows."""


class TextPart(Part, frozen=True, kw_only=True):
    """A recipe on one evaluation text."""

    name: str
    """As it was asked for."""
    text: str
    """What was read."""
    text_sha256: str
    """Hash of it."""
    tokens: int
    """Tokens that count."""
    windows: int
    """Windows that they are in."""
    ppl_reference: Number
    """Perplexity of the unchanged model."""
    ppl: Number
    """Perplexity of the recipe."""
    ppl_ci95: tuple[Number, Number]
    """95% interval of ``ppl``."""
    dnll: Number
    """Change of NLL, nats per token."""
    dnll_se: Number
    """Standard error of ``dnll`` over windows."""
    kl: Number
    """KL divergence from the unchanged model, nats per token."""
    kl_se: Number
    """Standard error of ``kl`` over windows."""
    top1_agreement: Number
    """Share of positions where both models have the same top token, 0 to 1."""
    positions: list[PositionsPart]
    """By the number of tokens before a prediction, without gaps."""


class EvalDocument(Part, frozen=True, kw_only=True, tag_field="schema", tag="qtui.eval/1"):
    """Perplexity and KL of one recipe."""

    resumed: int
    """Number of results taken from the cache."""
    model: Model
    """The checkpoint."""
    protocol: p.Protocol
    """Text, windows and arithmetic behind the figures."""
    calibration: CalibrationPart
    """The calibration text."""
    versions: dict[str, str]
    """Versions of libraries that figures may depend on, by name."""
    baseline: BaselinePart | UnsetType = UNSET
    """The score of the unchanged model."""
    recipe: RecipePart
    """The recipe's score and size."""
    texts: list[TextPart] | UnsetType = UNSET
    """The recipe on each text, where several were named, or figures by position asked for."""
    fallbacks: list[LayerFallback]
    """Layers that do not get a format asked for."""
    timings: dict[str, Number]
    """Seconds by what they were spent on."""
