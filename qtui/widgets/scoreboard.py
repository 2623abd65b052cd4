"""The head of the screen: what the model is, what it scores, and what is being done about it."""

from __future__ import annotations

import math

from rich.cells import cell_len

from engine.protocol import ModelReady, RecipeScore
from engine.session import Dirty, Job, Prediction, Session
from qtui import text as t
from qtui.text import UNICODE, Glyphs, fit, printable
from qtui.widgets.line import Lines, Words, cells, spread

URGENCY = {"evaluate": 0, "open": 1, "triage": 2, "sweep": 3}


def running(session: Session) -> list[Job]:
    """Jobs that are not over, the one worth showing first."""
    jobs = [job for job in session.jobs.values() if job.status == "running"]
    return sorted(jobs, key=lambda job: URGENCY[job.kind])


class Scoreboard(Lines):
    """Three lines: the model and its size, its score with the protocol beside it, the work."""

    DEFAULT_CSS = """
    Scoreboard { height: 3; padding: 0 1; }
    """

    def __init__(self, source: str, glyphs: Glyphs = UNICODE, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self.source = source
        self.glyphs = glyphs
        self.session = Session()
        self.state = "starting the engine"
        """What is going on while no job runs and nothing is loaded."""
        self._changed = 0
        self._stored = ""
        self._known: RecipeScore | None = None
        self._predicted: Prediction | None = None

    def show(self, session: Session, dirty: frozenset[Dirty] | None = None) -> None:
        """Draw what changed; None stands for everything."""
        self.session = session
        if dirty is None or dirty & {"holds", "layers", "model", "checkpoint"}:
            # Sums over the whole table: made only when the recipe moved.
            self._changed = len(session.recipe())
            self._stored = self._stored_size()
        if dirty is None or dirty & {"holds", "recipe", "measured", "baseline", "model", "layers"}:
            self._known = session.score() if self._changed else None
            self._predicted = session.predicted() if self._changed else None
        self._write()

    def on_resize(self) -> None:
        """Lay the lines out for the new width."""
        self._write()

    def _write(self) -> None:
        width = self.content_size.width or 78
        self.set_lines([self._model(width), self._score(width), self._work(width)])

    # --- the model ----------------------------------------------------------------------------

    def _model(self, width: int) -> Words:
        session, checkpoint, model = self.session, self.session.checkpoint, self.session.model
        name = printable(checkpoint.name if checkpoint is not None else self.source)
        left: Words = [(t.fit(name, min(cell_len(name), max(12, width // 3))), "bold")]
        if checkpoint is None:
            return left
        kind = printable(checkpoint.architecture)
        for tail in ("ForCausalLM", "LMHeadModel"):
            kind = kind.removesuffix(tail)
        facts = [f"{kind} {t.count(checkpoint.parameters)}", f"{len(session.layers.names)} layers"]
        if model is not None:
            facts.append(f"{model.device} {model.dtype}")
        for fact in facts:
            left.append((f"  {fact}", "$dim"))
        return spread(left, [(self._stored, "")], width)

    def _stored_size(self) -> str:
        if not self.session.layers.names:
            return ""
        bits = self.session.bits_per_weight()
        size = t.size(self.session.artefact_bytes())
        return size if math.isnan(bits) else f"{bits:.2f} bit/weight  {size}"

    # --- the score ----------------------------------------------------------------------------

    def _score(self, width: int) -> Words:
        session, model = self.session, self.session.model
        if model is None:
            words: Words = [("PPL once the model is loaded", "$dim")]
            if self._changed:
                layers = "1 layer" if self._changed == 1 else f"{self._changed} layers"
                words.append((f"   recipe of before: {layers} changed", "$held"))
            return words if running(session) or session.checkpoint is None else [("", "")]
        base = session.baseline
        if base is None:
            left: Words = [("PPL not measured yet", "$dim")]
        elif not self._changed:
            half = session.interval_factor * base.ppl * base.nll_se
            left = [("PPL ", "$dim"), (t.perplexity(base.ppl), "bold $accent"), *self._pm(half)]
        else:
            left = [("PPL ", "$dim"), (f"{t.perplexity(base.ppl)} {self.glyphs.arrow} ", "")]
            left += self._recipe(base.ppl, model)
        room = width - cells(left) - 2
        return spread(left, [(self._protocol(model, room), "$dim")], width)

    def _recipe(self, before: float, model: ModelReady) -> Words:
        score, glyphs = self._known, self.glyphs
        if score is not None:
            half = (score.ppl_high - score.ppl_low) / 2
            words: Words = [
                (t.perplexity(score.ppl), f"bold {_tone(score.ppl_low, score.ppl_high, before)}"),
                *self._pm(half),
            ]
            if not score.done:
                share = score.tokens / max(1, model.protocol.tokens)
                words.append((f" {min(share, 1):.0%}", "$dim"))
            words += [(f"  KL{glyphs.kilo} ", "$dim"), (t.short(1000 * score.kl), "")]
            return words
        predicted = self._predicted
        if predicted is None or predicted.missing >= self._changed:
            return [("?", "bold"), (" not measured yet", "$dim")]
        words = [(glyphs.about + t.perplexity(predicted.ppl), "bold $ink")]
        if predicted.missing:
            words.append((f" without {predicted.missing} unknown", "$dim"))
        return words

    def _pm(self, half: float) -> Words:
        return [(f" {self.glyphs.plus_minus} {t.margin(half)}", "")]

    def _protocol(self, model: ModelReady, room: int) -> str:
        protocol = model.protocol
        cut = f"window {protocol.seq_len}"
        if protocol.stride not in (protocol.seq_len, protocol.seq_len - 1, 0):
            cut += f" stride {protocol.stride}"
        numbers = f"{t.count(protocol.tokens)} tok, {cut}"
        text = printable(protocol.text)
        space = room - len(numbers) - 2
        if space < 6:
            return numbers[:room] if room < len(numbers) else numbers
        return f"{fit(text, min(cell_len(text), space), self.glyphs)}  {numbers}"

    # --- the work -----------------------------------------------------------------------------

    def _work(self, width: int) -> Words:
        jobs = running(self.session)
        if not jobs:
            return self._rest()
        gauges = self._gauges() if width >= 110 else []
        return spread(self._job(jobs, width - cells(gauges) - 2 * bool(gauges)), gauges, width)

    def _gauges(self) -> Words:
        now = self.session.gauges
        if now is None:
            return []
        words = f"cpu {now.cpu:.0%}  {t.size(now.memory_free)} free"
        if now.gpu_total:
            words += f"  gpu {now.gpu_load:.0%} {t.size(now.gpu_used)} of {t.size(now.gpu_total)}"
        return [(words, "$dim")]

    def _job(self, jobs: list[Job], width: int) -> Words:
        stage, job = self.session.stage, jobs[0]
        title, done, total, left = job.title, job.done, job.total, t.clock(job.seconds_left)
        if job.kind == "open" and stage is not None:
            title, done, total = stage.name, float(stage.done), stage.total
        name = printable(title)
        words: Words = [(fit(name, min(cell_len(name), width // 3), self.glyphs) + " ", "bold")]
        figures = f" {done:.0f}/{total}" if total > 1 else ""
        figures += f"  {left} left" if left else ""
        if total > 1:
            words += self._bar(done / total, max(6, min(40, width // 4)))
        words.append((figures, ""))
        rest = width - cells(words) - 2
        others = f"then {printable(jobs[1].title)}" if len(jobs) > 1 else printable(job.detail)
        if others and rest > 8:
            words.append(("  " + fit(others, min(cell_len(others), rest), self.glyphs), "$dim"))
        return words

    def _rest(self) -> Words:
        failed = [job for job in self.session.jobs.values() if job.kind == "open"][-1:]
        if failed and failed[0].status == "failed":
            return [("not open: ", "bold $error"), (printable(failed[0].message), "$error")]
        words: Words = [(self.state, "$dim")]
        if self.state != "ready":
            return words
        if left := self._unmeasured():
            words.append((f"  {left}", ""))
            return words
        for key, whole in self.session.additivity.items():
            if key.startswith("degrade/") and math.isfinite(whole.kl):
                format = printable(whole.format)
                words.append((f"  {format} in all body layers: KL ", "$dim"))
                words.append((f"{whole.kl:.2f}{self.glyphs.times}", ""))
                words.append((" the sum of single effects", "$dim"))
        return words

    def _unmeasured(self) -> str:
        """How far a sweep came that is not running any more; empty where it is whole."""
        whole = len(self.session.layers.names)
        for format in self.session.settings.sweep_formats:
            column = self.session.measured.get(f"degrade/{format}", [])
            done = sum(fact is not None for fact in column)
            if f"degrade/{format}" not in self.session.additivity and done < whole:
                return f"{printable(format)}: {done} of {whole} layers measured, s goes on"
        return ""

    def _bar(self, share: float, width: int) -> Words:
        full = round(min(max(share, 0.0), 1.0) * width)
        return [
            (self.glyphs.bar * full, "$primary"),
            (self.glyphs.bar_left * (width - full), "$panel"),
        ]


def _tone(low: float, high: float, before: float) -> str:
    """Colour of a score beside the one before it; the numbers say the same."""
    if low > before * 1.05:
        return "$heat-5"
    if low > before * 1.01:
        return "$heat-4"
    return "$better" if high < before else "$accent"
