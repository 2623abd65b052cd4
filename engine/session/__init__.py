"""`Session`: what is known about one checkpoint, as the fold of its journal.

`apply` is the only place where a session changes. The engine uses it to resume, the terminal
interface as its whole state, and headless runs to write their documents. It imports no tensor
library. Layers are rows; everything known about them stands in columns of the table's length.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from typing import Literal, TypeAlias, get_args

import msgspec

from engine import protocol as p
from engine.session.artefact import Ledger, Size, bits_as_stored
from engine.session.correction import Correction, correction

Dirty: TypeAlias = Literal[
    "checkpoint", "layers", "model", "holds", "weights", "baseline", "measured", "recipe", "jobs",
    "stage", "notices", "gauges", "histogram", "experts",
]  # fmt: skip

KEPT = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}
"""The format a layer holds while it is left as stored."""

MAX_NOTICES = 200
MAX_HISTOGRAMS = 64
MAX_EXPERTS = 16


def kept_format(dtype: str) -> str:
    """The kept format of a stored dtype; what is stored in 8 bits or fewer is kept as ``bf16``."""
    return KEPT.get(dtype, "bf16")


def recipe_hash(layers: Mapping[str, str]) -> str:
    """Content address of a recipe: its layers that are not kept, with canonical formats."""
    lines = "\n".join(f"{name}={layers[name]}" for name in sorted(layers))
    return hashlib.sha256(lines.encode()).hexdigest()[:32]


class Job(msgspec.Struct):
    """A job as a client sees it."""

    id: str
    kind: p.JobKind
    title: str
    total: int = 0
    recipe: str = ""
    """Hash of the recipe an evaluation measures."""
    done: float = 0.0
    seconds_left: float = math.nan
    detail: str = ""
    status: p.JobStatus | Literal["running"] = "running"
    message: str = ""
    exit_code: int = 0
    resumed: int = 0
    measured: int = 0
    timings: dict[str, float] = {}


class Change(msgspec.Struct, frozen=True):
    """One step of the recipe's history."""

    layers: list[str]
    before: list[str]
    after: list[str]


class Prediction(msgspec.Struct, frozen=True):
    """The sum of known single effects of the layers that are changed."""

    dnll: float
    kl: float
    ppl: float
    missing: int
    """Changed layers whose effect is not known yet, and is not in the sum."""


class Layers(msgspec.Struct):
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


class Session(msgspec.Struct):
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
    measured: dict[str, list[p.Sensitivity | None]] = {}
    """By ``direction/format``: a column of the table's length."""
    estimated: dict[str, list[p.Estimate | None]] = {}
    """As `measured`, from gradients."""
    units: dict[str, dict[str, p.Sensitivity]] = {}
    """What was changed as a block, kind or group: by ``direction/format/by``, by name."""
    estimated_units: dict[str, dict[str, p.Estimate]] = {}
    """As `units`, from gradients."""
    agreement: dict[str, p.Agreement] = {}
    """By ``direction/format``."""
    additivity: dict[str, p.Additivity] = {}
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
    fallbacks: list[p.Fallback] = []
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

    def sensitivity(
        self, row: int, format: str, direction: p.Direction = "degrade"
    ) -> p.Sensitivity | None:
        """What is known of one layer changed alone."""
        column = self.measured.get(f"{direction}/{format}")
        return column[row] if column is not None else None

    def estimate(
        self, row: int, format: str, direction: p.Direction = "degrade"
    ) -> p.Estimate | None:
        """What is estimated of one layer changed alone, as the gradients have it."""
        column = self.estimated.get(f"{direction}/{format}")
        return column[row] if column is not None else None

    def correction(self, format: str, direction: p.Direction = "degrade") -> Correction | None:
        """How estimates of a format are corrected by what was measured; None where they are not."""
        return correction(self.agreement.get(f"{direction}/{format}"))

    def expected(
        self, row: int, format: str, direction: p.Direction = "degrade"
    ) -> p.Estimate | None:
        """What is estimated of one layer changed alone, corrected by what others measured."""
        estimate = self.estimate(row, format, direction)
        if estimate is None or (fit := self.correction(format, direction)) is None:
            return estimate
        return fit.apply(estimate)

    def predicted(self) -> Prediction | None:
        """What the current recipe should score, None before the baseline is known."""
        if self.baseline is None:
            return None
        dnll = kl = 0.0
        missing = 0
        fits = {held: self.correction(held) for held in set(self.changed.values())}
        for layer, held in self.changed.items():
            row, fit = self.index[layer], fits[held]
            known = self.sensitivity(row, held) or self.estimate(row, held)
            if known is None:
                missing += 1
                continue
            if fit is not None and isinstance(known, p.Estimate):
                known = fit.apply(known)
            dnll += known.dnll
            kl += known.kl
        try:
            ppl = self.baseline.ppl * math.exp(dnll)
        except OverflowError:
            ppl = math.inf
        return Prediction(dnll, kl, ppl, missing)

    def bits_per_weight(self) -> float:
        """Stored bits over weights, of the body and of whatever else is quantised; nan if empty."""
        return self.size().bits_per_weight

    def artefact_bytes(self) -> int:
        """Size of the whole artefact: layers in their formats, the rest as stored."""
        return self.size().bytes

    def size(self) -> Size:
        """What the artefact holds; the sums over the whole table are made once a listing."""
        global _ledger
        layers = self.layers
        known = _ledger
        if known is None or known[0] is not layers or known[1] != self.other_bytes:
            made = Ledger(layers.roles, layers.shapes, layers.dtypes, self.other_bytes)
            known = _ledger = layers, self.other_bytes, made
        rows = [self.index[name] for name in self.changed]
        tied = self.model is not None and self.model.tied
        return known[2].size({row: layers.bits[row] for row in rows}, tied=tied)


