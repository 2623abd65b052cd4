"""`Session`: everything known about one checkpoint. `engine.session.fold` updates it.

Layers are rows, and everything known about them is in columns as long as the table. A snapshot of
another version with unknown fields is an error: it must not decode as a session that lacks their
contents.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, Literal, TypeVar

import msgspec

from engine import protocol as p
from engine.formats.storage import bits_of
from engine.session.artefact import OUTSIDE, Size, StoredSums, bits_as_stored

Result = TypeVar("Result", bound=msgspec.Struct)

KEPT = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}
"""The format of a layer that is left as stored."""
_FLOAT8 = {"float8_e4m3fn": "fp8-e4m3", "float8_e5m2": "fp8-e5m2"}


def kept_format(dtype: str) -> str:
    """The kept format of a stored dtype; weights stored in 8 bits or fewer are kept as ``bf16``."""
    return KEPT.get(dtype, "bf16")


def own_format(dtype: str) -> str:
    """The format that a layer is stored in, by the dtype or format of its listing."""
    return KEPT.get(dtype) or _FLOAT8.get(dtype, dtype)


def recipe_hash(layers: Mapping[str, str]) -> str:
    """Content address of a recipe: its quantised layers with canonical formats."""
    lines = "\n".join(f"{name}={layers[name]}" for name in sorted(layers))
    return hashlib.sha256(lines.encode()).hexdigest()[:32]


class Job(msgspec.Struct, forbid_unknown_fields=True):
    """A job as a client sees it."""

    id: str
    kind: str
    title: str
    """For display only; `command` says what the job does."""
    command: p.AnyCommand
    urgency: int = 1
    """The most urgent job has the lowest."""
    place: int = 0
    """Among jobs of its urgency the lowest runs first; where equal, the one that came first."""
    total: int = 0
    recipe: str = ""
    """Hash of the recipe that an evaluation measures."""
    done: float = 0.0
    seconds_left: float = math.nan
    phase: p.Phase = ""
    subject: str = ""
    """The layer, unit or tensor being processed."""
    format: str = ""
    detail: str = ""
    in_bytes: bool = False
    status: p.JobStatus | Literal["running"] = "running"
    message: str = ""
    exit_code: int = 0
    resumed: int = 0
    measured: int = 0
    timings: dict[str, float] = {}
    result: dict[str, Any] = {}
    """What it returned, as a map; see `read`."""
    workers: tuple[p.WorkerState, ...] = ()
    """The processes that take part, the engine's own first; empty if it is alone."""

    def read(self, kind: type[Result]) -> Result:
        """What the job returned, as the Struct that it is.

        Raises:
            msgspec.ValidationError: it returned another, or none.
        """
        return msgspec.convert(self.result, kind)


