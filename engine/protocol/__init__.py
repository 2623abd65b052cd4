"""Every command and event that crosses between engine and client: the one contract.

Commands say what a person wants. Events say what happened. Three kinds of event are kept in a
session's journal: *intents* (what a person did), *states* (what was found when opening) and
`Learned`, which carries *facts*. The rest (`Transient`) is sent and forgotten.

Everything is a frozen `msgspec.Struct`, encoded as MessagePack. Units are nats per token for NLL
and KL, bytes for sizes, seconds for times; ``nan`` stands for a number that is not known.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

import msgspec

WIRE_VERSION = 4
"""Raised when a change makes an older client or engine misread a newer one."""

MAX_FRAME = 1 << 20
"""Longest frame on the wire, in bytes."""

Role: TypeAlias = Literal["linear", "conv1d", "experts", "head", "embedding"]
Direction: TypeAlias = Literal["degrade", "restore"]
By: TypeAlias = Literal["layer", "block", "kind", "group"]
"""What is changed at once: a layer; all of a block, of a kind, or of a fused group."""
JobKind: TypeAlias = Literal["open", "triage", "sweep", "evaluate", "export"]
JobStatus: TypeAlias = Literal["done", "cancelled", "failed"]
Level: TypeAlias = Literal["info", "warning", "error"]


class _Message(msgspec.Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    pass


# --- what a session is asked to be ---------------------------------------------------------------


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """A profile with the command line's own values laid over it: how everything is measured."""

    profile: str = "standard"
    text: str | None = None
    """A text file or a dataset; None takes the default text."""
    calib: str | None = None
    tokens: int = 16384
    seq_len: int = 2048
    """Tokens in a window; shortened, and said so, where the model takes fewer."""
    stride: int | None = None
    """None cuts windows that do not overlap; N counts only the last N targets of each."""
    batch_tokens: int = 2048
    """Tokens in a micro-batch, the step between two looks at what is more urgent."""
    formats: tuple[str, ...] = ("int3-g128", "int4-g128", "int8")
    """Formats whose weight errors triage reports."""
    sweep_formats: tuple[str, ...] = ("int4-g128",)
    estimate_formats: tuple[str, ...] = ()
    """Formats that are estimated for every layer beside those that a sweep measures."""
    draws: int = 1
    """Draws of labels that an estimate of KL rests on."""
    calib_tokens: int = 32768
    """Tokens of calibration text, in windows of ``seq_len``."""
    sigma: float = 4.0
    """Weights beyond this many standard deviations count as outliers."""
    device: str = "auto"
    dtype: str | None = None
    """``fp32``, ``fp16`` or ``bf16``; None takes float32 on a CPU, 16 bits on a GPU."""
    memory_budget: int | None = None
    """Bytes beside the model: half for states and logits, a quarter each for calibration and for
    estimates. None takes half of what is free for states and logits."""
    seed: int = 0
    fresh: bool = False
    """Measure anew, and begin the session's history anew."""
    trust_remote_code: bool = False


class Protocol(msgspec.Struct, frozen=True, kw_only=True):
    """What stands beside every perplexity: the text, how it was cut, and the arithmetic."""

    text: str
    text_sha256: str
    tokens: int
    """Tokens in all windows together; figures rest on the targets that count."""
    seq_len: int
    stride: int
    """Targets that count in each window."""
    windows: int
    dtype: str
    device: str
    seed: int = 0
    draws: int = 0
    interval: float = 0.95


# --- commands ------------------------------------------------------------------------------------


class Command(_Message, frozen=True):
    """Asks the engine for something."""


class Open(Command, frozen=True):
    """Read a checkpoint, load its model, and make its evaluation text ready."""

    source: str
    """``demo``, a folder, or a hub id."""
    settings: Settings
    model: bool = True
    """False reads the checkpoint only: triage needs no model."""
    take_up: bool = True
    """Measure the recipe that an earlier run of the session left, once the model is ready."""


