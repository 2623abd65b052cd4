"""Commands: what a client can ask the engine for, and how plugins register their own.

A plugin's command is a subclass of `Command`, registered once with `register_command` (which
`engine.service.commands.register` does for the command of a job). It then travels on the wire, and
in `JobStarted`, like any other. Where its plugin is not installed it decodes as `Unknown`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar, Union
from uuid import uuid4

import msgspec

from engine.protocol.keys import By, Direction
from engine.protocol.message import Message
from engine.protocol.plans import Budget
from engine.protocol.settings import Settings
from engine.protocol.symptoms import Sampling


class _Registered:
    """Marks a field that holds any registered command: msgspec decodes it with `command_hook`."""

    __slots__ = ()


class Command(Message, _Registered, frozen=True, kw_only=True):
    """A request to the engine."""

    ask: str = ""
    """Identifies the request; `JobStarted` and `Refused` repeat it. See `identified`."""


if TYPE_CHECKING:
    AnyCommand: TypeAlias = Command
else:
    AnyCommand = _Registered


class Open(Command, frozen=True):
    """Read a checkpoint, load its model, and prepare the evaluation text."""

    source: str
    """``demo``, a folder, or a hub id."""
    settings: Settings
    model: bool = True
    """False reads only the checkpoint; triage needs no model."""
    take_up: bool = True
    """Once the model is ready, measure the recipe left by an earlier run of the session."""


class Triage(Command, frozen=True):
    """Weight statistics and errors of every layer, from the files alone."""

    formats: tuple[str, ...] = ()
    """Empty means the formats of the settings."""
    activations: bool = False
    """Whether to run the model over the calibration text too, for statistics of activations."""


class Sweep(Command, frozen=True):
    """Measure the effect of every layer, changed alone."""

    formats: tuple[str, ...] = ()
    direction: Direction = "degrade"
    exact: str = "all"
    """Which layers are measured once all are estimated, worst first: ``all``, each on all windows;
    ``top:K``, on as few windows as it takes to identify the K worst; ``none``."""
    by: By = "layer"
    only: bool = False
    """Estimate these formats alone, not the settings' ``estimate_formats`` too."""


class MeasureUnits(Command, frozen=True, kw_only=True):
    """Part of a sweep, for a worker: measure these units alone, each on all windows."""

    format: str
    direction: Direction
    by: By
    units: tuple[str, ...]
    """By name."""
    nll: float
    """Of the unchanged model, nats per token."""


class SumWindows(Command, frozen=True, kw_only=True):
    """Part of an estimate, for a worker: the sums of some windows. Announces `WindowSums`."""

    direction: Direction
    groups: tuple[tuple[tuple[str, str], ...], ...]
    """Layers and formats; those of a group are multiplied together."""
    windows: tuple[int, int]
    """The first, and the one after the last: whole micro-batches."""


class TryFixes(Command, frozen=True):
    """Try other formats on layers: errors of weights and outputs, and KL of those that matter."""

    layers: tuple[str, ...] = ()
    """Empty means the worst, by what is known of their effects."""
    format: str = ""
    """The format to better; empty means the first of the settings' sweep formats."""
    worst: int = 10
    """How many layers, where none is named."""
    forwards: float = 12.0
    """Plain forward passes that measuring KL may take for each layer."""


class MeasureErrors(Command, frozen=True):
    """Measure what a recipe does inside the model: errors of outputs, drift, attention."""

    format: str = ""
    """See `Evaluate`. The session's own recipe if this, ``layers`` and ``recipe`` are all empty."""
    layers: dict[str, str] = {}
    recipe: str = ""


class Diagnose(Command, frozen=True):
    """Read the weights, estimate every layer and measure the worst: what a diagnosis rests on."""

    format: str = ""
    """Whose damage is judged; empty means the first of the settings' sweep formats."""
    errors: MeasureErrors | None = None
    """A recipe whose errors inside the model are measured too: the format that is judged, of the
    whole body, if it names none."""
    fixes: int = 0
    """On how many of the worst layers to try other formats; see `TryFixes`."""


