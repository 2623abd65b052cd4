"""The document of `qtui report`."""

from __future__ import annotations

from msgspec import UNSET, UnsetType

from engine import protocol as p
from engine.report.schema.calibration import CalibrationSetsPart
from engine.report.schema.comparison import ArtefactPart, DivergencePart
from engine.report.schema.diagnosis import DiagnosedLayer
from engine.report.schema.evaluation import TextPart
from engine.report.schema.parts import (
    AgreementPart,
    BaselinePart,
    CalibrationPart,
    ControlPart,
    FindingPart,
    HistogramPart,
    LayerFallback,
    Model,
    Number,
    Part,
    PointPart,
    VerdictPart,
)
from engine.report.schema.sweep import AdvicePart
from engine.report.schema.symptoms import PromptSetPart, TaskPart


class ReportEffect(Part, frozen=True, kw_only=True):
    """What one layer alone costs in one format."""

    kl: Number
    """KL in nats per token."""
    kl_se: Number | UnsetType = UNSET
    dppl: Number | UnsetType = UNSET
    """Change of perplexity."""
    measured: bool
    """Whether it was measured; else estimated."""


class ReportLayer(Part, frozen=True, kw_only=True):
    """One layer of a report."""

    name: str
    kind: str
    block: int | None
    role: str
    shape: list[int]
    dtype: str
    holds: str
    """Its format in the recipe."""
    bits: Number
    """Bits per weight that it takes in that format."""
    bytes: int
    errors: dict[str, Number]
    """Relative weight error by format, where it is known."""
    outliers: Number | UnsetType = UNSET
    """Share of weights beyond the protocol's number of standard deviations."""
    effects: dict[str, ReportEffect]
    """By format."""
    category: str
    """Its place and part, such as ``first attention``."""
    advice: AdvicePart | UnsetType = UNSET
    """Missing unless all effects in the format of the report are known."""


class ReportRecipe(Part, frozen=True, kw_only=True):
    """The session's recipe."""

    changed: int
    """Layers that are not kept."""
    bits_per_weight: Number
    bits_all: Number
    bytes: int
    """Of the whole artefact."""
    stored_bytes: int
    """Of the checkpoint as it is."""
    measured: ScoredPart | UnsetType = UNSET
    """Missing if it was not measured."""
    layers: dict[str, str]
    """Layers that are not kept, with their formats."""


class ScoredPart(Part, frozen=True, kw_only=True):
    """A measured score of a recipe."""

    ppl: Number
    ppl_ci95: tuple[Number, Number]
    kl: Number
    kl_se: Number
    top1_agreement: Number


class TriedRecipe(Part, frozen=True, kw_only=True):
    """A recipe that the session held at some time."""

    name: str
    """As it was named, else what its layers hold."""
    changed: int
    bits_per_weight: Number
    bytes: int
    measured: ScoredPart | UnsetType = UNSET
    current: bool
    frontier: bool
    """Whether none measured has less KL in as few bytes."""


class ReportPlan(Part, frozen=True, kw_only=True):
    """The last plan."""

    budget: dict[str, Number]
    frontier: list[PointPart]
    baselines: dict[str, PointPart]


class AskedPart(Part, frozen=True, kw_only=True):
    """What was measured of a recipe besides its score."""

    recipe: str
    """What it is called."""
    prompts: list[PromptSetPart] | UnsetType = UNSET
    """That it and the reference continued, by how; missing if there are none."""
    tasks: list[TaskPart]
    """That it and the reference answered."""
    texts: list[TextPart]
    """That it was scored on, each as a whole and by position."""
    divergence: DivergencePart | UnsetType = UNSET
    """llama.cpp's tables of it, on the session's text."""


class ReportDocument(Part, frozen=True, kw_only=True, tag_field="schema", tag="qtui.report/1"):
    """All that a session knows of a checkpoint, for people who were not there."""

    session: str
    """Its name."""
    made: str
    """When, as ISO 8601 has it."""
    model: Model
    architecture: str
    versions: dict[str, str]
    """Versions of libraries that figures may depend on, by name."""
    protocol: p.Protocol | UnsetType = UNSET
    """Missing, as what follows, where it is not known."""
    calibration: CalibrationPart
    baseline: BaselinePart | UnsetType = UNSET
    control: ControlPart | UnsetType = UNSET
    interval_factor: Number
    """Standard errors that half of a 95% interval is, by Student's t for the number of windows."""
    format: str
    """Whose effects verdict, findings and map are about; empty if none is known."""
    verdict: VerdictPart | UnsetType = UNSET
    findings: list[FindingPart]
    recipe: ReportRecipe
    layers: list[ReportLayer]
    histograms: list[HistogramPart]
    """Of the layers that cost most, as far as they were read."""
    fixes: list[DiagnosedLayer] | UnsetType = UNSET
    """Layers on which other formats were tried; missing if none were."""
    tried: list[TriedRecipe]
    plan: ReportPlan | UnsetType = UNSET
    compared: list[ArtefactPart]
    """Finished checkpoints compared with it, the best first."""
    asked: list[AskedPart] | UnsetType = UNSET
    """Prompts, tasks, texts and tables by recipe, as they arrived; missing if there are none."""
    calibration_sets: list[CalibrationSetsPart] | UnsetType = UNSET
    """Calibration sets that were compared, by method; missing if none were."""
    agreement: dict[str, AgreementPart]
    """Estimates beside measurements, by format."""
    fallbacks: list[LayerFallback]
    warnings: list[str]
    commands: dict[str, str]
    """What reproduces the figures, by what it gives."""