_ledger: tuple[Layers, int, Ledger] | None = None
"""Of the listing that was asked about last: most often there is only one."""


def apply(session: Session, event: p.AnyEvent, seq: int = 0) -> frozenset[Dirty]:
    """Fold one event into ``session`` and return the parts that changed.

    Args:
        session: changed in place.
        event: journalled or transient.
        seq: its number in the journal, 0 for transient events.
    """
    if seq:
        session.seq = seq
    match event:
        case p.Opened():
            return _opened(session, event)
        case p.CheckpointRead():
            return _checkpoint_read(session, event)
        case p.LayersListed():
            return _layers_listed(session, event)
        case p.ModelReady():
            return _model_ready(session, event)
        case p.Calibrated():
            session.calibration = event
            return frozenset({"model"})
        case p.RecipeChanged():
            return _recipe_changed(session, event)
        case p.JobStarted():
            session.jobs[event.job] = Job(
                event.job, event.kind, event.title, event.total, event.recipe
            )
            return frozenset({"jobs"})
        case p.Progress():
            if (job := session.jobs.get(event.job)) is not None and job.status == "running":
                job.done, job.total = event.done, event.total
                job.seconds_left, job.detail = event.seconds_left, event.detail
            return frozenset({"jobs"})
        case p.JobEnded():
            return _job_ended(session, event)
        case p.Fallback():
            if event not in session.fallbacks:
                session.fallbacks.append(event)
            return frozenset({"notices"})
        case p.Notice():
            session.notices = [*session.notices[-MAX_NOTICES:], event]
            return frozenset({"notices"})
        case p.Exported():
            message = f"exported to {event.folder}"
            session.notices = [*session.notices[-MAX_NOTICES:], p.Notice("info", message)]
            return frozenset({"notices"})
        case p.Refused():
            notice = p.Notice("error", event.message)
            session.notices = [*session.notices[-MAX_NOTICES:], notice]
            return frozenset({"notices"})
        case p.Learned():
            dirty: set[Dirty] = set()
            for fact in event.facts:
                dirty.add(_learn(session, fact))
            return frozenset(dirty)
        case p.Stage():
            # A transient may come late: after the end of what it tells of it says nothing.
            if any(j.kind == "open" and j.status == "running" for j in session.jobs.values()):
                session.stage = event
            return frozenset({"stage"})
        case p.RecipePartial():
            session.partial = event.score
            return frozenset({"recipe"})
        case p.Agreement():
            session.agreement[f"{event.direction}/{event.format}"] = event
            return frozenset({"measured"})
        case p.HistogramReady():
            session.histograms.pop(event.layer, None)
            session.histograms[event.layer] = event
            while len(session.histograms) > MAX_HISTOGRAMS:
                session.histograms.pop(next(iter(session.histograms)))
            return frozenset({"histogram"})
        case p.ExpertsReady():
            session.experts.pop(event.layer, None)
            session.experts[event.layer] = event
            while len(session.experts) > MAX_EXPERTS:
                session.experts.pop(next(iter(session.experts)))
            return frozenset({"experts"})
        case p.Gauges():
            session.gauges = event
            return frozenset({"gauges"})