class Triage(Command, frozen=True):
    """Weight statistics and errors of every layer, from the files alone."""

    formats: tuple[str, ...] = ()
    """Empty takes the settings' formats."""
    ask: str = ""
    """Comes back in `JobStarted` and `Refused`, so that a client knows its own."""


class Sweep(Command, frozen=True):
    """The effect of every layer, changed alone."""

    formats: tuple[str, ...] = ()
    direction: Direction = "degrade"
    ask: str = ""
    exact: str = "all"
    """Which layers are measured after all were estimated, the worst first: ``all``, each on all
    windows; ``top:K``, on no more windows than it takes to be sure of the K worst; ``none``."""
    by: By = "layer"


class Evaluate(Command, frozen=True):
    """Measure a recipe; the session's own stays as it is."""

    format: str = "kept"
    """What the body's layers hold where ``layers`` does not name them; one that cannot hold it is
    kept and told of as a `Fallback`. Head and embedding are kept unless named."""
    layers: dict[str, str] = {}
    """Exact layer names with the format each holds."""
    recipe: str = ""
    """A built-in recipe by its name, over which ``layers`` are laid. ``format`` goes with
    ``first-last`` alone: the others say themselves what all layers hold."""
    ask: str = ""


class Export(Command, frozen=True, kw_only=True):
    """Write a recipe as a checkpoint; the session's own recipe stays as it is."""

    out: str
    """The folder to write, an absolute path on the engine's machine."""
    format: str = "kept"
    """As of `Evaluate`."""
    layers: dict[str, str] = {}
    recipe: str = ""
    """As of `Evaluate`."""
    overwrite: bool = False
    """Whether a checkpoint that lies there may be replaced."""
    ask: str = ""


class SetFormat(Command, frozen=True):
    """Let layers hold a format in the session's recipe, and measure the outcome."""

    layers: tuple[str, ...]
    format: str
    """A format of the grammar; ``kept`` is the 16- or 32-bit dtype the layer is stored in."""


class Undo(Command, frozen=True):
    """Take back the last change of the recipe."""


class Redo(Command, frozen=True):
    """Make the last change that was taken back again."""


class Cancel(Command, frozen=True):
    """End a job; what it measured stays."""

    job: str


class AskHistogram(Command, frozen=True):
    """Counts of a layer's weights, for drawing. Answered by `HistogramReady`."""

    layer: str
    bins: int = 120
    format: str = ""
    """Whose grid to draw on it; empty for none."""


class AskExperts(Command, frozen=True):
    """Weight statistics of every expert of a fused layer. Answered by `ExpertsReady`."""

    layer: str


class Stop(Command, frozen=True):
    """End the engine, unless another client is still attached."""


AnyCommand: TypeAlias = (
    Open
    | Triage
    | Sweep
    | Evaluate
    | Export
    | SetFormat
    | Undo
    | Redo
    | Cancel
    | AskHistogram
    | AskExperts
    | Stop
)


# --- facts ---------------------------------------------------------------------------------------


class Fact(_Message, frozen=True, gc=False):
    """A measurement: written once under a key made of all it depends on, never changed.

    None is part of a circle: without ``gc``, tables of many are not walked again and again.
    """


class Outliers(msgspec.Struct, frozen=True, gc=False):
    """Weights beyond ``sigma`` standard deviations of the layer's own."""

    sigma: float
    count: int
    fraction: float
    max_abs: float


class WeightError(msgspec.Struct, frozen=True, gc=False):
    """Distance between a weight and its quantised value."""

    frobenius: float
    relative: float
    """``‖W − Ŵ‖ / ‖W‖``."""
    max_abs: float
    mean_abs: float
    sqnr_db: float


