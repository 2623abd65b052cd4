"""What a client can ask the engine for: the commands of qtui, and those that plugins register.

A command from outside is a `Command` of its own, registered once with `register_command` (which
`engine.service.commands.register` does for the command of a job). From then on it travels on the
wire, and in `JobStarted`, like any other. Where its plugin is not installed it reads as `Unknown`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar, Union
from uuid import uuid4

import msgspec

from engine.protocol.keys import By, Direction
from engine.protocol.message import Message
from engine.protocol.settings import Settings


class _Registered:
    """A field of this type holds any registered command: msgspec has `command_hook` read it."""

    __slots__ = ()


class Command(Message, _Registered, frozen=True, kw_only=True):
    """Asks the engine for something."""

    ask: str = ""
    """Identifies the request: it comes back in `JobStarted` and `Refused`. See `identified`."""


if TYPE_CHECKING:
    AnyCommand: TypeAlias = Command
else:
    AnyCommand = _Registered


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


class Sweep(Command, frozen=True):
    """The effect of every layer, changed alone."""

    formats: tuple[str, ...] = ()
    direction: Direction = "degrade"
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


class MeasureRecipe(Command, frozen=True):
    """Measure the session's own recipe; the engine asks itself for this after every change."""


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


class Unknown(Command, frozen=True):
    """A command of a plugin that is not installed here. It can be shown, and not carried out."""

    name: str


C = TypeVar("C", bound=Command)

_types: dict[str, type[Command]] = {
    kind.__name__: kind
    for kind in (
        *(Open, Triage, Sweep, Evaluate, MeasureRecipe, Export, SetFormat, Undo, Redo, Cancel),
        *(AskHistogram, AskExperts, Stop, Unknown),
    )
}


def register_command(kind: type[Command]) -> None:
    """Let a type of command be sent and read; registering it again changes nothing.

    Raises:
        ValueError: another type of this name is registered.
    """
    known = _types.setdefault(kind.__name__, kind)
    if known is not kind:
        raise ValueError(f"there is a command {kind.__name__} already: {known.__module__}")


def command_types() -> Mapping[str, type[Command]]:
    """All registered types of command, by name; the name is the tag on the wire."""
    return _types


def identified(command: C) -> C:
    """The command with an ``ask`` of its own, unless it has one."""
    return command if command.ask else msgspec.structs.replace(command, ask=uuid4().hex)


def same_request(one: Command, other: Command) -> bool:
    """Whether two commands ask for the same, whoever sent them."""
    return msgspec.structs.replace(one, ask="") == msgspec.structs.replace(other, ask="")


def read_command(fields: Any) -> Command:
    """The command that a decoded MessagePack map holds; `Unknown` where its type is not registered.

    Raises:
        msgspec.ValidationError: it is no command.
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