def _opened(session: Session, event: p.Opened) -> frozenset[Dirty]:
    if event.settings.fresh:
        empty = Session(seq=session.seq)
        for field in Session.__struct_fields__:
            setattr(session, field, getattr(empty, field))
    session.source, session.settings, session.versions = (
        event.source,
        event.settings,
        event.versions,
    )
    # A new engine begins: jobs of the one before are over, its recipe and its facts stay.
    session.jobs, session.notices, session.fallbacks = {}, [], []
    session.stage = session.gauges = None
    session.model = session.partial = session.calibration = None
    return frozenset(get_args(Dirty))


def _checkpoint_read(session: Session, event: p.CheckpointRead) -> frozenset[Dirty]:
    before, session.checkpoint = session.checkpoint, event
    if before is None or before.fingerprint == event.fingerprint:
        return frozenset({"checkpoint"})
    # Another checkpoint lies in the same place: what was known is not about it.
    session.layers.weights = [None] * len(session.layers.names)
    session.histograms, session.experts = {}, {}
    session.baseline = session.control = session.partial = None
    session.measured, session.additivity, session.scores = {}, {}, {}
    session.estimated, session.units, session.agreement = {}, {}, {}
    session.estimated_units = {}
    return frozenset(get_args(Dirty))


def _layers_listed(session: Session, event: p.LayersListed) -> frozenset[Dirty]:
    old, old_index = session.layers, session.index
    session.index = {name: row for row, name in enumerate(event.names)}
    before = [old_index.get(name) for name in event.names]
    bits = [bits_as_stored(s, d) for s, d in zip(event.shapes, event.dtypes, strict=True)]
    changed = [
        row if row is not None and name in session.changed and old.shapes[row] == shape else None
        for name, row, shape in zip(event.names, before, event.shapes, strict=True)
    ]
    session.layers = Layers(
        names=event.names,
        kinds=event.kinds,
        blocks=event.blocks,
        roles=event.roles,
        shapes=event.shapes,
        dtypes=event.dtypes,
        holds=[
            kept_format(dtype) if row is None else old.holds[row]
            for row, dtype in zip(changed, event.dtypes, strict=True)
        ],
        bits=[bits[new] if row is None else old.bits[row] for new, row in enumerate(changed)],
        weights=[None if row is None else old.weights[row] for row in before],
        groups=list(event.groups),
    )
    session.measured = {
        key: [None if row is None else column[row] for row in before]
        for key, column in session.measured.items()
    }
    session.estimated = {
        key: [None if row is None else column[row] for row in before]
        for key, column in session.estimated.items()
    }
    session.changed = {
        name: held
        for row, (name, held) in enumerate(zip(event.names, session.layers.holds, strict=True))
        if held != session.kept(row)
    }
    session.other_bytes = event.other_bytes
    return frozenset({"layers", "holds", "weights", "measured"})


def _model_ready(session: Session, event: p.ModelReady) -> frozenset[Dirty]:
    session.model, session.stage = event, None
    # Facts of another protocol do not belong beside this one's; the store gives its own again.
    session.baseline = session.control = session.partial = None
    session.measured, session.additivity, session.scores = {}, {}, {}
    session.estimated, session.units, session.agreement = {}, {}, {}
    session.estimated_units = {}
    return frozenset({"model", "stage", "baseline", "measured", "recipe"})