class LayerWeights(Fact, frozen=True, gc=False, kw_only=True):
    """What triage found in one layer's weights."""

    layer: str
    outliers: Outliers
    range_ratio: float
    waste: float
    kurtosis: float
    nan: int
    inf: int
    zero_rows: int
    dead_columns: int = 0
    denormals: int = 0
    mean: float = 0.0
    std: float = 0.0
    worst_column: int = -1
    """Input channel with the largest weights, and how many σ its largest is."""
    worst_column_sigma: float = 0.0
    errors: dict[str, WeightError] = {}
    """By canonical format."""
    refused: dict[str, str] = {}
    """Formats the layer cannot hold, with the reason."""


class Baseline(Fact, frozen=True, gc=False):
    """The unchanged model's score."""

    nll: float
    nll_se: float
    ppl: float
    tokens: int


class Control(Fact, frozen=True, gc=False):
    """A layer swapped for itself: what a change of nothing measures; and what rounding measures."""

    layer: str
    max_abs_dnll: float
    """0 on a CPU; elsewhere at most about the floor."""
    max_abs_kl: float
    floor_dnll: float = 0.0
    """Largest difference of a window between evaluations that are mathematically the same and
    rounded differently: products added up in two orders, what goes into layers rounded anew where
    it has 16 bits, off a CPU also the same run twice. A figure below it says nothing."""
    floor_kl: float = 0.0


class Sensitivity(Fact, frozen=True, gc=False, kw_only=True):
    """The effect of one layer changed alone, or to restore, of one left as it is among all changed.

    To degrade, figures are of the network with the layer changed against the reference. To restore,
    they are of the network with all of the body changed less those of the same network with the
    layer given back: a layer that hurts has positive ones in both directions.
    """

    layer: str
    format: str
    direction: Direction = "degrade"
    kl: float
    kl_se: float
    """Over windows; to restore, over the windows' differences."""
    dnll: float
    dnll_se: float
    dppl: float
    """Perplexity with the layer changed less without; to restore ``exp(nll) − exp(nll − dnll)``
    with the NLL of all changed."""
    dppl_low: float
    dppl_high: float
    tokens: int
    """Targets behind the figures: fewer than the protocol has where fewer were enough."""
    by: By = "layer"
    """What was changed at once; ``layer`` names it then: a block by its number, a kind, or the
    first layer of a fused group."""
    top1: float = float("nan")
    """Share of positions where both models' first choice is the same; to restore, the reference's
    and that of the network with the layer given back."""


class Estimate(Fact, frozen=True, gc=False, kw_only=True):
    """The effect of one layer changed alone, from gradients: not measured."""

    layer: str
    format: str
    direction: Direction = "degrade"
    kl: float
    kl_se: float
    dnll: float
    dnll_se: float
    tokens: int
    draws: int = 1
    """Draws of labels from the model's own distribution."""
    by: By = "layer"
    doubt: str = ""
    """Why the figure may not hold: where the quadratic model ends; empty where it holds."""


class RecipeScore(Fact, frozen=True, gc=False, kw_only=True):
    """The effect of a whole recipe. Sent unfinished too, with ``done=False``."""

    recipe: str
    """Hash of the layers that are not kept, with their formats."""
    nll: float
    ppl: float
    ppl_low: float
    ppl_high: float
    dnll: float
    dnll_se: float
    kl: float
    kl_se: float
    top1: float
    tokens: int
    bits_per_weight: float
    """Stored bits over weights, of the body and of whatever else is quantised."""
    bytes: int
    """Size of the whole artefact."""
    done: bool = True
    calibration: Literal["", "sequential"] = ""
    """Where methods looked at inputs: those that the blocks before give as the recipe has them."""


class Additivity(Fact, frozen=True, gc=False, kw_only=True):
    """Effect of all body layers together over the sum of their single effects.

    To restore, the single effects are what giving back each alone regains.
    """

    format: str
    direction: Direction = "degrade"
    layers: int
    kl: float
    dnll: float
    together_kl: float
    sum_kl: float


