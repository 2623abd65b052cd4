"""The pane's tab of activations: what a layer is given and returns."""

from __future__ import annotations

from collections.abc import Sequence

from engine.protocol import Activation, LayerActivations, Triage
from engine.report import wording as n
from engine.session import Session
from qtui.views.text import Glyphs, printable, short_name, wrapped
from qtui.widgets.line import Words
from qtui.widgets.pane.tab import TabContext, is_running

FIGURES: tuple[tuple[str, str], ...] = (
    ("largest", "max"),
    ("mean of magnitudes", "mean"),
    ("standard deviation", "std"),
    ("99th percentile", "p99"),
    ("largest / mean", "ratio"),
)
"""Rows of the table: what each says, and the attribute that has it."""
LABEL, COLUMN = 34, 10


def activation_lines(context: TabContext) -> list[Words]:
    """Figures of inputs and outputs side by side, outlier channels by number, massive tokens."""
    session, row, glyphs = context.session, context.row, context.glyphs
    known = session.layers.activations[row]
    if known is None:
        said = "not measured yet"
        if is_running(session, lambda command: isinstance(command, Triage) and command.activations):
            said = "measuring all layers, together" + glyphs.ellipsis
        elif session.model is not None:
            how = "measures every layer in one pass over the calibration text"
            said += f": {context.key('activations')} {how}"
        return [[(piece, "$dim")] for piece in wrapped(said, max(20, context.width))]
    sides = [("input", known.input), ("output", known.output)]
    if known.module_output != known.output:  # elsewhere a module returns what its last layer does
        sides.append((known.module.rpartition(".")[2], known.module_output))
    shown = [(name, found) for name, found in sides if found is not None]
    title = "".join(f"{name:>{COLUMN}}" for name, _ in shown)
    lines: list[Words] = [[(f"{f'{known.tokens:,} tokens':<{LABEL}}{title}", "$dim")]]
    for label, attribute in FIGURES:
        values = "".join(f"{n.short(getattr(side, attribute)):>{COLUMN}}" for _, side in shown)
        lines.append([(f"{label:<{LABEL}}", ""), (values, "bold")])
    for label, attribute in (
        (f"channels beyond 6{glyphs.times} the median", "by_median"),
        (f"channels beyond 6{glyphs.times} the mean", "by_mean"),
        ("tokens beyond 20× the median norm".replace("×", glyphs.times), "massive"),
    ):
        counts = "".join(f"{getattr(side, attribute):>{COLUMN},}" for _, side in shown)
        lines.append([(f"{label:<{LABEL}}", ""), (counts, "bold")])
    for name, side in shown:
        lines += _largest_token(name, side, glyphs)
    for name, side in shown:
        lines += _channels(name, side, context.width, glyphs)
    lines += _experts(known, context.expert, context.width, glyphs)
    if known.shared_with and known.shared_with != session.layers.names[row]:
        lines += [[], [("same input as ", "$dim"), (_short(session, known.shared_with), "")]]
    return lines


def _short(session: Session, layer: str) -> str:
    row = session.row(layer)
    block = -1 if row is None else session.layers.blocks[row]
    return printable(short_name(layer, block, 2)).strip()


def _largest_token(name: str, side: Activation, glyphs: Glyphs) -> list[Words]:
    """Where the token with the largest norm is, if its norm dwarfs the others'."""
    if not side.massive or side.position < 0:
        return []
    times = n.short(side.largest_norm / side.median_norm, small=0) if side.median_norm else "?"
    said = (
        f"largest token of the {name}: position {side.position}, {times}{glyphs.times} the median"
    )
    return [[(said, "$finding")]]


def _channels(name: str, side: Activation, width: int, glyphs: Glyphs) -> list[Words]:
    """Outlier channels by number, the largest first."""
    if not side.outlier_channels:
        return []
    pairs = zip(side.outlier_channels, side.outlier_maxima, strict=True)
    listed = ", ".join(f"{channel}: {n.short(largest)}" for channel, largest in pairs)
    if side.by_median > len(side.outlier_channels):
        listed += f", {glyphs.ellipsis}"
    lines: list[Words] = [[], [(f"outlier channels of the {name}, and their largest", "$dim")]]
    return lines + [[("  " + piece, "$finding")] for piece in wrapped(listed, max(20, width - 2))]


def _experts(
    known: LayerActivations, expert: int | None, width: int, glyphs: Glyphs
) -> list[Words]:
    """Tokens of each expert; those that got none are named."""
    tokens = known.expert_tokens
    if not tokens:
        return []
    lines: list[Words] = [[]]
    if expert is not None and expert < len(tokens):
        lines.append([(f"expert {expert}: ", "$dim"), (f"{tokens[expert]:,} tokens", "bold")])
    fewest, most = min(tokens), max(tokens)
    spread = f"from {fewest:,} to {most:,}"
    lines.append([("tokens of an expert ", "$dim"), (spread, "")])
    if unseen := [number for number, got in enumerate(tokens) if not got]:
        said = f"{glyphs.finding} no token for {_numbers(unseen, glyphs)}"
        lines += [[(piece, "$finding")] for piece in wrapped(said, max(20, width))]
    return lines


def _numbers(numbers: Sequence[int], glyphs: Glyphs, most: int = 24) -> str:
    """``experts 3, 7, 9``."""
    listed = ", ".join(map(str, numbers[:most]))
    more = f"{glyphs.ellipsis} ({len(numbers)})" if len(numbers) > most else ""
    return f"expert{'s' if len(numbers) > 1 else ''} {listed}{more}"
