"""What a job is, and how one is declared: once, beside its own code.

A job is a generator of events, its `Steps`: it yields between two small pieces of work, where a
more urgent one may run, and returns an `Outcome`. A `JobSpec` says which command asks for it, what
it needs, where it runs and how urgent it is::

    class Rank(p.Command, frozen=True):
        formats: tuple[str, ...] = ()

    def _steps(context: Context[Workspace], command: Rank) -> Steps:
        from mine.ranking import rank           # imports torch: here, on the job's own thread

        return (yield from rank(context.workspace, command.formats, context.job))

    RANK = JobSpec(
        command=Rank, kind="rank", needs="model", urgency=4, steps=_steps,
        title=lambda command: " ".join(["rank", *command.formats]),
    )

The module of a declaration imports no tensor library, so that taking a command never waits for one:
what ``steps`` needs is imported at its first step. A job of ours is named in the table
`engine.service.commands`; one from outside is passed to `engine.service.commands.register` by a
plugin (see `engine.plugins`), which makes its command known to the wire as well.

`ChangeSpec` declares a command that is carried out at once, as a change of the recipe is.
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
"""What has to be opened before a job can begin."""
Lane: TypeAlias = Literal["compute", "open", "questions", "export"]
"""A thread that jobs run on, one step at a time. All that runs the network runs on ``compute``."""


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
    """Yielded by a job whose next steps belong on another lane."""

    lane: Lane


Steps = Generator[p.AnyEvent | OnLane | None, None, Outcome]
"""A job: yields an event, or None for a step with nothing to tell, and returns its outcome."""


class Workspace(Protocol):
    """What the engine itself asks of the workspace that it hands to jobs."""

    def assert_at_rest(self) -> None:
        """Fail if a step left something open that must not be open between two steps."""


W = TypeVar("W")
C = TypeVar("C", bound=p.Command)


@dataclass
class Context(Generic[W]):
    """What a job has to work with."""

    workspace: W
    session: Session
    """What is known. To be read while a command is accepted only: other threads change it."""
    job: str = ""
    """The job's id, for `Progress`."""
    recipe: Mapping[str, str] = field(default_factory=dict)
    """Layers that are not kept with their formats, of a job whose spec has a ``recipe``."""
    should_stop: Callable[[], bool] = lambda: False
    """Whether the job should come to its next yield soon; may be called from any thread."""


Resolved: TypeAlias = tuple[Mapping[str, str], Sequence[p.Fallback]]
"""A recipe, and the layers that do not hold what was asked for."""


def _as_it_came(context: Context[Any], command: C) -> C:
    return command


@dataclass(frozen=True, kw_only=True)
class JobSpec(Generic[C]):
    """One job, and the command that asks for it."""

    command: type[C]
    kind: str
    """One word for the job: in its id, in `JobStarted`, and for people."""
    title: Callable[[C], str]
    """A line for people; nothing reads it back."""
    steps: Callable[[Context[Any], C], Steps]
    """The work; a generator function, called once what it needs is there."""
    needs: Needs | Callable[[C], Needs] = "checkpoint"
    lane: Lane | Callable[[C], Lane] = "compute"
    urgency: int
    """Lower runs first."""
    newest_first: bool = False
    """Whether of several that wait on a lane the newest runs first, before all others there."""
    accept: Callable[[Context[Any], C], C] = _as_it_came
    """Checks a command as it comes, and returns it with canonical formats.

    Raises:
        EngineError: it makes no sense; the client is told at once.
    """
    recipe: Callable[[Context[Any], C], Resolved] | None = None
    """The recipe that the job is about, as the layers are named when it is announced."""
    announced: Literal["at once", "when ready", "never"] = "at once"
    """When `JobStarted` is sent. ``when ready``: the command waits silently until what it needs is
    there, as only then names of layers are final. ``never``: the job answers a question, with an
    event of its own or `Refused`."""
    repeated: Literal["run", "refuse", "join", "replace"] = "run"
    """What becomes of a command whose job is under way already: it runs too, is refused, or is
    answered by that one. ``replace`` cancels whichever job of this spec is under way."""

    def needs_of(self, command: C) -> Needs:
        """What this command's job needs."""
        return self.needs(command) if callable(self.needs) else self.needs

    def lane_of(self, command: C) -> Lane:
        """Where this command's job begins."""
        return self.lane(command) if callable(self.lane) else self.lane


@dataclass(frozen=True, kw_only=True)
class OpenSpec(JobSpec[p.Open]):
    """The job that opens a checkpoint: all others work on the workspace that it fills.

    `LayersListed` among its events lets those run that need the checkpoint, `ModelReady` those that
    need the model.
    """

    workspace: Callable[[FactStore, p.Settings, Callable[[], bool]], Workspace]
    """Makes an empty one; the function says whether something more urgent waits to compute."""
    versions: Callable[[], dict[str, str]]
    """Versions of libraries that figures may depend on."""
    differing: Callable[[p.Settings, p.Settings], p.Notice | None]
    """A warning where the known settings are not those that another client asks for."""
    then: Callable[[Session, p.Open], p.Command | None]
    """What is asked for once the model is there."""


@dataclass(frozen=True, kw_only=True)
class ChangeSpec(Generic[C]):
    """A command that is carried out at once: what a person did, as an event of the journal."""

    command: type[C]
    change: Callable[[Session, C], p.AnyEvent | None]
    """The event that records it; None where nothing changes.

    Raises:
        EngineError: it cannot be done.
    """
    then: p.Command
    """What is asked for after every change."""


Spec: TypeAlias = JobSpec[Any] | ChangeSpec[Any]
