"""The lines of the side pane: everything known about one layer."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import median

from engine.diagnosis.advice import Advice, category
from engine.diagnosis.thresholds import Thresholds, thresholds
from engine.protocol import ExpertsReady, LayerWeights
from engine.report import wording as n
from engine.report.figures import Context, Figure
from engine.report.figures.registry import pane_figures
from engine.report.verdicts import advice_sentence
from engine.session import Session
from qtui.views.text import Glyphs, fit, printable, wrapped
from qtui.widgets.line import Words, cells
from qtui.widgets.pane.effect_facts import bits_per_weight, here
from qtui.widgets.pane.past import Step


def _label_width(labels: list[str], room: int) -> int:
    return max(12, min(max(map(len, labels), default=0), room))


def findings(
    known: LayerWeights, limits: Thresholds, glyphs: Glyphs, *, brief: bool = False
) -> Words:
    """What a person should look at in a layer's weights; empty where there is nothing."""
    words = []
    if known.nan or known.inf:
        words.append(f"{known.nan:,} NaN, {known.inf:,} Inf")
    if known.worst_column_sigma > limits.outlier_column:
        reach = f"{n.short(known.worst_column_sigma, small=1)}{glyphs.sigma}"
        words.append(
            f"channel {known.worst_column}: {reach}"
            if brief
            else f"input channel {known.worst_column} reaches {reach}"
        )
    if known.zero_rows:
        words.append(f"{_counted(known.zero_rows, 'row')} all zero")
    if known.dead_columns:
        words.append(_counted(known.dead_columns, "dead input"))
    return [(f"{glyphs.finding} {'; '.join(words)}", "$finding")] if words else []


def _counted(number: int, what: str) -> str:
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"


def weight_lines(context: Context, row: int, glyphs: Glyphs) -> list[Words]:
    """Figures of a layer's weights, several in a line; what is not known is left out."""
    known = context.session.layers.weights[row]
    limits = thresholds(context.session)
    lines: dict[int, list[tuple[str, str]]] = {}
    for figure in pane_figures("weights"):
        pane, value = figure.pane, figure.read.bind(context)(row)
        if pane is None or value is None or (pane.unless_zero and not value):
            continue
        own = WEIGHT_WORDS.get(figure.id)
        if own is None or known is None:
            pair = pane.label, printable((pane.text or figure.quantity.text)(value))
        elif (said := own(known, glyphs, limits)) is not None:
            pair = said
        else:
            continue
        lines.setdefault(pane.line, []).append(pair)
    return [_pairs(lines[number]) for number in sorted(lines)]


def _outliers(known: LayerWeights, glyphs: Glyphs, limits: Thresholds) -> tuple[str, str]:
    out = known.outliers
    beyond = f">{n.short(out.sigma, small=0)}{glyphs.sigma}"
    return beyond, f"{n.percent(out.fraction)} ({out.count:,})"


def _range(known: LayerWeights, glyphs: Glyphs, limits: Thresholds) -> tuple[str, str]:
    return "range", f"{n.short(known.range_ratio, small=1)}{glyphs.times} that without outliers"


def _largest_channel(
    known: LayerWeights, glyphs: Glyphs, limits: Thresholds
) -> tuple[str, str] | None:
    if known.worst_column_sigma > limits.outlier_column:
        return None  # it is among the findings
    reach = f"{n.short(known.worst_column_sigma, small=1)}{glyphs.sigma}"
    return "largest input channel", f"{known.worst_column}, {reach}"


WEIGHT_WORDS: dict[str, Callable[[LayerWeights, Glyphs, Thresholds], tuple[str, str] | None]] = {
    "outliers": _outliers,
    "range_ratio": _range,
    "worst_column": _largest_channel,
}
"""Label and text of figures that have their own, by id; None leaves one out."""


def _pairs(pairs: list[tuple[str, str]]) -> Words:
    words: Words = []
    for name, value in pairs:
        words += [(("  " if words else "") + name + " ", "$dim"), (value, "")]
    return words


def advice_lines(
    context: Context, row: int, found: Advice | None, width: int, glyphs: Glyphs
) -> list[Words]:
    """Where the layer is, and the format that its share of the damage calls for."""
    session = context.session
    if found is None:
        return []
    said = advice_sentence(found, context.key.format, session.kept(row), about=glyphs.about)
    place = category(session, row)
    lines = wrapped(printable(f"{place}: {said}"), max(20, width - 2))
    return [[(line if at == 0 else f"  {line}", "$better")] for at, line in enumerate(lines)]


def error_lines(session: Session, row: int, width: int, glyphs: Glyphs) -> list[Words]:
    """Error and price of each format side by side, the cheapest first, and what was refused.

    The format that the layer holds is among them, measured or not.
    """
    known, shape = session.layers.weights[row], session.layers.shapes[row]
    if known is None:
        return [[("weights not read yet", "$dim")]]
    held = session.layers.holds[row]
    formats = [*known.errors]
    if held not in known.errors and held != session.kept(row):
        formats.append(held)
    columns = [(each, each.pane) for each in pane_figures("errors") if each.pane is not None]
    label = _label_width([*formats, *known.refused], width - 6 - sum(p.width for _, p in columns))
    title = f"{'error of':<{label}} {'bit/w':>6}"
    title += "".join(f"{pane.label:>{pane.width}}" for _, pane in columns)
    lines: list[Words] = [[(title, "$dim")]]
    priced = [(bits_per_weight(format, shape), format) for format in formats]
    for bits, format in sorted(priced, key=lambda one: (math.isnan(one[0]), one)):
        words: Words = [
            (fit(printable(format), label, glyphs) + " ", here(format, held)),
            (f"{_bits(bits):>6}", ""),
        ]
        if (error := known.errors.get(format)) is None:
            lines.append([*words, ("  error not measured", "$dim")])
            continue
        for at, (figure, pane) in enumerate(columns):
            value = None if figure.read.value is None else figure.read.value(error, session)
            text = "" if value is None else (pane.text or figure.quantity.text)(value)
            words.append((f"{text:>{pane.width}}", "" if at else "bold"))
        lines.append(words)
    return lines + refusal_lines(session, row, label, width, glyphs)