class Compare(Command, frozen=True):
    """Compare finished checkpoints with the one that is open, their original."""

    artefacts: tuple[str, ...]
    """Folders or hub ids, each of the same model quantised."""
    score: bool = True
    """Whether each is run on the evaluation windows too."""
    restore: int = 0
    """For how many layers of each, those that err most first, to measure what giving that layer
    back its original weight wins."""
    alone: bool = False
    """Whether they are looked at by themselves, the open one being one of them: no original."""
    logits: str = ""
    """A logits file of llama.cpp, read as the reference of scores in place of the open model."""
    save_logits: str = ""
    """Where to write such a file of the open model, on its windows; absolute."""


class Calibrate(Command, frozen=True, kw_only=True):
    """Compare calibration sets by what a method makes of them. Returns `CalibrationSets`."""

    sets: tuple[str, ...]
    """Named sets, files, folders, datasets; ``random`` tokens, the model's ``own`` samples, or what
    is held out of the evaluation texts, ``eval``."""
    method: str = "int4-g128+gptq"
    """A format whose methods use calibration text, of every layer of the body."""
    samples: tuple[int, ...] = ()
    """Windows of each set; empty means a quarter, half and all of the settings' calibration
    tokens."""
    seq_lens: tuple[int, ...] = ()
    """Tokens of each window; empty means the evaluation's."""
    texts: tuple[str, ...] = ()
    """Texts to judge the sets on; empty means the session's."""
    measure: bool = True
    """Whether layers are quantised and scored; else only what is told of the sets themselves."""
    halves: bool = True
    """Whether the halves of each set are scored too, at the largest number of samples."""


class FindSymptoms(Command, frozen=True, kw_only=True):
    """Continue prompts and answer tasks, by the reference and by a recipe. Returns `Symptoms`."""

    prompts: tuple[str, ...] = ()
    """As typed."""
    file: str = ""
    """A file of prompts: an absolute path on the engine's machine."""
    sampling: Sampling = Sampling()
    why: bool = False
    """Whether layers are given back where the recipe shows symptoms, to find those that cure it,
    and prompts that show one are compared with others."""
    tasks: tuple[str, ...] = ()
    """To be answered by both: files of JSON lines, absolute paths on the engine's machine, and
    names of lm-eval's tasks."""
    divergence: bool = False
    """Whether to compare both at every position of the evaluation windows."""
    format: str = ""
    """See `MeasureErrors`: the session's own recipe if this, ``layers`` and ``recipe`` are all
    empty."""
    layers: dict[str, str] = {}
    recipe: str = ""


class Evaluate(Command, frozen=True):
    """Measure a recipe without changing the session's."""

    format: str = "kept"
    """Format of the body layers that ``layers`` does not name. A layer that cannot hold it is kept
    and reported as a `Fallback`. Head and embedding are kept unless named."""
    layers: dict[str, str] = {}
    """Formats by exact layer name."""
    recipe: str = ""
    """Name of a built-in recipe that ``layers`` overrides. Only ``first-last`` takes a ``format``:
    the others define the format of every layer."""


class MeasureTexts(Command, frozen=True, kw_only=True):
    """Measure a recipe on several texts, and by position in their windows. Returns
    `MeasuredTexts`."""

    texts: tuple[str, ...] = ()
    """As ``--text`` takes them, files by absolute paths on the engine's machine; empty means the
    session's."""
    format: str = ""
    """See `Evaluate`; of no recipe, the session's own is measured."""
    layers: dict[str, str] = {}
    """See `Evaluate`."""
    recipe: str = ""
    """See `Evaluate`."""


class MeasureRecipe(Command, frozen=True):
    """Measure the session's own recipe; the engine sends this to itself after every change."""


class RecallScores(Command, frozen=True):
    """Find the scores of recipes that the session held before; the engine sends this to itself."""


