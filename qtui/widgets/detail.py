"""The pane: all that is known about the layer under the cursor."""

from __future__ import annotations

import math

from textual.app import ComposeResult
from textual.containers import Vertical

from engine.protocol import LayerWeights, Sensitivity
from engine.session import Session
from qtui import text as t
from qtui.text import UNICODE, Glyphs, fit, printable
from qtui.widgets.histogram import Histogram
from qtui.widgets.line import Lines, Words
from qtui.widgets.rows import OUTLIER_COLUMN, change


class Detail(Vertical):
    """The layer's name and shape, its histogram, its errors and its effects.

    ``small`` shows three lines of it with a histogram of one line; the pane as a whole takes what
    room it is given.
    """

    DEFAULT_CSS = """
    Detail { background: $background; padding: 0 1; }
    Detail > #about { height: auto; }
    Detail > #figures { height: auto; }
    Detail > Histogram { min-height: 6; max-height: 18; }
    Detail.-small { height: 3; }
    Detail.-small > #figures { display: none; }
    Detail.-small > Histogram { display: none; }
    """

    def __init__(self, glyphs: Glyphs = UNICODE, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self.glyphs = glyphs
        self.session = Session()
        self.row: int | None = None
        self.about = Lines(id="about")
        self.histogram = Histogram(glyphs, id="histogram")
        self.figures = Lines(id="figures")

    def compose(self) -> ComposeResult:
        """The three parts."""
        yield self.about
        yield self.histogram
        yield self.figures

    def show(self, session: Session, layer: str | None) -> None:
        """Draw what is known about a layer."""
        self.session = session
        self.row = None if layer is None else session.row(layer)
        self._write()

    def on_resize(self) -> None:
        """Make use of the new room."""
        self._write()

    def _write(self) -> None:
        if self.row is None:
            self.about.set_lines([])
            self.figures.set_lines([])
            self.histogram.show(None, 4.0)
            return
        if self.has_class("-small"):
            self.about.set_lines(self._small(self.row))
            return
        width = self.content_size.width
        self.about.set_lines(self._about(self.row, width))
        name = self.session.layers.names[self.row]
        self.histogram.show(
            self.session.histograms.get(name), self.session.settings.sigma, "reading weights"
        )
        self.figures.set_lines(self._figures(self.row, self.content_size.height < 26))

    # --- words --------------------------------------------------------------------------------

    def _shape(self, row: int) -> str:
        layers = self.session.layers
        shape = f" {self.glyphs.times} ".join(str(size) for size in layers.shapes[row])
        return f"[{shape}] {printable(layers.dtypes[row])}"

    def _about(self, row: int, width: int) -> list[Words]:
        layers = self.session.layers
        weights = t.count(math.prod(layers.shapes[row]))
        return [
            [(fit(printable(layers.names[row]), width, self.glyphs, end=False), "bold")],
            [
                (f"{self._shape(row)}  {weights} weights  holds ", "$dim"),
                (printable(layers.holds[row]), self._holds_style(row)),
            ],
            [],
        ]

    def _holds_style(self, row: int) -> str:
        changed = self.session.layers.holds[row] != self.session.kept(row)
        return "bold $held" if changed else "$dim"

    def _small(self, row: int) -> list[Words]:
        layers, width = self.session.layers, self.content_size.width
        found, known = self.session.histograms.get(layers.names[row]), layers.weights[row]
        shape = self._shape(row)
        spark = t.sparkline(found.counts, 20, self.glyphs) if found is not None else ""
        room = width - len(shape) - 24
        name = fit(printable(layers.names[row]), min(room, len(layers.names[row])), self.glyphs,
                   end=False)  # fmt: skip
        first: Words = [(name, "bold"), (f"  {shape}  ", "$dim"), (spark, "$primary")]
        second: Words = []
        if known is not None:
            for format, error in known.errors.items():
                second += [
                    (f"{printable(format)} ", "$dim"),
                    (f"{t.percent(error.relative)}  ", ""),
                ]
            second += self._finding(known, brief=True)
        third: Words = []
        for format, effect in self._effects(row)[:2]:
            third += [(f"{printable(format)} ", "$dim"), *self._kl(effect), ("   ", "")]
            third += [(f"{self._dppl} ", "$dim"), (change(effect, self.glyphs), ""), ("  ", "")]
        return [first, second, third or [("effect not measured yet", "$dim")]]

    @property
    def _dppl(self) -> str:
        return "dPPL" if self.glyphs.ascii else "ΔPPL"

    def _kl(self, effect: Sensitivity) -> Words:
        half = self.session.interval_factor * effect.kl_se
        pm = self.glyphs.plus_minus
        return [
            (f"KL{self.glyphs.kilo} ", "$dim"),
            (f"{t.short(1000 * effect.kl)} {pm} {t.short(1000 * half)}", ""),
        ]

    def _effects(self, row: int) -> list[tuple[str, Sensitivity]]:
        return [
            (key.removeprefix("degrade/"), fact)
            for key, column in self.session.measured.items()
            if key.startswith("degrade/") and (fact := column[row]) is not None
        ]

    def _finding(self, known: LayerWeights, *, brief: bool = False) -> Words:
        mark, words = self.glyphs.finding, []
        if known.nan or known.inf:
            words.append(f"{known.nan} NaN, {known.inf} Inf")
        if known.worst_column_sigma > OUTLIER_COLUMN:
            reach = f"{t.short(known.worst_column_sigma, small=1)}{self.glyphs.sigma}"
            words.append(
                f"channel {known.worst_column}: {reach}"
                if brief
                else f"input channel {known.worst_column} reaches {reach}"
            )
        if known.zero_rows:
            words.append(f"{known.zero_rows} rows all zero")
        return [(f"{mark} {'; '.join(words)}", "$finding")] if words else []

    def _figures(self, row: int, close: bool) -> list[Words]:
        session = self.session
        known, name = session.layers.weights[row], session.layers.names[row]
        effects = self._effects(row)
        lines: list[Words] = [[], [(self._title(), "$dim")]]
        for format, effect in effects:
            half = (
                f"{self.glyphs.plus_minus} {t.short(1000 * session.interval_factor * effect.kl_se)}"
            )
            top1 = "" if math.isnan(effect.top1) else t.percent(effect.top1)
            lines.append(
                [
                    (fit(printable(format), 12, self.glyphs), ""),
                    (f"{t.short(1000 * effect.kl):>5} {half:<8}", "bold"),
                    (f"{change(effect, self.glyphs):<14}", ""),
                    (f"{top1:>6}", ""),
                    (f"{t.count(effect.tokens):>5}", "$dim"),
                ]
            )
        if not effects:
            lines.append([("not measured yet", "$dim")])
        for fallback in session.fallbacks:
            if fallback.layer == name:
                why = f"no {printable(fallback.format)}: {printable(fallback.why)}"
                lines.append([(why, "$warning")])
        lines.append([])
        if known is None:
            lines.append([("weights not read yet", "$dim")])
        else:
            lines += self._weights(known)
        lines += [[], self._control()]
        return [line for line in lines if line or not close]

    def _control(self) -> Words:
        control = self.session.control
        if control is None:
            return []
        said = f"no-op control: KL {control.max_abs_kl:.0e}, NLL {control.max_abs_dnll:.0e}"
        if control.floor_kl:
            said += f", floor {control.floor_kl:.0e}"
        return [(said.replace("0e+00", "0"), "$dim")]

    def _title(self) -> str:
        kl = "KL" + self.glyphs.kilo
        return f"{'effect of':<13}{kl:<13}{self._dppl:<14}{'top-1':>6}{'tok':>5}"

    def _weights(self, known: LayerWeights) -> list[Words]:
        sigma, out = self.glyphs.sigma, known.outliers
        beyond = f">{t.short(out.sigma, small=0)}{sigma}"
        lines: list[Words] = [
            [
                (f"{beyond} ", "$dim"),
                (f"{t.percent(out.fraction)} ({out.count:,})", ""),
                ("  max ", "$dim"),
                (t.short(out.max_abs, small=3), ""),
                ("  std ", "$dim"),
                (t.short(known.std, small=4), ""),
                ("  kurt ", "$dim"),
                (t.short(known.kurtosis, small=1), ""),
            ]
        ]
        if found := self._finding(known):
            lines.append(found)
        lines += [[], [(f"{'error of':<14}{'relative':>8}{'SQNR':>10}{'largest':>10}", "$dim")]]
        for format, error in known.errors.items():
            lines.append(
                [
                    (fit(printable(format), 14, self.glyphs), ""),
                    (f"{t.percent(error.relative):>8}", "bold"),
                    (f"{t.short(error.sqnr_db, small=1) + ' dB':>10}", ""),
                    (f"{t.short(error.max_abs, small=4):>10}", ""),
                ]
            )
        for format, why in known.refused.items():
            lines.append(
                [(fit(printable(format), 14, self.glyphs), ""), (printable(why), "$warning")]
            )
        return lines