def _bits(bits: float) -> str:
    return "?" if math.isnan(bits) else f"{bits:.2f}"


def refusal_lines(
    session: Session, row: int, label: int, width: int, glyphs: Glyphs
) -> list[Words]:
    """Formats that the layer does not hold, and why, each said once."""
    known, name = session.layers.weights[row], session.layers.names[row]
    refused = dict(known.refused) if known is not None else {}
    for fallback in session.fallbacks:
        if fallback.layer == name:
            refused.setdefault(fallback.format, fallback.why)
    lines: list[Words] = []
    for format, why in refused.items():
        room = max(20, width - label - 4)
        said = wrapped(printable(" ".join(why.split())), room)
        for at, piece in enumerate(said):
            head = f"no {printable(format)}" if at == 0 else ""
            lines.append([(fit(head, label + 3, glyphs) + " ", ""), (piece, "$warning")])
    return lines


def past_lines(
    session: Session, total: int, steps: list[Step], width: int, glyphs: Glyphs
) -> list[Words]:
    """What the layer held, oldest first, and what the whole recipe scored after each step."""
    if not steps:
        return []
    title = "history" if total == len(steps) else f"history, the last {len(steps)} of {total}"
    label = _label_width([step.after for step in steps], width - 46)
    head: Words = [(f"{title}  ", "$dim"), (printable(steps[0].before), "")]
    if any(step.score is not None for step in steps):
        # Above the scores, where what the layer held at first leaves room.
        head.append((" " * max(2, label + 6 - cells(head)) + "recipe's PPL", "$dim"))
    lines: list[Words] = [head]
    for step in steps:
        dim = "$dim" if not step.in_force else ""
        words: Words = [
            (f"  {glyphs.arrow} ", dim),
            (fit(printable(step.after), label, glyphs), dim or "bold"),
        ]
        if (score := step.score) is not None:
            half = (score.ppl_high - score.ppl_low) / 2
            said = f"  {n.perplexity(score.ppl)} {glyphs.plus_minus} {n.margin(half)}"
            words.append((said, dim))
        if not step.in_force:
            words.append(("  undone", "$warning"))
        if score is not None and step.others:
            words.append((f"  with {_counted(step.others, 'other')} changed", "$dim"))
        elif score is None and step.layers > 1:
            words.append((f"  together with {_counted(step.layers - 1, 'other')}", "$dim"))
        lines.append(words)
    return lines


def control_lines(session: Session) -> list[Words]:
    """What a change of nothing measures."""
    control = session.control
    if control is None:
        return []
    said = f"no-op control: KL {control.max_abs_kl:.0e}, NLL {control.max_abs_dnll:.0e}"
    if control.floor_kl:
        said += f", floor {control.floor_kl:.0e}"
    return [[(said.replace("0e+00", "0").replace("e-0", "e-"), "$dim")]]


def expert_lines(
    found: ExpertsReady | None, expert: int, sigma: float, width: int, glyphs: Glyphs
) -> list[Words]:
    """Figures of one expert, beside the median of all; what is not there yet is said."""
    if found is None:
        return [[(f"reading the experts{glyphs.ellipsis}", "$dim")]]
    if not 0 <= expert < len(found.std):
        return [[(f"no figures of expert {expert}, only of {len(found.std)} experts", "$warning")]]
    label = _label_width(list(found.relative), width - 36)
    title = f"{'of this expert':<{label}} {'':>8}{'median':>10}{'rank':>16}"
    lines: list[Words] = [[(title, "$dim")]]
    for figure in pane_figures("weights"):
        if figure.pane is not None and (each := figure.experts) is not None:
            name = figure.pane.label
            if figure.id == "outliers":
                name = f"beyond {n.short(sigma, small=0)}{glyphs.sigma}"
            values = each.read(found, "")
            lines += _of_expert(name, values, expert, figure, label, glyphs)
    for figure in pane_figures("errors"):
        if (each := figure.experts) is not None and found.relative:
            lines.append([(f"{figure.id} of", "$dim")])
            for format in found.relative:
                values = each.read(found, format)
                lines += _of_expert(format, values, expert, figure, label, glyphs)
    if found.nonfinite[expert]:
        mark = f"{glyphs.finding} {found.nonfinite[expert]:,} NaN or Inf"
        lines.append([(mark, "$finding")])
    return lines


def _of_expert(
    name: str, values: Sequence[float], expert: int, figure: Figure, label: int, glyphs: Glyphs
) -> list[Words]:
    """A figure of one expert, beside the median of all; nothing where it is not known."""
    if expert >= len(values):
        return []
    value, shown = values[expert], figure.quantity.text
    finite = [other for other in values if math.isfinite(other)]
    middle = shown(median(finite)) if finite else glyphs.unknown
    rank = 1 + sum(other > value for other in finite)
    return [
        [
            (fit(printable(name), max(label, 14), glyphs), ""),
            (f" {shown(value):>8}", "bold"),
            (f"{middle:>10}", "$dim"),
            (f"{f'{rank} of {len(finite)}':>16}", "$dim" if rank > 1 else "$finding"),
        ]
    ]
