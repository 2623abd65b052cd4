"""Events: what happened. Some are kept in a session's journal, transient ones are sent once."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, TypeAlias

import msgspec
from msgspec import UNSET, UnsetType

from engine.protocol.commands import AnyCommand
from engine.protocol.facts import AnyFact, RecipeScore
from engine.protocol.keys import Direction, EffectKey
from engine.protocol.message import Message
from engine.protocol.plans import CacheBlocks
from engine.protocol.settings import Protocol, Settings

Role: TypeAlias = Literal["linear", "conv1d", "experts", "head", "embedding"]
JobStatus: TypeAlias = Literal["done", "cancelled", "failed"]
Level: TypeAlias = Literal["info", "warning", "error"]
Phase: TypeAlias = Literal[
    "", "reading", "reference", "control", "estimating", "calibrating", "quantising", "measuring",
    "together", "timing", "writing", "activations", "comparing", "continuing", "restoring",
    "scoring",
    "sampling",
]  # fmt: skip
"""What a job is doing. A triage reads weights. A sweep runs the reference and the control,
estimates, measures each layer, then all of them together, and times a forward. A recipe's layers
are calibrated or quantised before it is measured. An export writes. Finished checkpoints are
compared with their original. Prompts are continued, and layers of a recipe restored. A calibration
set is sampled from the model. Empty if there is nothing to distinguish."""
RANKING: frozenset[Phase] = frozenset({"reference", "control", "estimating"})
"""Phases of a sweep before its layers are ranked: `Progress.seconds_left` is until they are."""


class Event(Message, frozen=True):
    """Something that happened; kept in the journal."""

    deferrable: ClassVar[bool] = True
    """Whether it may be committed later, in a group: a crash may lose it, since it can be found
    again."""


class Intent(Event, frozen=True):
    """What a person did; committed before it is announced."""

    deferrable: ClassVar[bool] = False


class Transient(Message, frozen=True):
    """Something worth showing once; never stored."""

    replaces: ClassVar[tuple[str, ...]] = ()
    """Fields that identify the slot of the event. A client that is behind gets only the newest
    event of each slot."""

    @property
    def slot(self) -> tuple[object, ...]:
        """A newer event with the same slot replaces one that was not sent yet."""
        return type(self), *(getattr(self, field) for field in self.replaces)


class Opened(Intent, frozen=True):
    """A checkpoint was opened in this session."""

    source: str
    settings: Settings
    versions: dict[str, str]


class CheckpointRead(Event, frozen=True, kw_only=True):
    """The checkpoint's headers were read."""

    name: str
    path: str
    architecture: str
    parameters: int
    bytes: int
    dtype: str
    """The dtype most weights are stored in, by torch's name: what ``kept`` means."""
    fingerprint: str
    cache: list[CacheBlocks] | None = None
    """What the cache of keys and values holds, by kind of block; None if its configuration does not
    say, or in sessions of an earlier version."""
    stored: str = ""
    """The layouts of weights that are stored quantised, and are dequantised; empty if none are."""


class Contradiction(msgspec.Struct, frozen=True):
    """What the headers of a finished checkpoint hold against its configuration or themselves."""

    id: str
    """Of the finding."""
    layers: tuple[str, ...]
    """Those that it is about."""
    said: str
    """What is wrong, after the layers: a clause that begins with a verb or is a sentence's end."""
    evidence: dict[str, float] = {}


class ArtefactOpened(Event, frozen=True, kw_only=True):
    """The headers of a finished checkpoint were read, to be compared with the open one."""

    fingerprint: str
    """Of the finished checkpoint."""
    name: str
    path: str
    layout: str
    """What its weights are stored in: names of layouts, or a dtype."""
    declared: dict[str, str | int | float | bool] = {}
    """What its configuration says of its quantisation."""
    bytes: int
    bits_per_weight: float
    """Stored bits a weight of the body, scales and zero points included."""
    bits_all: float
    """The same of all layers."""
    unmatched: tuple[str, ...] = ()
    """Layers of the original that it has not, or in another shape."""
    contradictions: tuple[Contradiction, ...] = ()
    """What its headers hold against its configuration."""
    version: int = 0
    """Of the comparison; 0 in what was written before it was told."""


