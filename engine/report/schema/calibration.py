"""The document of `qtui calibrate`."""

from __future__ import annotations

from msgspec import UNSET, UnsetType

from engine import protocol as p
from engine.report.schema.parts import FindingPart, Model, Number, Part


class AgainstPart(Part, frozen=True, kw_only=True):
    """The difference of two KLs on the same windows of a text, taken window by window.

    What another draw of the same set would give is in no interval.
    """

    name: str
    """The other set."""
    samples: int
    """Its windows."""
    seq_len: int
    """Tokens of each."""
    kl: Number
    """The difference, nats per token."""
    kl_se: Number
    """Its standard error over windows."""
    kl_ci95: tuple[Number, Number]
    """Student's interval of it: sets differ beyond chance where it lies on one side of 0."""


class JudgedPart(Part, frozen=True, kw_only=True):
    """A calibration set on one evaluation text."""

    text: str
    """Name of the text."""
    distance: Number
    """How far inputs of layers differ from those on the text: the mean over inputs of the median
    over channels of ``|log2|`` of the ratio of mean squares."""
    overlap: Number
    """Share of the text's runs of 13 tokens that occur in the set."""
    kl: Number | UnsetType = UNSET
    """KL of the quantised model from the original, nats per token."""
    kl_se: Number | UnsetType = UNSET
    """Standard error of ``kl`` over windows."""
    nll: Number | UnsetType = UNSET
    """Mean negative log-likelihood, nats per token."""
    ppl: Number | UnsetType = UNSET
    """Perplexity, ``exp(nll)``."""
    ppl_reference: Number | UnsetType = UNSET
    """Of the original."""
    top1_agreement: Number | UnsetType = UNSET
    """Share of positions where both have the same top token, 0 to 1."""
    first_half_kl: Number | UnsetType = UNSET
    """KL with the first half of the samples alone, where that was measured."""
    second_half_kl: Number | UnsetType = UNSET
    """KL with the second half alone."""
    best: bool | UnsetType = UNSET
    """Whether no set is better on this text by more than chance."""
    above_best: AgainstPart | UnsetType = UNSET
    """KL above that of the best row on this text; missing for the best."""
    above_rival: AgainstPart | UnsetType = UNSET
    """KL above that of the best set with as many samples of the same length; missing for it."""
    above_more: AgainstPart | UnsetType = UNSET
    """KL of the next smaller number of samples above this: whether more samples help still."""
    findings: list[FindingPart]
    """What is against the set on this text, the worst first."""


class CalibrationSetPart(Part, frozen=True, kw_only=True):
    """So many samples of a calibration set."""

    name: str
    """As it was asked for; ``eval:TEXT`` for what is held out of an evaluation text."""
    samples: int
    """Windows."""
    seq_len: int
    """Tokens of each."""
    tokens: int
    """Tokens in all of them."""
    documents: int
    """That the set was joined from; 0 where it was generated."""
    kl: Number | UnsetType = UNSET
    """On the first text; see ``texts``."""
    kl_se: Number | UnsetType = UNSET
    """On the first text."""
    ppl: Number | UnsetType = UNSET
    """On the first text."""
    distance: Number
    """From the first text."""
    repetition: Number
    """Share of runs of 8 tokens that occurred before in the set."""
    duplicates: Number
    """Share of windows with half of their runs of 8 tokens or more in earlier windows."""
    unseen_experts: int | UnsetType = UNSET
    """Experts that no token reached; missing where there are none."""
    warnings: list[str]
    """Sentences of all texts' findings, each once."""
    texts: list[JudgedPart]
    """The set on each text, in the order they were named."""


class CalibratedTextPart(Part, frozen=True, kw_only=True):
    """A text that sets were judged on."""

    name: str
    """As it was asked for."""
    text: str
    """What was read."""
    text_sha256: str
    """Hash of it."""
    tokens: int
    """Tokens that were evaluated."""


class CalibrationSetsPart(Part, frozen=True, kw_only=True):
    """Calibration sets that were compared with one method."""

    method: str
    """Format of every layer of the body."""
    texts: list[str]
    """That the sets were judged on, by name."""
    sets: list[CalibrationSetPart]
    """By set and length, the fewest samples first."""


class CalibrateDocument(
    Part, frozen=True, kw_only=True, tag_field="schema", tag="qtui.calibrate/1"
):
    """Calibration sets compared by what a method makes of them."""

    method: str
    """Format of every layer of the body."""
    statistics: str = "reference"
    """Whose inputs were used: those of the unchanged model."""
    resumed: int
    """Number of results taken from the cache."""
    model: Model
    """The checkpoint."""
    protocol: p.Protocol
    """Windows and arithmetic of every evaluation; the text is the session's own."""
    versions: dict[str, str]
    """Versions of libraries that figures may depend on, by name."""
    texts: list[CalibratedTextPart]
    """That the sets were judged on."""
    sets: list[CalibrationSetPart]
    """By set and length, the fewest samples first."""
    timings: dict[str, Number]
    """Seconds by what they were spent on."""
