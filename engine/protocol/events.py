"""What happened: events that a session's journal keeps, and transient ones that are sent once."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, TypeAlias

from engine.protocol.commands import AnyCommand
from engine.protocol.facts import AnyFact, RecipeScore
from engine.protocol.keys import Direction, EffectKey
from engine.protocol.message import Message
from engine.protocol.settings import Protocol, Settings

Role: TypeAlias = Literal["linear", "conv1d", "experts", "head", "embedding"]
JobStatus: TypeAlias = Literal["done", "cancelled", "failed"]
Level: TypeAlias = Literal["info", "warning", "error"]
Phase: TypeAlias = Literal["", "reading", "estimating", "measuring", "writing"]
"""What a job is doing: a triage reads weights, a sweep estimates and then measures, an export
writes. Empty where there is nothing to tell apart."""


class Event(Message, frozen=True):
    """Something that happened; kept in the journal."""

    deferrable: ClassVar[bool] = True
    """Whether it may be written a moment later, with others: what a crash loses is found again."""


class Intent(Event, frozen=True):
    """What a person did: written before anybody hears of it."""

    deferrable: ClassVar[bool] = False


class Transient(Message, frozen=True):
    """Something worth showing once; never kept."""

    replaces: ClassVar[tuple[str, ...]] = ()
    """Fields that it has in common with the event that it makes obsolete: of those that are alike,
    a client that is behind gets the newest alone."""

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
    """The dtype most weights are stored in, in torch's name: what ``kept`` means."""
    fingerprint: str


class LayersListed(Event, frozen=True, kw_only=True):
    """The rows of the table, as columns of equal length; again when the model corrects them."""

    names: list[str]
    kinds: list[str]
    blocks: list[int]
    """-1 for the embedding and the head."""
    roles: list[Role]
    shapes: list[tuple[int, ...]]
    dtypes: list[str]
    other_bytes: int
    """Bytes of the checkpoint that belong to no layer: norms, biases, routers."""
    groups: list[int] = []
    """Layers of one number are one fused group: what serving engines store as one tensor (q, k and
    v; gate and up; the experts of a block). -1 for a layer in none; empty where not known."""


class ModelReady(Event, frozen=True, kw_only=True):
    """The network is loaded and its text is cut into windows."""

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
    """Bytes the model's weights take."""
    why_not_folded: dict[str, str] = {}
    """Layers whose inputs no operation can scale beforehand, as ``+awq`` and ``+smooth`` ask, with
    the reason."""


class Calibrated(Event, frozen=True, kw_only=True):
    """A text was cut into windows that methods look at a layer's inputs of."""

    text: str
    text_sha256: str
    tokens: int
    """In all windows together."""
    seq_len: int
    windows: int
    seed: int
    """Which windows of the text these are."""


class RecipeChanged(Intent, frozen=True, kw_only=True):
    """Layers hold other formats now. Columns of equal length."""

    how: Literal["set", "undo", "redo"]
    layers: list[str]
    before: list[str]
    after: list[str]
    bits: list[int]
    """Stored bits of each layer in its new format, scales and zero points included."""


class JobStarted(Event, frozen=True, kw_only=True):
    """A job was accepted."""

    job: str
    kind: str
    title: str
    """For people; what the job is about says `command`."""
    command: AnyCommand
    """What was asked for, as it was accepted: formats are canonical."""
    urgency: int = 1
    """Lower runs first, and is shown first."""
    total: int = 0
    """Steps, for a bar: layers, tensors or windows; 0 where progress will tell."""
    recipe: str = ""
    """Hash of the recipe that it is about."""

    @property
    def ask(self) -> str:
        """Of the command that asked for it."""
        return self.command.ask


class JobEnded(Event, frozen=True, kw_only=True):
    """A job is over."""

    deferrable: ClassVar[bool] = False

    job: str
    kind: str
    status: JobStatus
    message: str = ""
    """Why it failed, in a sentence."""
    exit_code: int = 0
    resumed: int = 0
    """Facts taken from the store instead of measured."""
    measured: int = 0
    timings: dict[str, float] = {}
    result: dict[str, Any] = {}
    """The Struct that the job returned, as a map; empty where it returned none."""


class Fallback(Event, frozen=True, kw_only=True):
    """A layer does not hold what was asked for everywhere: never silent."""

    layer: str
    format: str
    why: str
    holds: str = ""
    """The format it has instead; empty where it is kept, or not measured."""


class Notice(Event, frozen=True):
    """Something a person should know: a fallback, a device chosen, a finding about the text."""

    level: Level
    message: str