class LayersListed(Event, frozen=True, kw_only=True):
    """The rows of the table, as columns of equal length; sent again when the model corrects
    them."""

    names: list[str]
    kinds: list[str]
    blocks: list[int]
    """-1 for the embedding and the head."""
    roles: list[Role]
    shapes: list[tuple[int, ...]]
    dtypes: list[str]
    other_bytes: int
    """Bytes of the checkpoint outside of layers: norms, biases, routers."""
    groups: list[int] = []
    """Fused group of each layer: what serving engines store as one tensor (q, k and v; gate and up;
    the experts of a block). -1 for a layer in none; empty if not known."""
    tied: bool = False
    """Whether head and embedding are one tensor in the files."""
    bits: list[int] = []
    """Bits of each layer in the files; empty if shapes and dtypes tell them."""


class ModelReady(Event, frozen=True, kw_only=True):
    """The network is loaded and the text is cut into windows."""

    device: str
    device_reason: str
    dtype: str
    dtype_reason: str
    blocks: int
    resumable: bool
    why_not_resumable: str = ""
    tied: bool = False
    protocol: Protocol
    load_s: float
    interval_factor: float = 1.96
    """Half a 95% interval in standard errors: Student's t over the windows."""
    memory: int
    """Bytes of the model's weights."""
    reading_s: float = 0.0
    """Seconds that reading all blocks once takes, if they are streamed."""
    why_not_folded: dict[str, str] = {}
    """Layers whose inputs no preceding operation can scale, as ``+awq`` and ``+smooth`` require,
    with the reason."""
    why_not_gathered: dict[str, str] = {}
    """Layers without one set of inputs to calibrate on, with the reason."""


class Calibrated(Event, frozen=True, kw_only=True):
    """The calibration text was cut into windows."""

    text: str
    text_sha256: str
    column: str | UnsetType = UNSET
    documents: int | UnsetType = UNSET
    skipped: int | UnsetType = UNSET
    tokens: int
    """Tokens in all windows."""
    seq_len: int
    windows: int
    seed: int
    """How the windows were chosen from the text."""


class RecipeChanged(Intent, frozen=True, kw_only=True):
    """Layers changed their formats. Columns of equal length."""

    how: Literal["set", "undo", "redo"]
    layers: list[str]
    before: list[str]
    after: list[str]
    bits: list[int]
    """Stored bits of each layer in its new format, including scales and zero points."""
    to: int | None = None
    """Number of the recipe that this goes back to, among those that were tried; None for one made
    by this change."""


class RecipeNamed(Intent, frozen=True):
    """A recipe that was tried got a name."""

    number: int
    """Its place among those that were tried."""
    name: str
    """Empty takes its name away."""


class TunedFor(Intent, frozen=True):
    """It was said what the recipe is tuned for; see `TuneFor`."""

    target: str = ""
    context: int = 0
    batch: int = 1


class JobStarted(Event, frozen=True, kw_only=True):
    """A job was accepted."""

    job: str
    kind: str
    title: str
    """For display only; `command` says what the job does."""
    command: AnyCommand
    """The command as accepted, with canonical formats."""
    urgency: int = 1
    """Jobs with a lower number run first, and are shown first."""
    total: int = 0
    """Number of steps, for a progress bar: layers, tensors or windows; 0 if `Progress` will say."""
    recipe: str = ""
    """Hash of the recipe that it measures or exports."""

    @property
    def ask(self) -> str:
        """The ``ask`` of the command that started it."""
        return self.command.ask


class JobEnded(Event, frozen=True, kw_only=True):
    """A job has ended."""

    deferrable: ClassVar[bool] = False

    job: str
    kind: str
    status: JobStatus
    message: str = ""
    """Why it failed, as a sentence."""
    exit_code: int = 0
    resumed: int = 0
    """Number of facts taken from the store instead of measured."""
    measured: int = 0
    timings: dict[str, float] = {}
    result: dict[str, Any] = {}
    """The Struct that the job returned, as a map; empty where it returned none."""