def _recipe_changed(session: Session, event: p.RecipeChanged) -> frozenset[Dirty]:
    for layer, held, bits in zip(event.layers, event.after, event.bits, strict=True):
        row = session.index.get(layer)
        if row is None:
            continue  # the model has no such layer after all
        session.layers.holds[row] = held
        session.layers.bits[row] = bits
        if held == session.kept(row):
            session.changed.pop(layer, None)
        else:
            session.changed[layer] = held
    match event.how:
        case "set":
            step = Change(event.layers, event.before, event.after)
            session.history = [*session.history[: session.position], step]
            session.position += 1
        case "undo":
            session.position -= 1
        case "redo":
            session.position += 1
    session.partial = None
    return frozenset({"holds", "recipe"})


def _job_ended(session: Session, event: p.JobEnded) -> frozenset[Dirty]:
    job = session.jobs.get(event.job)
    if job is None:
        job = session.jobs[event.job] = Job(event.job, event.kind, event.kind)
    job.status, job.message, job.exit_code = event.status, event.message, event.exit_code
    job.resumed, job.measured, job.timings = event.resumed, event.measured, event.timings
    if event.status == "done":
        job.done = job.total
    job.seconds_left = 0.0
    if event.kind == "open":
        session.stage = None
    if event.status != "failed":
        return frozenset({"jobs", "stage"})
    session.notices = [*session.notices[-MAX_NOTICES:], p.Notice("error", event.message)]
    return frozenset({"jobs", "stage", "notices"})


def _learn(session: Session, fact: p.AnyFact) -> Dirty:
    match fact:
        case p.LayerWeights():
            if (row := session.index.get(fact.layer)) is not None:
                session.layers.weights[row] = _merged(session.layers.weights[row], fact)
            return "weights"
        case p.LayerError():
            if (row := session.index.get(fact.layer)) is not None:
                session.layers.weights[row] = _with_error(session.layers.weights[row], fact)
            return "weights"
        case p.Baseline():
            session.baseline = fact
            return "baseline"
        case p.Control():
            session.control = fact
            return "baseline"
        case p.Sensitivity() if fact.by != "layer":
            units = session.units.setdefault(f"{fact.direction}/{fact.format}/{fact.by}", {})
            units[fact.layer] = fact
            return "measured"
        case p.Sensitivity():
            column = session.measured.setdefault(
                f"{fact.direction}/{fact.format}", [None] * len(session.layers.names)
            )
            if (row := session.index.get(fact.layer)) is not None:
                column[row] = fact
            return "measured"
        case p.Estimate() if fact.by != "layer":
            guesses = session.estimated_units.setdefault(
                f"{fact.direction}/{fact.format}/{fact.by}", {}
            )
            guesses[fact.layer] = fact
            return "measured"
        case p.Estimate():
            estimates = session.estimated.setdefault(
                f"{fact.direction}/{fact.format}", [None] * len(session.layers.names)
            )
            if (row := session.index.get(fact.layer)) is not None:
                estimates[row] = fact
            return "measured"
        case p.RecipeScore():
            session.scores[fact.recipe] = fact
            return "recipe"
        case p.Additivity():
            session.additivity[f"{fact.direction}/{fact.format}"] = fact
            return "measured"


def _merged(known: p.LayerWeights | None, fact: p.LayerWeights) -> p.LayerWeights:
    """Errors in other formats that were known already stay known."""
    if known is None or known.outliers.sigma != fact.outliers.sigma:
        return fact
    return msgspec.structs.replace(
        fact,
        errors={**known.errors, **fact.errors},
        refused={**known.refused, **fact.refused},
    )


def _with_error(known: p.LayerWeights | None, fact: p.LayerError) -> p.LayerWeights | None:
    """What is known of a layer with its error in one format more; None without its statistics."""
    if known is None:
        return None
    if fact.error is None:
        refused = {**known.refused, fact.format: fact.refused}
        return msgspec.structs.replace(known, refused=refused)
    return msgspec.structs.replace(known, errors={**known.errors, fact.format: fact.error})


def encode_session(session: Session) -> bytes:
    """A snapshot of the whole session."""
    return msgspec.msgpack.encode(session)


def decode_session(data: bytes) -> Session:
    """The session a snapshot was taken of."""
    return msgspec.msgpack.decode(data, type=Session)