class Exported(Event, frozen=True, kw_only=True):
    """A recipe was written as a checkpoint: the folder is whole."""

    job: str
    folder: str
    bytes: int
    """Of all tensors."""
    recipe: dict[str, str]
    """Layers that are not kept, with canonical formats."""
    quantised: list[str]
    """Those of them that are stored as codes."""
    bits_per_weight: float
    """As of `RecipeScore`."""
    notes: list[str] = []
    """What is not as one might expect, in sentences."""


class Learned(Event, frozen=True):
    """Facts, fresh from a measurement or found in the store. Journalled by their keys alone."""

    keys: tuple[str, ...]
    facts: tuple[AnyFact, ...]
    fresh: bool = True


class Stage(Transient, frozen=True):
    """Where a load stands, or the solving before an export: one named stage at a time."""

    name: str
    done: int
    total: int
    in_bytes: bool = False


class Progress(Transient, frozen=True, kw_only=True):
    """How far a job is."""

    replaces: ClassVar[tuple[str, ...]] = ("job",)

    job: str
    done: float
    total: int
    seconds_left: float = float("nan")
    phase: Phase = ""
    subject: str = ""
    """The layer, the unit of layers or the tensor that is at hand."""
    format: str = ""
    """In which it is measured."""
    detail: str = ""
    """More, for people."""
    in_bytes: bool = False


class RecipePartial(Transient, frozen=True):
    """A recipe's score so far; its interval narrows."""

    score: RecipeScore


class Agreement(Transient, frozen=True, kw_only=True):
    """How well the estimates of a format agree with what was measured of it so far."""

    replaces: ClassVar[tuple[str, ...]] = ("direction", "format")

    format: str
    direction: Direction = "degrade"
    layers: int
    """That are both estimated and measured."""
    rank_kl: float
    """Spearman's rank correlation of KL."""
    rank_dnll: float
    ratio: float
    """Median of measured over estimated KL."""
    estimated: list[float] = []
    """Knots of the monotone fit of measured to estimated KL, ascending; empty where too few."""
    measured: list[float] = []

    @property
    def key(self) -> EffectKey:
        """Among which effects it belongs."""
        return EffectKey(self.direction, self.format)


class HistogramReady(Transient, frozen=True, kw_only=True):
    """Counts of a layer's finite weights in equal bins."""

    replaces: ClassVar[tuple[str, ...]] = ("layer",)

    layer: str
    low: float
    high: float
    counts: list[int]
    mean: float
    std: float
    format: str = ""
    """Whose grid this is; empty for none."""
    grid: list[float] = []
    """Values that weights of a typical group take in that format, ascending; empty where they are
    too many to be drawn."""
    step: float = float("nan")
    """Median distance between two neighbours of such a grid."""


class ExpertsReady(Transient, frozen=True, kw_only=True):
    """Weight statistics of a fused layer's experts: columns with an entry an expert."""

    replaces: ClassVar[tuple[str, ...]] = ("layer",)

    layer: str
    std: list[float]
    max_abs: list[float]
    outliers: list[float]
    """Share of weights beyond the settings' sigma, of the expert's own standard deviation."""
    nonfinite: list[int]
    relative: dict[str, list[float]] = {}
    """``‖W − Ŵ‖ / ‖W‖`` by canonical format."""


class Refused(Transient, frozen=True):
    """A command that was not carried out, and why."""

    replaces: ClassVar[tuple[str, ...]] = ("command", "layers", "ask", "message")

    command: str
    message: str
    exit_code: int = 2
    layers: tuple[str, ...] = ()
    """Layers the command was about."""
    ask: str = ""
    """Of the command that was not carried out."""


class Gauges(Transient, frozen=True, kw_only=True):
    """Load and memory of the engine's machine; sent only while a job runs."""

    cpu: float
    """Share of the whole machine's processors, 0 to 1."""
    rss: int
    memory_free: int
    gpu_name: str = ""
    gpu_used: int = 0
    gpu_total: int = 0
    gpu_load: float = 0.0


AnyEvent: TypeAlias = (
    Opened
    | CheckpointRead
    | LayersListed
    | ModelReady
    | Calibrated
    | RecipeChanged
    | JobStarted
    | JobEnded
    | Fallback
    | Notice
    | Exported
    | Learned
    | Stage
    | Progress
    | RecipePartial
    | Agreement
    | HistogramReady
    | ExpertsReady
    | Refused
    | Gauges
)