class Export(Command, frozen=True, kw_only=True):
    """Write a recipe for an export target without changing the session's recipe."""

    out: str
    """Folder or file to write: an absolute path on the engine's machine."""
    format: str = "kept"
    """See `Evaluate`."""
    layers: dict[str, str] = {}
    recipe: str = ""
    """See `Evaluate`."""
    to: str = "checkpoint"
    """Name of an export target."""
    overwrite: bool = False
    """Whether an existing checkpoint or file may be replaced."""
    check: bool = True
    """Whether the program that it is for loads it before it counts as done."""
    nearest: bool = False
    """Whether layers that the target cannot hold get the nearest format that it can, each reported
    as a `Fallback`, instead of an error."""


class WriteImatrix(Command, frozen=True, kw_only=True):
    """Write the importance of every layer's inputs over the calibration text, as a file of
    llama.cpp. Returns `ImatrixWritten`."""

    out: str
    """File to write: an absolute path on the engine's machine. One that ends in ``.dat`` gets the
    form that llama.cpp used before GGUF."""
    head: bool = False
    """Whether the head is included, which ``llama-imatrix`` leaves out too unless asked."""
    overwrite: bool = False
    """Whether an existing file may be replaced."""


class SetFormat(Command, frozen=True):
    """Set the format of layers in the session's recipe, and measure the result."""

    layers: tuple[str, ...]
    format: str
    """A format of the grammar; ``kept`` is the 16- or 32-bit dtype of the checkpoint."""


class SetRecipe(Command, frozen=True):
    """Set the whole recipe of the session in one step, and measure the result."""

    layers: dict[str, str]
    """Formats by layer; all others are left as stored."""


class Plan(Command, frozen=True, kw_only=True):
    """Find the best recipe for a budget. Returns `Planned`; the session's recipe stays."""

    budget: Budget
    formats: tuple[str, ...] = ()
    """To choose from, besides leaving a layer as stored; empty means those to estimate by the
    settings, and others whose effects are known."""
    pins: dict[str, str] = {}
    """Formats by layer, or by ``re:`` and a pattern of layer names."""
    bans: tuple[tuple[str, str], ...] = ()
    """Kinds of layers, empty for all, and a format that they may not take."""
    to: str = ""
    """Export target that must be able to store every choice; empty for any."""
    served: bool = False
    """Whether all layers must run on one serving kernel, if a recipe within the budget does; set
    where neither formats nor a target are given, and the settings allow no ``unserved`` ones."""
    grouped: bool = True
    """Whether the layers of a fused group take one format."""
    forwards: float = 20.0
    """Plain forward passes that measuring may take, estimates included; 0 plans from what is known
    and measures nothing."""
    stored: bool = False
    """What is known is what any run stored, not only what this session was told; for 0 forwards."""


class Undo(Command, frozen=True):
    """Undo the last change of the recipe."""


class Redo(Command, frozen=True):
    """Redo the last change that was undone."""


class TakeRecipe(Command, frozen=True):
    """Go back to a recipe that was tried; undo leads back from it."""

    number: int
    """Its place in `Session.tried`; 0 is the model as stored."""


class NameRecipe(Command, frozen=True):
    """Name a recipe that was tried."""

    number: int
    """Its place in `Session.tried`."""
    name: str
    """Empty takes its name away."""


class TuneFor(Command, frozen=True):
    """Say what the recipe is tuned for."""

    target: str = ""
    """An export target, whose limits are marked; empty for none."""
    context: int = 0
    """Tokens whose keys and values must fit beside the weights; 0 for none."""
    batch: int = 1
    """Sequences of that many tokens."""


class Cancel(Command, frozen=True):
    """Cancel a job; its results are kept."""

    job: str


class RunFirst(Command, frozen=True):
    """Run a job before all others of its urgency; one that runs now continues after it."""

    job: str


class AskHistogram(Command, frozen=True):
    """Ask for a histogram of a layer's weights. Answered by `HistogramReady`."""

    layer: str
    bins: int = 120
    format: str = ""
    """Format whose grid to return with it; empty for none."""


class AskExperts(Command, frozen=True):
    """Ask for weight statistics of every expert of a fused layer. Answered by `ExpertsReady`."""

    layer: str


