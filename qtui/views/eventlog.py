"""The event log: everything that a user may want to look up later, in order."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

from engine import protocol as p
from engine.errors import FormatError
from engine.formats.grammar import parse_format
from engine.formats.storage import why_not_held
from engine.protocol import Level
from engine.report import wording as n
from engine.session import Layers, Session, kept_format, recipe_hash, running
from qtui.views.sweeps import formats_of
from qtui.views.text import UNICODE, Glyphs, Words, printable, short_name

MOST = 1000
"""Entries that are kept."""
WAVE = 2.0
"""Seconds in which fallbacks of one format are one entry."""
OF_ONE_LAYER = p.LayerWeights | p.LayerError | p.Sensitivity | p.Estimate
"""Facts that the table shows: there are too many of them for a log."""
SILENT = frozenset(question.__name__ for question in p.QUESTIONS)
"""Refusals of these are not logged: no key sent them."""
STYLES: dict[Level, str] = {"info": "$dim", "warning": "$warning", "error": "bold $error"}
SIGNS: dict[Level, str] = {"info": " ", "warning": "!", "error": "x"}
BEFORE = "before"
"""Stands where the time of an entry is not known."""

SOME = 3
"""Formats that are named of many."""


class Entry(NamedTuple):
    """One thing that happened."""

    time: float | None
    """Seconds of the wall clock; None where it happened before this terminal was attached."""
    level: Level
    text: str
    times: int = 1
    """How often it happened, one after the other."""


class _Wave(NamedTuple):
    """Fallbacks that follow each other."""

    format: str
    why: str
    layers: int
    other_reasons: int
    latest: float


class EventLog:
    """The last `MOST` things that happened.

    `add` gets every event, before or after it is folded; events that are not logged cost about a
    microsecond.
    """

    def __init__(self, glyphs: Glyphs = UNICODE, clock: Callable[[], float] = time.time) -> None:
        self.glyphs = glyphs
        self.version = 0
        """Counts the changes: what was drawn at this count is still right."""
        self._clock = clock
        self._entries: deque[Entry] = deque(maxlen=MOST)
        self._began: dict[str, float] = {}
        """When each running job started."""
        self._queued: dict[str, str] = {}
        """Titles of jobs that wait for others."""
        self._wave: _Wave | None = None
        self._uniforms: tuple[Layers, dict[str, str]] = Layers(), {}
        """Hashes of a format in the whole body, by format: made once a listing, of all its rows."""

    @property
    def entries(self) -> list[Entry]:
        """What happened, oldest first."""
        return list(self._entries)

    @property
    def last(self) -> Entry | None:
        """What happened last."""
        return self._entries[-1] if self._entries else None

    def say(self, level: Level, text: str) -> None:
        """Log something that is no event of the engine: that it was started, or lost."""
        self._add(Entry(self._clock(), level, " ".join(text.split())))

    def add_earlier(self, session: Session) -> None:
        """Log what happened in the session before this terminal attached, once."""
        here = {entry.text for entry in self._entries}
        waves: dict[tuple[str, str], list[str]] = {}
        for fallback in session.fallbacks:
            waves.setdefault((fallback.format, fallback.why), []).append(fallback.layer)
        said: list[tuple[Level, str]] = [
            ("warning", _not_held(layers[0], len(layers), format, why, 0))
            for (format, why), layers in waves.items()
        ]
        said += [(notice.level, " ".join(notice.message.split())) for notice in session.notices]
        for level, text in said:
            if text not in here:
                self._add(Entry(None, level, text))

    def add(self, event: p.AnyEvent, session: Session) -> None:
        """Log an event, if it is of the kind that is logged."""
        match event:
            case p.Progress():
                if (title := self._queued.pop(event.job, None)) is not None:
                    self.say("info", f"{title}: started")
            case p.RecipePartial() | p.Continuing() | p.Gauges() | p.Stage() | p.Clients():
                return
            case p.Learned():
                for fact in event.facts:
                    if not isinstance(fact, OF_ONE_LAYER):
                        self._log_fact(fact, session, fresh=event.fresh)
            case p.Fallback():
                self._log_fallback(event)
            case p.Notice():
                self.say(event.level, event.message)
            case p.Exported():
                self.say("info", f"exported to {event.folder}")
                for note in event.notes:
                    self.say("info", note)
            case p.Refused():
                if event.command not in SILENT:
                    self.say("error", f"refused: {event.message}")
            case p.JobStarted():
                self._began[event.job] = self._clock()
                if event.kind != "evaluate":  # one at every toggle: its score says enough
                    waits = any(job.urgency <= event.urgency for job in running(session))
                    if waits:
                        self._queued[event.job] = event.title
                    self.say("info", f"{event.title}: {'queued' if waits else 'started'}")
            case p.JobEnded():
                self._ended(event, session)
            case p.RecipeChanged():
                self.say("info", self.change(event, session))
            case p.Opened():
                self.say("info", f"opened {event.source}, profile {event.settings.profile}")
            case p.CheckpointRead():
                size, count = n.size(event.bytes), n.count(event.parameters)
                said = f"{event.architecture}, {count} parameters, {size}, {event.dtype}"
                self.say("info", f"checkpoint {event.name}: {said}")
            case p.ModelReady():
                tokens = f"{n.count(event.protocol.tokens)} tokens, window {event.protocol.seq_len}"
                streamed = " streamed from disk" if event.protocol.streamed else ""
                self.say(
                    "info",
                    f"model on {event.device} in {event.dtype}, {event.blocks} blocks, "
                    f"{n.size(event.memory)}{streamed}; text: {event.protocol.text_read}, {tokens}",
                )

    # --- words --------------------------------------------------------------------------------

    def change(self, event: p.RecipeChanged, session: Session) -> str:
        """A change of the recipe: ``0 mlp.down_proj: bf16 → int4-g128``."""
        how = {"set": "", "undo": "undone, ", "redo": "redone, "}[event.how]
        many = len(event.layers)
        who = _short(event.layers[0], session) if many == 1 else f"{many:,} layers"
        before, after = _kinds(event.before), _kinds(event.after)
        if many == 1:
            return f"{how}{who}: {before} {self.glyphs.arrow} {after}"
        return f"{how}{who} ({before}) {self.glyphs.arrow} {after}"

    def _ended(self, event: p.JobEnded, session: Session) -> None:
        job = session.jobs.get(event.job)
        title = event.kind if job is None else job.title
        began = self._began.pop(event.job, None)
        self._queued.pop(event.job, None)
        if event.status == "failed":
            self.say("error", f"{title}: failed: {event.message or 'no reason given'}")
            return
        if event.kind == "evaluate":
            return
        figures = []
        if event.measured:
            # A sweep's are estimates too.
            figures.append(f"{event.measured:,} {'new' if event.kind == 'sweep' else 'measured'}")
        if event.resumed:
            figures.append(f"{event.resumed:,} saved earlier")
        if began is not None:
            figures.append(f"in {n.clock(max(0.0, self._clock() - began))}")
        if event.kind == "sweep" and event.status == "done":
            figures += self._worst(job.command, session) if job is not None else []
        said = f"{title}: {event.status}"
        self.say("info", said + (f", {', '.join(figures)}" if figures else ""))

    def _worst(self, command: p.Command, session: Session) -> list[str]:
        """The largest effect of each format that a sweep was about."""
        found = []
        for format in formats_of(command):
            assert isinstance(command, p.Sweep)
            column = session.effects.measured.get(p.EffectKey(command.direction, format), [])
            worst = max((fact for fact in column if fact), key=lambda fact: fact.kl, default=None)
            if worst is not None:
                name = _short(worst.layer, session)
                kl = f"KL{self.glyphs.kilo} {n.short(1000 * worst.kl)}"
                found.append(f"largest: {name} {kl}")
        return found

    def _log_fact(self, fact: p.AnyFact, session: Session, *, fresh: bool) -> None:
        known = "" if fresh else ", saved earlier"
        match fact:
            case p.Baseline() if fact != session.baseline:
                score = self._ppl(fact.ppl, session.interval_factor * fact.ppl * fact.nll_se)
                self.say("info", f"baseline: {score}{known}")
            case p.Control():
                kl = f"{fact.max_abs_kl:.0e}".replace("0e+00", "0")
                self.say("info", f"no-op control: KL {kl}{known}")
            case p.Additivity():
                whole = n.additivity(fact.kl)
                way = "" if fact.direction == "degrade" else f"{fact.direction} "
                self.say("info", f"{way}{fact.format} in all body layers: {whole}{known}")
            case p.RecipeScore() if fact.done:
                score = self._ppl(fact.ppl, (fact.ppl_high - fact.ppl_low) / 2)
                kl = f"KL{self.glyphs.kilo} {n.short(1000 * fact.kl)}"
                size = n.bits_per_weight(fact.bits_per_weight, fact.bits_all)
                size = "" if math.isnan(fact.bits_per_weight) else f", {size}"
                self.say("info", f"{self._whose(fact, session)}: {score}, {kl}{size}{known}")

    def _whose(self, score: p.RecipeScore, session: Session) -> str:
        """The recipe that a score is of: the session's own, a format in the whole body, another."""
        if score.recipe == recipe_hash(session.changed):
            return "recipe"
        if self._uniforms[0] is not session.layers:
            self._uniforms = session.layers, {}
        known = self._uniforms[1]
        swept = [key.format for key in session.effects.measured]
        for format in dict.fromkeys([*swept, *session.settings.sweep_formats]):
            if format not in known:
                uniform = _uniform(format, session)
                known[format] = recipe_hash(uniform) if uniform else ""
            if score.recipe == known[format]:
                return f"{parse_format(format)} in all body layers"
        return "another recipe"

    def _ppl(self, ppl: float, half: float) -> str:
        """A perplexity, with half its interval where that is known already."""
        said = f"PPL {n.perplexity(ppl)}"
        return said if math.isnan(half) else f"{said} {self.glyphs.plus_minus} {n.margin(half)}"

    def _log_fallback(self, event: p.Fallback) -> None:
        """One entry for all fallbacks of a format that come together."""
        now, wave = self._clock(), self._wave
        if wave is None or wave.format != event.format or now - wave.latest > WAVE:
            wave = _Wave(event.format, event.why, 1, 0, now)
            text = _not_held(event.layer, 1, event.format, event.why, 0)
            self._add(Entry(now, "warning", text))
        else:
            other = wave.other_reasons + (event.why != wave.why)
            wave = wave._replace(layers=wave.layers + 1, other_reasons=other, latest=now)
            text = _not_held(event.layer, wave.layers, wave.format, wave.why, other)
            self._entries[-1] = Entry(self._entries[-1].time, "warning", text)
            self.version += 1
        self._wave = wave

    def _add(self, entry: Entry) -> None:
        self._wave = None
        self.version += 1
        last = self._entries[-1] if self._entries else None
        if last is not None and (last.level, last.text) == (entry.level, entry.text):
            self._entries[-1] = entry._replace(times=last.times + 1)
        else:
            self._entries.append(entry)

    # --- drawing ------------------------------------------------------------------------------

    def lines(self, glyphs: Glyphs, last: int = MOST) -> list[Words]:
        """The last entries as lines, oldest first: time, sign of the level, words."""
        entries = list(self._entries)[-last:] if last > 0 else []
        drawn: list[Words] = []
        for entry in entries:
            when = BEFORE if entry.time is None else _wall_clock(entry.time)
            text = printable(entry.text)
            words: Words = [
                (f"{when:<8} ", "$dim"),
                (f"{SIGNS[entry.level]} ", STYLES[entry.level]),
                (text, "" if entry.level == "info" else STYLES[entry.level]),
            ]
            if entry.times > 1:
                words.append((f"  {glyphs.times}{entry.times}", "$dim"))
            drawn.append(words)
        return drawn


