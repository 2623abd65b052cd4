"""What a job is, and how to declare one: once, beside its own code.

A job is a generator of events, its `Steps`: it yields between small pieces of work, where a more
urgent job may run, and returns an `Outcome`. A `JobSpec` says which command starts it, what it
needs, where it runs and how urgent it is::

    class Rank(p.Command, frozen=True):
        formats: tuple[str, ...] = ()

    def _steps(context: Context[Workspace], command: Rank) -> Steps:
        from mine.ranking import rank           # imports torch: here, on the job's own thread

        return (yield from rank(context.workspace, command.formats, context.job))

    RANK = JobSpec(
        command=Rank, kind="rank", needs="model", urgency=4, steps=_steps,
        title=lambda command: " ".join(["rank", *command.formats]),
    )

The module of a declaration imports no tensor library, so that accepting a command never waits for
one: what ``steps`` needs is imported at its first step. Our jobs are named in the table
`engine.service.commands`; a plugin passes its job to `engine.service.commands.register` (see
`engine.plugins`), which also makes the command known to the wire.

`ChangeSpec` declares a command that takes effect at once, such as a change of the recipe.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, NamedTuple, Protocol, TypeAlias, TypeVar

import msgspec

from engine import protocol as p
from engine.session import Session
from engine.store.facts import FactStore

Needs: TypeAlias = Literal["nothing", "checkpoint", "model"]
"""What must be open before a job can start."""
Lane: TypeAlias = Literal["compute", "open", "questions", "export"]
"""A thread that runs jobs, one step at a time. Anything that runs the network uses ``compute``."""


class Outcome(msgspec.Struct, frozen=True):
    """What a job's generator returns."""

    measured: int = 0
    resumed: int = 0
    timings: dict[str, float] = {}
    result: msgspec.Struct | None = None
    """What the job found, where that is no fact; clients read it with `engine.session.Job.read`."""

    def __post_init__(self) -> None:
        # What cannot be sent fails the job here, rather than the engine when it announces the end.
        msgspec.to_builtins(self.result)


class OnLane(NamedTuple):
    """Yielded by a job to continue on another lane."""

    lane: Lane


Steps = Generator[p.AnyEvent | OnLane | None, None, Outcome]
"""A job: yields an event, or None for a step without one, and returns its outcome."""


class Need(NamedTuple):
    """Memory that a job needs at least, beside what is open."""

    bytes: int
    free: int
    """Bytes that are free now."""
    device: str
    change: tuple[str, ...]
    """What makes it need less, the best first."""

    def lacking(self, title: str) -> str:
        """A sentence for a person if it does not fit; empty if it does."""
        if self.bytes <= self.free:
            return ""
        ways = [f"choose {', or '.join(self.change)}"] if self.change else []
        return (
            f"{title} needs at least {_size(self.bytes)} beside what is open, and {self.device} "
            f"has {_size(self.free)} free: {', or '.join([*ways, 'end what else uses the memory'])}"
            "; it begins all the same, and takes smaller steps where memory runs out"
        )


def _size(count: int) -> str:
    return f"{count / 1024**3:.1f} GiB" if count >= 1024**3 / 10 else f"{count / 1024**2:.1f} MiB"


class Workspace(Protocol):
    """What the engine itself requires of the workspace that it passes to jobs."""

    def assert_at_rest(self) -> None:
        """Fail if a step left something open that must not be open between two steps."""

    def relieve(self, said: str, *, known_before: bool, again: bool) -> str | None:
        """Give memory back after an allocation failed; what was given up, or None.

        ``again`` is whether the job has been given some before.

        Raises:
            EngineError: everything was given up before.
        """


W = TypeVar("W")
C = TypeVar("C", bound=p.Command)


