"""What a client can ask the engine for."""

from __future__ import annotations

from typing import TypeAlias

from engine.protocol.keys import By, Direction
from engine.protocol.message import Message
from engine.protocol.settings import Settings


class Command(Message, frozen=True):
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
    to: str = "checkpoint"
    """The name of an export target."""
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
