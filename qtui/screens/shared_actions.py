"""The actions that every screen of a session has."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

from engine import protocol as p
from engine.errors import UsageError
from engine.session import Job, Session, running
from qtui.actions import CHOICE, Action, Choice
from qtui.screens.registry import screens
from qtui.screens.session_screen import UNCHANGED, AppWide, SessionScreen
from qtui.views.budgets import parse_budget
from qtui.views.eventlog import EventLog
from qtui.widgets.frame.status import key_names

PLAN = "plan"
"""The screen of plans."""


class Chooser(NamedTuple):
    """An action with values to choose from; the palette lists each, too."""

    title: str
    """Of a choice in the palette, with ``{}`` for its own title."""
    hint: str
    """What the list says before anything is typed."""
    choices: Callable[[Any], Sequence[Choice]]
    choose: Callable[[Any, str], None]
    """Does what the choice with this id says."""


class SharedActions:
    """Run the actions of a screen by their ids, or say why one is unavailable.

    A screen with actions of its own has a subclass with their `HANDLERS`.
    """

    def __init__(self, screen: SessionScreen, events: EventLog) -> None:
        self.screen, self.events = screen, events
        screen.handler = self

    HANDLERS: ClassVar[Mapping[str, Callable[[Any], None]]] = {
        "undo": lambda do: do.step(p.Undo()),
        "redo": lambda do: do.step(p.Redo()),
        "cancel": lambda do: do.cancel(),
        "jobs": lambda do: do.jobs(),
        "retry": lambda do: do.retry(),
        "log": lambda do: do.log(),
        "freeze": lambda do: do.app_wide("freeze"),
        "theme": lambda do: do.app_wide("theme"),
        "palette": lambda do: do.palette(),
        "help": lambda do: do.help(),
        "redraw": lambda do: do.app_wide("redraw"),
        "suspend": lambda do: do.app_wide("suspend"),
        "stop": lambda do: do.app_wide("stop"),
        "quit": lambda do: do.app_wide("quit"),
    }
    """What runs an action, by its id."""
    CHOOSERS: ClassVar[Mapping[str, Chooser]] = {
        "theme": Chooser(
            "Theme {}", "choose a theme", lambda do: do.themes(), lambda do, id: do.choose_theme(id)
        ),
    }
    """What an action's values are, by its id."""

    @property
    def session(self) -> Session:
        """What is shown."""
        return self.screen.session

    def perform(self, id: str) -> None:
        """Run an action, or one with a value, or say why that is not possible."""
        action, chosen, choice = id.partition(CHOICE)
        if why := self.why_not(id):
            self.say("warning", why)
        elif chosen and action in self.CHOOSERS:
            self.CHOOSERS[action].choose(self, choice)
        elif chosen and action == PLAN:
            self.plan_for(parse_budget(choice, self.session.cache))
        elif id in screens():
            self.screen.post_message(SessionScreen.ShowScreen(id))
        else:
            self.HANDLERS[id](self)

    def why_not(self, id: str) -> str:
        """Why an action is not possible now; empty where it is."""
        action, chosen, choice = id.partition(CHOICE)
        if chosen and action in self.CHOOSERS:
            each = next((c for c in self.CHOOSERS[action].choices(self) if c.id == choice), None)
            return self.why_not(action) or (f"no {choice}" if each is None else each.why_not)
        if (
            chosen
            and action == PLAN
            and not any(key.by == "layer" for key in self.session.effects.known("degrade"))
        ):
            return "no effect is known yet: sweep first"
        match id:
            case "undo" if self.session.position == 0:
                return "nothing to undo"
            case "redo" if self.session.position == len(self.session.history):
                return "nothing to redo"
            case "cancel" | "jobs" if not running(self.session):
                return "nothing is running"
            case "retry" if not self.screen.failed:
                return "nothing has failed"
        return ""

    def no_model(self) -> str:
        """Why nothing can be measured yet; empty where it can."""
        return "the model is still loading" if self.session.model is None else ""

    def no_recipe(self) -> str:
        """Why nothing can be measured of a recipe yet; empty where it can."""
        return self.no_model() or ("" if self.session.changed else UNCHANGED)

    def say(self, level: p.Level, words: str) -> None:
        """Show a message at the foot."""
        self.screen.say(level, words)

    def ask(self, command: p.AnyCommand) -> None:
        """Send the engine a command."""
        self.screen.post_message(SessionScreen.Ask(command))

    def app_wide(self, what: AppWide) -> None:
        """Have the app do something."""
        self.screen.post_message(SessionScreen.AppWideAction(what))

    def step(self, command: p.Undo | p.Redo) -> None:
        """Undo or redo a change of the recipe."""
        self.app_wide("unfreeze")
        self.ask(command)

    def retry(self) -> None:
        """Try again what failed."""
        self.app_wide("retry")

    def cancel(self) -> None:
        """Cancel the only job; of several, one that is chosen from the list."""
        jobs = running(self.session)
        if len(jobs) > 1:
            self.jobs()
        else:
            self.end(jobs[0])

    def end(self, job: Job) -> None:
        """Cancel a job, and say what is kept of it."""
        kept = ""
        if job.kind == "sweep":
            resumes = self.screen.key("retry")
            kept = f": what is measured is kept, {resumes} resumes"
        self.say("info", f"cancelling {job.title}{kept}")
        self.ask(p.Cancel(job.id))

    def title(self, action: Action) -> str:
        """What an action would do now."""
        jobs = running(self.session)
        if action.id != "cancel" or not jobs:
            return action.title
        return f"Cancel {jobs[0].title}" if len(jobs) == 1 else f"Cancel one of {len(jobs)} jobs"

    def jobs(self) -> None:
        """List the jobs: what runs, what waits, in order."""
        from qtui.screens.jobs import Jobs

        self.screen.app.push_screen(Jobs(self.screen, self.end, self.run_first))

    def run_first(self, job: Job) -> None:
        """Run a waiting job before the others of its urgency."""
        self.say("info", f"next: {job.title}")
        self.ask(p.RunFirst(job.id))

    def plan_for(self, budget: p.Budget) -> None:
        """Plan for a budget from what is known, and show the plan."""
        self.ask(p.Plan(budget=budget, forwards=0, to=self.session.tuning.target))
        self.screen.post_message(SessionScreen.ShowScreen(PLAN, expecting=True))

    def typed_plan(self, query: str) -> tuple[str, str]:
        """What a line of the palette asks for that is no action: ``mix 4.5`` is a plan.

        Returns:
            An id that `perform` takes, and a title; empty for nothing.
        """
        word, _, rest = query.strip().partition(" ")
        if word.lower() not in ("mix", PLAN):
            return "", ""
        try:
            budget = parse_budget(rest, self.session.cache)
        except UsageError:
            return "", ""
        return f"{PLAN}{CHOICE}{rest.strip()}", f"Plan for {budget}"

    # What opens over the screen is imported when it first opens: the first frame does not wait.

    def palette(self) -> None:
        """List every action by name."""
        from qtui.screens.help import in_one_line, legend
        from qtui.screens.palette import Palette, PaletteEntry

        screen = self.screen
        entries = [
            PaletteEntry(
                id=action.id,
                title=self.title(action),
                key=" ".join(key_names(screen.app, action)),
                group=action.group,
                why_not=self.why_not(action.id),
                words=action.words,
            )
            for action in screen.actions
        ]
        for action in screen.actions:
            if (chooser := self.CHOOSERS.get(action.id)) is not None:
                entries += [
                    PaletteEntry(
                        id=f"{action.id}{CHOICE}{choice.id}",
                        title=chooser.title.format(choice.title),
                        note=choice.note,
                        group=action.group,
                        why_not=self.why_not(action.id) or choice.why_not,
                        words=action.words,
                        asked=True,
                    )
                    for choice in chooser.choices(self)
                ]

        entries += [
            PaletteEntry("", meaning, sign, "Signs", asked=True)
            for sign, meaning in in_one_line(legend(screen.glyphs))
        ]

        def chosen(id: str | None) -> None:
            if id is not None:
                self.perform(id)

        def typed(query: str) -> PaletteEntry | None:
            id, title = self.typed_plan(query)
            return PaletteEntry(id, title, group="Recipe", why_not=self.why_not(id)) if id else None

        screen.app.push_screen(Palette(entries, screen.glyphs, typed=typed), chosen)

    def list_choices(self, id: str, at: str = "") -> None:
        """List the values of an action, the cursor on the one named."""
        from qtui.screens.palette import Palette, PaletteEntry

        chooser = self.CHOOSERS[id]
        entries = [
            PaletteEntry(choice.id, choice.title, note=choice.note, why_not=choice.why_not)
            for choice in chooser.choices(self)
        ]

        def chosen(choice: str | None) -> None:
            if choice is not None:
                chooser.choose(self, choice)

        palette = Palette(entries, self.screen.glyphs, hint=chooser.hint, at=at, verb="takes it")
        self.screen.app.push_screen(palette, chosen)

    def themes(self) -> Sequence[Choice]:
        """Every theme."""
        shown = self.screen.app.theme
        return [
            Choice(name, name, "shown now" if name == shown else about)
            for name, about in self.screen.themes()
        ]

    def choose_theme(self, name: str) -> None:
        """Show a theme."""
        self.screen.post_message(SessionScreen.AppWideAction("theme", name))

    def help(self) -> None:
        """List the keys."""
        from qtui.screens.help import Help

        self.screen.app.push_screen(Help(self.screen))

    def log(self) -> None:
        """Show everything that happened."""
        from qtui.screens.help import LogScreen

        glyphs = self.screen.glyphs
        self.screen.app.push_screen(LogScreen(self.events.lines(glyphs), glyphs))