class Change(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One step of the recipe's history."""

    layers: list[str]
    before: list[str]
    after: list[str]
    left: int = 0
    """Number in `Session.tried` of the recipe before it."""
    reached: int = 0
    """And of the one after it."""


class Tried(msgspec.Struct, forbid_unknown_fields=True):
    """A recipe that the session has held; see `engine.session.tried`."""

    parent: int = -1
    """Number of the recipe that it was made from; -1 for the model as stored."""
    layers: list[str] = []
    """Layers whose formats differ from those in the recipe that it was made from."""
    held: list[str] = []
    """Their formats."""
    recipe: str = ""
    """Its hash; empty until a measurement of it begins."""
    measured: bool = False
    """Whether it was measured once, with whatever text."""
    name: str = ""


class Layers(msgspec.Struct, dict=True, forbid_unknown_fields=True):
    """The table: one entry per layer in every column."""

    names: list[str] = []
    kinds: list[str] = []
    blocks: list[int] = []
    roles: list[p.Role] = []
    shapes: list[tuple[int, ...]] = []
    dtypes: list[str] = []
    """The dtype of each layer in the files, or the format that it is stored in."""
    own_bits: list[int] = []
    """Bits of each layer in the files."""
    holds: list[str] = []
    """Canonical format of each layer in the current recipe."""
    bits: list[int] = []
    """Stored bits in that format."""
    weights: list[p.LayerWeights | None] = []
    groups: list[int] = []
    """Number of each layer's fused group, -1 for none."""
    activations: list[p.LayerActivations | None] = []
    tied: bool = False
    """Whether head and embedding are one tensor in the files."""
    swaps: tuple[p.Swap, ...] = ()
    """Layers that seem to be swapped."""

    def __post_init__(self) -> None:
        if len(self.groups) != len(self.names):
            self.groups = [-1] * len(self.names)
        if len(self.activations) != len(self.names):
            self.activations = [None] * len(self.names)
        if len(self.own_bits) != len(self.names):
            self.own_bits = [
                bits_as_stored(shape, dtype)
                for shape, dtype in zip(self.shapes, self.dtypes, strict=True)
            ]

    @cached_property
    def outside(self) -> list[int]:
        """Rows of head and embedding."""
        return [row for row, role in enumerate(self.roles) if role in OUTSIDE]

    @cached_property
    def ends(self) -> tuple[int, int]:
        """Numbers of the first and the last block; -1 without blocks."""
        inside = [block for block in self.blocks if block >= 0]
        return (min(inside), max(inside)) if inside else (-1, -1)

    @cached_property
    def as_stored(self) -> StoredSums:
        """Sums over the columns that only a new listing changes; computed on first use."""
        return StoredSums(self.roles, self.shapes, self.own_bits)


class Effects(msgspec.Struct, forbid_unknown_fields=True):
    """Effects of single layers and of units, under one checkpoint and protocol."""

    measured: dict[p.EffectKey, list[p.Sensitivity | None]] = {}
    """Of single layers: a column as long as the table."""
    estimated: dict[p.EffectKey, list[p.Estimate | None]] = {}
    """Like `measured`, from gradients."""
    units: dict[p.EffectKey, dict[str, p.Sensitivity]] = {}
    """Measured effects of a block, kind or group, by its name."""
    estimated_units: dict[p.EffectKey, dict[str, p.Estimate]] = {}
    """Like `units`, from gradients."""
    agreement: dict[p.EffectKey, p.Agreement] = {}
    additivity: dict[p.EffectKey, p.Additivity] = {}

    def known(self, direction: p.Direction | None = None) -> list[p.EffectKey]:
        """Keys with known effects of single layers; measured ones first."""
        known = dict.fromkeys((*self.measured, *self.estimated))
        return [key for key in known if direction in (None, key.direction)]

    def relisted(self, rows: list[int | None]) -> Effects:
        """The effects for a new listing of the layers.

        Args:
            rows: for each new row, its old row; None for a new layer.
        """
        return msgspec.structs.replace(
            self,
            measured={
                key: [None if row is None else column[row] for row in rows]
                for key, column in self.measured.items()
            },
            estimated={
                key: [None if row is None else column[row] for row in rows]
                for key, column in self.estimated.items()
            },
        )


class Errors(msgspec.Struct, forbid_unknown_fields=True):
    """What recipes do inside the model, under one checkpoint and protocol."""

    protocol: p.Protocol | None = None
    """Under which all of it was measured."""
    outputs: dict[str, dict[str, p.OutputError]] = {}
    """Errors of outputs by layer and format; of formats that depend on the whole recipe, those of
    the recipe that was measured last."""
    drifts: dict[str, p.Drift] = {}
    """By hash of the recipe."""
    maps: dict[str, p.ErrorMapReady] = {}
    """Where weights err, by layer; those asked for last."""


class Compared(msgspec.Struct, forbid_unknown_fields=True):
    """A finished checkpoint beside this one, its original."""

    opened: p.ArtefactOpened
    layers: dict[str, p.ArtefactLayer] = {}
    score: p.ArtefactScore | None = None
    restored: dict[str, p.LayerRestored] = {}
    """By layer."""
    stored: dict[str, p.StoredLayer] = {}
    """What its layers tell by themselves, by name."""
    tables: dict[str, p.DivergenceTable] = {}
    """Against files of probabilities, by their SHA-256; the last one was read last."""

    @property
    def table(self) -> p.DivergenceTable | None:
        """How far it is from its original, position by position."""
        if self.score is not None and self.score.table is not None:
            return self.score.table
        return next(reversed(self.tables.values()), None)


class Traced(msgspec.Struct, forbid_unknown_fields=True):
    """Symptoms of a recipe, traced to its layers."""

    prompts: str
    """Key of the texts that show them."""
    restored: dict[str, p.SymptomRestored] = {}
    """What giving a layer, or a block, back wins."""
    cures: list[p.SymptomCure] = []
    """Layers given back together, ever more of them."""
    contrast: p.SymptomContrast | None = None
    """The prompts that fail against those that do not."""

    def ranked(self) -> list[p.SymptomRestored]:
        """Everything that was given back, in the order of `order_of_wins`."""
        return order_of_wins(list(self.restored.values()))


NEARLY = 0.9
"""Share of what a set of layers wins by which a part of it counts as winning the same."""


def order_of_wins(found: Sequence[p.SymptomRestored]) -> list[p.SymptomRestored]:
    """What wins most first; last what wins no more than a part of it does by itself.

    A set of layers wins at least as much as the damaged ones among them. Of sets that lie in each
    other, the smallest that wins nearly as much says where the damage is; where layers spoil each
    other's work, none of them does alone.
    """

    def no_more_than_a_part(fact: p.SymptomRestored) -> bool:
        return any(
            set(part.layers) < set(fact.layers) and part.kl >= NEARLY * fact.kl for part in found
        )

    return sorted(found, key=lambda fact: (no_more_than_a_part(fact), -fact.kl))


class Calibrating(msgspec.Struct, forbid_unknown_fields=True):
    """Calibration sets compared, under one checkpoint and protocol."""

    checks: dict[p.CalibratedKey, p.CalibrationCheck] = {}
    """What is told of each set and text; of no method."""
    scores: dict[p.CalibratedKey, p.CalibrationScore] = {}


class Session(msgspec.Struct, forbid_unknown_fields=True):
    """Everything known about one opened checkpoint."""

    source: str = ""
    settings: p.Settings = p.Settings()
    versions: dict[str, str] = {}
    checkpoint: p.CheckpointRead | None = None
    model: p.ModelReady | None = None
    measured_with: p.ModelReady | None = None
    """The model and the text behind effects and scores, also while no model is loaded."""
    measured_under: str = ""
    """What they depend on beside these: versions, and how methods are calibrated."""
    calibrated: dict[Literal["text", "imatrix"], p.Calibrated] = {}
    """What methods were calibrated on last: windows of a text, or an importance matrix."""
    calibration: p.Calibrated | None = None
    """The calibration text; None until a method needs it."""
    layers: Layers = msgspec.field(default_factory=Layers)
    other_bytes: int = 0
    baseline: p.Baseline | None = None
    control: p.Control | None = None
    effects: Effects = msgspec.field(default_factory=Effects)
    errors: Errors = msgspec.field(default_factory=Errors)
    scores: dict[str, p.RecipeScore] = {}
    """Measured recipes by their hash."""
    partial: p.RecipeScore | None = None
    """The current recipe's score while it is being measured."""
    changed: dict[str, str] = {}
    """Layers of the current recipe that are not kept, with their formats."""
    tried: list[Tried] = msgspec.field(default_factory=lambda: [Tried()])
    """Every recipe that it has held, in order; the first is the model as stored."""
    at: int = 0
    """Number of the current one."""
    tuned_for: p.TunedFor | None = None
    """The export target and the context that the recipe is tuned for; None if never said."""
    history: list[Change] = []
    position: int = 0
    """Number of changes in effect; those after it can be redone."""
    jobs: dict[str, Job] = {}
    notices: list[p.Notice] = []
    fallbacks: dict[p.Fallback, None] = {}
    """Each once, in order of arrival."""
    stage: p.Stage | None = None
    gauges: p.Gauges | None = None
    histograms: dict[str, p.HistogramReady] = {}
    experts: dict[str, p.ExpertsReady] = {}
    """By fused layer."""
    ranges: dict[str, p.LayerRanges] = {}
    """Group sizes and clipped ranges, by layer: of the format asked for last."""
    fixes: dict[str, dict[str, p.FormatTried]] = {}
    """Formats tried on calibration inputs, by layer and format."""
    compared: dict[str, Compared] = {}
    """Finished checkpoints compared with this one, by fingerprint, in order of opening."""
    calibrating: Calibrating = msgspec.field(default_factory=Calibrating)
    """Calibration sets that were compared."""
    continued: dict[str, dict[str, p.Continued]] = {}
    """Prompts that were continued, by recipe and the prompt's key, in order of arrival."""
    traced: dict[str, Traced] = {}
    """Symptoms traced to layers, by recipe: of the texts looked at last."""
    continuing: p.Continuing | None = None
    """What is being written now."""
    seq: int = 0
    """Number of the last journalled event applied."""
    index: dict[str, int] = {}
    """Row of each layer, by name."""

    def by_kl(self) -> list[Compared]:
        """Finished checkpoints that were compared, the least KL first; last those without one."""

        def kl(compared: Compared) -> float:
            score, table = compared.score, compared.table
            value = score.kl if score is not None else table.kld["mean"] if table else math.inf
            return value if math.isfinite(value) else math.inf

        return sorted(self.compared.values(), key=kl)

    @property
    def interval_factor(self) -> float:
        """Half a 95% interval, in standard errors over the windows."""
        known = self.measured_with
        return known.interval_factor if known is not None else math.nan

    def row(self, layer: str) -> int | None:
        """Row of a layer; None if no layer has this name."""
        return self.index.get(layer)

    def kept(self, row: int) -> str:
        """The format of a row that is left as stored."""
        return kept_format(self.layers.dtypes[row])

    def shown(self, row: int) -> str:
        """What a row holds, as it is shown: its own format if it is left as stored."""
        held = self.layers.holds[row]
        return held if held != self.kept(row) else own_format(self.layers.dtypes[row])

    def recipe(self) -> dict[str, str]:
        """Layers of the current recipe that are not kept, with their formats."""
        return dict(self.changed)

    @property
    def tuning(self) -> p.TunedFor:
        """What the recipe is tuned for: what was said last, else what the profile says."""
        return self.tuned_for or p.TunedFor("", self.settings.context, self.settings.batch)

    @property
    def cache(self) -> dict[str, int]:
        """Context, batch and bits of cached numbers that a budget of GiB has if it names none."""
        said = self.tuning
        return {**self.settings.cache, "context": said.context, "batch": said.batch}

    def score(self) -> p.RecipeScore | None:
        """The current recipe's measured score, complete or partial; None if there is none yet."""
        key = recipe_hash(self.changed)
        if key in self.scores:
            return self.scores[key]
        return self.partial if self.partial is not None and self.partial.recipe == key else None

    def sensitivity(self, row: int, key: p.EffectKey) -> p.Sensitivity | None:
        """The measured effect of one layer changed alone."""
        column = self.effects.measured.get(key)
        return column[row] if column is not None else None

    def estimate(self, row: int, key: p.EffectKey) -> p.Estimate | None:
        """The estimated effect of one layer changed alone, uncorrected."""
        column = self.effects.estimated.get(key)
        return column[row] if column is not None else None

    def output_error(
        self, layer: str, format: str, recipe: str | None = None
    ) -> p.OutputError | None:
        """The error of a layer's outputs in a format, within a recipe.

        Args:
            layer: its name.
            format: canonical.
            recipe: hash of the recipe, the current one if not given; it matters to formats whose
                methods use inputs.
        """
        found = self.errors.outputs.get(layer, {}).get(format)
        if found is None or not found.recipe:
            return found
        return found if found.recipe == (recipe or recipe_hash(self.changed)) else None

    def drift(self) -> p.Drift | None:
        """How the current recipe's error grows from block to block."""
        return self.errors.drifts.get(recipe_hash(self.changed))

    @property
    def tied(self) -> bool:
        """Whether head and embedding are one tensor as stored: by the files until a model says."""
        return self.layers.tied if self.model is None else self.model.tied

    @property
    def head_in_embedding(self) -> bool:
        """Whether the artefact has one tensor for both: tied, and neither of them changed."""
        return self.tied and not any(
            self.layers.names[row] in self.changed for row in self.layers.outside
        )

    def bits_per_weight(self) -> float:
        """Stored bits per weight of the body; nan without one."""
        return self.size().bits_per_weight

    def artefact_bytes(self) -> int:
        """Size of the whole artefact: layers in their formats, the rest as stored."""
        return self.size().bytes

    def bits_in(self, row: int, held: str) -> int:
        """Stored bits of a layer in a format; empty for as stored.

        Raises:
            FormatError: the layer cannot hold the format.
        """
        return bits_of(held, self.layers.shapes[row]) if held else self.layers.own_bits[row]

    def size_of(self, recipe: Mapping[str, str]) -> Size:
        """Size of the artefact of any recipe, by the formats of its layers that are not kept."""
        rows = {self.index[name]: held for name, held in recipe.items()}
        bits = {row: self.bits_in(row, held) for row, held in rows.items()}
        return self.layers.as_stored.size(bits, self.other_bytes, tied=self.tied)

    def size(self) -> Size:
        """Size of the current recipe's artefact."""
        bits = self.layers.bits
        changed = {row: bits[row] for row in (self.index[name] for name in self.changed)}
        return self.layers.as_stored.size(changed, self.other_bytes, tied=self.tied)


def running(session: Session) -> list[Job]:
    """Jobs that are not over, the one worth showing first."""
    jobs = [job for job in session.jobs.values() if job.status == "running"]
    return sorted(jobs, key=lambda job: (job.urgency, job.place))


def is_opening(session: Session) -> bool:
    """Whether the checkpoint is being opened."""
    return any(job.kind == "open" and job.status == "running" for job in session.jobs.values())


def last_job(session: Session, kind: str) -> Job | None:
    """The newest job of a kind, whether it runs or is over; None before there was one."""
    jobs = [job for job in session.jobs.values() if job.kind == kind]
    return jobs[-1] if jobs else None


def encode_session(session: Session) -> bytes:
    """A snapshot of the whole session."""
    return msgspec.msgpack.encode(session)


def decode_session(data: bytes) -> Session:
    """The session in a snapshot."""
    return msgspec.msgpack.decode(data, type=Session, dec_hook=p.command_hook)