AnyFact: TypeAlias = (
    LayerWeights | Baseline | Control | Sensitivity | Estimate | RecipeScore | Additivity
)


# --- events --------------------------------------------------------------------------------------


class Event(_Message, frozen=True):
    """Something that happened; kept in the journal."""


class Transient(_Message, frozen=True):
    """Something worth showing once; never kept."""


class Opened(Event, frozen=True):
    """Intent: a checkpoint was opened in this session."""

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


class RecipeChanged(Event, frozen=True, kw_only=True):
    """Intent: layers hold other formats now. Columns of equal length."""

    how: Literal["set", "undo", "redo"]
    layers: list[str]
    before: list[str]
    after: list[str]
    bits: list[int]
    """Stored bits of each layer in its new format, scales and zero points included."""


class JobStarted(Event, frozen=True, kw_only=True):
    """A job was accepted."""

    job: str
    kind: JobKind
    title: str
    total: int = 0
    """Steps, for a bar: layers, tensors or windows; 0 where progress will tell."""
    formats: tuple[str, ...] = ()
    """Canonical formats of a triage or a sweep."""
    recipe: str = ""
    """Hash of the recipe an evaluation measures."""
    ask: str = ""
    """Of the command that asked for it."""


class JobEnded(Event, frozen=True, kw_only=True):
    """A job is over."""

    job: str
    kind: JobKind
    status: JobStatus
    message: str = ""
    """Why it failed, in a sentence."""
    exit_code: int = 0
    resumed: int = 0
    """Facts taken from the store instead of measured."""
    measured: int = 0
    timings: dict[str, float] = {}


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


class Progress(Transient, frozen=True, kw_only=True):
    """How far a job is."""

    job: str
    done: float
    total: int
    seconds_left: float = float("nan")
    detail: str = ""
    """What is being measured just now."""


class RecipePartial(Transient, frozen=True):
    """A recipe's score so far; its interval narrows."""

    score: RecipeScore


class Agreement(Transient, frozen=True, kw_only=True):
    """How well the estimates of a format agree with what was measured of it so far."""

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


class HistogramReady(Transient, frozen=True, kw_only=True):
    """Counts of a layer's finite weights in equal bins."""

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


class Hello(_Message, frozen=True):
    """First frame in both directions: a client says what it has seen, an engine who it is."""

    wire: int = WIRE_VERSION
    session: str = ""
    seen: int = 0
    pid: int = 0


class Sent(_Message, frozen=True):
    """An event on the wire. ``seq`` counts journalled events from 1; it is 0 for transient ones."""

    seq: int
    event: AnyEvent


class Snapshot(_Message, frozen=True):
    """The encoded `Session` as it stood after event ``seq``: the first thing a client gets."""

    seq: int
    data: bytes


class Fragment(_Message, frozen=True):
    """A piece of a message that is longer than `MAX_FRAME`; pieces follow each other."""

    data: bytes
    last: bool


AnyFrame: TypeAlias = Hello | Sent | Snapshot | Fragment | AnyCommand

encode = msgspec.msgpack.Encoder().encode
decode_frame = msgspec.msgpack.Decoder(AnyFrame).decode
decode_event = msgspec.msgpack.Decoder(AnyEvent).decode
decode_fact = msgspec.msgpack.Decoder(AnyFact).decode


def job_key(event: Transient) -> str:
    """Slot of a transient event: a newer one with the same key replaces one not yet sent."""
    match event:
        case Progress(job=job):
            return f"progress {job}"
        case HistogramReady(layer=layer):
            return f"histogram {layer}"
        case Agreement(format=format, direction=direction):
            return f"agreement {direction} {format}"
        case ExpertsReady(layer=layer):
            return f"experts {layer}"
        case Refused():
            return f"refused {event.command} {event.layers} {event.ask} {event.message}"
        case _:
            return type(event).__name__