class AskRanges(Command, frozen=True):
    """Ask for a layer's errors in several group sizes and clipped ranges; learnt as
    `LayerRanges`."""

    layer: str
    format: str
    """An integer format: its bits and symmetry are those of all, its groups are those clipped."""


class AskErrorMap(Command, frozen=True):
    """Ask where in a layer's weights a format errs. Answered by `ErrorMapReady`."""

    layer: str
    format: str


class AskFixes(Command, frozen=True):
    """Ask what was tried on layers before, by any run; learnt as `FormatTried` and `Sensitivity`.
    Nothing is measured."""

    layers: tuple[str, ...] = ()
    """Empty means those that the session knows something tried of."""
    format: str = ""
    """The format to better, whose alternatives are looked up; empty means those that the session
    knows to be tried, whose measurements are looked up."""


class AskClients(Command, frozen=True):
    """Ask who else is attached; answered with `Clients` to this client alone."""


QUESTIONS = (AskHistogram, AskExperts, AskRanges, AskErrorMap, AskFixes, AskClients)
"""Commands that change nothing of a session: screens send them without a key press, and terminals
that only look may."""


class Stop(Command, frozen=True):
    """Stop the engine, unless another client is attached."""

    others: bool = False
    """Stop it even then: its jobs end, what they measured is saved."""


class Unknown(Command, frozen=True):
    """A command of a plugin that is not installed here. It can be shown but not run."""

    name: str


C = TypeVar("C", bound=Command)

_types: dict[str, type[Command]] = {
    kind.__name__: kind
    for kind in (
        *(
            Open,
            Triage,
            Sweep,
            MeasureUnits,
            SumWindows,
            Diagnose,
            TryFixes,
            MeasureErrors,
            Compare,
            Calibrate,
            FindSymptoms,
            Evaluate,
            MeasureTexts,
            MeasureRecipe,
            RecallScores,
            Export,
            WriteImatrix,
            SetFormat,
            SetRecipe,
            Plan,
            Undo,
            Redo,
            TakeRecipe,
            NameRecipe,
            TuneFor,
            Cancel,
            RunFirst,
        ),
        *(AskHistogram, AskExperts, AskErrorMap, AskRanges, AskFixes, AskClients, Stop, Unknown),
    )
}


RESERVED = frozenset({"Hello", "Sent", "Snapshot", "Fragment"})
"""Names of the frames in `engine.protocol.frames`, which share the tag with commands."""


def register_command(kind: type[Command]) -> None:
    """Make a type of command known to the wire; registering it again does nothing.

    Raises:
        ValueError: another type with this name is registered, or a frame has it.
    """
    if kind.__name__ in RESERVED:
        raise ValueError(f"{kind.__name__} is the name of a frame on the wire: choose another")
    known = _types.setdefault(kind.__name__, kind)
    if known is not kind:
        raise ValueError(f"there is a command {kind.__name__} already: {known.__module__}")


def command_types() -> Mapping[str, type[Command]]:
    """All registered command types by name; the name is the tag on the wire."""
    return _types


def identified(command: C) -> C:
    """The command with a unique ``ask``, unless it has one."""
    return command if command.ask else msgspec.structs.replace(command, ask=uuid4().hex)


def same_request(one: Command, other: Command) -> bool:
    """Whether two commands ask for the same thing, ignoring ``ask``."""
    return msgspec.structs.replace(one, ask="") == msgspec.structs.replace(other, ask="")


def read_command(fields: Any) -> Command:
    """The command in a decoded MessagePack map; `Unknown` if its type is not registered.

    Raises:
        msgspec.ValidationError: it is not a command.
    """
    name = fields.get("type") if isinstance(fields, dict) else None
    if isinstance(name, str) and name not in _types:
        return Unknown(name, ask=str(fields.get("ask", "")))
    found: Command = msgspec.convert(fields, Union[tuple(_types.values())])  # noqa: UP007
    return found


def command_hook(kind: type, value: Any) -> Any:
    """msgspec's hook for fields that hold any registered command."""
    if kind is _Registered:
        return read_command(value)
    raise NotImplementedError(f"{kind} is not decoded here")
