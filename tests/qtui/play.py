"""The interface over a pretended engine that answers keys: ``python -m tests.qtui.play``."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Iterable
from typing import Literal

from engine import protocol as p
from engine.session import Session, apply, predict, recipe_hash
from qtui.app import Appearance, QtuiApp
from tests.qtui import replay as r


class Pretender(r.Replay):
    """Measures nothing, but answers as an engine would, at an engine's pace."""

    def __init__(self, pace: float) -> None:
        super().__init__()
        self.pace = pace
        self.known = Session()
        self.tasks: dict[str, asyncio.Task[None]] = {}

    def give(self, *events: p.AnyEvent | Session) -> None:
        for event in events:
            if not isinstance(event, Session):
                apply(self.known, event)
        super().give(*events)

    async def send(self, command: p.AnyCommand) -> None:
        await super().send(command)
        match command:
            case p.Open():
                self.begin("1", r.opening())
            case p.Triage():
                await self.tasks["1"]
                self.begin("2", r.triaged(), 0.1)
            case p.Sweep(direction=direction):
                self.begin("6" if direction == "restore" else "3", self.sweep(direction))
            case p.Cancel(job=job):
                if job in self.tasks and self.tasks[job].cancel():
                    kind = self.known.jobs[job].kind
                    self.give(p.JobEnded(job=job, kind=kind, status="cancelled"))
            case p.SetFormat(layers=layers, format=format):
                rows = [self.known.index[layer] for layer in layers]
                kept = format == "kept"
                after = [self.known.kept(row) if kept else format for row in rows]
                self.change("set", list(layers), after)
            case p.Undo() if self.known.position:
                step = self.known.history[self.known.position - 1]
                self.change("undo", step.layers, step.before)
            case p.Redo() if self.known.position < len(self.known.history):
                step = self.known.history[self.known.position]
                self.change("redo", step.layers, step.after)
            case p.Undo() | p.Redo():
                self.give(p.Refused("undo", "nothing to undo or make again"))
            case p.AskHistogram(layer=layer, bins=bins):
                self.give(r.histogram(layer, bins))
            case p.Stop():
                self.die("stopped")

    def die(self, reason: str, *log: str) -> None:
        for task in self.tasks.values():
            task.cancel()
        super().die(reason, *log)

    def begin(self, job: str, events: Iterable[p.AnyEvent], slow: float = 1.0) -> None:
        """Give events one after the other."""

        async def giving() -> None:
            for event in events:
                self.give(event)
                await asyncio.sleep(self.pace * slow)

        self.tasks[job] = asyncio.create_task(giving())

    def change(
        self, how: Literal["set", "undo", "redo"], layers: list[str], after: list[str]
    ) -> None:
        """Let layers hold other formats, and measure the outcome."""
        shapes = [self.known.layers.shapes[self.known.index[layer]] for layer in layers]
        bits = [shape[0] * shape[1] * (17 if "4" in held else 64) // 4
                for shape, held in zip(shapes, after, strict=True)]  # fmt: skip
        before = [self.known.layers.holds[self.known.index[layer]] for layer in layers]
        self.give(p.RecipeChanged(how=how, layers=layers, before=before, after=after, bits=bits))
        self.begin("4", self.measure())

    def sweep(self, direction: p.Direction) -> Iterable[p.AnyEvent]:
        """All is estimated, then measured; what is measured says how well estimates agree."""
        began, *measuring = r.swept(direction=direction)
        assert isinstance(began, p.JobStarted)
        yield began
        yield p.Progress(job=began.job, done=1, total=8, phase="estimating", detail="9 formats")
        yield r.estimated(direction=direction)
        for done, event in enumerate(measuring):
            yield event
            if done >= 4:
                yield r.agreement(done // 2, direction=direction)

    def measure(self) -> Iterable[p.AnyEvent]:
        """A score that narrows."""
        yield p.JobStarted(
            job="4", kind="evaluate", command=p.Evaluate(), title="measure the recipe", total=16
        )
        predicted = predict(self.known)
        ppl = predicted.ppl if predicted is not None else r.BASELINE.ppl
        key = recipe_hash(self.known.recipe())
        for done in range(1, 16):
            tokens = 1024 * done
            yield p.RecipePartial(r.score(key, ppl=ppl, half=0.8 / done, tokens=tokens))
            yield p.Progress(job="4", done=done, total=16, seconds_left=0.3 * (16 - done))
        yield p.Learned(("score",), (r.score(key, ppl=ppl, half=0.05),))
        yield p.JobEnded(job="4", kind="evaluate", status="done", measured=1)


def main() -> None:
    """Play, with the options given."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pace", type=float, default=0.25, help="seconds between two events")
    parser.add_argument("--ascii", action="store_true")
    parser.add_argument("--theme", default="qtui-dark")
    parser.add_argument("--dies-after", type=float, help="seconds")
    given = parser.parse_args()

    async def connect() -> Pretender:
        link = Pretender(given.pace)
        if given.dies_after:
            asyncio.get_running_loop().call_later(
                given.dies_after, link.die, "it was killed by signal 9\nINFO sweep\nMemoryError"
            )
        return link

    app = QtuiApp("demo", r.SETTINGS, r.PROFILE, connect, Appearance(given.ascii, given.theme))
    app.run()


if __name__ == "__main__":
    main()
