"""The document of `qtui compare`."""

from __future__ import annotations

from msgspec import UNSET, UnsetType

from engine import protocol as p
from engine.report.schema.parts import BaselinePart, FindingPart, Model, Number, Part
from engine.report.schema.triage import ErrorPart, StoredPart


class RestoredPart(Part, frozen=True, kw_only=True):
    """What giving the layer back its original weight wins."""

    kl: Number
    """By how much KL falls, nats per token."""
    kl_se: Number
    """Standard error of ``kl`` over windows."""
    dnll: Number
    """By how much NLL falls, nats per token."""
    dnll_se: Number
    """Standard error of ``dnll`` over windows."""


class ClippedPart(Part, frozen=True, kw_only=True):
    """Weights of the original that are beyond the ends of the grid, by more than half a step."""

    share: Number
    """Of all weights of the layer."""
    input_channel: int
    """The input channel with the largest share."""
    input_share: Number
    """That share."""
    output_channel: int
    """The output channel with the largest share."""
    output_share: Number
    """That share."""


class ComparedLayer(Part, frozen=True, kw_only=True):
    """A layer of a finished checkpoint against its original."""

    name: str
    """Its name."""
    format: str
    """What it is stored as: a format where it is one of qtui's, else a layout or a dtype."""
    bits: Number
    """Stored bits a weight."""
    stored: StoredPart | UnsetType = UNSET
    """Its codes, if it is stored quantised."""
    errors: ErrorPart | UnsetType = UNSET
    """Difference of the weights, with folded scales taken back; as all that follows, missing
    without an original."""
    rounding: str | UnsetType = UNSET
    """``same``; ``nearest``, to the nearest level of its grid; ``solved``, as by GPTQ; ``other``,
    from other weights."""
    displaced: Number | UnsetType = UNSET
    """Share of weights that are not at the nearest level of their grid."""
    steps: Number | UnsetType = UNSET
    """Root mean square error in steps of the grid; rounding to nearest errs by 0.29. Where levels
    are not evenly spaced, as those of fp4 and nf4, in its smallest gap: it says little there."""
    folded: Number | UnsetType = UNSET
    """Largest scale folded into an input channel over the smallest; 1 if there are none."""
    sensitivity: RestoredPart | UnsetType = UNSET
    """What giving it back wins, where that was measured."""
    declared: str | UnsetType = UNSET
    """What the configuration says it is stored as, where it is read as something else."""
    read_as: str | UnsetType = UNSET
    """And what it is read as."""
    mistake: str | UnsetType = UNSET
    """A mistake that explains most of its error, such as ``off-by-one``."""
    left: Number | UnsetType = UNSET
    """Its relative error with the mistake undone."""
    rotated: str | UnsetType = UNSET
    """What was rotated in it, and taken back for ``errors``: ``residual stream``, ``heads``,
    ``input``; ``input, not undone`` where the matrix is unknown."""
    clipping: ClippedPart | UnsetType = UNSET
    """Where it is clipped; missing where the ends of its grid are not known."""
    divisor: Number | UnsetType = UNSET
    """What the largest weight of a group (with zero points, its range) is divided by for its scale;
    missing where that is no number that quantisers use."""
    refused: str | UnsetType = UNSET
    """Why it could not be compared."""


class DivergencePart(Part, frozen=True, kw_only=True):
    """The tables of ``llama-perplexity --kl-divergence``, by its names.

    Its uncertainties take positions for independent; those of ``kl`` and ``dnll`` are over windows.
    """

    tokens: int
    """Positions that count."""
    ppl: Number
    """``Mean PPL(Q)``."""
    ppl_se: Number
    """Its uncertainty."""
    ppl_base: Number
    """``Mean PPL(base)``."""
    ppl_base_se: Number
    """Its uncertainty."""
    correlation: Number
    """``Cor(ln(PPL(Q)), ln(PPL(base)))``, -1 to 1."""
    ln_ratio: Number
    """``Mean ln(PPL(Q)/PPL(base))``."""
    ln_ratio_se: Number
    """Its uncertainty."""
    kld: dict[str, Number]
    """KL divergence, nats: ``mean`` with ``mean_se``, ``max``, ``99.9%`` to ``0.1%``, ``min``."""
    delta_p: dict[str, Number]
    """Change of the probability of the token that follows, 0 to 1: ``mean`` with ``mean_se``,
    ``rms`` with ``rms_se``, ``max``, ``99.9%`` to ``0.1%``, ``min``."""
    same_top: Number
    """``Same top p``, 0 to 1."""
    same_top_se: Number
    """Its uncertainty."""


class ArtefactPart(Part, frozen=True, kw_only=True):
    """A finished checkpoint."""

    path: str
    """Where it is."""
    name: str
    """Folder name or hub id."""
    fingerprint: str
    """SHA-256 of configuration and weights."""
    layout: str
    """What its weights are stored in."""
    declared: dict[str, str | int | float | bool]
    """What its configuration says of its quantisation."""
    bits_per_weight: Number
    """Stored bits a weight of the body, scales and zero points included."""
    bits_all: Number
    """The same of all layers."""
    bytes: int
    """Bytes of all tensors as stored."""
    nll: Number | UnsetType = UNSET
    """Mean negative log-likelihood, nats per token."""
    ppl: Number | UnsetType = UNSET
    """Perplexity, ``exp(nll)``."""
    ppl_ci95: tuple[Number, Number] | UnsetType = UNSET
    """95% interval of ``ppl``, of the difference to the original alone."""
    dnll: Number | UnsetType = UNSET
    """Change of NLL, nats per token."""
    dnll_se: Number | UnsetType = UNSET
    """Standard error of ``dnll`` over windows."""
    kl: Number | UnsetType = UNSET
    """KL divergence from the original, nats per token."""
    kl_se: Number | UnsetType = UNSET
    """Standard error of ``kl`` over windows."""
    top1_agreement: Number | UnsetType = UNSET
    """Share of positions where both have the same top token, 0 to 1."""
    divergence: DivergencePart | UnsetType = UNSET
    """How far it is from the original, position by position."""
    layers: list[ComparedLayer]
    """Its layers, in the original's order."""
    unmatched: list[str]
    """Layers of the original that it has not, or in another shape."""
    findings: list[FindingPart]
    """What stands out, the worst first."""


class CompareDocument(Part, frozen=True, kw_only=True, tag_field="schema", tag="qtui.compare/1"):
    """Finished checkpoints compared with their original."""

    resumed: int
    """Number of results taken from the cache."""
    reference: Model | UnsetType = UNSET
    """The original; missing where there was none."""
    protocol: p.Protocol | UnsetType = UNSET
    """Text, windows and arithmetic behind the scores; missing where files alone were compared."""
    versions: dict[str, str]
    """Versions of libraries that figures may depend on, by name."""
    baseline: BaselinePart | UnsetType = UNSET
    """The original's score."""
    logits: str | UnsetType = UNSET
    """The logits file that was the reference, where one was given."""
    artefacts: list[ArtefactPart]
    """In the order they were named."""
    timings: dict[str, Number]
    """Seconds by what they were spent on."""