@dataclass
class Context(Generic[W]):
    """What a job has to work with."""

    workspace: W
    session: Session
    """The session. Read it only while the command is accepted: other threads change it later."""
    job: str = ""
    """The job's id, for `Progress`."""
    recipe: Mapping[str, str] = field(default_factory=dict)
    """Formats of the layers that are not kept, for a job whose spec has a ``recipe``."""
    snapshot: Session | None = None
    """A copy of the session as the command was accepted, for a job whose spec asks for it."""
    should_stop: Callable[[], bool] = lambda: False
    """Whether the job should yield soon; may be called from any thread."""


Resolved: TypeAlias = tuple[Mapping[str, str], Sequence[p.Fallback]]
"""A recipe, and the layers that do not get the format that was asked for."""


def _as_it_came(context: Context[Any], command: C) -> C:
    return command


@dataclass(frozen=True, kw_only=True)
class JobSpec(Generic[C]):
    """A job, and the command that starts it."""

    command: type[C]
    kind: str
    """One word for the job: used in its id, in `JobStarted`, and for display."""
    title: Callable[[C], str]
    """A line for display; nothing parses it."""
    steps: Callable[[Context[Any], C], Steps]
    """The work: a generator function, called once what it needs is open."""
    needs: Needs | Callable[[C], Needs] = "checkpoint"
    lane: Lane | Callable[[C], Lane] = "compute"
    urgency: int
    """Jobs with a lower number run first."""
    newest_first: bool = False
    """Whether the newest of several that wait on a lane runs first, before all others there."""
    accept: Callable[[Context[Any], C], C] = _as_it_came
    """Checks a command on arrival, and returns it with canonical formats.

    Raises:
        EngineError: it is invalid; the client gets the refusal at once.
    """
    recipe: Callable[[Context[Any], C], Resolved] | None = None
    """The recipe of the job, resolved against the layer names when the job is announced."""
    snapshot: Callable[[C], bool] = lambda command: False
    """Whether the job reads what the session knew when the command was accepted."""
    memory: Callable[[Context[Any], C], Need | None] | None = None
    """What it needs, called once what it needs is open, on its own thread; see
    `engine.workspace.needs`. None for questions about one layer."""
    announced: Literal["at once", "when ready", "never"] = "at once"
    """When `JobStarted` is sent. ``when ready``: the command waits silently until what it needs is
    open, since layer names are final only then. ``never``: the job answers a question with an event
    of its own, or `Refused`."""
    repeated: Literal["run", "refuse", "join", "replace"] = "run"
    """What to do with a command whose job is running already: run both, refuse it, or let the
    running job answer it. ``replace`` cancels any running job of this spec."""

    def needs_of(self, command: C) -> Needs:
        """What this command's job needs."""
        return self.needs(command) if callable(self.needs) else self.needs

    def lane_of(self, command: C) -> Lane:
        """The lane that this command's job starts on."""
        return self.lane(command) if callable(self.lane) else self.lane


@dataclass(frozen=True, kw_only=True)
class OpenSpec(JobSpec[p.Open]):
    """The job that opens a checkpoint: other jobs use the workspace that it fills.

    When it yields `LayersListed`, jobs that need the checkpoint start; when it yields `ModelReady`,
    those that need the model.
    """

    workspace: Callable[[FactStore, p.Settings, Callable[[], bool]], Workspace]
    """Creates an empty workspace; the function says whether a more urgent job waits for compute."""
    versions: Callable[[], dict[str, str]]
    """Versions of libraries that figures may depend on."""
    differing: Callable[[p.Settings, p.Settings], p.Notice | None]
    """A warning if the session's settings differ from those another client asks for."""
    then: Callable[[Session, p.Open], Sequence[p.Command]]
    """The commands to send once the model is loaded."""


@dataclass(frozen=True, kw_only=True)
class ChangeSpec(Generic[C]):
    """A command that takes effect at once, recorded as an intent in the journal."""

    command: type[C]
    change: Callable[[Session, C], p.AnyEvent | None]
    """The event that records the change; None if nothing changes.

    Raises:
        EngineError: the change is not possible.
    """
    then: p.Command | None = None
    """The command to send after every change."""


Spec: TypeAlias = JobSpec[Any] | ChangeSpec[Any]