class Fallback(Event, frozen=True, kw_only=True):
    """A layer that does not get the format that was asked for everywhere; never silent."""

    layer: str
    format: str
    why: str
    holds: str = ""
    """The format it has instead; empty if it is kept, or not measured."""


class Notice(Event, frozen=True):
    """Something the user should know: a fallback, a device chosen, a finding about the text."""

    level: Level
    message: str


class Exported(Event, frozen=True, kw_only=True):
    """A recipe was written for an export target; the folder or file is complete."""

    job: str
    folder: str
    """The folder, or the file."""
    bytes: int
    """Bytes of all tensors, or of the file."""
    recipe: dict[str, str]
    """Layers that are not kept, with canonical formats."""
    quantised: list[str]
    """How many of them are stored as codes."""
    bits_per_weight: float
    bits_all: float = 0.0
    """See `RecipeScore`."""
    to: str = "checkpoint"
    """Name of the export target."""
    codes: bool = True
    """Whether the codes were written; otherwise a recipe, by which another tool makes them."""
    notes: list[str] = []
    """Sentences about anything unexpected."""


class Learned(Event, frozen=True):
    """New facts, measured or found in the store. The journal keeps only their keys."""

    keys: tuple[str, ...]
    facts: tuple[AnyFact, ...]
    fresh: bool = True


class Stage(Transient, frozen=True):
    """Progress of a load: one named stage at a time."""

    name: str
    done: int
    total: int
    in_bytes: bool = False


class Progress(Transient, frozen=True, kw_only=True):
    """Progress of a job."""

    replaces: ClassVar[tuple[str, ...]] = ("job",)

    job: str
    done: float
    total: int
    seconds_left: float = float("nan")
    """Until the phase ends; until all layers are ranked in a phase of `RANKING`. nan if not
    known."""
    phase: Phase = ""
    subject: str = ""
    """The layer, unit or tensor being processed."""
    format: str = ""
    """Format being processed."""
    detail: str = ""
    """More detail, for display."""
    in_bytes: bool = False


class WorkerState(msgspec.Struct, frozen=True, kw_only=True):
    """A process that takes part in a job."""

    name: str
    device: str = ""
    status: Literal["starting", "measuring", "waiting", "lost"] = "starting"
    subject: str = ""
    """What it has in hand: a layer, a unit, or windows."""
    done: int = 0
    """Pieces of work that it has finished."""
    per_minute: float = float("nan")
    """Of these; nan before the first."""


class Workers(Transient, frozen=True):
    """The processes that take part in a job, the engine's own first."""

    replaces: ClassVar[tuple[str, ...]] = ("job",)

    job: str
    workers: tuple[WorkerState, ...]


class WindowSums(Transient, frozen=True, kw_only=True):
    """What an estimate has summed of some windows for one layer in one format; see `Sums`."""

    layer: str
    format: str
    windows: tuple[int, int]
    """The first, and the one after the last."""
    parts: tuple[bytes, ...]
    """Slopes, rows, inputs, and sums across rows: float64, little endian."""


class RecipePartial(Transient, frozen=True):
    """A recipe's score so far; its interval narrows."""

    score: RecipeScore


class Continuing(Transient, frozen=True, kw_only=True):
    """Texts that are being written, of the prompts that a job is at."""

    replaces: ClassVar[tuple[str, ...]] = ("job",)

    job: str
    ids: tuple[str, ...]
    """Of the prompts."""
    reference: tuple[str, ...]
    """What the reference has written so far."""
    changed: tuple[str, ...]
    """What the recipe has written so far."""


class Agreement(Transient, frozen=True, kw_only=True):
    """How well the estimates of a format agree with its measurements so far."""

    replaces: ClassVar[tuple[str, ...]] = ("direction", "format")

    format: str
    direction: Direction = "degrade"
    layers: int
    """Number of layers that are both estimated and measured."""
    rank_kl: float
    """Spearman's rank correlation of KL."""
    rank_dnll: float
    ratio: float
    """Median of measured over estimated KL."""
    spread: float = 0.0
    """Standard deviation of the logarithm of measured over estimated KL; 0 for too few layers."""
    curvature: float = 1.0
    """Median share of KL in measured ΔNLL, beside its slope: ``(ΔNLL − slope) / KL``."""
    estimated: list[float] = []
    """Knots of the monotone fit of measured to estimated KL, ascending; empty if there are too
    few."""
    measured: list[float] = []

    @property
    def key(self) -> EffectKey:
        """The effects it is about."""
        return EffectKey(self.direction, self.format)