def _wall_clock(seconds: float) -> str:
    return time.strftime("%H:%M:%S", time.localtime(seconds))


def _short(layer: str, session: Session) -> str:
    row = session.row(layer)
    return short_name(layer, -1 if row is None else session.layers.blocks[row], 0).strip()


def _uniform(format: str, session: Session) -> dict[str, str]:
    """A format in all layers of the body that can hold it."""
    layers = session.layers
    try:
        parsed = parse_format(format)
    except FormatError:
        return {}
    held = {shape: why_not_held(parsed, shape) is None for shape in set(layers.shapes)}
    text = str(parsed)
    return {
        name: text
        for name, block, shape, dtype in zip(
            layers.names, layers.blocks, layers.shapes, layers.dtypes, strict=True
        )
        if block >= 0 and held[shape] and text != kept_format(dtype)
    }


def _kinds(formats: Sequence[str]) -> str:
    """The different formats, or some of many."""
    kinds = list(dict.fromkeys(formats))
    more = f" and {len(kinds) - SOME} others" if len(kinds) > SOME else ""
    return ", ".join(kinds[:SOME]) + more


def _not_held(layer: str, layers: int, format: str, why: str, other_reasons: int) -> str:
    """A wave of fallbacks in one sentence."""
    if layers == 1:
        return f"{layer} cannot use {format}: {why}"
    also = f", {other_reasons:,} for other reasons" if other_reasons else ""
    return f"{layers:,} layers cannot use {format}: {why}{also}"
