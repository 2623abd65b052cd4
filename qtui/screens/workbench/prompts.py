"""The workbench's prompts: filter, format, save."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from engine.errors import EngineError, InfeasibleError, UsageError
from engine.formats.completion import complete_format, explain_format
from engine.formats.grammar import parse_format
from engine.formats.storage import why_not_held
from engine.protocol import Budget
from engine.report.wording import short
from engine.session import Predictor, Session
from engine.session.cache import cache_bytes
from engine.store.paths import session_folder, session_name
from qtui.background import in_thread
from qtui.saved.clipboard import copy, what_to_copy
from qtui.saved.completion import complete_path, judge_path
from qtui.saved.exporting import (
    WORD,
    asks_export,
    complete_export,
    export_command,
    judge_export,
    read_export,
)
from qtui.saved.saving import save_asked
from qtui.saved.svg import Palette, screen_lines
from qtui.saved.view import View
from qtui.user.remembered import recall, remember
from qtui.views import sweeps
from qtui.views.budgets import parse_context
from qtui.views.filter import parse_filter
from qtui.views.filter.completion import complete_filter
from qtui.views.filter.verdict import judge_filter
from qtui.views.filter.words import filter_fields
from qtui.views.text import Glyphs, printable
from qtui.widgets.prompt.prompt import Completion, Prompt, Verdict, open_prompt

if TYPE_CHECKING:
    from qtui.screens.workbench.screen import Workbench


MOST_PREDICTED = 2000
"""Layers for which the KL of every offered format is predicted while a format is typed."""


def ignore(value: str) -> None:
    """Ignore a value."""


class OpenPrompt(NamedTuple):
    """An open prompt, and the callbacks for its value."""

    prompt: Prompt
    submitted: Callable[[str], None]
    changed: Callable[[str], None] = ignore
    cancelled: Callable[[str], None] = ignore


class Prompts:
    """Opens the workbench's prompts and handles their values."""

    def __init__(self, bench: Workbench, hold: Callable[[str], None]) -> None:
        self.bench, self.hold = bench, hold
        self._asked: OpenPrompt | None = None

    @property
    def open(self) -> bool:
        """Whether there is a line to type in."""
        return self._asked is not None

    def _open(self, asked: OpenPrompt) -> None:
        open_prompt(self.bench, asked.prompt)
        self._asked = asked

    def _begin(self) -> None:
        """Cancel an open prompt, and keep the cursor on its layer: the prompt is about it."""
        self._end()
        self.bench.table.stay()

    def _end(self) -> None:
        """Cancel an open prompt."""
        asked, self._asked = self._asked, None
        if asked is not None:
            asked.cancelled(asked.prompt.value)

    def changed(self, event: Prompt.Changed) -> None:
        """Another value, as it is typed."""
        if self._asked is not None and event.prompt is self._asked.prompt and event.verdict.ok:
            self._asked.changed(event.value)

    def submitted(self, event: Prompt.Submitted) -> None:
        """A value was submitted."""
        if self._asked is not None and event.prompt is self._asked.prompt:
            asked, self._asked = self._asked, None
            asked.submitted(event.value)

    def cancelled(self, event: Prompt.Cancelled) -> None:
        """The prompt was cancelled."""
        if self._asked is not None and event.prompt is self._asked.prompt:
            asked, self._asked = self._asked, None
            asked.cancelled(event.prompt.value)

    # --- the filter ---------------------------------------------------------------------------

    def filter(self) -> None:
        """Prompt for a filter, and apply it while it is typed."""
        self._end()
        bench = self.bench
        before = bench.table.filter

        def read(value: str) -> None:
            bench.set_filter(parse_filter(value))

        def follow(value: str) -> None:
            # The beginning of a field's name would empty the table for a moment.
            *terms, last = value.split(" ")
            bench.set_filter(parse_filter(" ".join(terms) if _begins_field(last) else value))

        def judge(value: str) -> Verdict:
            return Verdict(*judge_filter(value, bench.table.context))

        prompt = Prompt(
            "filter",
            lambda value: [Completion(*offer) for offer in complete_filter(value, bench.session)],
            judge,
            value=before.text,
            live=True,
            placeholder="kind:q_proj block<4 kl>1e-3 -is:kept",
            glyphs=bench.glyphs,
        )
        self._open(OpenPrompt(prompt, read, follow, lambda value: bench.set_filter(before)))

    # --- any format ---------------------------------------------------------------------------

    def format(self) -> None:
        """Prompt for a format, and set it on the layers in scope."""
        self._begin()
        bench = self.bench
        layers = bench.layers_in_scope()
        shapes = [bench.session.layers.shapes[bench.session.index[layer]] for layer in layers]
        alike = shapes[0] if len(set(shapes)) == 1 else None
        glyphs = bench.glyphs

        def judge(value: str) -> Verdict:
            canonical, says = explain_format(value, alike)
            if canonical is None:
                return Verdict(False, says, _going_on(value, says))
            if why := bench.marks.refusal(bench.session, layers, canonical):
                says += f"; {glyphs.refused} {why}"
            if canonical == "kept" or alike is not None:
                return Verdict(True, says)
            return _held_by(canonical, shapes, says)

        @lru_cache(maxsize=256)
        def not_in_target(text: str) -> str:
            canonical, _ = explain_format(text, alike)
            if canonical is None or not bench.marks.refusal(bench.session, layers, canonical):
                return ""
            return f"  {glyphs.refused} {bench.marks.name}"

        kl_of = predicted_kl(bench.session, layers, bench.glyphs)
        prompt = Prompt(
            f"format for {_in_a_label(bench.scope_words())}",
            lambda value: [
                offer._replace(says=offer.says + kl_of(offer.text) + not_in_target(offer.text))
                for offer in _complete_format(value, alike)
            ],
            judge,
            kind="format",
            placeholder="int4-g64, int3-channel-sym, fp8-e4m3, ...",
            glyphs=bench.glyphs,
        )
        self._open(OpenPrompt(prompt, lambda value: self.hold(explain_format(value)[0] or value)))

    def sweep(self, sweep: Callable[[str], None]) -> None:
        """Prompt for a format, and sweep it."""
        self._end()

        def judge(value: str) -> Verdict:
            canonical, says = explain_format(value)
            if canonical == "kept" or (canonical is not None and parse_format(canonical).kept):
                return Verdict(False, "a layer kept as stored has no effect: type another format")
            return Verdict(canonical is not None, says)

        way = self.bench.direction
        shown = self.bench.format
        prompt = Prompt(
            "sweep" if way == "degrade" else f"sweep, {way}",
            _complete_format,
            judge,
            kind="format",
            value="" if sweeps.is_complete(self.bench.session, shown, way) else shown,
            placeholder="int3-g128, nf4, q4_k, ...",
            glyphs=self.bench.glyphs,
        )
        self._open(OpenPrompt(prompt, lambda value: sweep(explain_format(value)[0] or value)))

    # --- out of the screen --------------------------------------------------------------------

    def view(self) -> View:
        """What is shown now, for a file or the clipboard."""
        bench, table = self.bench, self.bench.table
        colors = bench.app.theme_variables
        wanted = ("background", "foreground", "dim", "accent")
        return View(
            session=bench.session,
            source=bench.source,
            format=bench.format,
            direction=bench.direction,
            rows=tuple(dict.fromkeys(table.rows)),
            columns=tuple(column.id for column, _ in table.layout_at(table.size.width).columns),
            layer=table.current,
            marked=frozenset(table.marked),
            order=table.order_words,
            filter=table.filter.text,
            screen=tuple(screen_lines(bench.app)),
            log=tuple(bench.events.entries),
            palette=Palette(*(colors[name] for name in wanted)),
            serving=bench.table.listing.serving,
        )

    def save(self) -> None:
        """Prompt for a path, and save a table, a plot, a recipe or the screen there."""
        self._begin()
        bench, screen = self.bench, tuple(screen_lines(self.bench.app))

        def now() -> View:
            # Layers may be listed again while the prompt is open; the screen is the earlier one.
            return msgspec.structs.replace(self.view(), screen=screen)

        def write(value: str) -> None:
            view = now()
            if asks_export(value):
                self._export(value)
                return

            async def writing() -> None:
                try:
                    saved = await in_thread(lambda: save_asked(value, view))
                except EngineError as error:
                    bench.say_and_log("error", str(error))
                except (OSError, LookupError, ValueError) as error:
                    bench.say_and_log("error", f"not saved: {type(error).__name__}: {error}")
                else:
                    remember(folder=str(saved.path.resolve().parent))
                    bench.say_and_log("info", saved.says)

            bench.run_worker(writing(), group="save")

        def judge(value: str) -> Verdict:
            if asks_export(value):
                return Verdict(*judge_export(value, bench.marks.name, bench.session))
            return Verdict(*judge_path(value, now()))

        def offers(value: str) -> list[Completion]:
            first = value.strip()
            found = [] if asks_export(value) else list(_saved_before(value, now()))
            if asks_export(value) or (len(first) > 1 and WORD.startswith(first)) or not first:
                read = bench.session.checkpoint
                name = bench.source if read is None else read.name
                exports = complete_export(value, bench.marks.name, Path(name).name)
                found += exports if first else exports[:1]
            return [Completion(*offer) for offer in found]

        prompt = Prompt(
            "save",
            offers,
            judge,
            glyphs=bench.glyphs,
            placeholder="[table|histogram|layer|experts|log|screen|recipe|report] FILE, export TO",
        )
        self._open(OpenPrompt(prompt, write))

    def context(self, tune_for: Callable[..., None]) -> None:
        """Prompt for a context and a batch, whose cache is counted beside the weights."""
        self._end()
        bench = self.bench
        now = bench.session.tuning

        def judge(value: str) -> Verdict:
            try:
                context, batch = parse_context(value)
            except UsageError as error:
                return Verdict(False, str(error))
            if not context:
                return Verdict(True, "no cache is counted")
            try:
                cache_bytes(bench.session, Budget(context=context, batch=batch))
            except InfeasibleError:
                return Verdict(False, "config.json does not say how large keys and values are")
            many = "1 sequence" if batch == 1 else f"{batch} sequences"
            return Verdict(True, f"{many} of {context:,} tokens")

        def write(value: str) -> None:
            context, batch = parse_context(value)
            tune_for(context=context, batch=batch)

        typed = f"{now.context} {now.batch}" if now.context else ""
        prompt = Prompt(
            "context", judge=judge, value=typed, kind="context", glyphs=bench.glyphs,
            placeholder="tokens, and sequences of them: 32k, or 32k 4; nothing counts no cache",
        )  # fmt: skip
        self._open(OpenPrompt(prompt, write))

    def _export(self, value: str) -> None:
        """Have the engine write the recipe for a target."""
        bench = self.bench
        try:
            asked = read_export(value, bench.marks.name)
        except EngineError as error:
            bench.say_and_log("error", str(error))
            return
        shown = printable(str(asked.path))
        bench.say_and_log("info", f"export for {asked.target.name} to {shown} requested")
        bench.post_message(bench.Ask(export_command(asked, bench.session)))

    def copy(self, *, whole: bool) -> None:
        """Copy rows, or the table, to the terminal's clipboard and to a file."""
        bench, view = self.bench, self.view()

        async def copying() -> None:
            try:
                text = await in_thread(lambda: what_to_copy(view, whole))
                folder = session_folder(session_name(bench.source))
            except (EngineError, OSError) as error:
                bench.say_and_log("error", str(error))
                return
            bench.say_and_log("info", copy(bench.app, text, folder).how)

        bench.run_worker(copying(), group="save")