class HistogramReady(Transient, frozen=True, kw_only=True):
    """Histogram of a layer's finite weights, in equal bins."""

    replaces: ClassVar[tuple[str, ...]] = ("layer",)

    layer: str
    low: float
    high: float
    counts: list[int]
    mean: float
    std: float
    format: str = ""
    """Format of the grid; empty for none."""
    grid: list[float] = []
    """Values that the weights of a typical group can take in that format, ascending; empty if there
    are too many to draw."""
    step: float = float("nan")
    """Median distance between neighbouring values of the grid."""


class ExpertsReady(Transient, frozen=True, kw_only=True):
    """Weight statistics of a fused layer's experts: columns with one entry per expert."""

    replaces: ClassVar[tuple[str, ...]] = ("layer",)

    layer: str
    std: list[float]
    max_abs: list[float]
    outliers: list[float]
    """Share of weights beyond the settings' sigma, by the expert's own standard deviation."""
    nonfinite: list[int]
    relative: dict[str, list[float]] = {}
    """``‖W − Ŵ‖ / ‖W‖`` by canonical format."""


class ErrorMapReady(Transient, frozen=True, kw_only=True):
    """Where in a layer's weights a format errs: cells of rows × groups.

    A group's squared relative error is ``‖w − ŵ‖² / ‖w‖²``; a cell has the mean over its groups.
    """

    replaces: ClassVar[tuple[str, ...]] = ("layer", "format")

    layer: str
    format: str
    """Canonical, as asked for."""
    used: str = ""
    """Format that it was made with: without methods that need calibration inputs."""
    rows: int
    """Rows of the weight; of experts, of all of them, one after another."""
    groups: int
    """Groups in a row."""
    group_size: int
    """Weights in a group; of formats without groups, in a stretch of a row."""
    height: int
    """Rows of cells."""
    width: int
    """Columns of cells."""
    cells: list[float]
    """Mean squared relative errors, row by row."""
    why: str = ""
    """Why there is none; empty if there is one."""


class Refused(Transient, frozen=True):
    """A command was refused, and why."""

    replaces: ClassVar[tuple[str, ...]] = ("command", "layers", "ask", "message")

    command: str
    message: str
    exit_code: int = 2
    layers: tuple[str, ...] = ()
    """Layers named by the command."""
    ask: str = ""
    """The ``ask`` of the refused command."""


class Gauges(Transient, frozen=True, kw_only=True):
    """Load and memory of the engine's machine; sent only while a job runs."""

    cpu: float
    """Load over all processors, 0 to 1."""
    rss: int
    memory_free: int
    gpu_name: str = ""
    gpu_used: int = 0
    """Of all processes."""
    gpu_own: int = 0
    """Of the engine's process; 0 where the driver does not say, as in most containers."""
    gpu_total: int = 0
    gpu_load: float = 0.0


class JobFirst(Transient, frozen=True):
    """A job runs before all others of its urgency from now on."""

    replaces: ClassVar[tuple[str, ...]] = ("job",)

    job: str


class Clients(Transient, frozen=True, kw_only=True):
    """Who is attached besides the client that asked."""

    terminals: int = 0
    commands: tuple[str, ...] = ()
    """Commands without an interface, such as ``qtui eval``."""


AnyEvent: TypeAlias = (
    Opened
    | CheckpointRead
    | ArtefactOpened
    | LayersListed
    | ModelReady
    | Calibrated
    | RecipeChanged
    | RecipeNamed
    | TunedFor
    | JobStarted
    | JobEnded
    | Fallback
    | Notice
    | Exported
    | Learned
    | Stage
    | Progress
    | Workers
    | WindowSums
    | RecipePartial
    | Continuing
    | Agreement
    | HistogramReady
    | ExpertsReady
    | ErrorMapReady
    | Refused
    | Gauges
    | JobFirst
    | Clients
)
