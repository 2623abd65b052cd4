"""`Session`: what is known about one checkpoint. `engine.session.fold` says how it comes about.

Layers are rows; everything known about them stands in columns of the table's length. A snapshot of
another version, with fields that are not known here, is an error: it must not read as a session
that lacks what they held.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from functools import cached_property
from typing import Any, Literal, TypeVar

import msgspec

from engine import protocol as p
from engine.session.artefact import Size, StoredSums

Result = TypeVar("Result", bound=msgspec.Struct)

KEPT = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}
"""The format a layer holds while it is left as stored."""


def kept_format(dtype: str) -> str:
    """The kept format of a stored dtype; what is stored in 8 bits or fewer is kept as ``bf16``."""
    return KEPT.get(dtype, "bf16")


def recipe_hash(layers: Mapping[str, str]) -> str:
    """Content address of a recipe: its layers that are not kept, with canonical formats."""
    lines = "\n".join(f"{name}={layers[name]}" for name in sorted(layers))
    return hashlib.sha256(lines.encode()).hexdigest()[:32]


class Job(msgspec.Struct, forbid_unknown_fields=True):
    """A job as a client sees it."""

    id: str
    kind: str
    title: str
    """For people; what the job is about says `command`."""
    command: p.AnyCommand
    urgency: int = 1
    """Of the most urgent job first."""
    total: int = 0
    recipe: str = ""
    """Hash of the recipe an evaluation measures."""
    done: float = 0.0
    seconds_left: float = math.nan
    phase: p.Phase = ""
    subject: str = ""
    """The layer, the unit of layers or the tensor that is at hand."""
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


class Layers(msgspec.Struct, dict=True, forbid_unknown_fields=True):
    """The table: one entry a layer in every column."""

    names: list[str] = []
    kinds: list[str] = []
    blocks: list[int] = []
    roles: list[p.Role] = []
    shapes: list[tuple[int, ...]] = []
    dtypes: list[str] = []
    holds: list[str] = []
    """Canonical format the current recipe gives each layer."""
    bits: list[int] = []
    """Stored bits in that format."""
    weights: list[p.LayerWeights | None] = []
    groups: list[int] = []
    """Number of each layer's fused group, -1 for none."""

    def __post_init__(self) -> None:
        if len(self.groups) != len(self.names):
            self.groups = [-1] * len(self.names)

    @cached_property
    def as_stored(self) -> StoredSums:
        """Sums over the columns that never change in a listing: made when first asked for."""
        return StoredSums(self.roles, self.shapes, self.dtypes)


class Effects(msgspec.Struct, forbid_unknown_fields=True):
    """Effects of layers, and of what was changed together, under one checkpoint and protocol."""

    measured: dict[p.EffectKey, list[p.Sensitivity | None]] = {}
    """Of layers changed alone: a column of the table's length."""
    estimated: dict[p.EffectKey, list[p.Estimate | None]] = {}
    """As `measured`, from gradients."""
    units: dict[p.EffectKey, dict[str, p.Sensitivity]] = {}
    """What was changed as a block, kind or group, by its name."""
    estimated_units: dict[p.EffectKey, dict[str, p.Estimate]] = {}
    """As `units`, from gradients."""
    agreement: dict[p.EffectKey, p.Agreement] = {}
    additivity: dict[p.EffectKey, p.Additivity] = {}

    def known(self, direction: p.Direction | None = None) -> list[p.EffectKey]:
        """Of layers whose effects are known, in one direction or both; measured ones come first."""
        known = dict.fromkeys((*self.measured, *self.estimated))
        return [key for key in known if direction in (None, key.direction)]

    def relisted(self, rows: list[int | None]) -> Effects:
        """The same for a new listing of the layers.

        Args:
            rows: of each row, which one it was; None for a new layer.
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


class Session(msgspec.Struct, forbid_unknown_fields=True):
    """Everything known about one opened checkpoint."""

    source: str = ""
    settings: p.Settings = p.Settings()
    versions: dict[str, str] = {}
    checkpoint: p.CheckpointRead | None = None
    model: p.ModelReady | None = None
    calibration: p.Calibrated | None = None
    """The text that methods looked at inputs of; None while none did."""
    layers: Layers = msgspec.field(default_factory=Layers)
    other_bytes: int = 0
    baseline: p.Baseline | None = None
    control: p.Control | None = None
    effects: Effects = msgspec.field(default_factory=Effects)
    scores: dict[str, p.RecipeScore] = {}
    """Measured recipes by their hash."""
    partial: p.RecipeScore | None = None
    """The current recipe's score while it is being measured."""
    changed: dict[str, str] = {}
    """Layers of the current recipe that are not kept, with their formats."""
    history: list[Change] = []
    position: int = 0
    """Changes of the history in force; the rest can be made again."""
    jobs: dict[str, Job] = {}
    notices: list[p.Notice] = []
    fallbacks: dict[p.Fallback, None] = {}
    """Each once, in the order in which they came."""
    stage: p.Stage | None = None
    gauges: p.Gauges | None = None
    histograms: dict[str, p.HistogramReady] = {}
    experts: dict[str, p.ExpertsReady] = {}
    """By fused layer."""
    seq: int = 0
    """Number of the last journalled event that was applied."""
    index: dict[str, int] = {}
    """Row of each layer's name."""

    @property
    def interval_factor(self) -> float:
        """Half a 95% interval, in standard errors over the windows."""
        return self.model.interval_factor if self.model is not None else math.nan

    def row(self, layer: str) -> int | None:
        """Row of a layer, None where there is none of that name."""
        return self.index.get(layer)

    def kept(self, row: int) -> str:
        """The format a row has while it is left as stored."""
        return kept_format(self.layers.dtypes[row])

    def recipe(self) -> dict[str, str]:
        """Layers of the current recipe that are not kept, with their formats."""
        return dict(self.changed)

    def score(self) -> p.RecipeScore | None:
        """The current recipe's measured score, finished or narrowing; None before there is one."""
        key = recipe_hash(self.changed)
        if key in self.scores:
            return self.scores[key]
        return self.partial if self.partial is not None and self.partial.recipe == key else None

    def sensitivity(self, row: int, key: p.EffectKey) -> p.Sensitivity | None:
        """The measured effect of one layer changed alone."""
        column = self.effects.measured.get(key)
        return column[row] if column is not None else None

    def estimate(self, row: int, key: p.EffectKey) -> p.Estimate | None:
        """The estimated effect of one layer changed alone, as the gradients have it."""
        column = self.effects.estimated.get(key)
        return column[row] if column is not None else None

    def bits_per_weight(self) -> float:
        """Stored bits over weights, of the body and of whatever else is quantised; nan if empty."""
        return self.size().bits_per_weight

    def artefact_bytes(self) -> int:
        """Size of the whole artefact: layers in their formats, the rest as stored."""
        return self.size().bytes

    def size(self) -> Size:
        """What the artefact holds."""
        bits = self.layers.bits
        changed = {row: bits[row] for row in (self.index[name] for name in self.changed)}
        tied = self.model is not None and self.model.tied
        return self.layers.as_stored.size(changed, self.other_bytes, tied=tied)


def encode_session(session: Session) -> bytes:
    """A snapshot of the whole session."""
    return msgspec.msgpack.encode(session)


def decode_session(data: bytes) -> Session:
    """The session a snapshot was taken of."""
    return msgspec.msgpack.decode(data, type=Session, dec_hook=p.command_hook)