def _saved_before(value: str, view: View) -> Sequence[tuple[str, str, bool]]:
    """Completions; for an empty line, in the folder where the last file was saved."""
    offers = complete_path(value, view)
    folder = recall()[0].folder
    if value or not folder or Path(folder) == Path.cwd():
        return offers
    parted = [(text.partition(" "), says, dim) for text, says, dim in offers]
    return [(f"{what} {Path(folder) / name}", says, dim) for (what, _, name), says, dim in parted]


def _begins_field(term: str) -> bool:
    """Whether a term that is being typed may become one with a field and its operator."""
    return bool(term) and any(
        name.startswith(term.lstrip("-!").lower()) for name in filter_fields()
    )


def predicted_kl(session: Session, layers: Sequence[str], glyphs: Glyphs) -> Callable[[str], str]:
    """Says what KL a recipe is predicted to have with these layers in a format; else nothing.

    Nothing is said where most of it is not known, or where there are so many layers that keys
    would wait.
    """
    predictor = Predictor(session) if 0 < len(layers) <= MOST_PREDICTED else None

    @lru_cache(maxsize=256)
    def say(format: str) -> str:
        canonical, _ = explain_format(format)
        if predictor is None or canonical is None:
            return ""
        kept = canonical == "kept"
        held = {
            layer: session.kept(session.index[layer]) if kept else canonical for layer in layers
        }
        predicted = predictor.predict(held)
        if predicted is None or predicted.vague:
            return ""
        return f"  recipe KL{glyphs.kilo} {glyphs.about}{short(1000 * predicted.kl)}"

    return say


def _in_a_label(scope: str) -> str:
    """``kind q_proj: 5 layers`` without its colon: the label has one of its own."""
    what, colon, number = scope.rpartition(": ")
    return f"{what}, {number}" if colon else scope


def _complete_format(value: str, shape: Sequence[int] | None = None) -> Sequence[Completion]:
    offers = complete_format(value, limit=24, shape=shape)
    return [Completion(offer.text, offer.says, not offer.usable) for offer in offers]


def _going_on(value: str, says: str) -> str:
    """The message for the start of a format while it is typed."""
    typed = value.strip().lower()
    if not typed:
        return says
    offers = complete_format(typed, 1)
    begins = bool(offers) and offers[0].text != typed
    return f"{value.strip()} is the start of a format: tab completes it" if begins else ""


def _held_by(format: str, shapes: Sequence[Sequence[int]], says: str) -> Verdict:
    """Whether layers of all these shapes can use a format; a toggle sets all or none."""
    parsed = parse_format(format)
    reasons = [why for shape in shapes if (why := why_not_held(parsed, shape)) is not None]
    if reasons:
        return Verdict(
            False, f"{len(reasons)} of {len(shapes)} layers cannot hold it: {reasons[0]}"
        )
    return Verdict(True, says)
