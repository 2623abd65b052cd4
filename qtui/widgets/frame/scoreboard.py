"""The top of the screen: the model, its score, and the running job."""

from __future__ import annotations

import math

from rich.cells import cell_len

from engine.errors import InfeasibleError
from engine.protocol import Budget, Direction, ModelReady, RecipeScore, Sweep, TunedFor
from engine.report import wording as n
from engine.session import Dirty, Job, Prediction, Session, last_job, predict, running
from engine.session.cache import cache_bytes
from qtui.views import sweeps
from qtui.views.progress import COUNTED, about, phase_words, time_left
from qtui.views.text import UNICODE, Glyphs, fit, printable, short_name
from qtui.widgets.line import Lines, Words, cells, spread

COUNT = "{}"
"""Stands in a phase for how far it is."""
ROOM_FOR_MORE = 110
"""Columns from which there are the error of the KL, the agreement of the first choices, and all
gauges."""


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
        self.freeze_key, self.retry_key = "z", "r"
        """The keys that end a pause of the display, and go on with a sweep."""
        self.shown: tuple[str, Direction] = "", "degrade"
        """Format and direction of the effects that are shown."""
        self._frozen = False
        self._changed = 0
        self._stored: tuple[str, ...] = ("",)
        """What the artefact takes: in full, and in fewer words."""
        self._known: RecipeScore | None = None
        self._predicted: Prediction | None = None

    def show(self, session: Session, dirty: frozenset[Dirty] | None = None) -> None:
        """Draw what changed; None means everything."""
        self.session = session
        if dirty is None or dirty & {"holds", "layers", "model", "checkpoint"}:
            # Sums over the whole table: made only when the recipe moved.
            self._changed = len(session.recipe())
            self._stored = self._stored_size()
        if dirty is None or dirty & {"holds", "recipe", "measured", "baseline", "model", "layers"}:
            self._known = session.score() if self._changed else None
            self._predicted = predict(session) if self._changed else None
        self._write()

    @property
    def frozen(self) -> bool:
        """Whether the display pauses, and says so; what happens meanwhile is kept."""
        return self._frozen

    @frozen.setter
    def frozen(self, frozen: bool) -> None:
        self._frozen = frozen
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
        left: Words = [
            (fit(name, min(cell_len(name), max(12, width // 3)), self.glyphs), "bold"),
        ]
        if checkpoint is None:
            return left
        kind = printable(checkpoint.architecture)
        for tail in ("ForCausalLM", "LMHeadModel"):
            kind = kind.removesuffix(tail)
        facts = [f"{kind} {n.count(checkpoint.parameters)}", f"{len(session.layers.names)} layers"]
        own = f"{printable(checkpoint.stored)}, dequantised" if checkpoint.stored else ""
        memory = ""
        if model is not None:
            facts.append(f"{printable(model.device)} {model.dtype}")
            memory = _loaded(model)
        changed = f"{self.glyphs.changed} {self._changed} changed" if self._changed else ""
        device = facts[2] if model is not None else ""
        # Parts to drop if there is no room, in this order.
        facts += [own] if own else []
        optional = [fact for fact in (memory, device, facts[1], facts[0], own, changed) if fact]
        if model is not None and model.protocol.streamed:  # it says why everything takes long
            optional.remove(memory)
            optional.insert(len(optional) - bool(changed), memory)
        first = optional[0] if optional else ""
        stored, *fewer = self._stored
        last = 2 if len(fewer) > 3 else 0
        while True:
            words = left + [(f"  {fact}", "$dim") for fact in facts if fact in optional]
            right: Words = []
            for fact, style in ((changed, "$held"), (stored, ""), (memory, "$dim")):
                if fact and (fact in optional or fact is stored):
                    right.append((("  " if right else "") + fact, style))
            if cells(words) + 2 + cells(right) <= width or not (optional or fewer):
                return spread(words, right, width)
            # The sizes with a cache go last of all, so that the size itself stays.
            if fewer and (not optional or (first not in optional and len(fewer) > last)):
                stored = fewer.pop(0)
            else:
                optional.pop(0)

    def _stored_size(self) -> tuple[str, ...]:
        if not self.session.layers.names:
            return ("",)
        whole = self.session.size()
        size = n.size(whole.bytes)
        if math.isnan(whole.bits_per_weight):
            return (size,)
        body, every = f"{whole.bits_per_weight:.2f}", f"{whole.bits_all:.2f}"
        both = "" if body == every else f" ({every} all layers)"
        full = "" if body == every else f" ({every} with head and embedding)"
        if cached := self._with_cache(whole.bytes):
            first = cached[: cached.index(" ", cached.index(": ") + 2)]  # with a 16-bit cache alone
            return (
                f"{body} bits per weight{both}  {size}  {cached} with a 16, 8, 4-bit cache",
                f"{body} bits/weight  {size}  {cached} with cache",
                f"{body} bits  {size}  {cached}",
                f"{body} bits  {size}  {first}",
                f"{body} bits  {size}",
            )
        return (
            f"{body} bits per weight{full}  {size}",
            f"{body} bits/weight{both}  {size}",
            f"{body} bits{both}  {size}",
            f"{body} bits  {size}",
        )

    def _with_cache(self, weights: int) -> str:
        """Weights and cached keys and values together, in 16, 8 and 4 bits, for the context that
        the recipe is tuned for; empty without one, or where the configuration does not tell."""
        said = self.session.tuning
        if not said.context:
            return ""
        tokens = f"{said.context:,}" if said.context % 1024 else f"{said.context // 1024:,}k"
        try:
            sizes = [
                n.size(weights + cache_bytes(self.session, _cached(said, bits)))
                for bits in (16, 8, 4)
            ]
        except InfeasibleError:
            return ""
        many = f"{self.glyphs.times}{said.batch}" if said.batch > 1 else ""
        return f"{tokens}{many}: {' '.join(sizes)}"

    # --- the score ----------------------------------------------------------------------------

    def _score(self, width: int) -> Words:
        session, model = self.session, self.session.model
        if model is None:
            words: Words = [("PPL appears once the model is loaded", "$dim")]
            if self._changed:
                layers = "1 layer" if self._changed == 1 else f"{self._changed} layers"
                words.append((f"   earlier recipe: {layers} changed", "$held"))
            return words if running(session) or session.checkpoint is None else [("", "")]
        base = session.baseline
        if base is None:
            left: Words = [("PPL not measured yet", "$dim")]
        elif not self._changed:
            half = session.interval_factor * base.ppl * base.nll_se
            left = [("PPL ", "$dim"), (n.perplexity(base.ppl), "bold $accent"), *self._pm(half)]
        else:
            least = cell_len(_numbers(model)) + 2
            for detail in range(3 if width >= ROOM_FOR_MORE else 2, -1, -1):
                left = [("PPL ", "$dim"), (f"{n.perplexity(base.ppl)} {self.glyphs.arrow} ", "")]
                left += self._recipe(base.ppl, model, detail)
                if cells(left) + least <= width:
                    break
        room = width - cells(left) - 2
        return spread(left, [(self._protocol(model, room), "$dim")], width)

    def _recipe(self, before: float, model: ModelReady, detail: int) -> Words:
        """The recipe's score; in detail 1 with its KL, in 2 with what was predicted, in 3 with the
        KL's interval and the agreement of the first choices."""
        score, glyphs = self._known, self.glyphs
        predicted = self._predicted
        if predicted is not None and 0 < predicted.missing >= predicted.changed:
            predicted = None
        if score is not None:
            half = (score.ppl_high - score.ppl_low) / 2
            words: Words = [
                (n.perplexity(score.ppl), f"bold {_tone(score.ppl_low, score.ppl_high, before)}"),
                *self._pm(half),
            ]
            if not score.done:
                if predicted is not None and detail >= 2:
                    expected = f"{glyphs.about}{n.perplexity(predicted.ppl)}{_missing(predicted)}"
                    words.insert(0, (f"{expected} {glyphs.arrow} ", "$dim"))
                share = score.tokens / max(1, model.protocol.tokens)
                words.append((f" {min(share, 1):.0%}", "$dim"))
                if ended := _ended(self.session, score):
                    words.append((f", {ended}", "$warning"))
            if detail >= 1:
                words += [(f"  KL{glyphs.kilo} ", "$dim"), (n.short(1000 * score.kl), "")]
            if detail >= 3:
                error = n.short(1000 * self.session.interval_factor * score.kl_se)
                words.append((f" {glyphs.plus_minus} {error}", ""))
                if math.isfinite(score.top1):
                    words += [("  top-1 ", "$dim"), (n.percent(score.top1), "")]
            if detail >= 2 and score.done and predicted is not None:
                guess = f"{glyphs.about}{n.perplexity(predicted.ppl)}"
                if detail >= 3:
                    guess += f", KL {glyphs.about}{n.short(1000 * predicted.kl)}"
                words.append((f"  predicted {guess}{_missing(predicted)}", "$dim"))
            return words
        if predicted is None:
            return [("?", "bold"), (" not measured yet", "$dim")]
        words = [(glyphs.about + n.perplexity(predicted.ppl), _sure(predicted))]
        if detail >= 3:
            kl = f"{glyphs.about}{n.short(1000 * predicted.kl)}"
            words += [(f"  KL{glyphs.kilo} ", "$dim"), (kl, "")]
        words.append((_missing(predicted), "$dim"))
        return words

    def _pm(self, half: float) -> Words:
        return [(f" {self.glyphs.plus_minus} {n.margin(half)}", "")]

    def _protocol(self, model: ModelReady, room: int) -> str:
        numbers = _numbers(model)
        read = model.protocol
        text = printable(f"{read.text}:{read.column}" if read.column else read.text)
        space = room - len(numbers) - 2
        if space < 6:
            return numbers[:room] if room < len(numbers) else numbers
        return f"{fit(text, min(cell_len(text), space), self.glyphs)}  {numbers}"

    # --- the work -----------------------------------------------------------------------------

    def _work(self, width: int) -> Words:
        jobs = running(self.session)
        frozen: Words = []
        if self.frozen:
            frozen = [(f" display frozen, {self.freeze_key} resumes ", "bold reverse $warning")]
            frozen.append(("  ", ""))
            width -= cells(frozen)
        if not jobs:
            return frozen + self._idle()
        gauges = self._gauges(width)
        return frozen + spread(
            self._job(jobs, width - cells(gauges) - 2 * bool(gauges)), gauges, width
        )

    def _gauges(self, width: int) -> Words:
        """Load and memory of the engine's machine, as much as a third of the line has room for."""
        now = self.session.gauges
        if now is None:
            return []
        cpu = f"cpu {now.cpu:.0%}"
        memory = f"{n.size(now.rss)} used, {n.size(now.memory_free)} free"
        if now.gpu_total:
            load = f"gpu {now.gpu_load:.0%}"
            used = f"{n.size(now.gpu_used)} of {n.size(now.gpu_total)}"
            if now.gpu_own and now.gpu_used - now.gpu_own > now.gpu_total / 20:
                used = f"{n.size(now.gpu_own)} here, {used}"
            variants = [f"{load}  {used}  {cpu}  {memory}", f"{load}  {used}", load]
        else:
            variants = [f"{cpu}  {memory}", f"{cpu}  {n.size(now.rss)}", cpu]
        room = width // 2 if width >= ROOM_FOR_MORE else width // 3
        words = next((words for words in variants if cell_len(words) <= room), "")
        return [(words, "$dim")] if words else []

    def _job(self, jobs: list[Job], width: int) -> Words:
        stage, job = self.session.stage, jobs[0]
        title, done, total, left = job.title, job.done, job.total, time_left(job)
        in_bytes = job.in_bytes
        if job.kind == "open" and stage is not None:
            title, done, total = stage.name, float(stage.done), stage.total
            in_bytes = stage.in_bytes
        name = printable(title)
        words: Words = [
            (fit(name, min(cell_len(name), max(20, width // 3)), self.glyphs) + " ", "bold")
        ]
        figures = f" {done:.0f}/{total}" if total > 1 else ""
        phase = self._phase(job)
        if in_bytes and total > 1:
            figures = f" {_sizes(done, total)}"
        if total > 1:
            words += self._bar(done / total, max(6, min(40, width // 4)))
        clock = f"  {left}" if left else ""
        phase_text = phase.replace(COUNT, figures.strip()) if phase else ""
        named = bool(phase_text) and cells(words) + 1 + cell_len(phase_text + clock) <= width
        if named:
            figures = f" {phase_text}"
        words.append((figures + clock, ""))
        rest = width - cells(words) - 2
        # Its name is there, and no layer to add.
        said = named and self.session.row(job.subject) is None
        detail = "" if said or (phase and COUNT not in phase) else self._detail(job)
        more = f" +{len(jobs) - 2}" if len(jobs) > 2 else ""
        others = printable(f"next: {jobs[1].title}{more}" if len(jobs) > 1 else detail)
        if others and rest > 8:
            words.append(("  " + fit(others, min(cell_len(others), rest), self.glyphs), "$dim"))
        return words

    def _phase(self, job: Job) -> str:
        """The stage that a job is in, where it has several."""
        if job.phase in COUNTED:
            return f"{phase_words(job)} {COUNT}"
        if not isinstance(job.command, Sweep):
            return ""
        if job.phase == "estimating":
            return printable(phase_words(job))
        if job.phase != "measuring" or self.session.row(job.subject) is None:
            return ""
        direction, formats = job.command.direction, job.command.formats
        known = (
            key.direction == direction and key.format in formats
            for key in self.session.effects.estimated
        )
        return f"measuring {COUNT}, worst first" if any(known) else ""

    def _detail(self, job: Job) -> str:
        """What a job is about just now: a layer by its short name, and its format."""
        row = self.session.row(job.subject)
        if row is None:
            return about(job)
        name = short_name(job.subject, self.session.layers.blocks[row], 0).strip()
        return f"{name} {job.format}".strip()

    def _idle(self) -> Words:
        opening = last_job(self.session, "open")
        if opening and opening.status == "failed":
            return [("not open: ", "bold $error"), (printable(opening.message), "$error")]
        if opening and opening.status == "cancelled":
            return [(f"not open: {self.retry_key} opens it", "bold")]
        words: Words = [(self.state, "$dim")]
        if self.state != "ready":
            return words
        if left := self._unmeasured():
            words.append((f"  {left}", ""))
            return words
        for key, whole in self.session.effects.additivity.items():
            if key.direction == "degrade" and math.isfinite(whole.kl):
                format = printable(whole.format)
                words.append((f"  {format} in all body layers: ", "$dim"))
                words.append((n.additivity(whole.kl), ""))
        return words

    def _unmeasured(self) -> str:
        """How far a sweep came that is not running any more; empty where it is whole."""
        if (left := sweeps.unfinished(self.session, *self.shown)) is None:
            return ""
        format, direction = left
        done = sweeps.measured(self.session, format, direction)
        way = "" if direction == "degrade" else f"{direction} "
        said = f"{done} of {sweeps.total(self.session, direction)} layers measured"
        does = "resumes" if done else "measures them"
        return f"{way}{printable(format)}: {said}, {self.retry_key} {does}"

    def _bar(self, share: float, width: int) -> Words:
        full = round(min(max(share, 0.0), 1.0) * width)
        return [
            (self.glyphs.bar * full, "$primary"),
            (self.glyphs.bar_left * (width - full), "$panel"),
        ]


def _missing(predicted: Prediction) -> str:
    """What a prediction leaves out, and what of it is filled in."""
    said = [f"without {predicted.missing} unknown"] if predicted.missing else []
    said += [f"{predicted.filled} by weight error"] if predicted.filled else []
    return f" {', '.join(said)}" if said else ""


def _sure(predicted: Prediction) -> str:
    """The style of a prediction: what is mostly unknown does not catch the eye."""
    return "$dim" if predicted.vague else "bold $ink"


def _ended(session: Session, score: RecipeScore) -> str:
    """Why an unfinished score gets no further: ``cancelled``, ``failed``; empty while it does."""
    jobs = [
        job
        for job in session.jobs.values()
        if job.kind == "evaluate" and job.recipe == score.recipe
    ]
    return jobs[-1].status if jobs and jobs[-1].status in ("cancelled", "failed") else ""


def _sizes(done: float, total: int) -> str:
    """``8.7 of 25.5 MB``: bytes, in the unit of the whole."""
    whole, _, unit = n.size(total).rpartition(" ")
    step = {"TB": 1e12, "GB": 1e9, "MB": 1e6, "kB": 1e3}.get(unit, 1.0)
    return f"{done / step:.{len(whole.partition('.')[2])}f} of {whole} {unit}"


def _numbers(model: ModelReady) -> str:
    """Tokens and windows of the protocol, shown next to every perplexity."""
    protocol = model.protocol
    cut = f"window {protocol.seq_len}"
    if protocol.stride not in (protocol.seq_len, protocol.seq_len - 1, 0):
        cut += f" stride {protocol.stride}"
    return f"{n.count(protocol.tokens)} tok, {cut}"


def _loaded(model: ModelReady) -> str:
    """How much is in memory; or that blocks are streamed, and how long they are read each time."""
    if not model.protocol.streamed:
        return f"{n.size(model.memory)} loaded"
    seconds = f", {n.clock(model.reading_s)} a reading" if model.reading_s else ""
    return f"streamed{seconds}"


def _tone(low: float, high: float, before: float) -> str:
    """Colour of a score beside the one before it; the numbers say the same."""
    if low > before * 1.05:
        return "$heat-5"
    if low > before * 1.01:
        return "$heat-4"
    return "$better" if high < before else "$accent"


def _cached(said: TunedFor, bits: int) -> Budget:
    return Budget(context=said.context, batch=said.batch, cache_bits=bits)
